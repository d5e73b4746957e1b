"""All alignments of two short sequences, and random costs."""

from __future__ import annotations

import torch
from torch import Tensor

from mrlib.ops import alignment_plain

TOPOLOGIES = ["global", "subsequence", "otam"]
GOLDEN = torch.tensor(
    [[0.9, 0.8, 1.0], [0.1, 0.7, 0.9], [0.6, 0.2, 0.8], [0.7, 0.5, 0.1], [1.0, 0.9, 0.6]], dtype=torch.float64
)[None]


def random_costs(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers from 0 to 1 in float64."""
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paths(T: int, N: int, topology: str) -> list[list[tuple[int, int]]]:
    """Every alignment of T target clips and N query clips, each a list of cells."""
    moves = [(1, 1), (1, 0)] if topology == "otam" and T >= N else [(1, 1), (1, 0), (0, 1)]
    starts = [(0, 0)] if topology == "global" else [(i, 0) for i in range(T)]
    complete, open_paths = [], [[start] for start in starts]
    while open_paths:
        path = open_paths.pop()
        i, j = path[-1]
        if j == N - 1 and (topology != "global" or i == T - 1):
            complete.append(path)
        open_paths += [[*path, (i + di, j + dj)] for di, dj in moves if i + di < T and j + dj < N]
    return complete


def soft_minimum(totals: list[Tensor], gamma: float) -> Tensor:
    """The soft minimum of scalars; for gamma 0 the minimum."""
    totals = torch.stack(totals)
    return totals.min() if gamma == 0 else -gamma * torch.logsumexp(-totals / gamma, 0)


def by_enumeration(cost: Tensor, gamma: float, topology: str) -> Tensor:
    """The soft minimum, over all alignments, of the summed cost of an alignment; cost (T, N)."""
    T, N = cost.shape
    return soft_minimum([sum(cost[cell] for cell in path) for path in paths(T, N, topology)], gamma)


def random_batches(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Costs (B, T, N) and lengths (B,): ragged, with forbidden cells, negative, tied, with junk on the padding."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(1, most + 1, (), generator=generator))  # noqa: E731
    B, T, N = draw(18), draw(14), draw(14)
    cost = torch.rand(B, T, N, dtype=torch.float64, generator=generator) * 2 - (seed % 2)
    if seed % 3 == 0:
        cost[torch.rand(cost.shape, generator=generator) < 0.2] = torch.inf
    if seed % 5 == 0:
        cost = (cost * 3).round()
    T_b = torch.randint(0, T + 1, (B,), generator=generator)
    N_b = torch.randint(0, N + 1, (B,), generator=generator)
    junk = (torch.nan, torch.inf, 7.0, -torch.inf)[seed % 4]
    return cost.masked_fill(~alignment_plain.valid(cost, T_b, N_b), junk), T_b, N_b
