r"""Drop-DTW, and DTW with the mean as the minimum, as autograd writes their gradients.

Paper    the ablation of [MATR §3.2] compares Drop-DTW [Dvornik et al. 2021]; vl2g/MATR takes a mean as the soft minimum
Here     costs are (B, T, N), as for `mrlib.ops.alignment`; the recursions run on $U = -R / \gamma$, by anti-diagonals.
         Numbers stay finite, because the difference of two infinities is NaN
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.alignment_arguments import checked_band, checked_cost, positive_gamma
from mrlib.ops.alignment_plain import in_band, skew, valid
from mrlib.ops.finite import refuse

_FAR = 1e150  # stands for infinity; its sums, and its products with the largest gamma, are finite


def drop_dtw(
    cost: Tensor,
    drop: float | Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    band: int | None = None,
) -> Tensor:
    """DTW that may drop target clips; each of the others is matched with one query clip.  [Drop-DTW]

    cost     (B, T, N)
    drop     number, (B,) or (B, T)  the cost of dropping a target clip; +inf keeps it
    band     |i - j| <= band for every match, i counted with the dropped clips; None: no band
    returns  (B,)  differentiable with respect to cost and drop; otherwise as `soft_dtw`
    raises   ValueError as `soft_dtw`, also for a drop of NaN or -inf
    """
    gamma = positive_gamma(gamma)
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, "global")
    cost = in_band(cost, checked_band(band))
    if 0 in cost.shape:
        return cost.sum((1, 2))
    with torch.autocast(cost.device.type, enabled=False):
        _, A = _drop_tables(cost, drop, gamma, T_b, N_b, torch.logaddexp)
        return (-gamma * _at_end(A[2:, 1:], T_b, N_b)).to(cost.dtype)


@torch.no_grad()
def drop_alignment(
    cost: Tensor,
    drop: float | Tensor,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    band: int | None = None,
) -> Tensor:
    """The cheapest alignment that may drop target clips, gamma = 0.  [Drop-DTW]

    Ties: matched before dropped; then as for `hard_alignment`. Arguments and errors are those of `drop_dtw`.

    returns  bool (B, T, N)  True where matched; the row of a dropped target clip is all False
    """
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, "global")
    cost, path = in_band(cost, checked_band(band)), torch.zeros_like(cost, dtype=torch.bool)
    if 0 in cost.shape:
        return path
    M, A = _drop_tables(cost, drop, 1.0, T_b, N_b, torch.maximum)
    b = torch.arange(len(cost), device=cost.device)
    i, j = T_b - 1, N_b - 1
    must_match = torch.zeros_like(b, dtype=torch.bool)  # this clip shares its query clip with the next target clip
    active = (T_b > 0) & (N_b > 0)  # samples whose path is not complete
    active &= A[i + j + 2, j + 1, b] > -_FAR / 2
    for _ in range(sum(cost.shape[1:]) - 1):
        i, j = i.where(active, 0), j.where(active, 0)
        here, back = i + j + 2, i + j + 1  # anti-diagonals of the cell and of its neighbours
        matched = active & (must_match | (M[here, j + 1, b] == A[here, j + 1, b]))
        path[b[matched], i[matched], j[matched]] = True
        step_up = A[i + j, j, b] < M[back, j + 1, b]
        must_match = matched & step_up
        i, j = i - 1, j - (matched & ~step_up).long()  # at j = -1, before the query, all target clips are dropped
        active = active & (i >= 0)
    return path


def mean_dtw(
    cost: Tensor, gamma: float = 0.1, target_lengths: Tensor | None = None, query_lengths: Tensor | None = None
) -> Tensor:
    r"""Global DTW with the mean $\sum_k a_k \operatorname{softmax}(-a / \gamma)_k$ as the minimum, as in vl2g/MATR.

    Its gradient may be negative and is not an alignment. Arguments and returned value as for `soft_dtw`.
    """
    gamma = positive_gamma(gamma)
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, "global")
    if 0 in cost.shape:
        return cost.sum((1, 2))
    with torch.autocast(cost.device.type, enabled=False):
        kappa = skew(_finite(cost, gamma, T_b, N_b), _FAR)  # (T + N - 1, N, B)
        U = [*kappa.new_full((2, kappa.shape[1] + 1, len(cost)), -_FAR)]  # anti-diagonals (N + 1, B), after two borders
        U[0][0] = 0
        for k in kappa:
            predecessors = torch.stack([U[-2][:-1], U[-1][1:], U[-1][:-1]])  # (3, N, B)
            mean = (predecessors * predecessors.softmax(0)).sum(0)  # (N, B)
            U.append(F.pad(mean - k, (0, 0, 1, 0), value=-_FAR))
        return (-gamma * _at_end(torch.stack(U)[2:, 1:], T_b, N_b)).to(cost.dtype)


def _finite(cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor) -> Tensor:
    """Costs (B, T, N) in units of gamma, float64; 0 on padding, `_FAR` and without gradient for forbidden cells."""
    return (cost.double() / gamma).masked_fill(~valid(cost, T_b, N_b), 0).clamp(max=_FAR)


def _at_end(U: Tensor, T_b: Tensor, N_b: Tensor) -> Tensor:
    """The last cell of each sample in U (T + N - 1, N, B): (B,), -inf if it is unreachable, 0 for an empty sample."""
    i, j = (T_b - 1).clamp(min=0), (N_b - 1).clamp(min=0)
    end = U[i + j, j, torch.arange(U.shape[2], device=U.device)]  # (B,)
    return end.masked_fill(end < -_FAR / 2, -torch.inf).masked_fill((T_b == 0) | (N_b == 0), 0)


def _drop_tables(
    cost: Tensor, drop: float | Tensor, gamma: float, T_b: Tensor, N_b: Tensor, join: Callable
) -> tuple[Tensor, Tensor]:
    """The tables of Drop-DTW, with `join` as the maximum: -D^+ (the cell is matched) and -D (matched or dropped).

    returns  two (T + N + 1, N + 1, B)  anti-diagonals, after two of border; cells, after one of border
    """
    B, T, N = cost.shape
    drop = _checked_drop(drop, cost, T_b)[:, :, None]  # (B, T, 1)
    drop = _finite(drop, gamma, T_b, torch.ones_like(T_b))  # (B, T, 1)
    kappa, delta = skew(_finite(cost, gamma, T_b, N_b), _FAR), skew(drop.expand(B, T, N), 0)  # (T + N - 1, N, B)
    border = F.pad(-drop[:, :, 0].cumsum(1).mT, (0, 0, 1, N))[:, None]  # all clips dropped so far, (T + N + 1, 1, B)
    far = kappa.new_full((N + 1, B), -_FAR)
    M, A = [far, far], [torch.cat([border[0], far[1:]]), torch.cat([border[1], far[1:]])]
    for k, skip, edge in zip(kappa, delta, border[2:], strict=True):
        best = join(A[-2][:-1], M[-1][1:])  # of the predecessors, (N, B)
        M.append(torch.cat([far[:1], best - k]))
        A.append(torch.cat([edge, join(M[-1][1:], A[-1][1:] - skip)]))
    return torch.stack(M), torch.stack(A)


def _checked_drop(drop: float | Tensor, cost: Tensor, T_b: Tensor) -> Tensor:
    """The cost of dropping each target clip, float64 (B, T)."""
    B, T, _ = cost.shape
    if isinstance(drop, Tensor) and drop.dtype not in (torch.bool, torch.complex64, torch.complex128):
        drop = drop.to(cost.device, torch.float64)
    elif isinstance(drop, numbers.Real) and not isinstance(drop, bool):
        drop = torch.tensor(float(drop), dtype=torch.float64, device=cost.device)
    else:
        kind = drop.dtype if isinstance(drop, Tensor) else type(drop).__name__
        raise ValueError(f"drop must be a number or a tensor of numbers, not {kind}")
    if drop.shape not in ((), (B,), (B, T)):
        raise ValueError(f"drop must be a number, ({B},) or ({B}, {T}), not {tuple(drop.shape)}")
    drop = (drop[:, None] if drop.ndim == 1 else drop).expand(B, T)
    real = torch.arange(T, device=cost.device) < T_b[:, None]
    refuse("drop", drop, ~(drop > -torch.inf) & real, ("batch element", "target clip"))
    return drop
