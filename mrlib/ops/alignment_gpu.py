r"""Soft-DTW on the GPU: the recursion of `mrlib.ops.alignment_plain` in one triton kernel, one program per sample.

State    $U = -R / \gamma$ in float64, three anti-diagonals of it in scratch memory; exponentials are of differences
         only, in the dtype of the cost. Anti-diagonals longer than `_LANES` are processed in pieces, so neither T nor
         N is bounded
Backward in the same launch, in reverse order. The forward pass stores the shares of two predecessors of each cell (the
         third has the rest): that of the diagonal where the probability of the cell replaces it, the other by
         anti-diagonals. U itself would need as many bytes, because shares of it in float32 err by as much as U is
         rounded, 1e-3 where it is in the ten thousands
Memory   B T N numbers each for cost, result and the other share: 101 MB for (32, 512, 512) in float32. The distance of
         two videos is left to a matrix product: for 64 features it takes 1 GFLOP and 34 MB written and read once, some
         30 microseconds of a modern GPU, while 2 (T + N) anti-diagonals that wait for each other take milliseconds; and
         the gradient of the features needs the whole expected alignment in any case
Order    the threads of a program share this memory, so a barrier separates consecutive anti-diagonals
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrlib.ops.alignment_plain import hard_path as hard_path
from mrlib.ops.alignment_plain import in_band

_LANES = 1024


@triton.jit
def _forward(
    cost, U, ends, E, shares_u, d, T_b, N_b, N, minus_inverse_gamma,
    FREE: tl.constexpr, LEFT: tl.constexpr, KEEP: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """U, possible ends and, with KEEP, the shares of anti-diagonal d, those of the diagonal in E."""
    lane = tl.arange(0, LANES)
    none = -float("inf")
    nan: tl.constexpr = tl.PropagateNan.ALL
    lo, hi = tl.maximum(d - T_b + 1, 0), tl.minimum(N_b - 1, d)
    here, one_ago, two_ago = U + d % 3 * N, U + (d + 2) % 3 * N, U + (d + 1) % 3 * N
    for begin in range(lo, hi + 1, LANES):
        j = begin + lane
        i = d - j
        inside = j <= hi
        diagonal = tl.load(two_ago + j - 1, inside & (i > 0) & (j > 0), none)
        begins = j == 0 if FREE else (j == 0) & (d == 0)
        diagonal = tl.where(begins, 0.0, diagonal)
        up = tl.load(one_ago + j, inside & (i > 0), none)
        left = tl.load(one_ago + j - 1, inside & (j > 0) & LEFT, none)
        most = tl.maximum(tl.maximum(diagonal, up, nan), left, nan)
        most = tl.where(most == none, 0.0, most)
        c = tl.load(cost + i * N + j, inside, 0.0)
        p_diagonal, p_up = tl.exp((diagonal - most).to(c.dtype)), tl.exp((up - most).to(c.dtype))
        p = p_diagonal + p_up + tl.exp((left - most).to(c.dtype))
        u = most + tl.log(p).to(tl.float64) + c.to(tl.float64) * minus_inverse_gamma
        tl.store(here + j, u, inside)
        tl.store(ends + i, u, inside & (j == N_b - 1))
        if KEEP:
            p = tl.where(p == 0.0, 1.0, p)
            tl.store(E + i * N + j, p_diagonal / p, inside)
            tl.store(shares_u + j - lo, p_up / p, inside)


@triton.jit
def _max_and_exp_sum(ends, first_end, last_end, LANES: tl.constexpr):
    """The largest U of the ends first_end..last_end, 0 if none is reached, and the sum of exp(U - largest)."""
    lane = tl.arange(0, LANES)
    none = -float("inf")
    nan: tl.constexpr = tl.PropagateNan.ALL
    top = tl.full((), none, tl.float64)
    for begin in range(first_end, last_end, LANES):
        u = tl.load(ends + begin + lane, begin + lane < last_end, none)
        top = tl.maximum(top, tl.max(u, 0), nan)
    top = tl.where(top == none, 0.0, top)
    total = tl.zeros((), tl.float64)
    for begin in range(first_end, last_end, LANES):
        u = tl.load(ends + begin + lane, begin + lane < last_end, none)
        total += tl.sum(tl.exp(u - top), 0)
    return top, total


@triton.jit
def _backward(
    cost, ends, shares_u, passed, E, d, T_b, N_b, N, first_end, top, total,
    LEFT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The probabilities E of anti-diagonal d, and the parts that it passes on to its predecessors."""
    lane = tl.arange(0, LANES)
    passed_up = passed  # (2, N); then left (2, N) and diagonal (3, N)
    passed_left = passed_up + 2 * N
    passed_diagonal = passed_left + 2 * N
    lo, hi = tl.maximum(d - T_b + 1, 0), tl.minimum(N_b - 1, d)
    this, next, after = d % 2 * N, (d + 1) % 2 * N, (d + 2) % 3 * N
    for begin in range(lo, hi + 1, LANES):
        j = begin + lane
        i = d - j
        inside = j <= hi
        below, aside = inside & (i + 1 < T_b), inside & (j + 1 < N_b)
        end = inside & (j == N_b - 1) & (i >= first_end)
        mass = tl.exp(tl.load(ends + i, end, -float("inf")) - top) / total
        mass += tl.load(passed_up + next + j, below, 0.0)
        mass += tl.load(passed_left + next + j + 1, aside & LEFT, 0.0)
        mass += tl.load(passed_diagonal + after + j + 1, below & aside, 0.0)
        c = tl.load(cost + i * N + j, inside, 0.0)
        mass = tl.where(c == float("inf"), 0.0, mass)
        share_d, share_u = tl.load(E + i * N + j, inside, 0.0), tl.load(shares_u + j - lo, inside, 0.0)
        tl.store(E + i * N + j, mass.to(c.dtype), inside)
        tl.store(passed_up + this + j, mass * share_u, inside)
        if LEFT:
            tl.store(passed_left + this + j, mass * tl.maximum(1.0 - share_d - share_u, 0.0), inside)
        tl.store(passed_diagonal + d % 3 * N + j, mass * share_d, inside)


@triton.jit
def _soft(
    cost, lengths, U, ends, shares_u, passed, values, E,
    B, T, N, scale, FREE: tl.constexpr, LEFT: tl.constexpr, KEEP: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Value and, with KEEP, expected alignment of one sample; scale (1,) holds -1 / gamma, arguments as in `soft`."""
    b = tl.program_id(0).to(tl.int64)
    T_b, N_b = tl.load(lengths + b), tl.load(lengths + B + b)
    diagonals = tl.where((T_b > 0) & (N_b > 0), T_b + N_b - 1, 0)
    minus_inverse_gamma = tl.load(scale)  # from memory, because a number among the arguments would become float32
    cost += b * T * N
    U += b * 3 * N
    ends += b * T
    shares_u += b * T * N
    E += b * T * N
    for d in range(0, diagonals):
        _forward(
            cost, U, ends, E, shares_u, d, T_b, N_b, N, minus_inverse_gamma, FREE, LEFT, KEEP, LANES
        )  # fmt: skip
        if KEEP:
            shares_u += tl.minimum(N_b - 1, d) + 1 - tl.maximum(d - T_b + 1, 0)
        tl.debug_barrier()

    first_end = T_b * 0 if FREE else tl.maximum(T_b - 1, 0)
    top, total = _max_and_exp_sum(ends, first_end, tl.where(diagonals > 0, T_b, 0), LANES)
    tl.store(values + b, tl.where(diagonals > 0, top + tl.log(total), 0.0))

    if KEEP:
        total = tl.where(total == 0.0, 1.0, total)
        passed += b * 7 * N
        for back in range(0, diagonals):
            d = diagonals - 1 - back
            shares_u -= tl.minimum(N_b - 1, d) + 1 - tl.maximum(d - T_b + 1, 0)
            _backward(cost, ends, shares_u, passed, E, d, T_b, N_b, N, first_end, top, total, LEFT, LANES)
            tl.debug_barrier()


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, band: int | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value of soft-DTW (B,) and, with `keep`, the expected alignment (B, T, N)."""
    cost = in_band(cost.detach(), band)
    B, T, N = cost.shape
    double = {"dtype": torch.float64, "device": cost.device}
    shares_u = cost.new_empty(cost.shape if keep else 0)
    E = torch.zeros_like(cost, memory_format=torch.contiguous_format) if keep else cost.new_empty(0)
    values = torch.empty(B, **double)
    lanes = min(_LANES, triton.next_power_of_2(min(T, N)))
    _soft[(B,)](
        cost.contiguous(), torch.stack([T_b, N_b]), torch.empty(B, 3, N, **double), torch.empty(B, T, **double),
        shares_u, torch.empty(B, 7 if keep else 0, N, **double), values, E,
        B, T, N, torch.full((1,), -1 / gamma, **double), topology != "global", topology != "otam", keep, lanes,
    )  # fmt: skip
    return (-gamma * values).to(cost.dtype), E if keep else None
