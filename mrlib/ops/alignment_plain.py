r"""Soft-DTW by its definition, all cells of an anti-diagonal at once: the reference, also used where numba is missing.

Paper    [Cuturi & Blondel 2017], Alg. 1 for the forward and Alg. 2 for the backward pass
Here     `soft` and `hard_path` are the interface that `mrlib.ops.alignment` expects of its three modules; costs are
         (B, T, N) in float32 or float64, lengths int64 (B,). The recursion runs on $U = -R / \gamma$, where smin is
         logsumexp
Departs  Alg. 2 takes exponentials of R. Here the exponentials of the logsumexp are stored: divided by their sum, they
         are the shares of a cell's predecessors. U is float64, because R / gamma exceeds float32 precision; the stored
         weights are ratios and keep the cost's dtype
Layout   the batch is the innermost dimension: an anti-diagonal is (n, B), query clips ascending. `soft` holds three
         anti-diagonals of U and stores the weights of all predecessors. It uses numpy, on the CPU, for costs on any
         device, because most calls handle a few hundred numbers, for which numpy takes half as long as torch.
         `hard_path` uses torch and traces the path back through a skewed table: cell (i, j) is at [i + j, j]
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_NEVER = -1e300  # U of an unreachable cell; unlike -inf, the difference of two is a number


def skew(x: Tensor, outside: float) -> Tensor:
    """Make every anti-diagonal a slice, (B, T, N) -> (T + N - 1, N, B): x[b, i, j] moves to [i + j, j, b].

    outside  the value of entries that belong to no cell
    """
    B, T, N = x.shape
    table = empty(T + N - 1, N, B, like=x).fill_(outside)
    table.as_strided((B, T, N), (1, N * B, (N + 1) * B)).copy_(x)
    return table


def empty(*shape: int, like: Tensor) -> Tensor:
    """An uninitialised tensor; on the CPU from numpy, whose large memory pages halve the time to touch it."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, np.float64 if like.dtype == torch.float64 else np.float32))


def valid(cost: Tensor, T_b: Tensor, N_b: Tensor) -> Tensor:
    """The mask of real cells, bool (B, T, N): False on padding."""
    row, column = (torch.arange(size, device=cost.device) for size in cost.shape[1:])
    return (row < T_b[:, None])[:, :, None] & (column < N_b[:, None])[:, None]


def in_band(cost: Tensor, band: int | None) -> Tensor:
    """The cost (B, T, N) with +inf, without gradient, in cells with |i - j| > band; None: no band."""
    T, N = cost.shape[1:]
    if band is None or band >= max(T, N) - 1:
        return cost
    i, j = torch.arange(T, device=cost.device), torch.arange(N, device=cost.device)
    return cost.masked_fill((i[:, None] - j).abs() > band, torch.inf)


def _ends_allowed(T: int, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T): the rows of the last column in which a path may end; none in an empty sample."""
    row, last = torch.arange(T, device=T_b.device), T_b[:, None] - 1
    return (N_b > 0)[:, None] & (row == last if topology == "global" else row <= last)


def _end_diagonals(T: int, N_b: Tensor) -> Tensor:
    """int64 (B, T): the anti-diagonal of the cell of each target clip and the last query clip."""
    return torch.arange(T, device=N_b.device) + (N_b - 1).clamp(min=0)[:, None]


# --- soft ---------------------------------------------------------------------------------------------------------


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, band: int | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value of soft-DTW (B,) and, with `keep`, the expected alignment (B, T, N)."""
    value, weights, ends = tables(in_band(cost.detach(), band), gamma, T_b, N_b, topology)
    return value, expected(weights, ends, N_b, topology) if keep else None


@np.errstate(all="ignore")
def tables(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str
) -> tuple[Tensor, list[np.ndarray], Tensor]:
    """The forward pass of soft-DTW: the value and the weights of all predecessors.  [Cuturi & Blondel 2017, Alg. 1]

    returns  value    (B,)
             weights  for each anti-diagonal (4, n, B), for "otam" (3, n, B): the weights of the predecessors of its
                      cells, the largest 1, in the order of `_predecessors`, followed by their sum
             ends     (B, T)  float64  the probability that a path ends at each target clip
    """
    B, T, N = cost.shape
    costs, rows, last = cost.detach().permute(1, 2, 0).cpu().numpy(), T_b.cpu().numpy(), N_b.cpu().numpy()
    gain = np.divide(
        costs[::-1], -gamma, dtype=np.float64, out=np.empty((T, N, B))
    )  # -C / gamma, rows reversed for `_antidiagonal`
    np.maximum(gain, _NEVER, out=gain)
    gain[(np.arange(T)[::-1, None] >= rows)[:, None] | (np.arange(N)[:, None] >= last)] = 0
    allowed, diagonals, sample = _ends_allowed(T, T_b, N_b, topology).cpu(), _end_diagonals(T, N_b).cpu(), np.arange(B)
    ending = set(diagonals[allowed].tolist())  # anti-diagonals on which some path may end
    two_ago, one_ago, now = np.full((3, N + 1, B), _NEVER)  # anti-diagonals of U, the border before the cells
    ended = np.full((T + N - 1, B), _NEVER)
    buffer = np.empty((min(T, N), B))
    weights = []
    for d in range(T + N - 1):
        two_ago, one_ago, now = one_ago, now, two_ago
        one_ago[0] = _NEVER
        two_ago[0] = 0 if topology != "global" or d == 0 else _NEVER  # a path begins anywhere, or at the first clip
        lanes = _cells_of_diagonal(d, T, N)
        predecessors, top = _predecessors(two_ago, one_ago, lanes, topology), buffer[: lanes.stop - lanes.start]
        np.maximum(predecessors[0], predecessors[1], out=top)  # (n, B)
        np.maximum(top, predecessors[-1], out=top)
        row = np.empty((len(predecessors) + 1, *top.shape), costs.dtype)
        each, total = row[:-1], row[-1]
        for u, weight in zip(predecessors, each, strict=True):
            np.subtract(u, top, out=weight, casting="same_kind")
        np.exp(each, out=each)
        np.add(each[0], each[1], out=total)
        if topology != "otam":
            np.add(total, each[2], out=total)
        np.add(top, np.log(total), out=top)
        np.add(top, _antidiagonal(gain, d, lanes), out=now[1:][lanes])
        weights.append(row)
        if d in ending:
            ended[d] = now[last, sample]
    column = torch.from_numpy(ended).mT.gather(1, diagonals)  # U of the possible ends, (B, T)
    column = column.masked_fill(~allowed | (column < _NEVER / 2), -torch.inf).to(cost.device)
    total = column.logsumexp(1)
    top = column.amax(1, keepdim=True)
    # shares of their sum, and not exp(column - total): where |U| > 1e12, total is rounded by as much as its logarithm
    ends = (column - top.masked_fill(top == -torch.inf, 0)).exp()
    ends = ends / ends.sum(1, keepdim=True).clamp(min=1)  # 0, or 1 and more
    value = (-gamma * total).masked_fill((T_b == 0) | (N_b == 0), 0)
    return value.to(cost.dtype), weights, ends


@np.errstate(all="ignore")
def expected(weights: list[np.ndarray], ends: Tensor, N_b: Tensor, topology: str) -> Tensor:
    r"""The backward pass of soft-DTW: the probability that a path visits each cell.  [Cuturi & Blondel 2017, Alg. 2]

    The probability of a cell, from its successors and the ends, is divided among its predecessors by their weights.

    weights, ends  as from `tables`; weights are overwritten
    returns        (B, T, N)
    """
    (B, T), dtype = ends.shape, weights[0].dtype
    N = len(weights) - T + 1
    ended, last, sample = np.zeros((T + N - 1, B), dtype), N_b.cpu().numpy(), np.arange(B)
    np.put_along_axis(ended, _end_diagonals(T, N_b).mT.cpu().numpy(), ends.mT.cpu().numpy(), 0)
    ending = ended.any(1).tolist()
    two_ago, one_ago, now = np.zeros((3, N + 1, B), dtype)
    E = np.empty((T, N, B), dtype)
    for d in range(T + N - 2, -1, -1):
        if ending[d]:
            now[last, sample] += ended[d]
        lanes = _cells_of_diagonal(d, T, N)
        probability, each, total = now[1:][lanes], weights[d][:-1], weights[d][-1]  # (n, B), (2 or 3, n, B), (n, B)
        _antidiagonal(E, d, lanes)[:] = probability
        np.divide(probability, total, out=total)
        np.multiply(each, total, out=each)
        for predecessor, share in zip(_predecessors(two_ago, one_ago, lanes, topology), each, strict=True):
            np.add(predecessor, share, out=predecessor)
        now[:] = 0
        now, one_ago, two_ago = one_ago, two_ago, now
    return torch.from_numpy(E[::-1].transpose(2, 0, 1).copy()).to(ends.device)


def _cells_of_diagonal(d: int, T: int, N: int) -> slice:
    """The query clips of anti-diagonal d."""
    return slice(max(0, d - T + 1), min(N, d + 1))


def _predecessors(two_ago: np.ndarray, one_ago: np.ndarray, lanes: slice, topology: str) -> tuple[np.ndarray, ...]:
    """Views of (i-1, j-1), (i-1, j) and, except for "otam", (i, j-1) for all cells of an anti-diagonal, (n, B) each.

    two_ago, one_ago  (N + 1, B)  the anti-diagonals before it, with cell j at j + 1
    """
    diagonal, up, left = two_ago[lanes], one_ago[1:][lanes], one_ago[lanes]
    return (diagonal, up) if topology == "otam" else (diagonal, up, left)


def _antidiagonal(x: np.ndarray, d: int, lanes: slice) -> np.ndarray:
    """The cells i + j = d of x (T, N, B), whose rows are reversed, as a writable view (n, B)."""
    T, N, B = x.shape
    first = (T - 1 - d + lanes.start) * N + lanes.start
    return x.reshape(T * N, B)[first : first + (lanes.stop - lanes.start) * (N + 1) : N + 1]


# --- hard ---------------------------------------------------------------------------------------------------------


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str, band: int | None) -> Tensor:
    """The cheapest alignment of each sample, bool (B, T, N)."""
    cost = in_band(cost, band)
    path = torch.zeros_like(cost, dtype=torch.bool)
    U = _recursion(skew(cost.double().masked_fill(~valid(cost, T_b, N_b), 0), torch.inf), topology)
    T, b = cost.shape[1], torch.arange(len(cost), device=cost.device)
    column = U[_end_diagonals(T, N_b).mT + 2, N_b, b].mT  # U of the possible ends, (B, T)
    column = column.masked_fill(~_ends_allowed(T, T_b, N_b, topology), -torch.inf)
    best = column.amax(1)
    i, j = (column == best[:, None]).int().argmax(1), N_b - 1
    active = best > -torch.inf  # samples whose path is not complete
    for _ in range(sum(cost.shape[1:]) - 1):
        path[b[active], i[active], j[active]] = True
        i, j = i.where(active, 0), j.where(active, 0)
        diagonal, up, left = U[i + j, j, b], U[i + j + 1, j + 1, b], U[i + j + 1, j, b]
        if topology == "otam":
            left = torch.full_like(left, -torch.inf)
        straight = (diagonal < up) | (diagonal < left)  # the step is up or to the left
        step_left = straight & (up < left)
        i, j = i - (~step_left).long(), j - (~straight | step_left).long()
        active = active & (i >= 0) & (j >= 0)
    return path


def _recursion(kappa: Tensor, topology: str) -> Tensor:
    """The table U = -R for gamma = 0, by anti-diagonals: U_ij = max(predecessors) - kappa_ij.

    kappa    (D, N, B)  costs, skewed; D = T + N - 1
    returns  (D + 2, N + 1, B)  two anti-diagonals of border before the others, one entry of border before their cells
    """
    D, N, B = kappa.shape
    U, best = empty(D + 2, N + 1, B, like=kappa), empty(N, B, like=kappa)
    U[:2] = -torch.inf
    U[:, 0] = -torch.inf if topology == "global" else 0  # a path may start at any target clip, ...
    U[0, 0] = 0  # ... and always at the first
    for two_ago, one_ago, here, k in zip(U[:-2], U[1:-1], U[2:], kappa, strict=True):
        torch.maximum(two_ago[:-1], one_ago[1:], out=best)  # (i-1, j-1) and (i-1, j)
        if topology != "otam":
            torch.maximum(best[1:], one_ago[1:-1], out=best[1:])  # and (i, j-1)
        torch.sub(best, k, out=here[1:])
    return U
