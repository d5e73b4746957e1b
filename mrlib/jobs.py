"""Calls of functions on any `concurrent.futures.Executor`, each in a Python process of its own.

The worker of an executor may be a thread, a process or another machine. Whatever it is, it starts a process for the
call and waits for it. So calls share no random generator, number of threads or signal handler with one another or with
what else the worker does, and a call that is killed takes no other one with it.

A call is stopped, as by SIGTERM, when its worker dies, and when the process that submitted it is interrupted; that one
leaves a file, which the call finds if the folder is shared by both machines.

What is submitted is `call` and a line of JSON, so that every executor can send it. The line is new in every run, since
some executors keep the results of equal calls.
"""

from __future__ import annotations

import json
import os
import runpy
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
LOOK_S = 0.5  # a call looks this often for the file that stops it
STOP_S = 20.0  # so long one who is interrupted waits for running calls to stop
GRACE_S = 60.0  # so long a call may take to stop
FORESEEN = (ValueError, OSError, ArithmeticError, RuntimeError)  # errors whose message is enough

_importing = False  # this process imports the script that submitted its call


@dataclass(frozen=True)
class Job:
    """A call to submit."""

    name: str  # for messages
    function: str  # "mrlib.grid.train_row", which the process imports
    arguments: Mapping[str, Any]  # by name, plain values
    lock: Path | None = (
        None  # held during the call; one whose worker seemed lost, and was not, ends before it begins anew
    )


class JobError(RuntimeError):
    """A call failed, or was lost with its worker; the message says why."""


@contextmanager
def submitted(
    jobs: Mapping[Key, Job], executor: Executor, folder: Path
) -> Iterator[Iterator[tuple[Key, Any | JobError]]]:
    """Submit calls; yields an iterator of their keys with their results, or a JobError, in the order in which they end.

    If the block fails or is interrupted, calls that have not begun are cancelled, and the others stop.

    folder  exists, and is shared with the workers
    raises  ValueError, before anything begins, if the executor is none or takes no calls
    """
    check_executor(executor)
    stop = folder / f".{secrets.token_hex(8)}.stop"
    futures: dict[Key, Future] = {}
    ended: SimpleQueue[Key] = SimpleQueue()  # `as_completed` would wait for ever for one that a shutdown cancels
    try:
        for key, job in jobs.items():
            futures[key] = _submit(executor, job, stop)
        errors = [future.exception() for future in futures.values() if isinstance(future, _Refused)]
        if jobs and len(errors) == len(jobs):
            raise ValueError(f"executor takes no calls: {errors[0]}; give one that is open")
        for key, future in futures.items():
            future.add_done_callback(lambda _, key=key: ended.put(key))
        yield ((key, _outcome(futures[key])) for key in (ended.get() for _ in futures))
    except BaseException:
        if not all(isinstance(future, _Refused) for future in futures.values()):
            stop.touch()
        wait([future for future in futures.values() if not future.cancel()], STOP_S)
        raise
    for file in folder.glob(".*.stop"):  # of interrupted calls too, which have long seen theirs
        file.unlink(missing_ok=True)


def check_executor(executor: Executor) -> None:
    """ValueError, with what to give instead, unless it is an executor; RuntimeError in a process that is a call."""
    if _importing:
        raise RuntimeError(
            "the process of a call imports the script that submitted it, and the script submits calls when it is "
            "imported; put what it does under if __name__ == '__main__':"
        )
    if isinstance(executor, Executor):
        return
    advice = "give its .get_executor()" if hasattr(executor, "get_executor") else "leave it out to use this machine"
    kind = type(executor).__name__
    raise ValueError(f"executor must be a concurrent.futures.Executor, not {executor!r} ({kind}); {advice}")


class _Refused(Future):
    """Of a call that an executor did not take."""


def _submit(executor: Executor, job: Job, stop: Path) -> Future:
    request = _request(job, stop)
    try:
        return executor.submit(call, request)
    except Exception as error:  # shut down, or broken by an earlier call
        future = _Refused()
        future.set_exception(error)
        return future


def _request(job: Job, stop: Path | None) -> str:
    """A call as a line of JSON; stop  the file that stops it."""
    request = {"name": job.name, "function": job.function, "arguments": dict(job.arguments), "script": _script()}
    request |= {name: file and os.path.abspath(file) for name, file in (("lock", job.lock), ("stop", stop))}
    return json.dumps(request)


def run_here(job: Job) -> Any:
    """Run a call in a process of its own on this machine, and wait for it; JobError if it fails."""
    return call(_request(job, None))


def _script() -> tuple[str, str, list[str]]:
    """What runs here, as "path" or "module" with its name, and its arguments; "" in a notebook.

    A script may define parts of its own, as `mrlib.papers.DETECTORS` has them.
    """
    main = sys.modules["__main__"]
    name, file = getattr(getattr(main, "__spec__", None), "name", ""), getattr(main, "__file__", "")
    if name.rpartition(".")[2] == "__main__":  # the command of a package, which defines nothing
        return "", "", sys.argv
    return ("module", name, sys.argv) if name else ("path" if file else "", file and os.path.abspath(file), sys.argv)


def _outcome(future: Future) -> Any | JobError:
    """What a call that has ended returned, or why it did not."""
    if future.cancelled():
        return JobError("it was cancelled, as by an executor that is shut down")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, JobError):
        return error
    lost = JobError(f"its worker was lost, {type(error).__name__}: {' '.join(str(error).split())}")
    lost.__cause__ = error
    return lost


# ---- at the worker


def call(request: str) -> Any:
    """Run a call in a process of its own and wait for it; returns its result.

    request  a line of JSON, see `submitted`
    raises   JobError if it failed, or its process ended without a word
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-P", "-c", "from mrlib.jobs import main; main()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, text=True, **pipes)
    try:
        with suppress(BrokenPipeError):
            print(request, file=process.stdin, flush=True)
        answer = process.stdout.read()
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()  # which stops it, if it has not ended
        status = process.wait()
        process.stdout.close()
    if not answer:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise JobError(f"its process was {how}" if status < 0 else f"its process {how}")
    kind, value = json.loads(answer)
    if kind == "error":
        raise JobError(value)
    return value


def main() -> None:
    """The process of a call: it reads a request from stdin, and writes ["result", value] or ["error", text] to stdout.

    It ends when stdin does. What the call prints goes to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that submitted the call
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # training handles it in its own way
    request = json.loads(sys.stdin.readline())
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for reached in (_parent_died, *([lambda: _found(Path(request["stop"]))] if request["stop"] else [])):
        threading.Thread(target=_stop_when, args=(reached,), daemon=True).start()
    try:
        said = ["result", _run(request)]
    except SystemExit:
        said = ["error", "it was stopped"]
    except FORESEEN as error:
        said = ["error", f"{type(error).__name__}: {error}"]
    except Exception as error:
        traceback.print_exc()
        said = ["error", f"{type(error).__name__}: {error}; its traceback is in the output of its worker"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # its worker closes stdin once it has the answer
    with suppress(BrokenPipeError), answer:
        json.dump(said, answer)


def _run(request: Mapping[str, Any]) -> Any:
    """What the function of a request returns."""
    from mrlib import locks  # here, so that a worker loads little

    _import_script(*request["script"])
    module, _, name = request["function"].rpartition(".")
    function = getattr(import_module(module), name)
    with locks.hold(Path(request["lock"]), request["name"], wait=True) if request["lock"] else nullcontext():
        return function(**request["arguments"])


def _import_script(kind: str, name: str, arguments: list[str]) -> None:
    """Import the script that submitted a call under another name than __main__, as multiprocessing does."""
    global _importing
    _importing, sys.argv = True, arguments
    if kind == "module":
        runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
    elif kind == "path" and Path(name).is_file():  # it may be missing on another machine
        runpy.run_path(name, run_name="__mp_main__")
    _importing = False


def _stop_when(reached: Callable[[], None]) -> None:
    """Stop this process as SIGTERM does when a function returns; if that takes too long, end it."""
    reached()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


def _parent_died() -> None:
    while os.read(0, 1):
        pass


def _found(file: Path) -> None:
    while not file.exists():
        time.sleep(LOOK_S)
