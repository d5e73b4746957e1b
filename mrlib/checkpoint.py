"""Checkpoints: weights as safetensors, and a JSON file that says how to build the model. Nothing is unpickled.

The header of the weights holds the same JSON and a checksum, so that they are whole by themselves: the file beside them
is there to be read by people and programs. A process that is killed between the two leaves the JSON of the checkpoint
before, which names the checksum of other weights and no longer counts.

`load_official` reads the checkpoints of the official releases.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

import mrlib.papers
from mrlib.data import Widths
from mrlib.files import LONGEST_LINE, parse_json, write_whole
from mrlib.papers.limits import at_most
from mrlib.papers.release import load_official as load_official
from mrlib.retriever import MomentRetriever, Training, unwrapped
from mrlib.tensors import Header, check_fit, load_tensors, read_header, save_tensors

WIDEST = 1_000_000  # the largest width of features that is believed
RECIPE = ("paper", "widths", "seed", "prepared")  # the fields from which a model is built


def save(retriever: MomentRetriever, path: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
    """Write `path`.safetensors and `path`.json.

    retriever  built by `mrlib.build`; also as torch.compile or DataParallel make it, or with compiled parts
    notes      more to write in the JSON, such as the epoch and its scores
    """
    retriever = unwrapped(retriever)
    if retriever.recipe is None:
        raise ValueError("only a retriever made by mrlib.build can be saved, because loading needs its recipe")
    weights, settings = _paths(path)
    known = {} if retriever.training_data is None else {"training_data": asdict(retriever.training_data)}
    recipe = {**retriever.recipe, **known, "torch": torch.__version__.split("+")[0], "notes": notes or {}}
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in retriever.state_dict().items()}
    checksum = save_tensors(weights, tensors, json.dumps(recipe))
    write_whole(settings, json.dumps({**recipe, "checksum": checksum}, indent=1) + "\n")


def load(path: str | os.PathLike) -> MomentRetriever:
    """Load a retriever, on the CPU and in evaluation mode.

    path    as given to `save`, with or without one of the two suffixes
    raises  FileNotFoundError if a file is missing; ValueError, naming the file and its field, if one is damaged or
            the two do not belong together
    """
    weights, settings = _paths(path)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing; a checkpoint is {weights.name} and {settings.name}")
    cure = "take another copy of the checkpoint"
    try:
        header = read_header(weights)
        if header.note and settings.is_file():
            cure = f"without {settings.name}, the settings in {weights.name} count"
        recipe, source = _recipe(weights, settings, header)
        retriever = _build(recipe, source, header)
        check_fit(weights, header.shapes, retriever.state_dict(), f"the model of {source.name}")
        if source == settings:
            _check_pair(recipe, settings, weights, header)
        retriever.load_state_dict(load_tensors(weights, header))
        retriever.training_data = _training_data(recipe)
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error
    return retriever.eval()


def _recipe(weights: Path, settings: Path, header: Header) -> tuple[dict[str, Any], Path]:
    """The recipe of a checkpoint and the file it is from: the JSON, unless that is missing or of other weights."""
    inside = _checked(header.note, weights) if header.note else None
    if inside is not None and not settings.is_file():
        return inside, weights
    beside = _checked(_text(settings), settings)
    stale = inside is not None and beside.get("checksum") != header.checksum
    return (inside, weights) if stale else (beside, settings)


def _text(settings: Path) -> str:
    if not settings.is_file():
        raise FileNotFoundError(f"{settings} is missing; it says how to build the model")
    if settings.stat().st_size > LONGEST_LINE:
        raise ValueError(f"{settings} is not the JSON of a checkpoint: it is larger than {LONGEST_LINE} bytes")
    try:
        return settings.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{settings} is not the JSON of a checkpoint: {error}") from None


def _checked(text: str, source: Path) -> dict[str, Any]:
    """A recipe as JSON, whose fields have the right types; ValueError, naming the field, if they have not."""
    recipe = parse_json(text, f"{source} is not the JSON of a checkpoint")
    fields = recipe if isinstance(recipe, dict) else {}

    def require(name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{source} is not the JSON of a checkpoint: {name!r} must be {wanted}")

    paper, widths, seed, prepared = (fields.get(name) for name in RECIPE)
    require("paper", isinstance(paper, dict) and isinstance(paper.get("name"), str), "an object with the name of one")
    known = isinstance(widths, dict) and widths.keys() == {"target", "query", "joint"}
    numbers = [w for name, w in widths.items() if (name, w) != ("joint", None)] if known else []
    fits = known and all(type(w) is int and 1 <= w <= WIDEST for w in numbers)
    require("widths", fits, f"an object of target, query and joint, whole numbers from 1 to {WIDEST}")
    require("seed", type(seed) is int and -(2**63) <= seed < 2**64, "a whole number of 64 bits")
    steps = [] if prepared is None else prepared
    fits = isinstance(steps, list) and all(isinstance(x, str) and x in mrlib.papers.PREPARATIONS for x in steps)
    require("prepared", fits, f"a list of some of {', '.join(mrlib.papers.PREPARATIONS)}")
    fits = "training_data" not in recipe or _describes_data(recipe["training_data"], widths["target"])
    require("training_data", fits, "an object of the streams, clips and other facts of the training's data")
    return recipe


def _describes_data(data: Any, width: int) -> bool:
    """Whether a value of a JSON file is a `Training` of videos whose streams have this width together."""
    if not isinstance(data, dict) or data.keys() != {f.name for f in fields(Training)}:
        return False
    streams, clip_s, normalize = data["streams"], data["clip_s"], data["normalize"]
    counts = [value for value in (data["clips"], data["tokens"]) if value is not None]
    numbers = [*streams.values(), *counts] if isinstance(streams, dict) else [None]
    return (
        all(type(n) is int and 1 <= n <= WIDEST for n in numbers)
        and sum(streams.values()) == width
        and (clip_s is None or (type(clip_s) in (int, float) and 0 < clip_s < math.inf))
        and isinstance(normalize, list)
        and all(isinstance(name, str) for name in normalize)
        and data["query"] in (None, "text", "video")
        and (data["encoder"] is None or isinstance(data["encoder"], str | dict))
    )


def _training_data(recipe: dict[str, Any]) -> Training | None:
    """What a checked recipe says about the training's data; None in checkpoints of earlier versions."""
    data = recipe.get("training_data")
    return None if data is None else Training(**{**data, "normalize": tuple(data["normalize"])})


def _build(recipe: dict[str, Any], source: Path, header: Header) -> MomentRetriever:
    """The model of a recipe, built no further than the weights go."""
    numbers = sum(math.prod(shape) for _, shape in header.shapes.values())
    try:
        paper, widths = mrlib.papers.get(**recipe["paper"]), Widths(**recipe["widths"])
        with at_most(parts=4 * len(header.shapes) + 100, numbers=4 * numbers + 1_000_000):
            retriever = mrlib.papers.build(paper, widths, recipe["seed"])
            for name in recipe.get("prepared") or ():
                mrlib.papers.prepare(retriever, name)
    except Exception as error:  # whatever the parts of a paper raise for settings that nobody would choose
        raise ValueError(f"{source} is not the JSON of a checkpoint: 'paper' cannot be built, {error}") from error
    return retriever


def _check_pair(recipe: dict[str, Any], settings: Path, weights: Path, header: Header) -> None:
    """ValueError unless the JSON is that of the weights beside it."""
    if "checksum" in recipe and header.checksum != recipe["checksum"]:
        raise ValueError(f"{settings} belongs to other weights than {weights.name}")
    inside = json.loads(header.note) if header.note else recipe
    for name in (*RECIPE, "training_data"):
        if recipe.get(name) != inside.get(name):
            raise ValueError(
                f"{settings}: {name!r} is {recipe.get(name)!r}, and {weights.name} was saved with {inside.get(name)!r}"
            )


def _paths(path: str | os.PathLike) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
