"""Bias, ReLU or PReLU, and dropout as one pass on the CPU, and its gradient, in kernels compiled by numba.

Masks are those of `mrlib.ops.dropout_cpu` for the tensor of all hidden vectors, of which the kernels see a block of
rows. Threads share the columns, so that results do not depend on their number.
"""

from __future__ import annotations

import numpy as np

from mrlib.ops.dropout_cpu import compiled, kept, mask_arguments, threads_for
from mrlib.ops.threads import in_threads


@compiled
def _activate(first, stop, h, begin, bias, slope, low, high, threshold, scale, out):
    """Columns first..stop of `activate`."""
    H, zero, bias = h.shape[1], scale * 0, bias[first:stop]
    for n in range(len(h)):
        row, row_out, place = h[n, first:stop], out[n, first:stop], np.uint32((begin + n) * H + first)
        for j in range(len(row)):
            x = row[j] + bias[j]
            x = x if x > zero else x * slope
            row_out[j] = x * (scale if kept(np.uint32(j) + place, low, high, threshold) else zero)


@compiled
def _activation_gradient(first, stop, h, begin, bias, slope, low, high, threshold, scale, grad, out, dbias, dslope):
    """Columns first..stop of `activation_gradient`."""
    H, zero, bias, dbias, dslope = h.shape[1], scale * 0, bias[first:stop], dbias[first:stop], dslope[first:stop]
    one = zero + 1
    for n in range(len(h)):
        row, d, row_out = h[n, first:stop], grad[n, first:stop], out[n, first:stop]
        place = np.uint32((begin + n) * H + first)
        for j in range(len(row)):
            x = row[j] + bias[j]
            mask, factor = (scale if kept(np.uint32(j) + place, low, high, threshold) else zero), one
            if x <= zero:
                factor = slope
            row_out[j] = x * factor * mask
            dropped = d[j] * mask
            dslope[j] += dropped * min(x, zero)
            dropped *= factor
            dbias[j] += dropped
            d[j] = dropped


def activate(h: np.ndarray, begin: int, bias: np.ndarray, slope: float, key: int, p: float, out: np.ndarray) -> None:
    """Add a bias (H,) to rows h (k, H), multiply numbers below 0 by the slope, drop a share p; into out (k, H).

    begin  number of the first row in the tensor of all rows, for the mask
    """
    arguments = h, begin, bias, h.dtype.type(slope), *mask_arguments(key, p, h.dtype), out
    in_threads(threads_for(h.size), h.shape[1], _activate, *arguments)


def activation_gradient(
    h: np.ndarray,
    begin: int,
    bias: np.ndarray,
    slope: float,
    key: int,
    p: float,
    grad: np.ndarray,
    out: np.ndarray,
    dbias: np.ndarray,
    dslope: np.ndarray,
) -> None:
    """The gradient of `activate`; the gradient of its output, grad (k, H), is replaced by that of h.

    h .. p         as for `activate`
    out            (k, H)  gets the output of `activate` again
    dbias, dslope  (H,)  the gradients of the bias, and of the slope by columns, are added to them
    """
    arguments = h, begin, bias, h.dtype.type(slope), *mask_arguments(key, p, h.dtype), grad, out, dbias, dslope
    in_threads(threads_for(h.size), h.shape[1], _activation_gradient, *arguments)
