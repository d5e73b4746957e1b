r"""Soft-DTW on the CPU: the recursion of `mrlib.ops.alignment_plain` in kernels compiled by numba.

Numbers  the total weight of the paths to a cell, $P_{ij} = e^{-R_{ij} / \gamma}$, is stored as $m 2^e$ with
         $1 \le m < 2$ and an integer e, both float64. Sums align exponents and products add them, so there is no
         logarithm and one exponential per cell, which does not depend on earlier cells. e has the range of a float64,
         so nothing overflows
Layout   `lanes` samples are interleaved; an anti-diagonal of all of them is one contiguous loop, which the compiler
         turns into vector instructions. Loops run to a multiple of `_BLOCK`, over cells outside the table of weight 0
Backward the forward pass stores the shares of two predecessors of each cell (the third has the rest), so the backward
         pass consists of products and sums; it follows at once, while the numbers are in the cache
Threads  a pool of `torch.get_num_threads()`, each with its own samples; results do not depend on their number
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from mrlib.ops.threads import in_threads

_BLOCK = 16
_LOW = -1e300  # exponent of the weight 0
_FORBIDDEN = 2.0  # marks a forbidden cell in place of a share, which is at most 1
_SPLIT = float(2**52 + 1023)  # adding it leaves an integer, biased as an exponent, in the low bits of a float64
_ROUND = 1.5 * 2.0**52  # adding and subtracting it rounds to an integer
_BIAS, _INTEGER_BITS = 1023, 0x433 << 52
_E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12 = (  # 2^f = sum f^k ln(2)^k / k!
    math.log(2) ** k / math.factorial(k) for k in range(1, 13)
)


def _compiled(function):
    """Compile without Python's lock; cache on disk for the next process if a folder is writable."""
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache is writable
        return numba.jit(**options)(function)


@_compiled
def _bits(x):
    """The bits of a float64 as an int64."""
    return np.float64(x).view(np.int64)


@_compiled
def _with_bits(bits):
    """The float64 with these bits."""
    return np.int64(bits).view(np.float64)


@_compiled
def _power_of_two(t):
    """2^t for an integer t <= 0; 0 below -1022."""
    t = t if t > -1023.0 else -1023.0
    return _with_bits(_bits(t + _SPLIT) << 52)


@_compiled
def _diagonal(size, md, ed, mu, eu, ml, el, left, cost, scale, m, e, share_d, share_u):
    """One anti-diagonal: P = (P_diagonal + P_up + P_left) 2^(cost scale), and the shares of P_diagonal and P_up.

    md, ed; mu, eu; ml, el  mantissas and exponents of the three predecessors; m, e those of the result
    """
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
        inverse = 1.0 / total if total != 0.0 else 0.0
        share_d[x] = diagonal * inverse
        share_u[x] = _FORBIDDEN if forbidden else up * inverse
        weight = total * (0.0 if forbidden else power)
        biased = _bits(weight) >> 52
        m[x] = weight * _with_bits((2 * _BIAS - biased) << 52)
        exponent = top + n + (_with_bits(biased | _INTEGER_BITS) - _SPLIT)
        e[x] = exponent if exponent > _LOW else _LOW


@_compiled
def _cells_of_diagonal(d, T, N, band):
    """The first and last query clip of anti-diagonal d: those in the band, and a forbidden one on either side."""
    return max(0, d - T + 1, (d - band + 1) // 2 - 1), min(N - 1, d, (d + band) // 2 + 1)


@_compiled
def _blocked(lo, hi, lanes):
    """The length of an anti-diagonal with the cells lo..hi, rounded up to whole blocks."""
    return (max(0, hi + 1 - lo) * lanes + _BLOCK - 1) // _BLOCK * _BLOCK


@_compiled
def _paths(cost, T_b, N_b, T, N, first, count, lanes, scale, free, left, band, keep, shares, ends, values):
    """The forward pass of `count` samples from `first` on.

    values  (B,)  filled with log2 of the total weight of all paths
    ends    (count, T)  filled with the share of each end
    """
    width = (N + 1) * lanes + 2 * _BLOCK
    m, e = np.zeros((3, width)), np.full((3, width), _LOW)  # three anti-diagonals, each after a border of `lanes`
    row = np.full(width, np.inf)
    exponents = np.full((count, T), _LOW)
    at = 0
    for d in range(T + N - 1):
        lo, hi = _cells_of_diagonal(d, T, N, band)
        here, one_ago, two_ago = d % 3, (d + 2) % 3, (d + 1) % 3
        for k in range(count):
            b = first + k
            begin, end = max(lo, d - T_b[b] + 1, (d - band + 1) // 2), min(hi, N_b[b] - 1, (d + band) // 2) + 1
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
            if 0 <= i < T_b[b] and (free or i == T_b[b] - 1) and abs(i - N_b[b] + 1) <= band:
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
def _distribute(size, from_up, from_left, from_diagonal, share_d, share_u, left, E, to_up, to_left, to_diagonal):
    """One anti-diagonal of the backward pass: the sum of what the successors pass to a cell, split among predecessors.

    from_up, from_left, from_diagonal  probability passed on by (i+1, j), (i, j+1) and (i+1, j+1)
    E                                  filled with the probability of each cell
    to_up, to_left, to_diagonal        filled with the parts for (i-1, j), (i, j-1) and (i-1, j-1)
    """
    for x in range(size):
        probability = from_up[x] + from_left[x] + from_diagonal[x]
        probability = 0.0 if share_u[x] == _FORBIDDEN else probability
        rest = 1.0 - share_d[x] - share_u[x]
        E[x] = probability
        to_up[x] = probability * share_u[x]
        to_diagonal[x] = probability * share_d[x]
        to_left[x] = probability * (rest if rest > 0.0 else 0.0) if left else 0.0


@_compiled
def _expected(T_b, N_b, T, N, first, count, lanes, left, band, at, shares, ends, E):
    """The backward pass of `count` samples from `first` on.

    at  the end of the shares that the forward pass stored
    E   (B, T, N)  zero before; filled with the probability that a path visits each cell
    """
    width = (N + 1) * lanes + 2 * _BLOCK
    up, aside, diagonal = np.zeros((2, width)), np.zeros((2, width)), np.zeros((3, width))  # passed on, by direction
    row = np.empty(width)
    for d in range(T + N - 2, -1, -1):
        lo, hi = _cells_of_diagonal(d, T, N, band)
        this, next, after = d % 2, (d + 1) % 2, (d + 2) % 3
        for k in range(count):
            i = d - N_b[first + k] + 1
            if 0 <= i < T_b[first + k]:
                up[next, (N_b[first + k] - 1) * lanes + k] += ends[k, i]
        x, size = lo * lanes, _blocked(lo, hi, lanes)
        at -= size
        from_up, from_left, from_diagonal = up[next, x:], aside[next, x + lanes :], diagonal[after, x + lanes :]
        to_up, to_left, to_diagonal = up[this, x:], aside[this, x:], diagonal[d % 3, x:]
        share_d, share_u = shares[0, at:], shares[1, at:]
        _distribute(
            size, from_up, from_left, from_diagonal, share_d, share_u, left, row[x:], to_up, to_left, to_diagonal
        )
        for k in range(count):
            b = first + k
            for j in range(max(lo, d - T_b[b] + 1), min(hi, N_b[b] - 1) + 1):
                E[b, d - j, j] = row[j * lanes + k]


@_compiled
def _soft(begin, stop, cost, T_b, N_b, scale, free, left, band, lanes, keep, values, E):
    """Value and expected alignment of groups begin..stop, each of `lanes` samples.

    free  a path may start and end at any target clip
    left  a target clip may be matched with several query clips
    band  cells with |i - j| > band are skipped
    keep  store the shares of all anti-diagonals and fill E (B, T, N)
    """
    T, N = cost.shape[1:]
    size = 0 if keep else _blocked(0, N - 1, lanes)  # without `keep`, each anti-diagonal overwrites the last
    for d in range(T + N - 1 if keep else 0):
        lo, hi = _cells_of_diagonal(d, T, N, band)
        size += _blocked(lo, hi, lanes)
    shares = np.empty((2, size), cost.dtype)
    for g in range(begin, stop):
        first = g * lanes
        count = min(lanes, len(cost) - first)
        T, N = T_b[first : first + count].max(), N_b[first : first + count].max()
        if T * N == 0:
            continue
        ends = np.zeros((count, T))
        _paths(cost, T_b, N_b, T, N, first, count, lanes, scale, free, left, band, keep, shares, ends, values)
        if keep:
            at = 0
            for d in range(T + N - 1):
                lo, hi = _cells_of_diagonal(d, T, N, band)
                at += _blocked(lo, hi, lanes)
            _expected(T_b, N_b, T, N, first, count, lanes, left, band, at, shares, ends, E)


@_compiled
def _hard(begin, stop, cost, T_b, N_b, free, left, band, path):
    """Set path (B, T, N), zero before, on the cheapest path of samples begin..stop."""
    for b in range(begin, stop):
        T, N = T_b[b], N_b[b]
        if T * N == 0:
            continue
        step = np.empty((T, N), np.uint8)  # from the predecessor: 0 diagonal, 1 previous row, 2 previous column
        R = np.full((2, N), np.inf)
        least, end = np.inf, -1
        for i in range(T):
            above, here = R[(i + 1) % 2], R[i % 2]
            lo, hi = max(0, i - band), min(N - 1, i + band)
            diagonal = above[lo - 1] if lo > 0 else (0.0 if free or i == 0 else np.inf)
            aside = np.inf
            for j in range(lo, hi + 1):
                best, choice = diagonal, 0
                if above[j] < best or above[j] != above[j]:  # NaN propagates
                    best, choice = above[j], 1
                if left and (aside < best or aside != aside):
                    best, choice = aside, 2
                diagonal = above[j]
                aside = cost[b, i, j] + best
                here[j] = aside
                step[i, j] = choice
            if hi == N - 1 >= lo and (free or i == T - 1) and (here[N - 1] < least or here[N - 1] != here[N - 1]):
                least, end = here[N - 1], i
        if least != least:  # NaN at some end, which no later end replaces: the sample has no path
            continue
        i, j = end, N - 1
        while i >= 0 and j >= 0:
            path[b, i, j] = True
            choice = step[i, j]
            i -= choice != 2
            j -= choice != 1


def soft(
    cost: Tensor, gamma: float, T_b: Tensor, N_b: Tensor, topology: str, band: int | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The value of soft-DTW (B,) and, with `keep`, the expected alignment (B, T, N)."""
    lanes = _interleaved_samples(cost.shape[2])
    E = np.zeros(cost.shape if keep else (0, 0, 0), cost.detach().numpy().dtype)
    T_b = T_b.where(N_b > 0, 0)  # an empty table has no end
    values = np.where(T_b.numpy() > 0, -np.inf, 0)
    scale, free, left = -1 / (gamma * math.log(2)), topology != "global", topology != "otam"
    groups = -(-len(cost) // lanes)
    in_threads(
        _threads(groups, cost.numel()), groups, _soft,
        cost.detach().contiguous().numpy(), T_b.numpy(), N_b.numpy(), scale, free, left, _width(cost, band), lanes,
        keep, values, E,
    )  # fmt: skip
    value = torch.from_numpy(values).mul_(-gamma * math.log(2)).to(cost.dtype)
    return value, torch.from_numpy(E) if keep else None


def hard_path(cost: Tensor, T_b: Tensor, N_b: Tensor, topology: str, band: int | None) -> Tensor:
    """The cheapest alignment of each sample, bool (B, T, N)."""
    path = torch.zeros(cost.shape, dtype=torch.bool)
    lengths = T_b.numpy(), N_b.numpy()
    free, left = topology != "global", topology != "otam"
    in_threads(
        _threads(len(cost), cost.numel()), len(cost), _hard,
        cost.detach().contiguous().numpy(), *lengths, free, left, _width(cost, band), path.numpy(),
    )  # fmt: skip
    return path


def _width(cost: Tensor, band: int | None) -> int:
    """The band, at most as wide as the table, which is no band."""
    whole = sum(cost.shape[1:])
    return whole if band is None else min(band, whole)


def _interleaved_samples(N: int) -> int:
    """How many samples to interleave: enough to fill vectors, few enough that their anti-diagonals stay in cache."""
    return max(1, min(8, 256 // N))


def _threads(jobs: int, cells: int) -> int:
    """How many threads to use: few for a small table."""
    return min(torch.get_num_threads(), jobs, cells // 10_000 + 1)
