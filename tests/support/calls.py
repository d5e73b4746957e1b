"""Functions for calls of `mrlib.jobs`, which the processes of workers import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def describe(value: Any) -> dict[str, Any]:
    """What a call gets, and the process in which it runs; it prints something too."""
    print("printed by a call")
    return {"value": value, "process": os.getpid(), "parent": os.getppid()}


def draw(seed: int, steps: int, threads: int) -> list[float]:
    """Numbers of the global generator, drawn slowly with a number of threads of its own."""
    import torch  # here, so that other calls begin at once

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    numbers = []
    for _ in range(steps):
        numbers.append(torch.rand(()).item())
        time.sleep(0.01)
    assert torch.get_num_threads() == threads
    return numbers


def fail(kind: str) -> None:
    """Raise an error, be killed, or end."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "ended":
        os._exit(7)
    raise {"value": ValueError("wrong by design"), "key": KeyError("missing by design")}[kind]


def work(folder: str, name: str) -> str:
    """Say that it has begun, by a file with the process's id, and work until the file `end` is there."""
    Path(folder, name).write_text(str(os.getpid()))
    while not Path(folder, "end").exists():
        time.sleep(0.02)
    return name


def kill_worker(folder: str, after: str) -> None:
    """Kill the worker of this call once the file `after` is there."""
    while not Path(folder, after).exists():
        time.sleep(0.02)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


PARTS: dict[str, int] = {}  # what a script adds to


def part(name: str) -> int:
    """A part of the script that submits this call."""
    return PARTS[name]
