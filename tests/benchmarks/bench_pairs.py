"""How alike every two videos of a batch are, in closed form beside all pairs of their clips.

    python tests/benchmarks/bench_pairs.py [--threads 1 2] [--repeats 5]

128 videos of at most 75 clips of 512 numbers, both from raw features. Beside it stands what the equation says: all
clips normalised, the products of all with all, their sums but for clips of equal index. They take turns; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is there: threads that wait take no one's time

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.augment.similarity import pair_similarity

VIDEOS, CLIPS, WIDTH, SHORTEST = 128, 75, 512, 60


def all_pairs(features: Tensor, mask: Tensor) -> Tensor:
    """[TD-DETR Eq. 1] over every pair of clips."""
    unit = (F.normalize(features, dim=-1) * mask[..., None]).flatten(0, 1)
    pairs = (unit @ unit.T).view(*mask.shape, *mask.shape)
    count = mask.sum(1)
    return (pairs.sum((1, 3)) - pairs.diagonal(dim1=1, dim2=3).sum(-1)) / (count[:, None] * count)


def seconds(way: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    alike = way(*given)
    return time.perf_counter() - start, alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(CLIPS) < torch.randint(SHORTEST, CLIPS + 1, (VIDEOS, 1), generator=g)
    features = (torch.randn(VIDEOS, CLIPS, WIDTH, generator=g) + 0.2) * mask[..., None]
    for threads in args.threads:
        torch.set_num_threads(threads)
        times = {"all pairs": [], "closed form": []}
        for i in range(args.repeats + 1):
            (plain, expected), (ours, found) = (seconds(w, features, mask) for w in (all_pairs, pair_similarity))
            if i:  # the first is for warming up
                times["all pairs"].append(1e3 * plain)
                times["closed form"].append(1e3 * ours)
        shown = {name: statistics.median(x) for name, x in times.items()}
        ratio = shown["all pairs"] / shown["closed form"]
        print(
            f"{threads} threads  " + "  ".join(f"{name} {ms:8.1f} ms" for name, ms in shown.items()),
            f"  {ratio:5.0f} times as fast   differ by {(found - expected).abs().max():.1e}   "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
