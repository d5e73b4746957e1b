r"""Soft and hard alignment of target and query videos: soft-DTW and its relatives, for a whole batch.

Paper    [MATR §3.2] aligns with soft-DTW, whose recursion is [Cuturi & Blondel 2017, Alg. 1]; its ablation compares
         Drop-DTW [Dvornik et al. 2021] and temporal cycle consistency (TCC) [Dwibedi et al. 2019]
Here     costs are (B, T, N), target rows and query columns. With smin the soft minimum
         $\operatorname{smin}_\gamma(a) = -\gamma \log \sum_k e^{-a_k / \gamma}$, `soft_dtw` is
         $$R_{ij} = C_{ij} + \operatorname{smin}_\gamma(R_{i-1,j-1}, R_{i-1,j}, R_{i,j-1})$$
         read at the end of the query; its gradient is the expected alignment [Cuturi & Blondel 2017, Alg. 2].
         Three modules compute it: `alignment_gpu` (triton), `alignment_cpu` (numba), `alignment_plain` (numpy)
Topology "global": every target clip is matched. "subsequence": target clips before and after the matched part stay
         unmatched, as a contiguous moment requires (MATR's figure shows it, its text does not name it).
         "otam" [Cao et al. 2020]: as "subsequence", and no target clip is matched twice; samples with fewer target
         clips than query clips use "subsequence"
Padding  a cell depends on smaller indices only, so each sample is read at its own end and padding is ignored
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops import alignment_plain
from mrlib.ops.alignment_plain import skew, valid
from mrlib.ops.eager import eager

TOPOLOGIES = ("global", "subsequence", "otam")
_FAR = 1e30  # stands for infinity under autograd, where the difference of two infinities would be NaN


@eager
def soft_dtw(
    cost: Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
) -> Tensor:
    r"""The soft minimum of the cost over all alignments, differentiable once.  [MATR §3.2], [Cuturi & Blondel 2017]

    $\operatorname{smin}_\gamma\{\langle A, C\rangle\}$; it may be negative. A cost of +inf forbids a cell; if no
    alignment remains, the value is +inf and the gradient 0. For -inf the result is undefined. A length of 0 gives
    value 0 and gradient 0.

    cost            (B, T, N)
    gamma           > 0, in units of the cost
    target_lengths  int (B,)  None: all T
    query_lengths   int (B,)  None: all N
    topology        "global", "subsequence" or "otam"
    returns         (B,)  float64 for float64, else float32
    raises          ValueError; RuntimeError in a backward pass with `create_graph=True`
    """
    gamma = _positive(gamma)
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return cost.sum((1, 2))
    if cost.requires_grad and torch.is_grad_enabled():
        return _by_topology(lambda c, *rest: _SoftDTW.apply(c, gamma, *rest), cost, T_b, N_b, topology)
    return _by_topology(lambda c, *rest: _kernels(c).soft(c, gamma, *rest, keep=False)[0], cost, T_b, N_b, topology)


@torch.no_grad()
def expected_alignment(
    cost: Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
) -> Tensor:
    r"""The probability that a pair of clips is matched, the gradient of `soft_dtw`.  [Cuturi & Blondel 2017, Alg. 2]

    Arguments as for `soft_dtw`.
    returns  (B, T, N)  in [0, 1], without gradient; 0 on padding
    """
    gamma = _positive(gamma)
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return torch.zeros_like(cost)
    return _by_topology(lambda c, *rest: _kernels(c).soft(c, gamma, *rest, keep=True)[1], cost, T_b, N_b, topology)


@torch.no_grad()
def hard_alignment(
    cost: Tensor,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
) -> Tensor:
    """The cheapest alignment, gamma = 0.  [MATR §3.2]

    Ties: of equal predecessors the diagonal one, then the previous target clip, then the previous query clip; of equal
    ends the earliest, of equal starts the latest.

    returns  bool (B, T, N)  True on the path; all False where no finite alignment exists
    """
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return torch.zeros_like(cost, dtype=torch.bool)
    return _by_topology(lambda c, *rest: _kernels(c).hard_path(c, *rest), cost, T_b, N_b, topology)


def drop_dtw(
    cost: Tensor,
    drop: float | Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """DTW that may drop target clips; each of the others is matched with one query clip.  [Drop-DTW]

    cost     (B, T, N)
    drop     number, (B,) or (B, T)  the cost of dropping a target clip
    returns  (B,)  differentiable with respect to cost and drop; otherwise as `soft_dtw`
    """
    gamma = _positive(gamma)
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, "global")
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
) -> Tensor:
    """The cheapest alignment that may drop target clips, gamma = 0.  [Drop-DTW]

    Ties: matched before dropped; then as for `hard_alignment`.

    returns  bool (B, T, N)  True where matched; the row of a dropped target clip is all False
    """
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, "global")
    path = torch.zeros_like(cost, dtype=torch.bool)
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
    gamma = _positive(gamma)
    cost, T_b, N_b = _checked(cost, target_lengths, query_lengths, "global")
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


def tcc(
    target: Tensor,
    query: Tensor,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    r"""Temporal cycle consistency: a loss that is small if each query clip returns to itself through the target.  [TCC]

    The cycle is query -> target -> query, because target clips of the background have no partner. With $\tilde e_j$
    the soft nearest neighbour of query clip j in the target, and $\mu_j, \sigma_j^2$ the mean and variance of the
    position $m / N$ in the query of the soft nearest neighbour of $\tilde e_j$, the loss is the mean over j of
    $(j / N - \mu_j)^2 / \sigma_j^2 + 0.001 \log \sigma_j$.

    target       (B, T, d)
    query        (B, N, d)
    temperature  > 0, divides the cosines
    returns      (B,)  0 for a query of fewer than two clips or an empty target
    """
    if not _is_positive(temperature):
        raise ValueError(f"temperature must be a finite number above 0, not {temperature!r}")
    target, query, T_b, N_b, target_mask, query_mask = _features(target, query, target_lengths, query_lengths)
    if 0 in target.shape or 0 in query.shape:
        return target[:, :0].sum((1, 2)) + query[:, :0].sum((1, 2))
    with torch.autocast(target.device.type, enabled=False):
        alpha = (_cosine(query, target) / temperature).masked_fill(~target_mask[:, None], -_FAR).softmax(2)  # (B, N, T)
        returning = _cosine(alpha @ target, query)  # (B, N, N)
        beta = (returning / temperature).masked_fill(~query_mask[:, None], -_FAR).softmax(2)
        clips = N_b.clamp(min=1)[:, None]  # (B, 1)
        position = torch.arange(1, query.shape[1] + 1, device=query.device) / clips.to(query.dtype)  # m / N  (B, N)
        mu = (beta * position[:, None]).sum(2)  # (B, N)
        variance = (beta * (position[:, None] - mu[:, :, None]) ** 2).sum(2).clamp(min=1e-4)
        error = (position - mu) ** 2 / variance + 0.0005 * variance.log()
        loss = error.masked_fill(~query_mask, 0).sum(1) / clips[:, 0]  # (B,)
        return loss.masked_fill((N_b < 2) | (T_b < 1), 0)


@torch.no_grad()
def tcc_alignment(
    target: Tensor, query: Tensor, target_lengths: Tensor | None = None, query_lengths: Tensor | None = None
) -> Tensor:
    """Match each query clip with its nearest target clip, the earliest of equal ones.  [TCC]

    target   (B, T, d)
    query    (B, N, d)
    returns  bool (B, T, N)
    """
    target, query, _, _, target_mask, query_mask = _features(target, query, target_lengths, query_lengths)
    if 0 in target.shape or 0 in query.shape:
        return torch.zeros(*target.shape[:2], query.shape[1], dtype=torch.bool, device=target.device)
    with torch.autocast(target.device.type, enabled=False):
        cosine = _cosine(target, query).masked_fill(~target_mask[:, :, None], -torch.inf)  # (B, T, N)
    nearest = (cosine == cosine.amax(1, keepdim=True)).int().argmax(1, keepdim=True)  # (B, 1, N)
    path = torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, nearest, True)
    return path & target_mask[:, :, None] & query_mask[:, None]


def span_of(path: Tensor) -> tuple[Tensor, Tensor]:
    """The first target clip that a path matches and one past the last.  [MATR §3.2]

    path     bool (B, T, N)
    returns  start, end  int64 (B,)  half-open; (0, 0) for an empty path
    """
    T, matched = path.shape[1], path.any(2)  # (B, T)
    if T == 0:
        return matched.sum(1), matched.sum(1)
    number = torch.arange(1, T + 1, device=path.device)
    end = (matched * number).amax(1)  # (B,)
    start = (T - (matched.flip(1) * number).amax(1)).masked_fill(end == 0, 0)
    return start, end


def _is_positive(x: float) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x) and x > 0


def _positive(gamma: float) -> float:
    if not _is_positive(gamma):
        raise ValueError(f"gamma must be a finite number above 0, not {gamma!r}: gamma -> 0 is hard_alignment")
    return float(gamma)


def _checked(
    cost: Tensor, target_lengths: Tensor | None, query_lengths: Tensor | None, topology: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Validated arguments: the cost in float32 or float64, and both lengths, int64 (B,), on its device."""
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}, not {topology!r}")
    if not isinstance(cost, Tensor) or cost.ndim != 3 or not cost.is_floating_point():
        kind = f"{cost.dtype} of shape {tuple(cost.shape)}" if isinstance(cost, Tensor) else type(cost).__name__
        raise ValueError(f"cost must be a floating-point tensor (B, T, N), not {kind}")
    T_b = _lengths("target_lengths", target_lengths, cost, 1)
    N_b = _lengths("query_lengths", query_lengths, cost, 2)
    return cost.to(torch.promote_types(cost.dtype, torch.float32)), T_b, N_b


def _lengths(name: str, lengths: Tensor | None, cost: Tensor, dim: int) -> Tensor:
    """Validated lengths, int64 (B,); None stands for the size of the cost in dimension `dim`."""
    B, most = cost.shape[0], cost.shape[dim]
    if lengths is None:
        return torch.full((B,), most, device=cost.device)
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"{name} must be an integer tensor (B,), not {getattr(lengths, 'dtype', type(lengths))}")
    if lengths.shape != (B,):
        raise ValueError(f"{name} must have shape ({B},) for a cost {tuple(cost.shape)}, not {tuple(lengths.shape)}")
    if not bool(((lengths >= 0) & (lengths <= most)).all()):
        raise ValueError(f"{name} must lie in 0..{most} for a cost {tuple(cost.shape)}, not {lengths.tolist()}")
    return lengths.to(cost.device, torch.int64)


def _by_topology(function: Callable[..., Tensor], cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """function(cost, T_b, N_b, topology), where samples too short for "otam" are computed as "subsequence"."""
    short = T_b < N_b
    if topology != "otam" or not bool(short.any()):
        return function(cost, T_b, N_b, topology)
    if bool(short.all()):
        return function(cost, T_b, N_b, "subsequence")
    parts = [(~short).nonzero()[:, 0], short.nonzero()[:, 0]]  # indices into the batch
    topologies = zip(parts, ("otam", "subsequence"), strict=True)
    results = [function(cost[b], T_b[b], N_b[b], of_part) for b, of_part in topologies]
    return torch.cat(results)[torch.cat(parts).argsort()]


class _SoftDTW(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
        value, E = _kernels(cost).soft(cost, gamma, T_b, N_b, topology, keep=True)
        ctx.save_for_backward(E)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("the second derivative of soft_dtw is not implemented")
        (E,) = ctx.saved_tensors
        # numpy's memory comes in large pages, which is faster
        out = torch.from_numpy(np.empty_like(E.numpy())) if E.device.type == "cpu" else torch.empty_like(E)
        return torch.mul(grad[:, None, None], E, out=out), None, None, None, None


def _kernels(cost: Tensor) -> ModuleType:
    """The fastest of `alignment_gpu`, `alignment_cpu` and `alignment_plain` that can compute on the cost's device."""
    backend = {"cuda": "gpu", "cpu": "cpu"}.get(cost.device.type, "plain")
    try:
        return import_module(f"mrlib.ops.alignment_{backend}")
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "numba"):
            raise
        return alignment_plain


# --- shared by the variants under autograd; numbers stay finite, because the difference of two infinities is NaN ------


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
    drop = torch.as_tensor(drop, dtype=torch.float64, device=cost.device)
    if drop.shape not in ((), (B,), (B, T)):
        raise ValueError(f"drop must be a number, ({B},) or ({B}, {T}), not {tuple(drop.shape)}")
    drop = (drop[:, None] if drop.ndim == 1 else drop).expand(B, T)[:, :, None]  # (B, T, 1)
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


def _features(
    target: Tensor, query: Tensor, target_lengths: Tensor | None, query_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Validated arguments of TCC: target and query in one dtype with 0 on padding; T_b, N_b; bool (B, T) and (B, N)."""
    for name, x in (("target", target), ("query", query)):
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor of three dimensions (batch, clips, features)")
    if len(target) != len(query) or target.shape[2] != query.shape[2]:
        raise ValueError(f"target {tuple(target.shape)} and query {tuple(query.shape)} differ in batch or features")
    T_b, N_b = _lengths("target_lengths", target_lengths, target, 1), _lengths("query_lengths", query_lengths, query, 1)
    dtype = torch.promote_types(torch.promote_types(target.dtype, query.dtype), torch.float32)
    target_mask = torch.arange(target.shape[1], device=target.device) < T_b[:, None]  # (B, T)
    query_mask = torch.arange(query.shape[1], device=query.device) < N_b[:, None]  # (B, N)
    target = target.to(dtype).masked_fill(~target_mask[:, :, None], 0)
    return target, query.to(dtype).masked_fill(~query_mask[:, :, None], 0), T_b, N_b, target_mask, query_mask


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs, (B, n, d) and (B, m, d) -> (B, n, m)."""
    return F.normalize(a, dim=-1, eps=1e-8) @ F.normalize(b, dim=-1, eps=1e-8).mT
