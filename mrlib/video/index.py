"""The features of one video in one file: a video is encoded once, and its index can be handed around.

An index is a .safetensors file with the array `features`, a checksum over every bit, and a note in JSON: the name and
duration of the video, the recipe of its encoder. Features are float32, as the encoder gives them, whether they are
fresh or from the cache.

`index` keeps its files in `.mrlib_cache` beside the video, see `mrlib.data.cache.cache_folder`. One that is damaged or
of another recipe is not used. Where the marks of the video have changed, such as its size and time, its content is
compared: a copied or touched video keeps its index, a changed one is encoded again. One process encodes, others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrlib.arguments import is_plain, require
from mrlib.data.cache import cache_folder
from mrlib.data.digests import content_digest, stamp
from mrlib.files import parse_json, remove_dead, shown_path
from mrlib.tensors import load_tensors, read_header, save_tensors
from mrlib.video.container import check_file
from mrlib.video.encode import Encoder
from mrlib.video.read import Progress, probe

_KIND = "video index"  # what the note of such a file begins with
_FIELDS = {"kind": str, "path": str, "duration_s": float, "recipe": dict, "source": dict}  # of the note


@dataclass(frozen=True, eq=False)
class Index:
    """The features of one video and how they were made."""

    path: str
    duration_s: float
    features: Tensor  # (n, D) float32, not normalised
    recipe: Mapping[str, Any]  # of the encoder

    @property
    def clip_s(self) -> float:
        """Seconds per row."""
        return self.recipe["clip_s"]

    def save(self, file: str | os.PathLike) -> None:
        """Write the index to a file, whole or not at all."""
        _write(Path(file), self, {})

    @classmethod
    def load(cls, file: str | os.PathLike) -> Index:
        """The index in a file; ValueError or FileNotFoundError, naming it, for any other or a damaged file."""
        return _read(Path(file))[0]


def index(
    path: str | os.PathLike,
    encoder: Encoder,
    cache: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Index:
    """The features of a video, from the cache if it has them.

    cache    folder for cache files; None: as `mrlib.data.cache.cache_folder` chooses
    raises   FileNotFoundError or ValueError, naming the video, if it cannot be read; ValueError if `cache` is no folder
             that can be written

    If the cache runs out of space, a warning says so, and the features are returned all the same.
    """
    require(isinstance(path, str | os.PathLike), "path", path, "the path of a video")
    path, recipe = Path(path), plain_recipe(encoder)
    check_file(os.fspath(path))
    file = _cache_file(path, cache_folder(path.parent, cache), recipe)
    marks = stamp(path)
    if (cached := _cached(file, path, recipe, marks)) is not None:
        return cached
    from mrlib.locks import hold  # filelock is imported only where something is written

    with hold(Path(f"{file}.lock"), f"the index of {shown_path(str(path))}", wait=True):
        if (cached := _cached(file, path, recipe, marks)) is not None:  # another process was first
            return cached
        remove_dead(file.parent, file.name)
        content = content_digest(path)
        if (cached := _cached(file, path, recipe, content=content)) is None:
            cached = fresh_index(path, encoder, progress)
        try:
            _write(file, cached, {"stamp": marks, "content": content, **getattr(encoder, "notes", {})})
        except OSError as error:
            warnings.warn(f"{error}; the features of {shown_path(str(path))} are not cached", stacklevel=2)
        return cached


def fresh_index(path: str | os.PathLike, encoder: Encoder, progress: Progress | None = None) -> Index:
    """The index of a video, encoded now; ValueError, naming the encoder, for features that are not as its recipe says.

    raises  what reading the video raises
    """
    path, recipe = os.fspath(path), plain_recipe(encoder)
    duration_s = float(probe(path).duration_s)
    features = encoder.video(path, progress).detach().cpu()  # (n, D)
    made_by, width, shape = f"{shown_path(path)}: encoder {recipe['encoder']}", recipe["width"], tuple(features.shape)
    if features.dtype != torch.float32 or len(shape) != 2 or shape[1] != width or not shape[0]:
        raise ValueError(f"{made_by} gave {features.dtype} {shape}, not float32 rows of {width} features")
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{made_by} gave features that are NaN or infinite; check its weights")
    return Index(path, duration_s, features, recipe)


def plain_recipe(encoder: Encoder) -> dict[str, Any]:
    """The recipe of an encoder as JSON has it; ValueError if it is none."""
    recipe = dict(encoder.recipe)
    whole = isinstance(recipe.get("encoder"), str) and isinstance(recipe.get("clip_s"), int | float)
    if not whole or not isinstance(recipe.get("width"), int) or not is_plain(recipe):
        needed = '"encoder", "clip_s", "width" and plain values'
        raise ValueError(f"the recipe of {type(encoder).__name__} must have {needed}, not {recipe!r}")
    return json.loads(json.dumps(recipe))


# ---- files ----


def _cache_file(path: Path, folder: Path, recipe: Mapping[str, Any]) -> Path:
    """The cache file of a video and a recipe; beside the video its name tells it, in another folder its whole path."""
    place = path.name if folder.parent == path.parent else str(path.resolve())
    key = json.dumps([place, recipe], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[:60]
    return folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _cached(
    file: Path, path: Path, recipe: Mapping[str, Any], marks: str | None = None, content: str | None = None
) -> Index | None:
    """The index in a cache file, if it is whole, of this recipe and of a video with these marks or this content."""
    try:
        kept, source = _read(file)
    except (ValueError, FileNotFoundError):
        return None
    same = source.get("stamp") == marks if content is None else source.get("content") == content
    return replace(kept, path=os.fspath(path)) if same and kept.recipe == recipe else None


def _write(file: Path, index: Index, source: Mapping[str, str]) -> None:
    """Write an index; source  marks of the video that it was made from."""
    note = {"kind": _KIND, "path": index.path, "duration_s": float(index.duration_s)}
    note |= {"recipe": index.recipe, "source": source}
    save_tensors(file, {"features": index.features}, json.dumps(note))


def _read(file: Path) -> tuple[Index, dict[str, str]]:
    """An index and the marks of its video."""
    header = read_header(file)
    note = parse_json(header.note, str(file)) if header.note.startswith("{") else None
    known = isinstance(note, dict) and note.get("kind") == _KIND and note.keys() == _FIELDS.keys()
    if not known or set(header.shapes) != {"features"} or not all(isinstance(note[k], t) for k, t in _FIELDS.items()):
        raise ValueError(f"{file} is no index of a video; make one with `mrlib.video.index.index` and `save`")
    features = load_tensors(file, header)["features"]
    return Index(note["path"], note["duration_s"], features, note["recipe"]), note["source"]
