"""Open a trained retriever, wherever it is from, and prepare videos and queries as its training data were prepared."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrlib import checkpoint, papers
from mrlib.arguments import require
from mrlib.data.arrays import normalized_rows
from mrlib.data.documents import read_document
from mrlib.retriever import MomentRetriever, Training, unwrapped
from mrlib.video.windows import USUAL_S, Query

_OURS = (".safetensors", ".json")
_PUBLISHED = ("slowfast", "clip", "appearance", "motion")  # streams of which each is made by one kind of encoder


def open_retriever(source: str | os.PathLike | nn.Module) -> MomentRetriever:
    """A retriever from what a user has.

    source  a folder that `mrlib.train --out` wrote: the best weights of its last stage; a checkpoint of
            `mrlib.checkpoint`, with or without suffix; a file of an official release; or a retriever itself
    raises  FileNotFoundError or ValueError that names the file or folder and says what to give
    """
    if isinstance(source, nn.Module):
        retriever = unwrapped(source)
        if not isinstance(retriever, MomentRetriever):
            raise ValueError(
                f"retriever must be a MomentRetriever, or where one was saved, not {type(source).__name__}"
            )
        return retriever
    require(isinstance(source, str | os.PathLike), "retriever", source, "a MomentRetriever, or where one was saved")
    path = Path(source)
    if path.is_dir():
        return checkpoint.load(_kept(path))
    if path.suffix in _OURS or path.with_name(f"{path.name}.safetensors").is_file():
        return checkpoint.load(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such retriever; give the folder of a run, or the file of a checkpoint")
    return checkpoint.load_official(path)


def _kept(folder: Path) -> Path:
    """The checkpoint that a run keeps: the best of its last stage, or that of the stage whose folder is given."""
    if (folder / "best.safetensors").is_file():
        return folder / "best"
    file = folder / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no folder of a run: it has no run.json; give one of mrlib.train --out")
    try:
        stage = read_document(file, dict)["paper"]["stages"][-1]["name"]
        best = folder / stage / "best"
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"{file} does not say which stages the run has; give another folder, or a checkpoint"
        ) from None
    if not best.with_name("best.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: its last stage, {stage}, has no weights yet; let the run end, or give the folder of a stage"
        )
    return best


def facts_of(retriever: MomentRetriever) -> Training:
    """What is known about a retriever's training data; for one that does not say it, what is usual."""
    if retriever.training_data is not None:
        return retriever.training_data
    recipe = retriever.recipe
    width = None if recipe is None else recipe["widths"]["target"]
    query = None if recipe is None else papers.get(**recipe["paper"]).query
    streams = {} if width is None else {"features": width}
    return Training(streams=streams, clip_s=None, clips=None, normalize=(*streams, "query"), query=query)


def window_clips(training: Training, clip_s: float) -> int:
    """The number of clips of a window: that of the longest training video, or else 150 s of clips."""
    return training.clips or max(1, round(USUAL_S / clip_s))


def require_fit(training: Training, recipe: Mapping[str, Any], by_clip: bool) -> None:
    """ValueError, naming both sides, unless a retriever can read an index and the kind of query.

    recipe   of the index
    by_clip  the query is a clip; False: a sentence
    """
    name, width, clip_s = recipe["encoder"], recipe["width"], recipe["clip_s"]
    names, widths = list(training.streams), list(training.streams.values())
    trained = f"{' + '.join(names)} ({' + '.join(map(str, widths))})"
    index = f"this index has {name} ({width})"
    advice = f"give a retriever that was trained on {name} alone"
    if names and widths != [width]:
        raise ValueError(f"the retriever was trained on {trained}, {index}; {advice}")
    other = training.encoder is None and names and names[0] in _PUBLISHED and names[0] != name
    if other or not _same_encoder(training.encoder, recipe):
        encoder = training.encoder["encoder"] if isinstance(training.encoder, Mapping) else "other weights"
        source = "" if training.encoder is None else f" from encoder {encoder}"
        raise ValueError(f"the retriever was trained on {trained}{source}, {index} of another encoder; {advice}")
    if training.clip_s is not None and abs(training.clip_s - clip_s) > 1e-6:
        raise ValueError(
            f"the retriever was trained on clips of {training.clip_s:g} s, this index has rows of {clip_s:g} s; "
            "give an encoder of that rate"
        )
    if training.query is not None and (training.query == "video") != by_clip:
        wanted = "clips; give clip=" if training.query == "video" else "sentences; give query="
        raise ValueError(f"the retriever answers {wanted}, or another retriever")


def _same_encoder(trained_on: Mapping[str, Any] | str | None, recipe: Mapping[str, Any]) -> bool:
    """Whether the training data may be of the encoder of a recipe: they are, or do not say whose they are."""
    if isinstance(trained_on, str):
        return trained_on == recipe.get("weights")
    return trained_on is None or dict(trained_on) == dict(recipe)


def prepared(features: Tensor, training: Training) -> Tensor:
    """The features of a video (n, D) as the retriever read those of its training."""
    names = list(training.streams) or ["features"]
    return normalised(features) if names[0] in training.normalize else features


def query_of_words(retriever: MomentRetriever, text: str, tokens: Tensor, vector: Tensor | None) -> Query:
    """A sentence as a retriever reads it: tokens (N, D') of the encoder, and its vector (J,) if there is one.

    raises  ValueError if its width is another; a sentence that is longer than the model reads is cut, with a warning
    """
    training = facts_of(retriever)
    most = training.tokens
    if most is not None and len(tokens) > most:
        warnings.warn(f"the sentence has {len(tokens)} tokens, and the retriever reads the first {most}", stacklevel=3)
        tokens = tokens[:most]
    _require_query_width(retriever, tokens)
    tokens = normalised(tokens) if "query" in training.normalize else tokens
    if vector is not None and next(iter(training.streams), "features") in training.normalize:
        vector = normalised(vector[None])[0]
    return Query(text, tokens, vector)


def query_of_clip(retriever: MomentRetriever, name: str, features: Tensor) -> Query:
    """A query video (m, D) as a retriever reads it; ValueError if its width is another."""
    _require_query_width(retriever, features)
    rows = normalised(features)
    mean = normalised(rows.mean(0, keepdim=True))[0]
    return Query(name, rows if "query" in facts_of(retriever).normalize else features, mean)


def _require_query_width(retriever: MomentRetriever, rows: Tensor) -> None:
    wanted = None if retriever.recipe is None else retriever.recipe["widths"]["query"]
    if wanted not in (None, rows.shape[1]):
        raise ValueError(
            f"the retriever reads queries of width {wanted}, this encoder gives {rows.shape[1]}; give the encoder of "
            "its training, or another retriever"
        )


def normalised(rows: Tensor) -> Tensor:
    """Rows (n, D) divided by their L2 norm + 1e-5, as the readers of features do it."""
    return torch.from_numpy(normalized_rows(rows.numpy()))
