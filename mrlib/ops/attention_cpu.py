"""Dropout of the weights of attention on the CPU and its gradient, in kernels compiled by numba.

The mask is that of `mrlib.ops.dropout_cpu` over all weights (B, heads, L, S), counted through; from the 2^32nd on it
repeats.
"""

from __future__ import annotations

import numpy as np

from mrlib.ops.dropout_cpu import compiled, kept, mask_arguments, threads_for
from mrlib.ops.threads import in_threads


@compiled
def _drop(first, stop, weights, place, low, high, threshold, scale):
    """Numbers first..stop of `drop`; the last four arguments are those of `mask_arguments`."""
    weights, place, zero = weights[first:stop], np.uint32(place + first), scale * 0
    for i in range(len(weights)):
        weights[i] *= scale if kept(np.uint32(i) + place, low, high, threshold) else zero


@compiled
def _gradient(first, stop, weights, grad, mean, place, low, high, threshold, scale):
    """Rows first..stop of `gradient`; the last four arguments are those of `mask_arguments`."""
    S, zero = weights.shape[1], scale * 0
    for i in range(first, stop):
        row, row_grad, row_mean, row_place = weights[i], grad[i], mean[i], np.uint32(place + i * S)
        for j in range(S):
            factor = scale if kept(np.uint32(j) + row_place, low, high, threshold) else zero
            weight = row[j]
            row[j] = weight * factor
            row_grad[j] = weight * (row_grad[j] * factor - row_mean)


def drop(weights: np.ndarray, place: int, key: int, p: float) -> None:
    """Dropout of weights (n,), in place.

    place   of the first weight in the mask
    key, p  of the mask
    """
    arguments = mask_arguments(key, p, weights.dtype)
    in_threads(threads_for(len(weights)), len(weights), _drop, weights, place, *arguments)


def gradient(weights: np.ndarray, grad: np.ndarray, mean: np.ndarray, place: int, key: int, p: float) -> None:
    """`drop` rows of a softmax, and turn the gradient of the result into the gradient of the scores; both in place.

    weights        (n, S)  rows of the softmax
    grad           (n, S)  gradient of these rows after dropout
    mean           (n,)  the sum of the products of rows after dropout and their gradients
    place, key, p  as for `drop`
    """
    arguments = mask_arguments(key, p, weights.dtype)
    in_threads(threads_for(weights.size), len(weights), _gradient, weights, grad, mean, place, *arguments)
