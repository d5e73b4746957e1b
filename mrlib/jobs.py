"""Calls of functions on any `concurrent.futures.Executor`, each in a Python process of its own.

The worker of an executor may be a thread, a process or another machine. Whatever it is, it starts a process for the
call and waits for it; only `ThisMachine` keeps its processes for further calls. So calls share no random generator,
number of threads or signal handler with one another or with what else the worker does, and a call that is killed takes
no other one with it.

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
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
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
        if isinstance(executor, ProcessPoolExecutor):  # it looks for dead workers among those it had at its last call
            with suppress(RuntimeError):
                executor.submit(int)
        errors = [future.exception() for future in futures.values() if isinstance(future, _Refused)]
        if jobs and len(errors) == len(jobs):
            raise ValueError(f"executor takes no calls: {errors[0]}; give one that is open")
        for key, future in futures.items():
            future.add_done_callback(lambda _, key=key: ended.put(key))
        yield ((key, _outcome(futures[key])) for key in (ended.get() for _ in futures))
    except BaseException:
        running = [future for future in futures.values() if not future.cancel()]
        with suppress(OSError):  # the disk may be full, or the folder gone: the calls are cancelled in any case
            if not all(isinstance(future, _Refused) for future in futures.values()):
                stop.touch()
        wait(running, STOP_S)
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


def _script() -> tuple[str, str, str]:
    """What runs here, as "path" or "module" with its name, and its arguments as JSON; "" in a notebook.

    A script may define parts of its own, as `mrlib.papers.DETECTORS` has them.
    """
    main, arguments = sys.modules["__main__"], json.dumps(sys.argv)
    name, file = getattr(getattr(main, "__spec__", None), "name", ""), getattr(main, "__file__", "")
    if name.rpartition(".")[2] == "__main__":  # the command of a package, which defines nothing
        return "", "", arguments
    return ("module", name, arguments) if name else ("path" if file else "", file and os.path.abspath(file), arguments)


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


class ThisMachine(ThreadPoolExecutor):
    """This machine as an executor: its processes run one call after another, and end with it."""

    def __init__(self, processes: int):
        super().__init__(processes)
        self._idle: list[_Process] = []

    def submit(self, function: Callable[..., Any], request: str) -> Future:
        """Submit `call`."""
        return super().submit(function, request, self._idle)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        while self._idle:
            self._idle.pop().close()


def call(request: str, idle: list[_Process] | None = None) -> Any:
    """Run a call in a process of its own and wait for it; returns its result.

    request  a line of JSON, see `submitted`
    idle     processes that have run calls; this one's is added when it has returned. None: a process for this call
    raises   JobError if it failed, or its process ended without a word
    """
    process, kind = None, ""
    with suppress(IndexError):  # another thread may take the last one
        process = None if idle is None else idle.pop()
    if process is None or process.ended():
        process = _Process()
    try:
        kind, value = process.ask(request)
    finally:
        if idle is None or kind != "result":
            process.close()
        else:
            idle.append(process)
    if kind == "error":
        raise JobError(value)
    return value


class _Process:
    """A process that runs calls, seen from its worker."""

    def __init__(self):
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        command = [sys.executable, "-P", "-c", "from mrlib.jobs import main; main()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, text=True, **pipes)

    def ask(self, request: str) -> tuple[str, Any]:
        """ "result" and what a call returned, or "error" and why it did not."""
        with suppress(BrokenPipeError):
            print(request, file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return tuple(json.loads(answer))
        status = self._process.wait()
        if status >= 0:
            return "error", f"its process ended with status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return "error", f"its process was killed by {name}"

    def ended(self) -> bool:
        """Whether it was killed while it waited for a call."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Stop the call that runs, if one does, and end the process."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# ---- in the process of a call

_running: dict[str, Any] | None = None  # the request that runs
_alone = False  # the worker has ended, or needs this process no longer


def main() -> None:
    """The process of calls: a request is a line of stdin, an answer a line of stdout, ["result" or "error", value].

    It ends when stdin does, or after a call that was stopped. What calls print goes to stderr.
    """
    global _running
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that submitted the call
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # training handles it in its own way
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines: SimpleQueue[str] = SimpleQueue()  # "" at the end
    for watch in (partial(_read, lines), _look):
        threading.Thread(target=watch, daemon=True).start()
    kind = "result"
    while kind != "stopped" and (line := lines.get()):
        _running = json.loads(line)
        if _alone:  # since before it began, so that `_read` had nothing to stop
            break
        kind, value = _run(_running)
        _running = None
        if kind == "stopped":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(BrokenPipeError):
            print(json.dumps(["error" if kind == "stopped" else kind, value]), file=answers, flush=True)


def _run(request: Mapping[str, Any]) -> tuple[str, Any]:
    """ "result", "error" or "stopped", and what the function of a request returns, or why it does not."""
    from mrlib import locks  # here, so that a worker loads little

    try:
        _import_script(*request["script"])
        module, _, name = request["function"].rpartition(".")
        function = getattr(import_module(module), name)
        with locks.hold(Path(request["lock"]), request["name"], wait=True) if request["lock"] else nullcontext():
            return "result", function(**request["arguments"])
    except SystemExit:
        return "stopped", "it was stopped"
    except FORESEEN as error:
        return "error", f"{type(error).__name__}: {error}"
    except Exception as error:
        traceback.print_exc()
        return "error", f"{type(error).__name__}: {error}; its traceback is in the output of its worker"


@cache
def _import_script(kind: str, name: str, arguments: str) -> None:
    """Import the script that submitted a call under another name than __main__, as multiprocessing does."""
    global _importing
    _importing, sys.argv = True, json.loads(arguments)
    if kind == "module":
        runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
    elif kind == "path" and Path(name).is_file():  # it may be missing on another machine
        runpy.run_path(name, run_name="__mp_main__")
    _importing = False


def _read(lines: SimpleQueue[str]) -> None:
    """Put every line of stdin into a queue; at its end, stop the call that runs."""
    global _alone
    text = b""
    while data := os.read(0, 1 << 16):  # not sys.stdin, whose lock this thread would hold when the process ends
        *whole, text = (text + data).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    _alone = True
    lines.put("")
    if _running is not None:
        _stop()


def _look() -> None:
    """Wait for the file that stops the call that runs, and stop it."""
    while True:
        request = _running
        if request is not None and request["stop"] and Path(request["stop"]).exists():
            _stop()
        time.sleep(LOOK_S)


def _stop() -> None:
    """Stop the call that runs, as SIGTERM does; if that takes too long, end the process."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)
