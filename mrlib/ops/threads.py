"""Split a compiled kernel among threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: tuple[int, ThreadPoolExecutor] | None = None  # with the process that it belongs to


def in_threads(threads: int, count: int, kernel: Callable[..., None], *arguments) -> None:
    """Run kernel(first, stop, *arguments) over 0..count, split into as many parts as there are threads.

    The calling thread runs the first part. A forked process starts a pool of its own.
    """
    global _pool
    if threads == 1:
        kernel(0, count, *arguments)
        return
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(os.cpu_count(), "kernels")
    cuts = [count * t // threads for t in range(threads + 1)]
    others = [_pool[1].submit(kernel, first, stop, *arguments) for first, stop in zip(cuts[1:], cuts[2:], strict=False)]
    kernel(0, cuts[1], *arguments)
    for other in others:
        other.result()
