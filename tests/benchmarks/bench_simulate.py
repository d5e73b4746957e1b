"""What a query of the simulator costs beside drawing its noise alone, and what a label-free baseline costs.

python tests/benchmarks/bench_simulate.py [queries]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mrlib.baselines import FixedList, anchor_interval, query_similarity
from mrlib.sim import open_sim
from mrlib.sim.world import SIZES


def fastest(*functions: Callable[[], object], repeats: int = 3) -> list[float]:
    """Least seconds of each, in turns."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def main(queries: int) -> None:
    torch.set_num_threads(1)
    for size, p in SIZES.items():
        numbers = p.clips * (p.joint + p.motion)
        rng = np.random.default_rng(0)

        def noise(rng=rng, numbers=numbers):
            for _ in range(queries):
                rng.standard_normal(numbers, dtype=np.float32)

        def text(size=size):
            return open_sim("val", size=size, n=queries)

        def video(size=size):
            return open_sim("val", size=size, n=queries, query="video")

        floor, *taken = fastest(noise, text, video)
        for query, seconds in zip(("text", "video"), taken, strict=True):
            each = 1000 * seconds / queries
            print(f"{size:5} {query:5} {each:6.2f} ms a query, {seconds / floor:4.1f} times its noise alone")
        dataset = text()
        functions = [partial(f, dataset) for f in (query_similarity, anchor_interval, FixedList)]
        for function, seconds in zip(functions, fastest(*functions), strict=True):
            print(f"{size:5} {function.func.__name__:16} {seconds / taken[0]:5.2f} of the time to make the videos")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
