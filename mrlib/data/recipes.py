"""The encoder that made a folder of features, where `mrlib.video.extract` wrote it down beside them.

Datasets in such a folder have its recipe in their settings, so that a run, which keeps the settings of its data, says
which encoder its retriever was trained on. In such a folder the usual clips are those of the encoder, and the usual
stream is the joint one, which is the one that it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mrlib.data.documents import read_document
from mrlib.data.problems import DataError, Problem

RECORD = "encoder.json"  # in the folder of a dataset


def read_recipe(root: Path) -> dict[str, Any] | None:
    """The recipe of the encoder that made the features under `root`; None if no record says so.

    raises  ValueError, naming the file, for a damaged record
    """
    file = root / RECORD
    if not file.is_file():
        return None
    recipe = read_document(file, dict)
    clip_s = recipe.get("clip_s")
    if not isinstance(recipe.get("encoder"), str) or type(clip_s) not in (int, float):
        message = 'no recipe of an encoder, which has an "encoder" and its "clip_s"; extract the features again'
        raise DataError(Problem(str(file), None, "encoder", message))
    return recipe


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The names of what differs between two recipes, "encoder" first."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return sorted(names, key=lambda name: name != "encoder")


def usual_options(
    recipe: Mapping[str, Any] | None, clip_s: float | None, streams: str | Iterable[str] | None
) -> tuple[float | None, str | Iterable[str] | None]:
    """The options `clip_s` and `streams` of `open_dataset`, with what is usual where the recipe is known for None."""
    if recipe is None:
        return clip_s, streams
    return recipe["clip_s"] if clip_s is None else clip_s, "joint" if streams is None else streams
