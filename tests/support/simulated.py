"""Validation splits of the simulator, opened once, and where their actions happen."""

from __future__ import annotations

from collections import Counter
from functools import cache

from mrlib.data import MomentDataset
from mrlib.sim import open_sim


@cache
def val(size: str = "small", **options) -> MomentDataset:
    """The split "val" of seed 0, whole."""
    return open_sim("val", size=size, **options)


def homes(dataset: MomentDataset) -> dict[str, Counter]:
    """How often each action is asked for in each place."""
    places: dict[str, Counter] = {}
    for s in dataset.samples:
        places.setdefault(s.extra["action"], Counter())[s.extra["place"]] += 1
    return places
