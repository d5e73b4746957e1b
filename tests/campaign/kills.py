"""Kills at random moments of training runs, grids and the writing of a cache, and what a restart makes of them.

Each victim is a copy of this process, which has imported everything already, so that the kill meets the work.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pandas as pd
import torch

from mrlib import grid, train
from tests.campaign.files import Case
from tests.campaign.forks import forked
from tests.support.answers import Answer
from tests.support.files import line, moment_detr
from tests.support.hashes import digest
from tests.support.inputs import cached
from tests.support.runs import COMMAND
from tests.support.runs import contents as files_of

STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


class Victim(NamedTuple):
    """What is killed, and what a whole run of it leaves."""

    name: str
    work: Callable[[Path], Any]  # given the folder of the run
    left: Callable[[Path], Any]  # what the folder holds; the same after a whole run and after a kill and a restart
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    command_line: bool = True  # False: a function, which a signal ends as it ends Python


def training(*arguments: str) -> Callable[[Path], Any]:
    return lambda folder: train.main([*arguments, "--out", str(folder / "run")])


def gridding(folder: Path) -> None:
    options = {"batch_size": 16, "epochs": 1, "kernel": 5, "channels": 2}
    arms = {
        name: grid.Arm("f2sgd", options | more, {"n": 24}) for name, more in (("a", {}), ("b", {"reweight": False}))
    }
    (folder / "g").mkdir(exist_ok=True)
    grid.run(folder / "g" / "grid.csv", arms, [0])


def rows(folder: Path) -> dict[str, Any]:
    """A grid without the columns that differ from run to run, and the names of the files beside it."""
    frame = pd.read_csv(folder / "g" / "grid.csv").drop(columns=["train_s", "date"])
    names = sorted(path.name for path in (folder / "g").iterdir() if path.suffix != ".lock")
    return {"rows": frame.to_csv(), "files": names}


def caching(folder: Path) -> str:
    return cached(folder)


def cache(folder: Path) -> dict[str, Any]:
    """What the cache gives, and the names of its files without the times of the features that they tell."""
    names = sorted(re.sub("-[0-9a-f]{16}[.]", ".", path.name) for path in (folder / ".mrlib_cache").iterdir())
    return {"dataset": cached(folder), "files": [name for name in names if not name.endswith(".lock")]}


def run_files(folder: Path) -> dict[str, str]:
    return {name: digest(x) for name, x in files_of(folder).items() if not name.endswith(".lock")}


TWO_STAGES = ["amr", "--size", "small", "--data", "n=48", "n_train=48", "--epochs", "2", "--set", "batch_size=16"]
VICTIMS = [
    Victim("run of one stage", training(*COMMAND, "--epochs", "3"), run_files),
    Victim("cache", caching, cache, command_line=False),
    Victim("run of two stages", training(*TWO_STAGES), run_files),
    Victim("grid", gridding, rows, command_line=False),
]


def prepare(victim: Victim, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if victim.name == "cache":
        lines = [line(i, vid=f"v{i}") for i in range(60)]
        moment_detr(folder, lines)
    return folder


def kills(folder: Path, seed: int, count: int, only: str = "") -> Iterator[Case]:
    """Kill `count` victims, each once or twice, and start each again until it ends."""
    torch.set_num_threads(1)
    victims = [victim for victim in VICTIMS if victim.name.startswith(only)] if count else []
    for number, victim in enumerate(victims):
        here = folder / f"kill{number}"
        prepare(victim, here)
        start = time.monotonic()
        forked(lambda victim=victim, here=here: quiet(victim, here), 300)
        whole_s = time.monotonic() - start
        expected = victim.left(here)
        for i in range(count // len(victims) + (number < count % len(victims))):
            yield kill(victim, here, f"{seed} {victim.name} {i}", whole_s, expected)


def quiet(victim: Victim, folder: Path) -> str:
    """Do the work; what it printed to stderr."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        victim.work(folder)
    return text.getvalue()


def kill(victim: Victim, here: Path, seed: str, whole_s: float, expected: Any) -> Case:
    random = Random(seed)
    prepare(victim, here)
    name, wrong, times = random.choice(victim.signals), [], random.choice([1, 1, 2])
    for _ in range(times):
        status, said, children = struck(victim, here, name, random.uniform(0, 1.05 * whole_s))
        if victim.command_line and status not in (0, STATUS[name]):
            wrong.append(f"{name.name} ends it with status {status}: {said[-200:]!r}")
        if victim.command_line and "Traceback" in said:
            wrong.append(f"{name.name} prints a traceback: {said[-200:]!r}")
        if children:
            wrong.append(f"{name.name} leaves processes {children}")
    try:
        forked(lambda: quiet(victim, here), 300)
        left = victim.left(here)
        if left != expected:
            names = [key for key in {**left, **expected} if left.get(key) != expected.get(key)]
            wrong.append(f"the restart leaves another {', '.join(names)}")
    except (ChildProcessError, TimeoutError, OSError) as error:
        wrong.append(f"the restart fails: {error}")
    what = f"{name.name} x {times} ({seed!r})"
    return Case(victim.name, what, Answer("bare" if wrong else "same", "; ".join(wrong), 0, 0))


def struck(victim: Victim, here: Path, name: signal.Signals, after_s: float) -> tuple[int, str, list[int]]:
    """Start a victim and send it a signal: its exit status, what it printed, and the processes that it leaves."""
    printed = here.parent / "printed"
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        with printed.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            victim.work(here)
            status = 0
        except SystemExit as error:
            if isinstance(error.code, str):
                print(error.code, flush=True)
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    time.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, name)
    end, status = time.monotonic() + 60, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    left = members(pid)
    for _ in range(300):  # a worker that has just begun looks for its parent after its imports
        if not left:
            break
        time.sleep(0.1)
        left = members(pid)
    for each in left:
        os.kill(each, signal.SIGKILL)
    return -1 if status is None else status, printed.read_text(errors="replace"), left


def members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ProcessLookupError):
                if os.getpgid(int(entry.name)) == group and "Z" not in (entry / "stat").read_text().split()[2]:
                    found.append(int(entry.name))
    return found
