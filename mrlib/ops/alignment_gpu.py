r"""Soft-DTW on the GPU: the recursion of `mrlib.ops.alignment_plain` in one triton kernel, a program for each sample.

State    $U = -R / \gamma$ in float64, three anti-diagonals of it in scratch memory; only differences are exponentiated,
         in the cost's own type. Diagonals longer than `_LANES` are worked off in pieces: neither T nor N is bounded
Backward in the same launch: how each cell's paths divide among two of its predecessors (the third has the rest) is
         stored by anti-diagonals, B T N numbers each, and read in reverse order
Order    a program's threads share this memory, so a barrier stands between one diagonal and the next
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrlib.ops.alignment_plain import hard_path as hard_path

_LANES = 1024


@triton.jit
def _soft(
    cost, lengths, U, ends, shares, handed, values, E,
    B, T, N, scale, FREE: tl.constexpr, LEFT: tl.constexpr, KEEP: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    rows, columns = tl.load(lengths + b), tl.load(lengths + B + b)
    diagonals = tl.where((rows > 0) & (columns > 0), rows + columns - 1, 0)
    minus_inverse_gamma = tl.load(scale)  # by way of memory, for a number among the arguments would become float32
    cost += b * T * N
    U += b * 3 * N
    ends += b * T
    shares_d = shares + b * T * N
    shares_u = shares_d + B * T * N
    lane = tl.arange(0, LANES)
    none = -float("inf")
    nan: tl.constexpr = tl.PropagateNan.ALL
    for d in range(0, diagonals):
        lo, hi = tl.maximum(d - rows + 1, 0), tl.minimum(columns - 1, d)
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
            tl.store(ends + i, u, inside & (j == columns - 1))
            if KEEP:
                p = tl.where(p == 0.0, 1.0, p)
                tl.store(shares_d + j - lo, p_diagonal / p, inside)
                tl.store(shares_u + j - lo, p_up / p, inside)
        if KEEP:
            shares_d += hi + 1 - lo
            shares_u += hi + 1 - lo
        tl.debug_barrier()

    first_end = rows * 0 if FREE else tl.maximum(rows - 1, 0)
    last_end = tl.where(diagonals > 0, rows, 0)
    top = tl.full((), none, tl.float64)
    for begin in range(first_end, last_end, LANES):
        u = tl.load(ends + begin + lane, begin + lane < last_end, none)
        top = tl.maximum(top, tl.max(u, 0), nan)
    top = tl.where(top == none, 0.0, top)
    total = tl.zeros((), tl.float64)
    for begin in range(first_end, last_end, LANES):
        u = tl.load(ends + begin + lane, begin + lane < last_end, none)
        total += tl.sum(tl.exp(u - top), 0)
    tl.store(values + b, tl.where(diagonals > 0, top + tl.log(total), 0.0))

    if KEEP:
        total = tl.where(total == 0.0, 1.0, total)
        E += b * T * N
        handed_up = handed + b * 7 * N  # (2, N); then left (2, N) and diagonal (3, N)
        handed_left = handed_up + 2 * N
        handed_diagonal = handed_left + 2 * N
        for back in range(0, diagonals):
            d = diagonals - 1 - back
            lo, hi = tl.maximum(d - rows + 1, 0), tl.minimum(columns - 1, d)
            shares_d -= hi + 1 - lo
            shares_u -= hi + 1 - lo
            this, next, after = d % 2 * N, (d + 1) % 2 * N, (d + 2) % 3 * N
            for begin in range(lo, hi + 1, LANES):
                j = begin + lane
                i = d - j
                inside = j <= hi
                below, aside = inside & (i + 1 < rows), inside & (j + 1 < columns)
                end = inside & (j == columns - 1) & (i >= first_end)
                mass = tl.exp(tl.load(ends + i, end, none) - top) / total
                mass += tl.load(handed_up + next + j, below, 0.0)
                mass += tl.load(handed_left + next + j + 1, aside & LEFT, 0.0)
                mass += tl.load(handed_diagonal + after + j + 1, below & aside, 0.0)
                c = tl.load(cost + i * N + j, inside, 0.0)
                mass = tl.where(c == float("inf"), 0.0, mass)
                tl.store(E + i * N + j, mass.to(c.dtype), inside)
                share_d, share_u = tl.load(shares_d + j - lo, inside, 0.0), tl.load(shares_u + j - lo, inside, 0.0)
                tl.store(handed_up + this + j, mass * share_u, inside)
                if LEFT:
                    tl.store(handed_left + this + j, mass * tl.maximum(1.0 - share_d - share_u, 0.0), inside)
                tl.store(handed_diagonal + d % 3 * N + j, mass * share_d, inside)
            tl.debug_barrier()


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value (B,) and, to `keep`, the expected alignment (B, T, N)."""
    B, T, N = cost.shape
    double = {"dtype": torch.float64, "device": cost.device}
    shares = cost.new_empty(2 if keep else 0, B, T, N)
    E = torch.zeros_like(cost, memory_format=torch.contiguous_format) if keep else cost.new_empty(0)
    values = torch.empty(B, **double)
    lanes = min(_LANES, triton.next_power_of_2(min(T, N)))
    _soft[(B,)](
        cost.contiguous(), torch.stack([T_b, N_b]), torch.empty(B, 3, N, **double), torch.empty(B, T, **double), shares,
        torch.empty(B, 7 if keep else 0, N, **double), values, E,
        B, T, N, torch.full((1,), -1 / gamma, **double), topology != "global", topology != "otam", keep, lanes,
    )  # fmt: skip
    return (-gamma * values).to(cost.dtype), E if keep else None
