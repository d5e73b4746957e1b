r"""Soft-DTW as it is defined, all cells of an anti-diagonal at once: to read, to test against, where numba is missing.

Paper    [Cuturi & Blondel 2017], Alg. 1 forwards and Alg. 2 backwards
Here     `soft` and `hard_path` are what `mrlib.ops.alignment` asks of each of its ways; costs (B, T, N)
         in float32 or float64, lengths int64 (B,). The recursion runs on $U = -R / \gamma$, where smin is logsumexp
Departs  Alg. 2 takes exponentials of R; here those of the logsumexp are kept, for divided by their sum they are how a
         cell's paths divide among its predecessors. They are in the cost's own type, being of differences alone; U is
         float64, for R / gamma has more digits than float32 holds
Layout   the batch is the innermost dimension: an anti-diagonal is (n, B), query clips ascending. `soft` holds three of
         U, and keeps what the ways into each cell weigh. It is in numpy, on the CPU wherever the cost is: most calls
         are on some hundreds of numbers, which takes numpy half as long as torch. `hard_path`, in torch, follows its
         table back, which is skewed: cell (i, j) lies at [i + j, j]
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_NEVER = -1e300  # U where no path arrives: as good as -inf, but the difference of two is a number


def skew(x: Tensor, outside: float) -> Tensor:
    """(B, T, N) -> (T + N - 1, N, B): x[b, i, j] at [i + j, j, b], so that a slice is an anti-diagonal."""
    B, T, N = x.shape
    table = empty(T + N - 1, N, B, like=x).fill_(outside)
    table.as_strided((B, T, N), (1, N * B, (N + 1) * B)).copy_(x)
    return table


def empty(*shape: int, like: Tensor) -> Tensor:
    """`like.new_empty`; on the CPU from numpy, which asks for large pages: touching small ones takes half the time."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, np.float64 if like.dtype == torch.float64 else np.float32))


def valid(cost: Tensor, T_b: Tensor, N_b: Tensor) -> Tensor:
    """bool (B, T, N), False on padding."""
    row, column = (torch.arange(size, device=cost.device) for size in cost.shape[1:])
    return (row < T_b[:, None])[:, :, None] & (column < N_b[:, None])[:, None]


def _ends_allowed(T: int, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T): where in the last column a path may end; nowhere in an empty sample."""
    row, last = torch.arange(T, device=T_b.device), T_b[:, None] - 1
    return (N_b > 0)[:, None] & (row == last if topology == "global" else row <= last)


def _end_diagonals(T: int, N_b: Tensor) -> Tensor:
    """int64 (B, T): the anti-diagonal of each target clip with the last query clip."""
    return torch.arange(T, device=N_b.device) + (N_b - 1).clamp(min=0)[:, None]


# --- soft ---------------------------------------------------------------------------------------------------------


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value (B,) and, to `keep`, the expected alignment (B, T, N)."""
    value, *table = tables(cost, gamma, T_b, N_b, topology)
    return value, expected(*table, N_b, topology) if keep else None


@np.errstate(all="ignore")
def tables(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str
) -> tuple[Tensor, list[np.ndarray], Tensor, Tensor]:
    """The value, and how likely each way is.  [Cuturi & Blondel 2017, Alg. 1]

    returns  value   (B,)
             ways    for each anti-diagonal (4, n, B), for "otam" (3, n, B): what the ways into its cells weigh, the
                     heaviest 1, in the order of `_predecessors`; then their sum
             joined  (T, 1, B)  float64  the logsumexp of the ways into the first query clip
             ends    (B, T)  float64  how likely each end is
    """
    B, T, N = cost.shape
    costs, rows, last = cost.detach().permute(1, 2, 0).cpu().numpy(), T_b.cpu().numpy(), N_b.cpu().numpy()
    gain = np.divide(costs[::-1], -gamma, out=np.empty((T, N, B)))  # -C / gamma, upside down for `_antidiagonal`
    np.maximum(gain, _NEVER, out=gain)
    gain[(np.arange(T)[::-1, None] >= rows)[:, None] | (np.arange(N)[:, None] >= last)] = 0
    allowed, diagonals, sample = _ends_allowed(T, T_b, N_b, topology).cpu(), _end_diagonals(T, N_b).cpu(), np.arange(B)
    ending = set(diagonals[allowed].tolist())
    two_ago, one_ago, now = np.full((3, N + 1, B), _NEVER)  # U, with a lane of border before the cells
    ended, joined = np.full((T + N - 1, B), _NEVER), np.empty((T, 1, B))
    most = np.empty((min(T, N), B))
    ways = []
    for d in range(T + N - 1):
        two_ago, one_ago, now = one_ago, now, two_ago
        one_ago[0] = _NEVER
        two_ago[0] = 0 if topology != "global" or d == 0 else _NEVER  # a path begins anywhere, or at the first clip
        lanes = _lanes(d, T, N)
        before, top = _predecessors(two_ago, one_ago, lanes, topology), most[: lanes.stop - lanes.start]
        np.maximum(before[0], before[1], out=top)
        np.maximum(top, before[-1], out=top)
        way = np.empty((len(before) + 1, *top.shape), costs.dtype)
        weights, total = way[:-1], way[-1]
        for u, out in zip(before, weights, strict=True):
            np.subtract(u, top, out=out, casting="same_kind")
        np.exp(weights, out=weights)
        np.add(weights[0], weights[1], out=total)
        if topology != "otam":
            np.add(total, weights[2], out=total)
        np.add(top, np.log(total), out=top)
        np.add(top, _antidiagonal(gain, d, lanes), out=now[1:][lanes])
        ways.append(way)
        if d < T:
            joined[d] = top[0]
        if d in ending:
            ended[d] = now[last, sample]
    column = torch.from_numpy(ended).mT.gather(1, diagonals)
    column = column.masked_fill(~allowed | (column < _NEVER / 2), -torch.inf).to(cost.device)
    total = column.logsumexp(1, keepdim=True)
    ends = (column - total.masked_fill(total == -torch.inf, 0)).exp()
    value = (-gamma * total[:, 0]).masked_fill((T_b == 0) | (N_b == 0), 0)
    return value.to(cost.dtype), ways, torch.from_numpy(joined).to(cost.device), ends


@np.errstate(all="ignore")
def expected(ways: list[np.ndarray], joined: Tensor, ends: Tensor, N_b: Tensor, topology: str) -> Tensor:
    r"""How likely each cell is on the path, (B, T, N); uses up `ways`.  [Cuturi & Blondel 2017, Alg. 2]

    What a cell has, its share of the ends and of its successors, it hands on to its predecessors by what they weigh.
    """
    (B, T), N, dtype = ends.shape, len(ways) - len(joined) + 1, ways[0].dtype
    ended, last, sample = np.zeros((T + N - 1, B), dtype), N_b.cpu().numpy(), np.arange(B)
    np.put_along_axis(ended, _end_diagonals(T, N_b).mT.cpu().numpy(), ends.mT.cpu().numpy(), 0)
    ending = ended.any(1).tolist()
    two_ago, one_ago, now = np.zeros((3, N + 1, B), dtype)
    E = np.empty((T, N, B), dtype)
    for d in range(T + N - 2, -1, -1):
        if ending[d]:
            now[last, sample] += ended[d]
        lanes = _lanes(d, T, N)
        here, weights, total = now[1:][lanes], ways[d][:-1], ways[d][-1]
        _antidiagonal(E, d, lanes)[:] = here
        np.divide(here, total, out=total)
        np.multiply(weights, total, out=weights)
        for part, handed_on in zip(_predecessors(two_ago, one_ago, lanes, topology), weights, strict=True):
            np.add(part, handed_on, out=part)
        now[:] = 0
        now, one_ago, two_ago = one_ago, two_ago, now
    return torch.from_numpy(E[::-1].transpose(2, 0, 1).copy()).to(ends.device)


def _lanes(d: int, T: int, N: int) -> slice:
    """The query clips of anti-diagonal d."""
    return slice(max(0, d - T + 1), min(N, d + 1))


def _predecessors(two_ago: np.ndarray, one_ago: np.ndarray, lanes: slice, topology: str) -> tuple[np.ndarray, ...]:
    """(i-1, j-1), (i-1, j) and (i, j-1) of an anti-diagonal, from the two before it, (N + 1, B), with j at j + 1."""
    diagonal, up, left = two_ago[lanes], one_ago[1:][lanes], one_ago[lanes]
    return (diagonal, up) if topology == "otam" else (diagonal, up, left)


def _antidiagonal(x: np.ndarray, d: int, lanes: slice) -> np.ndarray:
    """The cells i + j = d of (T, N, B) upside down, as (n, B), a view to read and write."""
    T, N, B = x.shape
    first = (T - 1 - d + lanes.start) * N + lanes.start
    return x.reshape(T * N, B)[first : first + (lanes.stop - lanes.start) * (N + 1) : N + 1]


# --- hard ---------------------------------------------------------------------------------------------------------


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T, N)."""
    path = torch.zeros_like(cost, dtype=torch.bool)
    U = _recursion(skew(cost.double().masked_fill(~valid(cost, T_b, N_b), 0), torch.inf), topology)
    T, b = cost.shape[1], torch.arange(len(cost), device=cost.device)
    column = U[_end_diagonals(T, N_b).mT + 2, N_b.clamp(min=1), b].mT
    column = column.masked_fill(~_ends_allowed(T, T_b, N_b, topology), -torch.inf)
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


def _recursion(kappa: Tensor, topology: str) -> Tensor:
    """The table U = -R without gamma, diagonal by diagonal: U_ij = max(predecessors) - kappa_ij.

    kappa    (D, N, B)  costs, skewed; D = T + N - 1
    returns  (D + 2, N + 1, B)  two diagonals and one lane of border before the cells
    """
    D, N, B = kappa.shape
    U, before = empty(D + 2, N + 1, B, like=kappa), empty(N, B, like=kappa)
    U[:2] = -torch.inf
    U[:, 0] = -torch.inf if topology == "global" else 0  # a path may begin at any target clip, or ...
    U[0, 0] = 0  # ... at the first one
    for two_ago, one_ago, here, k in zip(U[:-2], U[1:-1], U[2:], kappa, strict=True):
        torch.maximum(two_ago[:-1], one_ago[1:], out=before)  # (i-1, j-1) and (i-1, j)
        if topology != "otam":
            torch.maximum(before[1:], one_ago[1:-1], out=before[1:])  # and (i, j-1)
        torch.sub(before, k, out=here[1:])
    return U
