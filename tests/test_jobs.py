"""Calls on executors: each in a process of its own, whatever its worker is, and none is lost without a word."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from mrlib import jobs
from mrlib.jobs import Job, JobError
from tests.support.executors import KINDS, opened


def job(function: str, *, lock: Path | None = None, **arguments) -> Job:
    return Job(f"call of {function}", f"tests.support.calls.{function}", arguments, lock)


def results(executor: Executor, folder: Path, **named: Job) -> dict:
    with jobs.submitted(named, executor, folder) as ended:
        return dict(ended)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_run_on_any_executor_each_in_a_process_of_its_own(kind, tmp_path):
    values = {"a": [1, "ü", None], "b": {"x": 0.1 + 0.2}, "c": float("inf")}
    with opened(kind) as executor:
        answers = results(executor, tmp_path, **{name: job("describe", value=value) for name, value in values.items()})
    assert {name: answer["value"] for name, answer in answers.items()} == values
    processes = {answer["process"] for answer in answers.values()}
    assert len(processes) == 3 and not processes & {os.getpid(), *(answer["parent"] for answer in answers.values())}
    assert not any(tmp_path.iterdir())


def test_this_machine_runs_calls_one_after_another_in_as_few_processes(tmp_path):
    """But none in a process in which another has failed."""
    with jobs.ThisMachine(1) as executor:
        named = {name: job("describe", value=name) for name in "ab"} | {"bad": job("fail", kind="value")}
        first = results(executor, tmp_path, **named)
        assert first["a"]["process"] == first["b"]["process"] != os.getpid()
        again = results(executor, tmp_path, c=job("describe", value="c"), d=job("describe", value="d"))
        assert again["c"]["process"] == again["d"]["process"] != first["a"]["process"]
        assert alive(again["c"]["process"]) and not alive(first["a"]["process"])
        os.kill(again["c"]["process"], signal.SIGKILL)
        wait_for(lambda: not alive(again["c"]["process"]))
        last = results(executor, tmp_path, e=job("describe", value="e"))["e"]["process"]
    assert not alive(last)


def test_calls_in_threads_draw_what_they_draw_alone(tmp_path):
    """The generator and the number of threads are those of a process."""
    named = {str(seed): job("draw", seed=seed, steps=50, threads=seed) for seed in (1, 2)}
    with ThreadPoolExecutor(2) as executor:
        together = results(executor, tmp_path, **named)
    for name, one in named.items():
        assert jobs.run_here(one) == together[name]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("value", "^ValueError: wrong by design$"),
        ("key", "^KeyError: 'missing by design'; its traceback is in the output of its worker$"),
        ("killed", "^its process was killed by SIGKILL$"),
        ("ended", "^its process ended with status 7$"),
    ],
)
def test_a_call_that_fails_says_why_and_stops_no_other(kind, message, tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        named = {"bad": job("fail", kind=kind), "good": job("describe", value=1)}
        answers = results(executor, tmp_path, **named)
        assert answers["good"]["value"] == 1 and isinstance(answers["bad"], JobError)
        with pytest.raises(JobError, match=message):
            raise answers["bad"]
        assert results(executor, tmp_path, again=job("describe", value=2))["again"]["value"] == 2


def test_a_pool_whose_worker_is_killed_loses_its_calls_and_their_processes(tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        named = {"other": job("work", folder=str(tmp_path), name="other")}
        named["bad"] = job("kill_worker", folder=str(tmp_path), after="other")
        answers = results(executor, tmp_path, **named)
        for answer in answers.values():
            with pytest.raises(JobError, match="its worker was lost, BrokenProcessPool: "):
                raise answer
        process = int((tmp_path / "other").read_text())
        wait_for(lambda: not alive(process))
        with pytest.raises(ValueError, match="executor takes no calls: .*; give one that is open"):
            results(executor, tmp_path, late=job("describe", value=1))


def test_a_call_whose_worker_dies_before_it_begins_does_not_run(tmp_path):
    """A process takes a while to start; then it finds a request and the end of its stdin together."""
    process = jobs._Process()
    print(jobs._request(job("work", folder=str(tmp_path), name="a"), None), file=process._process.stdin, flush=True)
    process.close()  # waits for its end
    assert process.ended() and not (tmp_path / "a").exists()


@pytest.mark.parametrize("make", [ThreadPoolExecutor, jobs.ThisMachine])
def test_calls_are_stopped_when_the_one_who_waits_is_interrupted(make, tmp_path):
    named = {name: job("work", folder=str(tmp_path), name=name) for name in "abc"}
    with make(2) as executor:
        with pytest.raises(KeyboardInterrupt), jobs.submitted(named, executor, tmp_path):
            wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
            raise KeyboardInterrupt
        assert not any(alive(int(file.read_text())) for file in (tmp_path / "a", tmp_path / "b"))
        assert not (tmp_path / "c").exists()
        assert results(executor, tmp_path, a=job("describe", value=1))["a"]["value"] == 1
    assert not list(tmp_path.glob(".*.stop"))


def test_calls_that_have_not_begun_are_cancelled_although_the_folder_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "STOP_S", 0.0)
    (tmp_path / "runs").mkdir()
    named = {name: job("work", folder=str(tmp_path), name=name) for name in "abc"}
    with jobs.ThisMachine(1) as executor:
        with pytest.raises(OSError, match="^the disk is full$"), jobs.submitted(named, executor, tmp_path / "runs"):
            wait_for((tmp_path / "a").exists)
            (tmp_path / "runs").rmdir()
            raise OSError("the disk is full")
        (tmp_path / "end").touch()
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_calls_that_an_executor_cancels_are_errors(tmp_path):
    """And nobody waits for them for ever."""
    executor = ThreadPoolExecutor(1)
    named = {name: job("work", folder=str(tmp_path), name=name) for name in "ab"}
    with jobs.submitted(named, executor, tmp_path) as ended:
        wait_for((tmp_path / "a").exists)
        executor.shutdown(wait=False, cancel_futures=True)
        assert str(next(ended)[1]) == "it was cancelled, as by an executor that is shut down"
        (tmp_path / "end").touch()
        assert next(ended) == ("a", "a")


def test_what_takes_no_calls_is_refused(tmp_path):
    class Client:
        def get_executor(self):
            raise NotImplementedError

    for executor, message in (
        (2, r"executor must be a concurrent.futures.Executor, not 2 \(int\); leave it out to use this machine"),
        (Client(), r"executor must be .* \(Client\); give its .get_executor\(\)"),
        (ThreadPoolExecutor, r"executor must be .* \(type\); leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            results(executor, tmp_path, a=job("describe", value=1))
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(
        ValueError, match="executor takes no calls: cannot schedule new futures after shutdown; give one"
    ):
        results(closed, tmp_path, a=job("describe", value=1))
    assert not any(tmp_path.iterdir())


def test_a_call_waits_for_an_earlier_one_whose_worker_seemed_lost(tmp_path, capfd):
    lock = tmp_path / "call.lock"
    named = {name: job("work", lock=lock, folder=str(tmp_path), name=name) for name in "ab"}
    with ThreadPoolExecutor(2) as executor, jobs.submitted(named, executor, tmp_path) as ended:
        wait_for(lambda: "waiting until it has ended" in capfd.readouterr().err)
        assert (tmp_path / "a").exists() != (tmp_path / "b").exists()
        (tmp_path / "end").touch()
        assert dict(ended) == {"a": "a", "b": "b"}
    assert not lock.exists()


SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mrlib import jobs
from tests.support import calls

calls.PARTS["own"] = 7

def main():
    with ThreadPoolExecutor(1) as executor:
        job = jobs.Job("a call", "tests.support.calls.part", {"name": "own"})
        with jobs.submitted({0: job}, executor, Path(sys.argv[1])) as ended:
            print(dict(ended))
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_call_knows_the_parts_of_the_script_that_submits_it(guarded, tmp_path):
    (tmp_path / "script.py").write_text(
        SCRIPT + ('\nif __name__ == "__main__":\n    main()\n' if guarded else "\nmain()\n")
    )
    root = Path(jobs.__file__).parents[1]
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    process = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    if guarded:
        assert process.stdout == "{0: 7}\n"
    else:
        assert "put what it does under if __name__ == '__main__':" in process.stdout


def test_a_worker_loads_no_torch():
    program = "import sys; from mrlib.jobs import call; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False False\n"
