"""Checkpoints: weights as safetensors, and a JSON file that says how to build the model. Nothing is unpickled.

`load_official` reads the checkpoints of the official releases.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import mrlib.papers
from mrlib.data import Widths
from mrlib.files import write_whole
from mrlib.papers.release import load_official as load_official
from mrlib.retriever import MomentRetriever


def save(retriever: MomentRetriever, path: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
    """Write `path`.safetensors and `path`.json.

    retriever  built by `mrlib.build`
    notes      more to write in the JSON, such as the epoch and its scores
    """
    if retriever.recipe is None:
        raise ValueError("only a retriever made by mrlib.build can be saved, because loading needs its recipe")
    weights, settings = _paths(path)
    save_tensors(weights, retriever.state_dict())
    recipe = {**retriever.recipe, "torch": torch.__version__.split("+")[0], "notes": notes or {}}
    write_whole(settings, json.dumps(recipe, indent=1) + "\n")


def load(path: str | os.PathLike) -> MomentRetriever:
    """Load a retriever, on the CPU and in evaluation mode.

    path  as given to `save`, with or without one of the two suffixes
    """
    weights, settings = _paths(path)
    for file in (settings, weights):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; a checkpoint is {weights.name} and {settings.name}")
    try:
        recipe = json.loads(settings.read_text())
        paper, widths, seed = mrlib.papers.get(**recipe["paper"]), Widths(**recipe["widths"]), recipe["seed"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{settings} is not the JSON of a checkpoint: {error!r}") from error
    retriever = mrlib.papers.build(paper, widths, seed)
    for name in recipe.get("prepared", ()):
        mrlib.papers.prepare(retriever, name)
    tensors, expected = load_tensors(weights), retriever.state_dict()
    problems = [f"lacks {k}" for k in expected.keys() - tensors.keys()]
    problems += [f"has an unknown {k}" for k in tensors.keys() - expected.keys()]
    problems += [
        f"has {k} of shape {tuple(tensors[k].shape)} for {tuple(expected[k].shape)}"
        for k in expected.keys() & tensors.keys()
        if expected[k].shape != tensors[k].shape
    ]
    if problems:
        raise ValueError(
            f"{weights} does not fit the model of {settings.name}: it {'; it '.join(sorted(problems)[:5])}"
        )
    retriever.load_state_dict(tensors)
    return retriever.eval()


def save_tensors(path: Path, tensors: dict[str, Tensor], note: str = "") -> None:
    """Write a safetensors file with a note in its header, see `mrlib.files.whole_file`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(plain, {"note": note}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def read_note(path: Path) -> str:
    """The note of a file that `save_tensors` wrote."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata()["note"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole file of mrlib: {error!r}") from error


def _paths(path: str | os.PathLike) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
