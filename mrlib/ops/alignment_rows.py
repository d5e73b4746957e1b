r"""Soft-DTW row by row: the kernels of `mrlib.ops.alignment_cpu`, compiled by numba.

Numbers  the total weight of the paths to a cell, $P_{ij} = e^{-R_{ij} / \gamma}$, is stored as $p\, 2^e$, both float64;
         the integer e has the range of a float64, so nothing overflows, and there are no logarithms. The cells of a
         column keep their e from row to row as long as p stays within $2^{\pm 450}$ (`_begun`): then a row costs one
         exponential, two products and two sums per cell. Where p leaves this range, `_rescaled` computes the row
         again with an exponent of its own for every cell; where it does so at once, as for costs of hundreds of gamma,
         the next rows are not tried. Both scale by powers of two only, which rounds nothing
Layout   row by row, as the costs lie in memory. With the weight w of a cell and its predecessors a above it, the row is
         the recursion $p_j = w_j (a_j + p_{j-1})$: all but one product and one sum of it is computed for many cells at
         once, in vector instructions. That product and sum wait for the cell before, so the rows of four chains of
         samples are computed side by side; short rows follow each other in a chain, a cell of weight 0 between them
Backward the forward pass stores the shares of two predecessors of each cell (the third has the rest), so the backward
         pass consists of products and sums; it follows at once, while the numbers are in the cache
"""

from __future__ import annotations

import math

import numba
import numpy as np

BLOCK = 16  # chains are a multiple of it, so that vector instructions leave no cell over
_LOW = -1e300  # exponent of the weight 0
_FORBIDDEN = 2.0  # marks a forbidden cell in place of a share, which is at most 1
_SPLIT = float(2**52 + 1023)  # adding it leaves an integer, biased as an exponent, in the low bits of a float64
_ROUND = 1.5 * 2.0**52  # adding and subtracting it rounds to an integer
_BIAS, _INTEGER_BITS = 1023, 0x433 << 52
_LEAST, _RANGE = (_BIAS - 450) << 52, 900 << 52  # the bits of 2^-450, and from there to 2^450
_FARTHEST = 900.0  # powers of two beyond it lead out of the range
_REACH = 128  # cells of a chain after which `_rescaled` measures its number again; it changes by 2 bits per cell
_E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12 = (  # 2^f = sum f^k ln(2)^k / k!
    math.log(2) ** k / math.factorial(k) for k in range(1, 13)
)


def compiled(function):
    """Compile without Python's lock; cache on disk for the next process if a folder is writable."""
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache is writable
        return numba.jit(**options)(function)


@compiled
def _bits(x):
    """The bits of a float64 as an int64."""
    return np.float64(x).view(np.int64)


@compiled
def _with_bits(bits):
    """The float64 with these bits."""
    return np.int64(bits).view(np.float64)


@compiled
def _power_of_two(n):
    """2^n for an integer n <= 1023; 0 below -1022."""
    n = n if n > -1023.0 else -1023.0
    return _with_bits(_bits(n + _SPLIT) << 52)


@compiled
def _power_of_fraction(f):
    """2^f for |f| <= 1/2, to 4 in 10^16; 1 for 0."""
    power = _E8 + f * (_E9 + f * (_E10 + f * (_E11 + f * _E12)))
    power = _E3 + f * (_E4 + f * (_E5 + f * (_E6 + f * (_E7 + f * power))))
    return 1.0 + f * (_E1 + f * (_E2 + f * power))


@compiled
def _rounded(t):
    """The integer nearest to t, for |t| < 2^51."""
    return (t + _ROUND) - _ROUND


@compiled
def _normalised(p):
    """(m, e) with p = m 2^e and 1 <= m < 2; (0, -1023) for a p >= 0 below 2^-1022."""
    biased = _bits(p) >> 52
    some = biased > 0
    return p * _with_bits((2 * _BIAS - biased) << 52) if some else 0.0, _with_bits(biased | _INTEGER_BITS) - _SPLIT


@compiled
def _is_moderate(p):
    """Whether 2^-450 <= p <= 2^450."""
    return np.uint64(_bits(p) - _LEAST) <= np.uint64(_RANGE)


@compiled
def _copied(source, begin, end, row):
    """Copy cells begin..end of a row of costs into row (N,); +inf before and after."""
    for j in range(begin):
        row[j] = np.inf
    here, there = row[begin:], source[begin:]
    for j in range(end - begin):
        here[j] = there[j]
    after = row[end:]
    for j in range(len(after)):
        after[j] = np.inf


@compiled
def _begun(size, row, scale, above, before, ratio, left, p, factor):
    """A row as a chain, p_x + factor_x p_(x-1), with the exponents of the row above.

    above, before  the row above, and the same with every cell moved to the right
    ratio, left    2^(e_(x-1) - e_x), for the predecessor before and for the one to the left
    """
    for x in range(size):
        t = row[x] * scale
        near = t if t > -_FARTHEST else -_FARTHEST
        near = near if near < _FARTHEST else _FARTHEST
        n = _rounded(near)
        weight = _power_of_fraction(near - n) * _power_of_two(n)
        forbidden = t < _LOW
        p[x] = 0.0 if forbidden else weight * (above[x] + ratio[x] * before[x])
        factor[x] = 0.0 if forbidden else weight * left[x]


@compiled
def _chained(length, factor, p):
    """p_x + factor_x p_(x-1) becomes p_x, from 0 on, in each of the chains of this length that follow each other."""
    if len(p) == 4 * length:
        p0, p1, p2, p3 = p[:length], p[length:], p[2 * length :], p[3 * length :]
        b0, b1, b2, b3 = factor[:length], factor[length:], factor[2 * length :], factor[3 * length :]
        y0 = y1 = y2 = y3 = 0.0
        for x in range(length):
            y0 = b0[x] * y0 + p0[x]
            y1 = b1[x] * y1 + p1[x]
            y2 = b2[x] * y2 + p2[x]
            y3 = b3[x] * y3 + p3[x]
            p0[x], p1[x], p2[x], p3[x] = y0, y1, y2, y3
    else:
        for q in range(0, len(p), length):
            y = 0.0
            for x in range(q, q + length):
                y = factor[x] * y + p[x]
                p[x] = y


@compiled
def _shares(size, row, above, before, ratio, left, p, aside, share_d, share_u):
    """Fill the shares of the predecessors before and above; returns whether some p is out of the range.

    aside  p with every cell moved to the right; the other arguments as for `_begun`
    """
    wrong = 0
    for x in range(size):
        from_diagonal, from_up = ratio[x] * before[x], above[x]
        total = from_up + from_diagonal + left[x] * aside[x]
        inverse = 1.0 / total if total != 0.0 else 0.0
        forbidden = row[x] == np.inf
        share_d[x] = 0.0 if forbidden else from_diagonal * inverse
        share_u[x] = _FORBIDDEN if forbidden else from_up * inverse
        wrong |= np.int64(not (_is_moderate(p[x]) or forbidden))
    return wrong != 0


@compiled
def _split(size, row, scale, above, before, e_above, e_before, weight, n, top):
    """2^(row scale) as 2^n weight, and the largest exponent of the predecessors before and above; `_LOW` for none."""
    for x in range(size):
        t = row[x] * scale
        huge = abs(t) > 1e15
        n_x = t if huge else _rounded(t)
        power = _power_of_fraction(0.0 if huge else t - n_x)
        forbidden = t < _LOW
        weight[x] = 0.0 if forbidden else power
        n[x] = _LOW if forbidden else n_x
        up = e_above[x] if above[x] != 0.0 else _LOW
        diagonal = e_before[x] if before[x] != 0.0 else _LOW
        top[x] = up if up > diagonal else diagonal


@compiled
def _scaled(size, above, before, e_above, e_before, e_aside, top, with_left, up, diagonal, left):
    """The predecessors above and before, and the factor of the one to the left, with the exponents `top`."""
    for x in range(size):
        most = top[x]
        to_up, to_diagonal, to_left = e_above[x] - most, e_before[x] - most, e_aside[x] - most
        up[x] = above[x] * _power_of_two(to_up if to_up < 0.0 else 0.0)
        diagonal[x] = before[x] * _power_of_two(to_diagonal if to_diagonal < 0.0 else 0.0)
        left[x] = _power_of_two(to_left if to_left < 0.0 else 0.0) if with_left else 0.0


@compiled
def _rescaled(size, row, scale, with_left, above, e_above, p, e, up, diagonal, left, buffers):
    """A row with exponents of its own, for any cost; as `_begun` and `_chained`.

    above, p, e_above, e  (1 + size,)  with a cell of border
    up, diagonal, left    filled with the predecessors above and before, and the factor of the one to the left
    """
    weight, n, top = buffers[0], buffers[1], buffers[2]
    _split(size, row, scale, above[1:], above, e_above[1:], e_above, weight, n, top)
    for begin in range(0, size, _REACH):
        end = min(begin + _REACH, size)
        last = e[begin]
        for x in range(begin, end):  # the exponent of the largest predecessor, which may be the one to the left
            most = last if with_left and last > top[x] else top[x]
            last = most + n[x]
            top[x], e[1 + x] = most, last
        _scaled(
            end - begin, above[1 + begin :], above[begin:], e_above[1 + begin :], e_above[begin:], e[begin:],
            top[begin:], with_left, up[begin:], diagonal[begin:], left[begin:],
        )  # fmt: skip
        for x in range(begin, end):
            p[1 + x], n[x] = weight[x] * (up[x] + diagonal[x]), weight[x] * left[x]
        y = p[begin]
        for x in range(begin, end):
            y = n[x] * y + p[1 + x]
            p[1 + x] = y
        if y != 0.0:
            p[end], power = _normalised(y)
            e[end] += power


@compiled
def _settled(size, p, e, borders, N, ratio):
    """Normalise the row p 2^e to 1 <= p < 2, and fill `ratio` for rows with the same exponents.

    A cell of weight 0 takes the exponent of the cell to its left.
    """
    for x in range(1, size + 1):
        p[x], power = _normalised(p[x])
        e[x] = e[x] + power if p[x] != 0.0 else _LOW
    for border in borders:
        for x in range(border + 1, border + 1 + N):
            e[1 + x] = e[1 + x] if e[1 + x] > _LOW else e[x]
    for x in range(size):
        far = e[x] - e[x + 1]
        power = _power_of_two(far if far < _FARTHEST else 0.0)
        ratio[x] = np.inf if far > _FARTHEST and e[x + 1] > _LOW else power


@compiled
def _paths(cost, T_b, N_b, first, borders, T, N, length, scale, free, with_left, band, keep, shares, ends, values):
    """The forward pass of the samples from `first` on whose rows begin at `borders`, in chains of this length.

    shares  (T or 1, 2, size + 1)  filled with the shares of each row, one over another without `keep`
    ends    (samples, T)  zero before; filled with the share of each end
    values  (B,)  filled with log2 of the total weight of all paths
    """
    count, size = len(ends), shares.shape[2] - 1
    row = np.full(size, np.inf, cost.dtype)
    P, e = np.zeros((2, 1 + size)), np.full((2, 1 + size), _LOW)  # two rows, each after a cell of border
    ratio, factor, up, diagonal, left = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size)
    ratio_left, ones, buffers = ratio if with_left else np.zeros(size), np.ones(size), np.empty((3, size))
    exponents = np.full((count, T), _LOW)
    this = 0  # of the two rows of exponents
    rescaled, resume, pause = True, 1, 0  # the last row, the next row to try with its exponents, and how long it waited
    P[1][borders + 1], e[this][borders + 1] = 1.0, 0.0
    for i in range(T):
        for k in range(count):
            b, start = first + k, borders[k] + 1
            end = min(N_b[b], i + band + 1) if i < T_b[b] else 0
            end = end if with_left else min(end, i + 1)  # without a step to the left, no path is over the diagonal
            _copied(cost[b, min(i, len(cost[b]) - 1)], min(max(0, i - band), end), end, row[start : start + N])
        above, p, share_d, share_u = P[(i + 1) % 2], P[i % 2], shares[i if keep else 0, 0], shares[i if keep else 0, 1]
        tried, last_rescaled, rescaled = i >= resume, rescaled, True
        if tried:
            _begun(size, row, scale, above[1:], above, ratio, ratio_left, p[1:], factor)
            _chained(length, factor, p[1:])
            rescaled = _shares(size, row, above[1:], above, ratio, ratio_left, p[1:], p, share_d, share_u)
        if rescaled:
            if tried:  # if exponents do not last for a single row, trying is a waste
                pause = min(2 * pause + 1, 15) if last_rescaled else 0
                resume = i + 1 + pause
            this = 1 - this
            _rescaled(size, row, scale, with_left, above, e[1 - this], p, e[this], up, diagonal, left, buffers)
            _shares(size, row, up, diagonal, ones, left, p[1:], p, share_d, share_u)
        for border in borders:
            p[1 + border] = 1.0 if free else 0.0
        if rescaled:
            for border in borders:
                e[this, 1 + border] = 0.0 if free else _LOW
            _settled(size, p, e[this], borders, N, ratio)
        for k in range(count):
            b = first + k
            if i < T_b[b] and (free or i == T_b[b] - 1) and abs(i - N_b[b] + 1) <= band:
                ends[k, i], exponents[k, i] = p[1 + borders[k] + N_b[b]], e[this, 1 + borders[k] + N_b[b]]
    for k in range(count):
        if T_b[first + k] > 0:
            values[first + k] = _as_shares(ends[k], exponents[k])


@compiled
def _as_shares(p, e):
    """Divide the weights p 2^e by their sum, so that p alone is the shares; returns log2 of the sum, -inf for none."""
    for i in range(len(p)):
        p[i], power = _normalised(p[i])
        e[i] = e[i] + power if p[i] != 0.0 else _LOW
    top, total = e.max(), 0.0
    for i in range(len(p)):
        p[i] *= _power_of_two(e[i] - top)
        total += p[i]
    if total == 0.0:
        return -np.inf
    p /= total
    return top + math.log2(total)


@compiled
def _received(size, below, up, diagonal, own_up, own_up_next, own_diagonal_next, E, factor):
    """A row of the backward pass as a chain, E_x + factor_x E_(x+1).

    below, up, diagonal  the row below: its probabilities, and its shares of the predecessors above and before
    own_up               the shares of the row itself; `_next`: with every cell moved to the left
    """
    for x in range(size):
        rest = 1.0 - own_diagonal_next[x] - own_up_next[x]
        forbidden = own_up[x] == _FORBIDDEN
        E[x] = 0.0 if forbidden else below[x] * up[x] + below[x + 1] * diagonal[x + 1]
        factor[x] = 0.0 if forbidden or rest < 0.0 else rest


@compiled
def _chained_back(length, factor, E):
    """E_x + factor_x E_(x+1) becomes E_x, from the last cell of each chain back."""
    if len(E) == 4 * length:
        E0, E1, E2, E3 = E[:length], E[length:], E[2 * length :], E[3 * length :]
        b0, b1, b2, b3 = factor[:length], factor[length:], factor[2 * length :], factor[3 * length :]
        y0 = y1 = y2 = y3 = 0.0
        for x in range(length - 1, -1, -1):
            y0 = b0[x] * y0 + E0[x]
            y1 = b1[x] * y1 + E1[x]
            y2 = b2[x] * y2 + E2[x]
            y3 = b3[x] * y3 + E3[x]
            E0[x], E1[x], E2[x], E3[x] = y0, y1, y2, y3
    else:
        for q in range(0, len(E), length):
            y = 0.0
            for x in range(q + length - 1, q - 1, -1):
                y = factor[x] * y + E[x]
                E[x] = y


@compiled
def _expected(T_b, N_b, first, borders, T, length, with_left, shares, ends, E):
    """The backward pass of the samples of `_paths`: fill E (B, T, N) with the probability that a path visits a cell."""
    size = shares.shape[2] - 1
    probabilities, factor = np.zeros((2, size + 1)), np.zeros(size)
    for i in range(E.shape[1] - 1, -1, -1):
        below, here = probabilities[(i + 1) % 2], probabilities[i % 2]
        if i < T:
            after, own = shares[min(i + 1, T - 1)], shares[i]
            _received(size, below, after[1], after[0], own[1], own[1, 1:], own[0, 1:], here, factor)
            if not with_left:
                factor[:] = 0.0
            for k in range(len(ends)):
                here[borders[k] + N_b[first + k]] += ends[k, i]
            _chained_back(length, factor, here[:size])
        for k in range(len(ends)):
            b = first + k
            filled = N_b[b] if i < T_b[b] else 0
            row, source = E[b, i], here[borders[k] + 1 :]
            for j in range(filled):
                row[j] = source[j]
            row[filled:] = 0.0


@compiled
def soft_rows(begin, stop, cost, T_b, N_b, scale, free, with_left, band, chains, slots, keep, values, E):
    """Value and expected alignment of groups begin..stop of samples, each of `chains` of `slots` samples.

    free       a path may start and end at any target clip
    with_left  a target clip may be matched with several query clips
    band       cells with |i - j| > band are skipped
    keep       store the shares of all rows and fill E (B, T, N)
    """
    buffer = np.empty(0, cost.dtype)
    for g in range(begin, stop):
        first = g * chains * slots
        count = min(chains * slots, len(cost) - first)
        T, N = T_b[first : first + count].max(), N_b[first : first + count].max()
        length = (slots * (N + 1) + BLOCK - 1) // BLOCK * BLOCK
        borders = np.empty(count, np.int64)
        for k in range(count):
            borders[k] = k // slots * length + k % slots * (N + 1)
        stored, width = T if keep else min(T, 1), chains * length + 1
        if len(buffer) < stored * 2 * width:
            buffer = np.empty(stored * 2 * width, cost.dtype)
        shares = buffer[: stored * 2 * width].reshape(stored, 2, width)
        shares[:, :, width - 1] = 0.0
        ends = np.zeros((count, T))
        if T > 0:
            _paths(
                cost, T_b, N_b, first, borders, T, N, length, scale, free, with_left, band, keep, shares, ends, values
            )
        if keep:
            _expected(T_b, N_b, first, borders, T, length, with_left, shares, ends, E)
