"""Dropout on the CPU, alone and after a layer norm, in kernels compiled by numba.

Mask     number i of a tensor is kept if a hash of the key and i reaches a threshold. No mask is stored, because the
         backward pass computes the same hashes; results do not depend on the number of threads
Keys     63 bits: the lower 32 permute the places, the upper 31 are added within the hash. Pairs of random keys give
         uncorrelated masks. Keys with the same lower half and nearby upper halves do not: if the upper halves differ
         by 1, the masks at p = 0.5 agree at 10 % of the places (correlation -0.8); by 2, at 83 % (0.67). Keys drawn at
         random share their lower half once in 2^32 pairs, so derive no keys by counting in the upper half
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from mrlib.ops.threads import in_threads

_ALONE = 1 << 16  # up to this many numbers, one thread is as fast as two


def compiled(function):
    """Compile without Python's lock; cache on disk for the next process if a folder is writable."""
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": True}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache is writable
        return numba.jit(**options)(function)


@compiled
def kept(place, low, high, threshold):
    """Whether the hash of a place reaches the threshold; lowbias32 by Wellons with the key mixed in.

    place, low, high, threshold  uint32; low and high are the halves of the key
    """
    x = np.uint32(place) ^ low
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(x + high)
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return (x ^ (x >> np.uint32(16))) >= threshold


@compiled
def _drop(first, stop, x, low, high, threshold, scale, out):
    """Dropout of numbers first..stop of x (n,) into out (n,)."""
    x, out, place, zero = x[first:stop], out[first:stop], np.uint32(first), scale * 0
    for i in range(len(x)):
        out[i] = x[i] * (scale if kept(np.uint32(i) + place, low, high, threshold) else zero)


@compiled
def _norm(first, stop, x, extra, weight, bias, eps, low, high, threshold, scale, mean, rstd, out):
    """Layer norm and dropout of rows first..stop of [x; extra] (n, D) into out (n, D); fills mean (n,), rstd (n,)."""
    X, E, zero = x.shape[1], extra.shape[1], scale * 0
    D = X + E
    for n in range(first, stop):
        row, further, row_out, place, total = x[n], extra[n], out[n], np.uint32(n * D), zero
        for j in range(X):
            total += row[j]
        for j in range(E):
            total += further[j]
        m = total / D
        total = zero
        for j in range(X):
            total += (row[j] - m) * (row[j] - m)
        for j in range(E):
            total += (further[j] - m) * (further[j] - m)
        r = 1 / np.sqrt(total / D + eps)
        mean[n], rstd[n] = m, r
        m, r = mean[n], rstd[n]
        for j in range(X):
            y = (row[j] - m) * r * weight[j] + bias[j]
            row_out[j] = y * (scale if kept(np.uint32(j) + place, low, high, threshold) else zero)
        for j in range(X, D):
            y = (further[j - X] - m) * r * weight[j] + bias[j]
            row_out[j] = y * (scale if kept(np.uint32(j) + place, low, high, threshold) else zero)


@compiled
def _row_gradient(dy, x, place, low, high, threshold, scale, mean, rstd, dweight, dbias):
    """Add the gradients of a part of one row to those of weight and bias; all (D,), from place on."""
    for j in range(len(dy)):
        d = dy[j] * (scale if kept(np.uint32(j) + place, low, high, threshold) else scale * 0)
        dbias[j] += d
        dweight[j] += d * ((x[j] - mean) * rstd)


@compiled
def _norm_gradient(first, stop, dy, begin, x, extra, low, high, threshold, scale, mean, rstd, dweight, dbias):
    """Add the gradients of weight and bias to columns first..stop of dweight (D,) and dbias (D,).

    dy (k, D) holds the gradients of rows begin..begin + k of the output of `_norm`.
    """
    X = x.shape[1]
    D, cut = X + extra.shape[1], max(first, min(stop, X))  # columns first..cut are of x, cut..stop of extra
    for k in range(len(dy)):
        n = begin + k
        place, m, r = np.uint32(n * D), mean[n], rstd[n]
        arguments = low, high, threshold, scale, m, r
        a, b = np.uint32(place + first), np.uint32(place + cut)
        _row_gradient(dy[k, first:cut], x[n, first:cut], a, *arguments, dweight[first:cut], dbias[first:cut])
        _row_gradient(dy[k, cut:stop], extra[n, cut - X : stop - X], b, *arguments, dweight[cut:stop], dbias[cut:stop])


def threads_for(numbers: int) -> int:
    """How many threads to use for a kernel that visits so many numbers."""
    return torch.get_num_threads() if numbers > _ALONE else 1


def drop(x: np.ndarray, key: int, p: float, out: np.ndarray) -> None:
    """Dropout of x (n,) into out (n,): 0 with probability p, else divided by 1 - p."""
    in_threads(threads_for(len(x)), len(x), _drop, x, *mask_arguments(key, p, x.dtype), out)


def norm(
    x: np.ndarray,
    extra: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    key: int,
    p: float,
    mean: np.ndarray,
    rstd: np.ndarray,
    out: np.ndarray,
) -> None:
    """Layer norm of the rows of [x; extra], then `drop`, into out (n, D); fills mean (n,) and rstd (n,), 1 / sd.

    x (n, X), extra (n, D - X); weight (D,), bias (D,)
    """
    arguments = x, extra, weight, bias, x.dtype.type(eps), *mask_arguments(key, p, x.dtype), mean, rstd, out
    in_threads(threads_for(out.size), len(x), _norm, *arguments)


def norm_gradient(
    dy: np.ndarray,
    begin: int,
    x: np.ndarray,
    extra: np.ndarray,
    key: int,
    p: float,
    mean: np.ndarray,
    rstd: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """Add to dweight (D,) and dbias (D,) the gradients of weight and bias of `norm`.

    dy          (k, D)  gradients of rows begin..begin + k of its output
    mean, rstd  (n,)  as `norm` filled them
    """
    arguments = dy, begin, x, extra, *mask_arguments(key, p, x.dtype), mean, rstd, dweight, dbias
    in_threads(threads_for(dy.size), dy.shape[1], _norm_gradient, *arguments)


def mask_arguments(key: int, p: float, dtype: np.dtype) -> tuple:
    """low, high, threshold and scale of the kernels."""
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    return low, high, np.uint32(min(round(p * 2**32), 2**32 - 1)), dtype.type(1 / (1 - p))
