"""The gradient of the weights of attention on the CPU, in a kernel compiled by numba."""

from __future__ import annotations

import numpy as np

from mrlib.ops.dropout_cpu import compiled, kept, mask_arguments, threads_for
from mrlib.ops.threads import in_threads


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


def gradient(weights: np.ndarray, grad: np.ndarray, mean: np.ndarray, place: int, key: int, p: float) -> None:
    """Drop weights, and turn the gradient of the result into the gradient of the scores; both in place.

    weights        (n, S)  rows of the softmax
    grad           (n, S)  gradient of these rows after dropout
    mean           (n,)  the sum of the products of rows after dropout and their gradients
    place          of the first weight in the mask of the dropout, see `mrlib.ops.dropout_cpu`
    key, p         of that mask
    """
    arguments = mask_arguments(key, p, weights.dtype)
    in_threads(threads_for(weights.size), len(weights), _gradient, weights, grad, mean, place, *arguments)
