"""Errors of a device that is out of memory, as one sentence that names the batch and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIGNS = ("you tried to allocate", "_STATUS_ALLOC_FAILED")  # of the CPU's allocator, of CUDA's libraries


class OutOfMemory(MemoryError, RuntimeError):
    """A device has no memory left for a batch; torch's own error is a RuntimeError, too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or numpy says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def naming_batch(size: int, clips: int, place: str = "", setting: str = "a batch size of") -> Iterator[None]:
    """Raise `OutOfMemory`, naming the batch, if there is no memory left for it in this block.

    size     batch size now; the message says to try half of it, or, for a batch of one, fewer clips
    clips    of the longest video of the batch
    place    "in stage ...", where the block is
    setting  what to set to the other batch size
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory{place and ' '}{place}: {_advice(size, clips, setting)}") from error


def _advice(size: int, clips: int, setting: str) -> str:
    if size > 1:
        return f"batch size {size}, videos of up to {clips} clips; try {setting} {size // 2}"
    return (
        f"batch size 1, and the video has {clips} clips, too many for this device; search it in windows with "
        "mrlib.video.find, or give features of fewer clips"
    )
