"""Runs of equal values in a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def runs_of_true(flags: Sequence[bool] | np.ndarray) -> list[list[int]]:
    """First position of every run of True, and the position after its last.

    flags  bool (T,)
    """
    return np.flatnonzero(np.diff(np.asarray(flags, bool), prepend=False, append=False)).reshape(-1, 2).tolist()
