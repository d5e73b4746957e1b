"""Validation splits of the simulator, each opened once, and the places of their actions."""

from __future__ import annotations

from collections import Counter
from functools import cache

from mrlib.data import MomentDataset
from mrlib.sim import open_sim


@cache
def val(size: str = "small", **options) -> MomentDataset:
    """The whole split "val" of seed 0."""
    return open_sim("val", size=size, **options)


def homes(dataset: MomentDataset) -> dict[str, Counter]:
    """For each action, how many queries name it in each place."""
    places: dict[str, Counter] = {}
    for s in dataset.samples:
        places.setdefault(s.extra["action"], Counter())[s.extra["place"]] += 1
    return places
