r"""Soft and hard alignment of target and query videos, for a whole batch: soft-DTW and DTW.

Paper    [MATR §3.2] aligns with soft-DTW, whose recursion is [Cuturi & Blondel 2017, Alg. 1]; the other methods of
         its ablation, from `mrlib.ops.alignment_variants` and `mrlib.ops.cycle_consistency`, are names of this module
Here     costs are (B, T, N), target rows and query columns. With smin the soft minimum
         $\operatorname{smin}_\gamma(a) = -\gamma \log \sum_k e^{-a_k / \gamma}$, `soft_dtw` is
         $$R_{ij} = C_{ij} + \operatorname{smin}_\gamma(R_{i-1,j-1}, R_{i-1,j}, R_{i,j-1})$$
         read at the end of the query; its gradient is the expected alignment [Cuturi & Blondel 2017, Alg. 2].
         Three modules compute it: `alignment_gpu` (triton), `alignment_cpu` (numba), `alignment_plain` (numpy)
Topology "global": every target clip is matched. "subsequence": target clips before and after the matched part stay
         unmatched, as a contiguous moment requires (MATR's figure shows it, its text does not name it).
         "otam" [Cao et al. 2020]: as "subsequence", and no target clip is matched twice; samples with fewer target
         clips than query clips use "subsequence"
Band     with a Sakoe-Chiba band [Sakoe & Chiba 1978], cells with |i - j| > `band` are forbidden, i and j counted from
         the first clips, in every topology and for every length: the global alignment of n target clips and m query
         clips needs a band of at least |n - m|, and a free start lies in the first `band` + 1 target clips
Numbers  +inf forbids a cell; NaN and -inf within the lengths are refused, on padding they are ignored
Padding  a cell depends on smaller indices only, so each sample is read at its own end and padding is ignored
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from mrlib.ops import alignment_plain
from mrlib.ops.alignment_arguments import checked_band, checked_cost, positive_gamma
from mrlib.ops.alignment_variants import drop_alignment as drop_alignment
from mrlib.ops.alignment_variants import drop_dtw as drop_dtw
from mrlib.ops.alignment_variants import mean_dtw as mean_dtw
from mrlib.ops.cycle_consistency import tcc as tcc
from mrlib.ops.cycle_consistency import tcc_alignment as tcc_alignment
from mrlib.ops.eager import eager


@eager
def soft_dtw(
    cost: Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
    band: int | None = None,
) -> Tensor:
    r"""The soft minimum of the cost over all alignments, differentiable once.  [MATR §3.2], [Cuturi & Blondel 2017]

    $\operatorname{smin}_\gamma\{\langle A, C\rangle\}$; it may be negative. A cost of +inf and the band forbid cells;
    if no alignment remains, the value is +inf and the gradient 0. A length of 0 gives value 0 and gradient 0.

    cost            (B, T, N)
    gamma           > 0, from 1e-100 to 1e100, in units of the cost; a cost over 1e150 gamma may count as infinite
    target_lengths  int (B,)  None: all T
    query_lengths   int (B,)  None: all N
    topology        "global", "subsequence" or "otam"
    band            only cells with |i - j| <= band, a whole number of clips, 0 or more; None: all cells
    returns         (B,)  float64 for float64, else float32
    raises          ValueError, for a cost of NaN or -inf naming the batch element and the cell; RuntimeError in a
                    backward pass with `create_graph=True`
    """
    gamma, band = positive_gamma(gamma), checked_band(band)
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return cost.sum((1, 2))
    if cost.requires_grad and torch.is_grad_enabled():
        return _by_topology(lambda c, *rest: _SoftDTW.apply(c, gamma, *rest, band), cost, T_b, N_b, topology)
    return _by_topology(lambda c, *rest: _kernels(c).soft(c, gamma, *rest, band, False)[0], cost, T_b, N_b, topology)


@torch.no_grad()
def expected_alignment(
    cost: Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
    band: int | None = None,
) -> Tensor:
    r"""The probability that a pair of clips is matched, the gradient of `soft_dtw`.  [Cuturi & Blondel 2017, Alg. 2]

    Arguments and errors are those of `soft_dtw`.
    returns  (B, T, N)  in [0, 1], without gradient; 0 on padding
    """
    gamma, band = positive_gamma(gamma), checked_band(band)
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return torch.zeros_like(cost)
    return _by_topology(lambda c, *rest: _kernels(c).soft(c, gamma, *rest, band, True)[1], cost, T_b, N_b, topology)


@torch.no_grad()
def hard_alignment(
    cost: Tensor,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    topology: str = "global",
    band: int | None = None,
) -> Tensor:
    """The cheapest alignment, gamma = 0.  [MATR §3.2]

    Ties: of equal predecessors the diagonal one, then the previous target clip, then the previous query clip; of equal
    ends the earliest, of equal starts the latest. Arguments and errors are those of `soft_dtw`.

    returns  bool (B, T, N)  True on the path; all False where no finite alignment exists
    """
    band = checked_band(band)
    cost, T_b, N_b = checked_cost(cost, target_lengths, query_lengths, topology)
    if 0 in cost.shape:
        return torch.zeros_like(cost, dtype=torch.bool)
    return _by_topology(lambda c, *rest: _kernels(c).hard_path(c, *rest, band), cost, T_b, N_b, topology)


def span_of(path: Tensor) -> tuple[Tensor, Tensor]:
    """The first target clip that a path matches and one past the last.  [MATR §3.2]

    path     bool (B, T, N)
    returns  start, end  int64 (B,)  half-open; (0, 0) for an empty path
    """
    if not isinstance(path, Tensor) or path.ndim != 3 or path.dtype != torch.bool:
        kind = f"{path.dtype} of shape {tuple(path.shape)}" if isinstance(path, Tensor) else type(path).__name__
        raise ValueError(f"path must be a bool tensor (B, T, N), not {kind}")
    T, matched = path.shape[1], path.any(2)  # (B, T)
    if T == 0:
        return matched.sum(1), matched.sum(1)
    number = torch.arange(1, T + 1, device=path.device)
    end = (matched * number).amax(1)  # (B,)
    start = (T - (matched.flip(1) * number).amax(1)).masked_fill(end == 0, 0)
    return start, end


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
    """The gradient is the expected alignment times the incoming one, in place: no second table is allocated."""

    @staticmethod
    def forward(ctx, cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, band: int | None) -> Tensor:
        ctx.options = gamma, T_b, N_b, topology, band
        ctx.save_for_backward(cost)
        value, ctx.expected = _kernels(cost).soft(cost, *ctx.options, keep=True)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("the second derivative of soft_dtw is not implemented")
        E, ctx.expected = ctx.expected, None
        if E is None:  # a second pass, after retain_graph=True
            (cost,) = ctx.saved_tensors
            E = _kernels(cost).soft(cost, *ctx.options, keep=True)[1]
        return E.mul_(grad[:, None, None]), None, None, None, None, None


def _kernels(cost: Tensor) -> ModuleType:
    """The fastest of `alignment_gpu`, `alignment_cpu` and `alignment_plain` that can compute on the cost's device."""
    backend = {"cuda": "gpu", "cpu": "cpu"}.get(cost.device.type, "plain")
    try:
        return import_module(f"mrlib.ops.alignment_{backend}")
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "numba"):
            raise
        return alignment_plain
