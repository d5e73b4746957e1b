"""Stop a training run at its next step, with its state saved, when Ctrl-C (SIGINT) or SIGTERM tells it to.

While a run trains, the first signal is noted, and the run asks for it after every step. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mrlib import parallel

_LINE = "stopped by {}; the same command goes on from what is saved"
_noted: int | None = None  # the signal that came while a run trains
_listening = False


class Stopped(BaseException):
    """A run was stopped after a step; `at_next_step` turns it into the exception that its caller sees."""

    def __init__(self, number: int, place: str):
        super().__init__(number, place)
        self.number, self.place = number, place


@contextmanager
def at_next_step(out_dir: Path | None) -> Iterator[None]:
    """Note signals in this block, for `requested`; a block inside another one leaves them to it.

    When the run in the block was stopped, it prints a line that says how to go on, and raises KeyboardInterrupt after
    Ctrl-C or else SystemExit with the status of the signal. Only the main thread of a process gets signals.
    """
    global _noted, _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted, _listening = None, True
    try:
        with _handled(_note, signal.SIGINT, signal.SIGTERM):
            yield
    except Stopped as stopped:
        kept = f"{out_dir} holds this state, and the same command goes on from it" if out_dir else "nothing is saved"
        line = f"stopped {stopped.place}; {kept}"
        if parallel.rank_and_world()[0] == 0:
            print(line, file=sys.stderr, flush=True)
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt(line) from None
        raise SystemExit(128 + stopped.number) from None
    finally:
        _noted, _listening = None, False


def requested(device: torch.device) -> int:
    """The signal by which this process or another rank was told to stop; 0: train on."""
    noted = _noted if _listening and threading.current_thread() is threading.main_thread() else None
    return parallel.largest(noted or 0, device)


def _note(number: int, frame: FrameType | None) -> None:
    global _noted
    if _noted is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    _noted = _noted or number


@contextmanager
def with_status() -> Iterator[None]:
    """For a command line: Ctrl-C and SIGTERM end this block with one line and the status 130 or 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{_LINE.format('SIGTERM')}\n".encode())  # print may have been interrupted itself
        sys.exit(128 + number)

    try:
        with _handled(leave, signal.SIGTERM):
            yield
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:  # else `at_next_step` has printed a line
            print(_LINE.format("Ctrl-C"), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any], *numbers: int) -> Iterator[None]:
    """Handle some signals in this block, in the main thread; one that the process ignores stays ignored."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers} if in_main else {}
    changed = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in changed:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)
