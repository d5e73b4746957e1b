r"""Soft-DTW and DTW on the CPU, in kernels compiled by numba; `mrlib.ops.alignment_rows` holds those of soft-DTW.

Threads  a pool of `torch.get_num_threads()`, each with its own samples; results do not depend on their number
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mrlib.ops.alignment_rows import compiled, soft_rows
from mrlib.ops.threads import in_threads

_CHAINS = 4  # a processor computes this many products in the time that one takes


@compiled
def _hard(begin, stop, cost, T_b, N_b, free, left, band, path):
    """Set path (B, T, N), zero before, on the cheapest path of samples begin..stop."""
    for b in range(begin, stop):
        T, N = T_b[b], N_b[b]
        if T * N == 0:
            continue
        step = np.empty((T, N), np.uint8)  # from the predecessor: 0 diagonal, 1 previous row, 2 previous column
        R = np.full((2, N), np.inf)
        least, end = np.inf, -1
        for i in range(T):
            above, here = R[(i + 1) % 2], R[i % 2]
            lo, hi = max(0, i - band), min(N - 1, i + band)
            diagonal = above[lo - 1] if lo > 0 else (0.0 if free or i == 0 else np.inf)
            aside = np.inf
            for j in range(lo, hi + 1):
                best, choice = diagonal, 0
                if above[j] < best or above[j] != above[j]:  # NaN propagates
                    best, choice = above[j], 1
                if left and (aside < best or aside != aside):
                    best, choice = aside, 2
                diagonal = above[j]
                aside = cost[b, i, j] + best
                here[j] = aside
                step[i, j] = choice
            if hi == N - 1 >= lo and (free or i == T - 1) and (here[N - 1] < least or here[N - 1] != here[N - 1]):
                least, end = here[N - 1], i
        if least != least:  # NaN at some end, which no later end replaces: the sample has no path
            continue
        i, j = end, N - 1
        while i >= 0 and j >= 0:
            path[b, i, j] = True
            choice = step[i, j]
            i -= choice != 2
            j -= choice != 1


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, band: int | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value of soft-DTW (B,) and, with `keep`, the expected alignment (B, T, N)."""
    costs = cost.detach().contiguous().numpy()
    E = np.empty_like(costs) if keep else np.empty((0, 0, 0), costs.dtype)
    T_b = T_b.where(N_b > 0, 0)  # an empty table has no end
    values = np.where(T_b.numpy() > 0, -np.inf, 0)
    scale, free, left = -1 / (gamma * math.log(2)), topology != "global", topology != "otam"
    threads = _threads(len(cost), cost.numel())
    chains, slots = _side_by_side(-(-len(cost) // threads), cost.shape[2])
    groups = -(-len(cost) // (chains * slots))
    in_threads(
        min(threads, groups), groups, soft_rows,
        costs, T_b.numpy(), N_b.numpy(), scale, free, left, _width(cost, band), chains, slots, keep, values, E,
    )  # fmt: skip
    value = torch.from_numpy(values).mul_(-gamma * math.log(2)).to(cost.dtype)
    return value, torch.from_numpy(E) if keep else None


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str, band: int | None) -> Tensor:
    """The cheapest alignment of each sample, bool (B, T, N)."""
    path = torch.zeros(cost.shape, dtype=torch.bool)
    lengths = T_b.numpy(), N_b.numpy()
    free, left = topology != "global", topology != "otam"
    in_threads(
        _threads(len(cost), cost.numel()), len(cost), _hard,
        cost.detach().contiguous().numpy(), *lengths, free, left, _width(cost, band), path.numpy(),
    )  # fmt: skip
    return path


def _width(cost: Tensor, band: int | None) -> int:
    """The band, at most as wide as the table, which is no band."""
    whole = sum(cost.shape[1:])
    return whole if band is None else min(band, whole)


def _side_by_side(samples: int, N: int) -> tuple[int, int]:
    """How many chains to compute at once, and how many samples to put in each: enough to fill vectors."""
    chains = min(_CHAINS, samples)
    return chains, min(max(1, 128 // (N + 1)), -(-samples // chains))


def _threads(jobs: int, cells: int) -> int:
    """How many threads to use: few for a small table."""
    return min(torch.get_num_threads(), jobs, cells // 10_000 + 1)
