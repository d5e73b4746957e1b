"""Sums of rows to the last bit of numpy's, and shares as percentages."""

from __future__ import annotations

import numpy as np


def row_sums(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The sum (...) of values (..., n) where keep (..., n) is True, equal to `np.sum(row[keep])` to the last bit.

    The order in which numpy adds depends on how many numbers it adds, so rows of equal number are summed together.
    """
    counts, kept = keep.sum(-1), values[keep]
    sums, starts = np.zeros(counts.shape), (counts.cumsum() - counts.ravel()).reshape(counts.shape)
    for n in np.unique(counts):
        rows = counts == n
        sums[rows] = kept[starts[rows][:, None] + np.arange(n)].sum(1)
    return sums


def percent(share: float) -> float:
    """A share as a percentage with two decimals."""
    return float(f"{100 * share:.2f}")
