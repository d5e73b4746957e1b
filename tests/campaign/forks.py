"""Run a function in a process of its own, with a limit on its time and memory."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_MB = 6000  # more than this a process does not get, so that the machine stays usable


def forked(function: Callable[[], Any], limit_s: float = 60) -> Any:
    """What a function returns in a copy of this process.

    raises  TimeoutError if it takes too long, ChildProcessError if it dies
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _limit_memory()
            content = pickle.dumps(function())
            with os.fdopen(writing, "wb") as out:
                out.write(content)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
            os._exit(1)
    os.close(writing)
    content = bytearray()
    end = time.monotonic() + limit_s
    try:
        while select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
            piece = os.read(reading, 1 << 20)
            if not piece:
                break
            content += piece
        else:
            raise TimeoutError(f"no answer within {limit_s:g} s")
    finally:
        os.close(reading)
        if not content:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise ChildProcessError(f"the process ended with status {status}")
    return pickle.loads(content)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MOST_MB * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
