r"""Soft-DTW on the CPU: the recursion of `mrlib.ops.alignment_plain` in kernels that numba compiles.

Numbers  what the paths to a cell weigh together, $P_{ij} = e^{-R_{ij} / \gamma}$, is held as $m 2^e$ with $1 \le m < 2$
         and an integer e, both float64. Sums align exponents, products add them: no logarithm anywhere, one exponential
         a cell, and that outside the recursion's chain. The range of e is that of a float64, so nothing overflows
Layout   `lanes` samples side by side; an anti-diagonal of all of them is one contiguous loop, which the compiler turns
         into vector instructions. Loops run to a multiple of `_BLOCK`, over cells outside the table that weigh nothing
Backward how each cell's paths divide among two of its predecessors (the third has the rest) is stored forwards, so that
         backwards there is nothing but products and sums; done at once, while the numbers are in cache
Threads  `torch.get_num_threads()` of a pool, each with its own samples; a sample's bytes do not depend on their number
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

_BLOCK = 16
_LOW = -1e300  # exponent of the weight 0
_FORBIDDEN = 2.0  # no share is above 1
_SPLIT = float(2**52 + 1023)  # adding it leaves an integer, biased as an exponent, in the low bits of a float64
_ROUND = 1.5 * 2.0**52  # adding and subtracting it rounds
_BIAS, _INTEGER_BITS = 1023, 0x433 << 52
_E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12 = (  # 2^f = sum f^k ln(2)^k / k!
    math.log(2) ** k / math.factorial(k) for k in range(1, 13)
)


def _compiled(function):
    """Without the Python lock; kept on disk for the next process where a place for it can be written."""
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # numba found neither this folder nor the user's cache writable
        return numba.jit(**options)(function)


@_compiled
def _bits(x):
    return np.float64(x).view(np.int64)


@_compiled
def _with_bits(bits):
    return np.int64(bits).view(np.float64)


@_compiled
def _power_of_two(t):
    """2^t for an integer t <= 0; 0 below -1022."""
    t = t if t > -1023.0 else -1023.0
    return _with_bits(_bits(t + _SPLIT) << 52)


@_compiled
def _diagonal(size, md, ed, mu, eu, ml, el, left, cost, scale, m, e, share_d, share_u):
    """One anti-diagonal: P = (P_diagonal + P_up + P_left) 2^(cost scale), and the shares of the first two."""
    for x in range(size):
        exponent_left = el[x] if left else _LOW
        top = ed[x] if ed[x] > eu[x] else eu[x]
        top = top if top > exponent_left else exponent_left
        diagonal, up = md[x] * _power_of_two(ed[x] - top), mu[x] * _power_of_two(eu[x] - top)
        total = diagonal + up + (ml[x] * _power_of_two(exponent_left - top) if left else 0.0)
        t = cost[x] * scale  # 2^t = 2^n 2^f with an integer n and |f| <= 1/2
        huge = abs(t) > 1e15
        n = t if huge else (t + _ROUND) - _ROUND
        f = 0.0 if huge else t - n
        power = _E8 + f * (_E9 + f * (_E10 + f * (_E11 + f * _E12)))
        power = _E3 + f * (_E4 + f * (_E5 + f * (_E6 + f * (_E7 + f * power))))
        power = 1.0 + f * (_E1 + f * (_E2 + f * power))
        forbidden = t < _LOW
        one = 1.0 / total if total != 0.0 else 0.0
        share_d[x] = diagonal * one
        share_u[x] = _FORBIDDEN if forbidden else up * one
        weight = total * (0.0 if forbidden else power)
        biased = _bits(weight) >> 52
        m[x] = weight * _with_bits((2 * _BIAS - biased) << 52)
        exponent = top + n + (_with_bits(biased | _INTEGER_BITS) - _SPLIT)
        e[x] = exponent if exponent > _LOW else _LOW


@_compiled
def _blocked(lo, hi, lanes):
    """Numbers an anti-diagonal of the cells lo..hi takes, to the next block."""
    return ((hi + 1 - lo) * lanes + _BLOCK - 1) // _BLOCK * _BLOCK


@_compiled
def _paths(cost, T_b, N_b, T, N, first, count, lanes, scale, free, left, keep, shares, ends, values):
    """Forwards. `values` (B,): log2 of what all paths weigh; `ends` (count, T): how that divides among the ends."""
    width = (N + 1) * lanes + 2 * _BLOCK
    m, e = np.zeros((3, width)), np.full((3, width), _LOW)  # three diagonals, a border of `lanes` before each
    row = np.full(width, np.inf)
    exponents = np.full((count, T), _LOW)
    at = 0
    for d in range(T + N - 1):
        lo, hi = max(0, d - T + 1), min(N - 1, d)
        here, one_ago, two_ago = d % 3, (d + 2) % 3, (d + 1) % 3
        for k in range(count):
            b = first + k
            begin, end = max(lo, d - T_b[b] + 1), min(hi, N_b[b] - 1) + 1
            for j in range(lo, min(begin, hi + 1)):
                row[j * lanes + k] = np.inf
            for j in range(begin, end):
                row[j * lanes + k] = cost[b, d - j, j]
            for j in range(max(end, lo), hi + 1):
                row[j * lanes + k] = np.inf
        m[one_ago, :lanes], e[one_ago, :lanes] = 0.0, _LOW
        m[two_ago, :lanes], e[two_ago, :lanes] = (1.0, 0.0) if free or d == 0 else (0.0, _LOW)
        x, size = lo * lanes, _blocked(lo, hi, lanes)
        m1, e1, m2, e2 = m[one_ago, x:], e[one_ago, x:], m[two_ago, x:], e[two_ago, x:]
        m0, e0 = m[here, x + lanes :], e[here, x + lanes :]
        share_d, share_u = shares[0, at:], shares[1, at:]
        mu, eu = m1[lanes:], e1[lanes:]
        _diagonal(size, m2, e2, mu, eu, m1, e1, left, row[x:], scale, m0, e0, share_d, share_u)
        if keep:
            at += size
        for k in range(count):
            b = first + k
            i = d - N_b[b] + 1
            if 0 <= i < T_b[b] and (free or i == T_b[b] - 1):
                ends[k, i], exponents[k, i] = m[here, N_b[b] * lanes + k], e[here, N_b[b] * lanes + k]
    for k in range(count):
        top, total = exponents[k].max(), 0.0
        for i in range(T):
            ends[k, i] *= _power_of_two(exponents[k, i] - top)
            total += ends[k, i]
        if total != 0.0:
            ends[k] /= total
            values[first + k] = top + math.log2(total)


@_compiled
def _hand_on(size, up1, left1, diagonal2, share_d, share_u, left, E, up, left0, diagonal):
    """One anti-diagonal backwards: what a cell gets from its successors, and what it hands to its predecessors."""
    for x in range(size):
        mass = up1[x] + left1[x] + diagonal2[x]
        mass = 0.0 if share_u[x] == _FORBIDDEN else mass
        rest = 1.0 - share_d[x] - share_u[x]
        E[x] = mass
        up[x] = mass * share_u[x]
        diagonal[x] = mass * share_d[x]
        left0[x] = mass * (rest if rest > 0.0 else 0.0) if left else 0.0


@_compiled
def _expected(T_b, N_b, T, N, first, count, lanes, left, at, shares, ends, E):
    """Backwards. `E` (B, T, N), zero before: how likely each cell is on the path; `at`, where the shares end."""
    width = (N + 1) * lanes + 2 * _BLOCK
    up, aside, diagonal = np.zeros((2, width)), np.zeros((2, width)), np.zeros((3, width))
    row = np.empty(width)
    for d in range(T + N - 2, -1, -1):
        lo, hi = max(0, d - T + 1), min(N - 1, d)
        this, next, after = d % 2, (d + 1) % 2, (d + 2) % 3
        for k in range(count):
            i = d - N_b[first + k] + 1
            if 0 <= i < T_b[first + k]:
                up[next, (N_b[first + k] - 1) * lanes + k] += ends[k, i]
        x, size = lo * lanes, _blocked(lo, hi, lanes)
        at -= size
        up1, left1, diagonal2 = up[next, x:], aside[next, x + lanes :], diagonal[after, x + lanes :]
        up0, left0, diagonal0 = up[this, x:], aside[this, x:], diagonal[d % 3, x:]
        share_d, share_u = shares[0, at:], shares[1, at:]
        _hand_on(size, up1, left1, diagonal2, share_d, share_u, left, row[x:], up0, left0, diagonal0)
        for k in range(count):
            b = first + k
            for j in range(max(lo, d - T_b[b] + 1), min(hi, N_b[b] - 1) + 1):
                E[b, d - j, j] = row[j * lanes + k]


@_compiled
def _soft(groups, cost, T_b, N_b, scale, free, left, lanes, keep, values, E):
    """Value and expected alignment of some groups of `lanes` samples; free: a path may begin and end anywhere."""
    T, N = cost.shape[1:]
    size = 0 if keep else _blocked(0, N - 1, lanes)  # or one diagonal, written again and again
    for d in range(T + N - 1 if keep else 0):
        size += _blocked(max(0, d - T + 1), min(N - 1, d), lanes)
    shares = np.empty((2, size), cost.dtype)
    for g in range(groups[0], groups[1]):
        first = g * lanes
        count = min(lanes, len(cost) - first)
        T, N = T_b[first : first + count].max(), N_b[first : first + count].max()
        if T * N == 0:
            continue
        ends = np.zeros((count, T))
        _paths(cost, T_b, N_b, T, N, first, count, lanes, scale, free, left, keep, shares, ends, values)
        if keep:
            at = 0
            for d in range(T + N - 1):
                at += _blocked(max(0, d - T + 1), min(N - 1, d), lanes)
            _expected(T_b, N_b, T, N, first, count, lanes, left, at, shares, ends, E)


@_compiled
def _hard(samples, cost, T_b, N_b, free, left, path):
    """The cheapest path of each sample into `path` (B, T, N), zero before the call."""
    for b in range(samples[0], samples[1]):
        T, N = T_b[b], N_b[b]
        if T * N == 0:
            continue
        step = np.empty((T, N), np.uint8)  # 0 diagonal, 1 to the previous row, 2 to the previous column
        R = np.full((2, N), np.inf)
        least, end = np.inf, -1
        for i in range(T):
            above, here = R[(i + 1) % 2], R[i % 2]
            diagonal = 0.0 if free or i == 0 else np.inf
            aside = np.inf
            for j in range(N):
                best, choice = diagonal, 0
                if above[j] < best or above[j] != above[j]:  # NaN spreads
                    best, choice = above[j], 1
                if left and (aside < best or aside != aside):
                    best, choice = aside, 2
                diagonal = above[j]
                aside = cost[b, i, j] + best
                here[j] = aside
                step[i, j] = choice
            if (free or i == T - 1) and (here[N - 1] < least or here[N - 1] != here[N - 1]):
                least, end = here[N - 1], i
        if least != least:  # some end is NaN: no comparison with that holds, and it stays the last
            continue
        i, j = end, N - 1
        while i >= 0 and j >= 0:
            path[b, i, j] = True
            choice = step[i, j]
            i -= choice != 2
            j -= choice != 1


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value (B,) and, to `keep`, the expected alignment (B, T, N)."""
    lanes = _lanes(cost.shape[2])
    E = np.zeros(cost.shape if keep else (0, 0, 0), cost.detach().numpy().dtype)
    T_b = T_b.where(N_b > 0, 0)  # an empty table has no end
    values = np.where(T_b.numpy() > 0, -np.inf, 0)
    scale, free, left = -1 / (gamma * math.log(2)), topology != "global", topology != "otam"
    _in_threads(
        -(-len(cost) // lanes), cost.numel(), _soft,
        cost.detach().contiguous().numpy(), T_b.numpy(), N_b.numpy(), scale, free, left, lanes, keep, values, E,
    )  # fmt: skip
    value = torch.from_numpy(values).mul_(-gamma * math.log(2)).to(cost.dtype)
    return value, torch.from_numpy(E) if keep else None


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str) -> Tensor:
    """bool (B, T, N)."""
    path = torch.zeros(cost.shape, dtype=torch.bool)
    lengths = T_b.numpy(), N_b.numpy()
    free, left = topology != "global", topology != "otam"
    _in_threads(len(cost), cost.numel(), _hard, cost.detach().contiguous().numpy(), *lengths, free, left, path.numpy())
    return path


def _lanes(N: int) -> int:
    """Samples side by side: enough to fill vectors, few enough that an anti-diagonal of their costs stays in cache."""
    return max(1, min(8, 256 // N))


_pool: tuple[int, ThreadPoolExecutor] | None = None


def _in_threads(jobs: int, cells: int, kernel, *arguments) -> None:
    """kernel((begin, end), ...) over all jobs; a process made by fork makes its own threads."""
    global _pool
    threads = min(torch.get_num_threads(), jobs, cells // 10_000 + 1)
    if threads == 1:
        return kernel((0, jobs), *arguments)
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(os.cpu_count(), "alignment")
    cuts = [jobs * t // threads for t in range(threads + 1)]
    others = [_pool[1].submit(kernel, cut, *arguments) for cut in zip(cuts[1:], cuts[2:], strict=False)]
    kernel((0, cuts[1]), *arguments)
    for other in others:
        other.result()
