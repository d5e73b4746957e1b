"""Dropout on the CPU, and a layer norm with it, in kernels that numba compiles.

What is dropped is a hash of a key and of the number's place: nothing is drawn one after another and no mask is stored,
for the way back asks the hash again. Bytes do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch

_ALONE = 1 << 16  # numbers that one thread does as fast as two


def _compiled(function):
    """Without the Python lock; kept on disk for the next process where a place for it can be written."""
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": True}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # numba found neither this folder nor the user's cache writable
        return numba.jit(**options)(function)


@_compiled
def _kept(place, low, high, threshold):
    """Whether the hash of a place reaches the threshold; two multiplications, as in Wellons's lowbias32."""
    x = np.uint32(place) ^ low
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(x + high)
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return (x ^ (x >> np.uint32(16))) >= threshold


@_compiled
def _drop(first, stop, x, low, high, threshold, scale, out):
    x, out, place, none = x[first:stop], out[first:stop], np.uint32(first), scale * 0
    for i in range(len(x)):
        out[i] = x[i] * (scale if _kept(np.uint32(i) + place, low, high, threshold) else none)


@_compiled
def _norm(first, stop, x, weight, bias, eps, low, high, threshold, scale, mean, rstd, out):
    """Rows first..stop, normalised, mapped, dropped out."""
    D, none = x.shape[1], scale * 0
    for n in range(first, stop):
        row, to, place, total = x[n], out[n], np.uint32(n * D), none
        for j in range(D):
            total += row[j]
        m = total / D
        total = none
        for j in range(D):
            total += (row[j] - m) * (row[j] - m)
        r = 1 / np.sqrt(total / D + eps)
        mean[n], rstd[n] = m, r
        m, r = mean[n], rstd[n]
        for j in range(D):
            y = (row[j] - m) * r * weight[j] + bias[j]
            to[j] = y * (scale if _kept(np.uint32(j) + place, low, high, threshold) else none)


@_compiled
def _norm_gradient(first, stop, dy, begin, x, low, high, threshold, scale, mean, rstd, dweight, dbias):
    """Columns first..stop: what rows begin, begin + 1, ... of x, dy their gradients, add to those of the mapping."""
    D, none = x.shape[1], scale * 0
    dweight, dbias = dweight[first:stop], dbias[first:stop]
    for k in range(len(dy)):
        n = begin + k
        row, of, place, m, r = x[n, first:stop], dy[k, first:stop], np.uint32(n * D + first), mean[n], rstd[n]
        for j in range(len(row)):
            d = of[j] * (scale if _kept(np.uint32(j) + place, low, high, threshold) else none)
            dbias[j] += d
            dweight[j] += d * ((row[j] - m) * r)


_pool: ThreadPoolExecutor | None = None


def _shared_out(kernel: Callable, count: int, numbers: int, *args) -> None:
    """kernel(first, stop, *args) over 0..count, by as many threads as torch has."""
    global _pool
    threads = torch.get_num_threads() if numbers > _ALONE else 1
    if threads == 1:
        kernel(0, count, *args)
        return
    if _pool is None or _pool._max_workers < threads:
        _pool = ThreadPoolExecutor(threads)
    ends = [count * i // threads for i in range(threads + 1)]
    for future in [_pool.submit(kernel, a, b, *args) for a, b in zip(ends, ends[1:], strict=False)]:
        future.result()


def drop(x: np.ndarray, key: int, p: float, out: np.ndarray) -> None:
    """x (n,), 0 in a share p of the places and the rest over 1 - p, into out."""
    _shared_out(_drop, len(x), len(x), x, *_dice(key, p, x.dtype), out)


def norm(x, weight, bias, eps: float, key: int, p: float, mean, rstd, out) -> None:
    """Layer norm of rows x (n, D), then `drop` of all that, into out; mean and rstd (n,)."""
    _shared_out(_norm, len(x), x.size, x, weight, bias, x.dtype.type(eps), *_dice(key, p, x.dtype), mean, rstd, out)


def norm_gradient(dy, begin: int, x, key: int, p: float, mean, rstd, dweight, dbias) -> None:
    """Add to dweight and dbias (D,) what dy (k, D) says, gradients of rows begin..begin + k of `norm`."""
    dice = _dice(key, p, x.dtype)
    _shared_out(_norm_gradient, x.shape[1], dy.size, dy, begin, x, *dice, mean, rstd, dweight, dbias)


def _dice(key: int, p: float, dtype: np.dtype) -> tuple:
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    return low, high, np.uint32(min(round(p * 2**32), 2**32 - 1)), dtype.type(1 / (1 - p))
