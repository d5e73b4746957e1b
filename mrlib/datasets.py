"""Open a dataset by its name: the simulator, or annotation and feature files."""

from __future__ import annotations

import os

from mrlib.arguments import keyword_defaults
from mrlib.data.dataset import MomentDataset
from mrlib.data.layouts import DATASETS, open_files
from mrlib.sim import open_sim


def open_dataset(name: str, root: str | os.PathLike | None = None, split: str = "train", **options) -> MomentDataset:
    """A dataset by name.

    name     "sim", the simulator, or a dataset of `mrlib.data.layouts.DATASETS`
    root     folder with the annotations and features; None: the folder of that name in $MRLIB_DATA
    split    "train", "val", "test"; the simulator has more
    options  of `mrlib.sim.open_sim` or `mrlib.data.layouts.open_files`; both take `streams`: names of the streams to
             concatenate, "joint" for only the one in the joint space, None for all
    raises   ValueError for an unknown name, and what the two functions raise
    """
    if name == "sim":
        return open_sim(split, **options)
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: sim, {', '.join(DATASETS)}")
    if unknown := options.keys() - keyword_defaults(open_files):
        known = ", ".join(keyword_defaults(open_files))
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; there are {known}")
    return open_files(name, root, split, **options)
