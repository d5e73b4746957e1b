"""Convolution channel by channel and local attention on the CPU, and their gradients, in kernels compiled by numba.

Threads share the samples, so that results do not depend on their number.
"""

from __future__ import annotations

import numpy as np

from mrlib.ops.dropout_cpu import compiled, threads_for
from mrlib.ops.threads import in_threads


@compiled
def _row(x, mask, b, i, zero):
    """Place i of sample b, or zeros where none is or where it is padding."""
    return x[b, i] if 0 <= i < x.shape[1] and mask[b, i] else zero


@compiled
def _convolve(first, stop, x, mask, taps, out, stride):
    """Samples first..stop of `convolve`."""
    zero = np.zeros(x.shape[2], x.dtype)
    for b in range(first, stop):
        for i in range(out.shape[2]):
            place = i * stride
            before, here, after = (
                _row(x, mask, b, place - 1, zero),
                _row(x, mask, b, place, zero),
                _row(x, mask, b, place + 1, zero),
            )
            for m in range(len(taps)):
                row, w0, w1, w2 = out[m, b, i], taps[m, 0], taps[m, 1], taps[m, 2]
                for c in range(len(row)):
                    row[c] = w0[c] * before[c] + w1[c] * here[c] + w2[c] * after[c]


@compiled
def _convolve_gradient(first, stop, x, mask, taps, grads, dx, dtaps, stride):
    """Samples first..stop of `convolve_gradient`."""
    for b in range(first, stop):
        for i in range(grads[0].shape[1]):
            for tap in range(3):
                place = i * stride + tap - 1
                if place < 0 or place >= x.shape[1] or not mask[b, place]:
                    continue
                row, drow = x[b, place], dx[b, place]
                for m in range(len(taps)):
                    grad, weight, dweight = grads[m][b, i], taps[m, tap], dtaps[b, m, tap]
                    for c in range(len(row)):
                        drow[c] += grad[c] * weight[c]
                        dweight[c] += grad[c] * row[c]


@compiled
def _attend(first, stop, q, k, v, mask, share, out):
    """Samples first..stop of `attend`."""
    L, heads, window = share.shape[1:]
    e, near, zero = q.shape[2] // heads, window // 2, q.dtype.type(0)
    scale = q.dtype.type(1 / np.sqrt(e))
    for b in range(first, stop):
        for i in range(L):
            begin, end = max(0, i - near), min(L, i + near + 1)
            real = mask[b, begin:end].any()
            for h in range(heads):
                channels = slice(h * e, (h + 1) * e)
                query, row, p = q[b, i, channels], out[b, i, channels], share[b, i, h]
                p[:] = zero if real else q.dtype.type(1 / window)
                if real:
                    most = q.dtype.type(-np.inf)
                    for j in range(begin, end):
                        if mask[b, j]:
                            key, score = k[b, j, channels], zero
                            for c in range(e):
                                score += query[c] * key[c]
                            p[j - i + near] = score * scale
                            most = max(most, score * scale)
                    total = zero
                    for j in range(begin, end):
                        if mask[b, j]:
                            p[j - i + near] = np.exp(p[j - i + near] - most)
                            total += p[j - i + near]
                    for n in range(window):
                        p[n] /= total
                row[:] = zero
                for j in range(begin, end):
                    value, weight = v[b, j, channels], p[j - i + near]
                    for c in range(e):
                        row[c] += weight * value[c]


@compiled
def _attend_gradient(first, stop, q, k, v, mask, share, dout, dq, dk, dv):
    """Samples first..stop of `attend_gradient`."""
    L, heads, window = share.shape[1:]
    e, near, zero = q.shape[2] // heads, window // 2, q.dtype.type(0)
    scale = q.dtype.type(1 / np.sqrt(e))
    dp = np.zeros(window, q.dtype)
    for b in range(first, stop):
        for i in range(L):
            begin, end = max(0, i - near), min(L, i + near + 1)
            real = mask[b, begin:end].any()
            for h in range(heads):
                channels = slice(h * e, (h + 1) * e)
                query, dquery, grad, p = q[b, i, channels], dq[b, i, channels], dout[b, i, channels], share[b, i, h]
                mean = zero
                for j in range(begin, end):
                    n, value, dvalue, product = j - i + near, v[b, j, channels], dv[b, j, channels], zero
                    weight = p[n]
                    for c in range(e):
                        product += grad[c] * value[c]
                        dvalue[c] += weight * grad[c]
                    dp[n] = product
                    mean += weight * product
                if not real:  # the shares do not depend on the scores
                    continue
                for j in range(begin, end):
                    n, key, dkey = j - i + near, k[b, j, channels], dk[b, j, channels]
                    d = p[n] * (dp[n] - mean) * scale
                    for c in range(e):
                        dquery[c] += d * key[c]
                        dkey[c] += d * query[c]


def convolve(x: np.ndarray, mask: np.ndarray, taps: np.ndarray, out: np.ndarray, stride: int) -> None:
    """Convolution of x (B, L, d), mask bool (B, L), with taps (m, 3, d), into out (m, B, L', d)."""
    in_threads(threads_for(out.size), len(x), _convolve, x, mask, taps, out, stride)


def convolve_gradient(
    x: np.ndarray,
    mask: np.ndarray,
    taps: np.ndarray,
    grads: tuple[np.ndarray, ...],
    dx: np.ndarray,
    dtaps: np.ndarray,
    stride: int,
) -> None:
    """Add the gradients of `convolve` to dx (B, L, d) and dtaps (B, m, 3, d), that of each sample by itself.

    grads  of the m outputs, (B, L', d) each
    """
    arguments = x, mask, taps, grads, dx, dtaps, stride
    in_threads(threads_for(len(grads) * grads[0].size), len(x), _convolve_gradient, *arguments)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, share: np.ndarray, out: np.ndarray) -> None:
    """Local attention of q, k, v (B, L, d), mask bool (B, L), into out (B, L, d).

    share  (B, L, heads, window)  is filled with how much each place takes of those in its window
    """
    in_threads(threads_for(q.size), len(q), _attend, q, k, v, mask, share, out)


def attend_gradient(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    share: np.ndarray,
    dout: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Add the gradients of `attend` to dq, dk and dv (B, L, d); `share` as it filled it."""
    in_threads(threads_for(q.size), len(q), _attend_gradient, q, k, v, mask, share, dout, dq, dk, dv)
