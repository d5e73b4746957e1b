"""Checkpoints: weights as safetensors, beside them a JSON that says how to build the model. Nothing is unpickled.

Those of the official releases are read by `load_official`.
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

    retriever  one that `mrlib.build` made
    notes      what else to write in the JSON: where in a training this is, its scores
    """
    if retriever.recipe is None:
        raise ValueError("only a retriever made by mrlib.build can be saved, for only its recipe tells how to load it")
    weights, settings = _paths(path)
    save_tensors(weights, retriever.state_dict())
    recipe = {**retriever.recipe, "torch": torch.__version__.split("+")[0], "notes": notes or {}}
    write_whole(settings, json.dumps(recipe, indent=1) + "\n")


def load(path: str | os.PathLike) -> MomentRetriever:
    """The retriever of a checkpoint, on the CPU, in evaluation mode.

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
    tensors, own = load_tensors(weights), retriever.state_dict()
    problems = [f"lacks {k}" for k in own.keys() - tensors.keys()] + [
        f"has an unknown {k}" for k in tensors.keys() - own
    ]
    problems += [
        f"has {k} of shape {tuple(tensors[k].shape)} for {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
    ]
    if problems:
        raise ValueError(
            f"{weights} does not fit the model of {settings.name}: it {'; it '.join(sorted(problems)[:5])}"
        )
    retriever.load_state_dict(tensors)
    return retriever.eval()


def save_tensors(path: Path, tensors: dict[str, Tensor], note: str = "") -> None:
    """One safetensors file with a note in its header, whole or not at all."""
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
