"""The data of a paper: which streams and which split it opens."""

from __future__ import annotations

from typing import Any

from mrlib.data.dataset import MomentDataset
from mrlib.datasets import open_dataset
from mrlib.papers.schema import Paper


def open_split(paper: Paper, name: str, root: str | None = None, split: str = "train", **options: Any) -> MomentDataset:
    """`mrlib.open_dataset` with the streams of a paper, and for the simulator with its size and kind of query."""
    if name == "sim":
        options = {"size": paper.given["size"], "query": paper.query} | options
    return open_dataset(name, root, split, **({"streams": paper.streams} | options))


def validation_split(name: str) -> str:
    """The split on which epochs are chosen: "val", or "test" if a dataset was released without "val"."""
    return "test" if name == "charades_sta" else "val"
