"""Locks for folders and files that one process at a time may write.

The system keeps a lock as long as its process lives: a process that is killed leaves a lock file that locks nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


class InUse(ValueError):
    """Another process holds the lock."""


@contextmanager
def hold(file: Path, subject: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock while a block runs.

    file     the lock file; it is made, with its folder, and removed when the block ends
    subject  what is locked, for messages
    wait     True: say who holds the lock, and wait until it is free
    raises   InUse, naming the process that holds the lock, its machine and since when; OSError, naming `subject`, if
             there can be no lock
    """
    lock = FileLock(file, fallback_to_soft=False, on_acquired=_sign)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = f"{subject} is in use by {_holder(file)}"
            if not wait:
                raise InUse(f"{message}; wait until it has ended, or give another one") from None
            print(f"{message}; waiting until it has ended", file=sys.stderr, flush=True)
            try:
                lock.acquire()
            except RuntimeError as error:  # of filelock, when this thread would wait for itself
                raise InUse(f"{message}, by the same thread, which cannot wait for itself") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            error.errno, f"cannot lock {subject}: {reason}; choose a folder in which you may write"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # before the release: one who waits for the removed file sees that, and makes a new one
        lock.release()


def _sign(handle: int) -> None:
    """Write into a lock file who holds it."""
    holder = {"process": os.getpid(), "host": socket.gethostname()}
    holder["since"] = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # a full disk takes an empty file, which locks as well
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(holder).encode())


def _holder(file: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        holder = json.loads(file.read_text())
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has not signed yet
