r"""Soft-DTW as it is defined, all cells of an anti-diagonal at once: to read, to test against, where numba is missing.

Paper    [Cuturi & Blondel 2017], Alg. 1 forwards and Alg. 2 backwards
Here     `soft` and `hard_path` are what `mrlib.ops.alignment` asks of each of its ways; costs (B, T, N)
         in float32 or float64, lengths int64 (B,). The recursion runs on $U = -R / \gamma$, where smin is logaddexp
Skewed   cell (i, j) of a table lies at [i + j, j]: diagonals are slices, and the batch is the innermost dimension
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def skew(x: Tensor, outside: float) -> Tensor:
    """(B, T, N) -> (T + N - 1, N, B): x[b, i, j] at [i + j, j, b], so that a slice is an anti-diagonal."""
    B, T, N = x.shape
    table = empty(T + N - 1, N, B, like=x).fill_(outside)
    unskew(table, T).copy_(x)
    return table


def unskew(table: Tensor, T: int) -> Tensor:
    """The cells of a skewed table as (B, T, N), a view."""
    _, N, B = table.shape
    return table.as_strided((B, T, N), (1, N * B, (N + 1) * B))


def empty(*shape: int, like: Tensor) -> Tensor:
    """`like.new_empty`; on the CPU from numpy, which asks for large pages: touching small ones takes half the time."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, np.float64 if like.dtype == torch.float64 else np.float32))


def valid(cost: Tensor, T_b: Tensor, N_b: Tensor) -> Tensor:
    """bool (B, T, N), False on padding."""
    row, column = (torch.arange(size, device=cost.device) for size in cost.shape[1:])
    return (row < T_b[:, None])[:, :, None] & (column < N_b[:, None])[:, None]


def _recursion(kappa: Tensor, topology: str, join) -> tuple[Tensor, Tensor]:
    """The table U = -R, diagonal by diagonal: U_ij = join(predecessors) - kappa_ij.

    kappa    (D, N, B)  costs, skewed; D = T + N - 1
    join     torch.logaddexp (costs in units of gamma) or torch.maximum (gamma = 0)
    returns  U (D + 2, N + 1, B), two diagonals and one lane of border before the cells; joined (D, N, B)
    """
    D, N, B = kappa.shape
    U = empty(D + 2, N + 1, B, like=kappa)
    U[:2] = -torch.inf
    U[:, 0] = -torch.inf if topology == "global" else 0  # a path may begin at any target clip, or ...
    U[0, 0] = 0  # ... at the first one
    joined = empty(D, N, B, like=kappa)
    for two_ago, one_ago, here, before, k in zip(U[:-2], U[1:-1], U[2:], joined, kappa, strict=True):
        join(two_ago[:-1], one_ago[1:], out=before)  # (i-1, j-1) and (i-1, j)
        if topology != "otam":
            join(before[1:], one_ago[1:-1], out=before[1:])  # and (i, j-1)
        torch.sub(before, k, out=here[1:])
    return U, joined


def _end_column(U: Tensor, T: int, N_b: Tensor) -> Tensor:
    """U at the last query clip of each sample, (B, T)."""
    lane = (N_b - 1).clamp(min=0)
    diagonal = torch.arange(T, device=U.device)[:, None] + lane  # (T, B)
    return U[diagonal + 2, lane + 1, torch.arange(len(lane), device=U.device)].mT


def _ends_allowed(T: int, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T): where in the last column a path may end; nowhere in an empty sample."""
    row, last = torch.arange(T, device=T_b.device), T_b[:, None] - 1
    return (N_b > 0)[:, None] & (row == last if topology == "global" else row <= last)


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value (B,) and, to `keep`, the expected alignment (B, T, N)."""
    value, *table = tables(cost, gamma, T_b, N_b, topology)
    return value, expected(*table, N_b, topology).to(cost.dtype) if keep else None


def tables(cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str) -> tuple[Tensor, ...]:
    """The value (B,), U, joined and ends (B, T), how likely each end is.  [Cuturi & Blondel 2017, Alg. 1]

    In float64, for R / gamma has more digits than float32 holds.
    """
    T = cost.shape[1]
    kappa = skew(cost.double().masked_fill(~valid(cost, T_b, N_b), 0).div_(gamma), torch.inf)
    U, joined = _recursion(kappa, topology, torch.logaddexp)
    allowed = _ends_allowed(T, T_b, N_b, topology)
    column = _end_column(U, T, N_b).masked_fill(~allowed, -torch.inf)
    total = column.logsumexp(1, keepdim=True)
    ends = (column - total.masked_fill(total == -torch.inf, 0)).exp()
    value = (-gamma * total[:, 0]).masked_fill(~allowed.any(1), 0)
    return value.to(cost.dtype), U, joined, ends


def expected(U: Tensor, joined: Tensor, ends: Tensor, N_b: Tensor, topology: str) -> Tensor:
    r"""How likely each cell is on the path, (B, T, N).  [Cuturi & Blondel 2017, Alg. 2]

    $E_{ij} = \sum E_{i'j'} \exp(U_{ij} - \mathit{joined}_{i'j'})$ over its successors, and its share of the ends.
    """
    D, N, B = joined.shape
    E, weight = empty(D, N, B, like=U).zero_(), empty(N, B, like=U)
    lane, row = (N_b - 1).clamp(min=0), torch.arange(ends.shape[1], device=U.device)[:, None]
    E[row + lane, lane, torch.arange(B, device=U.device)] = ends.mT
    joined[joined == -torch.inf] = torch.inf  # out of reach: nothing from there
    for d in range(D - 2, -1, -1):
        here, cell = E[d], U[d + 2, 1:]
        here.addcmul_(E[d + 1], torch.sub(cell, joined[d + 1], out=weight).exp_())  # from (i+1, j)
        here, cell, narrow = here[:-1], cell[:-1], weight[1:]
        if topology != "otam":
            here.addcmul_(E[d + 1, 1:], torch.sub(cell, joined[d + 1, 1:], out=narrow).exp_())  # from (i, j+1)
        if d < D - 2:
            here.addcmul_(E[d + 2, 1:], torch.sub(cell, joined[d + 2, 1:], out=narrow).exp_())  # from (i+1, j+1)
    return unskew(E, ends.shape[1])


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T, N)."""
    path = torch.zeros_like(cost, dtype=torch.bool)
    kappa = skew(cost.double().masked_fill(~valid(cost, T_b, N_b), 0), torch.inf)
    U, _ = _recursion(kappa, topology, torch.maximum)
    T, b = cost.shape[1], torch.arange(len(cost), device=cost.device)
    column = _end_column(U, T, N_b).masked_fill(~_ends_allowed(T, T_b, N_b, topology), -torch.inf)
    best = column.amax(1)
    i, j = (column == best[:, None]).int().argmax(1), N_b - 1
    walking = best > -torch.inf
    for _ in range(sum(cost.shape[1:]) - 1):
        path[b[walking], i[walking], j[walking]] = True
        i, j = i.where(walking, 0), j.where(walking, 0)
        diagonal, up, left = U[i + j, j, b], U[i + j + 1, j + 1, b], U[i + j + 1, j, b]
        left = left.masked_fill((j == 0) | (topology == "otam"), -torch.inf)
        aside = (diagonal < up) | (diagonal < left)
        step_left = aside & (up < left)
        i, j = i - (~step_left).long(), j - (~aside | step_left).long()
        walking = walking & (i >= 0) & (j >= 0)
    return path
