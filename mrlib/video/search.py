"""Find moments in one video: by a sentence or by a clip, without training or by any retriever, however long it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mrlib.arguments import require
from mrlib.data.recipes import differing
from mrlib.files import shown_path
from mrlib.retriever import MomentRetriever
from mrlib.video import retrievers, zero_shot
from mrlib.video.encode import Encoder, Pixels, open_encoder
from mrlib.video.index import Index, index
from mrlib.video.read import Progress
from mrlib.video.windows import Query, moments_in, together, windows_of

TOP = 5  # moments
# The existence score below which the answer is "not here". Of simulated queries that have an answer the first two keep
# more than nine of ten; of those without one they reject few (tests/video/test_search.py).
HERE_WORDS, HERE_CLIP, HERE_PIXELS = 0.1, 0.05, 0.25
HERE_SHOWN = 0.5  # of a sentence, where the encoder's recipe says from which cosine on a clip shows it


def find(
    video: str | os.PathLike | Index,
    query: str | None = None,
    clip: str | os.PathLike | Index | None = None,
    retriever: str | os.PathLike | nn.Module | None = None,
    encoder: Encoder | str | os.PathLike | None = None,
    *,
    top: int = TOP,
    here: float | None = None,
    cache: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The moments of a video that answer a sentence, or show what a clip shows, best first.

    video      a file, or what `mrlib.video.index` made of it
    query      a sentence; or else
    clip       a video, or its index; one that is longer than the searched video can only be slow motion of it
    retriever  what `mrlib.video.retrievers.open_retriever` opens: a run's folder, a checkpoint, an official release;
               None: answers without training, see `mrlib.video.zero_shot`
    encoder    makes the features, or its name, see `mrlib.video.encode.open_encoder`. None: CLIP as MRLIB_CLIP says;
               `Pixels`, which needs no weights, for a clip without a retriever, and where index or retriever say it
    top        the most moments
    here       the existence score, 0 to 1, from which something is here; 0: always answer. None: see `usually_here`
    cache      folder for the features, see `mrlib.video.index.index`
    progress   is told the seconds done and in all while a video is encoded
    returns    dicts of "video", "start_s", "end_s", "score". [] if nothing is here
    raises     ValueError or FileNotFoundError that names the argument or the file and says what to do
    """
    require_query(query, clip, here)
    require(type(top) is int and top >= 1, "top", top, "a whole number of at least 1")
    for name, value in ("video", video), ("clip", clip):
        require(isinstance(value, str | os.PathLike | Index | None), name, value, "the path of a video, or its index")
    require(video is not None, "video", video, "the path of a video, or its index")
    model = None if retriever is None else retrievers.open_retriever(retriever)
    if not (isinstance(video, Index) and isinstance(clip, Index) and encoder is None):
        encoder = _encoder(encoder, video, clip, model)
    if model is not None:  # before a video is encoded, which may take minutes
        recipe = video.recipe if encoder is None else encoder.recipe
        retrievers.require_fit(retrievers.facts_of(model), recipe, by_clip=clip is not None)
    if query is not None:
        tokens, vector = encoder.text(query)
    target = _indexed(video, encoder or video, cache, progress)
    if query is not None:
        moments, exists = _by_words(target, query, tokens, vector, model, top)
    else:
        query_video = _indexed(clip, encoder or target, cache, progress)
        moments, exists = _by_clip(target, query_video, model, top)
    least = usually_here(target.recipe, clip is not None) if here is None else here
    if exists < least:
        return []
    if clip is not None and model is None:  # each moment has an existence score of its own
        moments = [moment for moment in moments if moment[2] >= least] or moments[:1]
    return [{"video": target.path, "start_s": start, "end_s": end, "score": score} for start, end, score in moments]


def usually_here(recipe: Mapping[str, Any], by_clip: bool) -> float:
    """The existence score from which something is here, unless a search says another; by_clip: the query is a clip."""
    if not by_clip:
        return HERE_WORDS if recipe.get("shown") is None else HERE_SHOWN
    return HERE_PIXELS if recipe["encoder"] == "pixels" else HERE_CLIP


def require_query(query: str | None, clip: str | os.PathLike | Index | None, here: float | None = None) -> None:
    """ValueError unless there is one query, a sentence or a clip, and `here` is an existence score or None."""
    if (query is None) == (clip is None):
        which = "neither is" if query is None else "both are"
        raise ValueError(f"give either query=, a sentence, or clip=, a video; {which} given")
    if query is not None:
        require(isinstance(query, str) and query.strip() != "", "query", query, "a sentence with at least one word")
    number = isinstance(here, Real) and not isinstance(here, bool) and 0 <= here <= 1
    require(here is None or number, "here", here, "a number from 0 to 1, or None")


def _encoder(
    encoder: Encoder | str | os.PathLike | None, video: Any, clip: Any, model: MomentRetriever | None
) -> Encoder:
    """The encoder of a search: the one that is given or named, or the usual one."""
    if encoder is not None:
        if isinstance(encoder, str | os.PathLike):
            return open_encoder(os.fspath(encoder))
        fits = isinstance(getattr(encoder, "recipe", None), Mapping) and not isinstance(encoder, type)
        require(fits, "encoder", encoder, "an encoder, or the name of one")
        return encoder
    if isinstance(video, Index):
        pixels = video.recipe["encoder"] == "pixels"
    elif model is not None:
        trained_on = retrievers.facts_of(model).encoder
        pixels = isinstance(trained_on, Mapping) and trained_on.get("encoder") == "pixels"
    else:
        pixels = clip is not None
    return Pixels() if pixels else open_encoder(None)


def _indexed(
    video: str | os.PathLike | Index,
    encoder: Encoder | Index,
    cache: str | os.PathLike | None,
    progress: Progress | None,
) -> Index:
    """The index of a video by an encoder; ValueError for one that another encoder made, or that is unlike another."""
    if not isinstance(video, Index):
        if not Path(video).exists():
            raise FileNotFoundError(f"{shown_path(os.fspath(video))}: no such video; give the path of a file")
        return index(video, encoder, cache, progress)
    if dict(video.recipe) != dict(encoder.recipe):
        raise ValueError(
            f"{shown_path(video.path)}: its index was made by encoder {video.recipe['encoder']}, and this search needs "
            f"{encoder.recipe['encoder']}{_versions(video.recipe, encoder.recipe)}; make the index again"
        )
    return video


def _versions(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What tells two recipes of one kind apart."""
    if a["encoder"] != b["encoder"]:
        return ""
    name = differing(a, b)[0]
    return f" with {name} {b.get(name)!r}, not {a.get(name)!r}"


def _by_words(
    target: Index, query: str, tokens: Tensor, vector: Tensor, model: MomentRetriever | None, top: int
) -> tuple[list[list[float]], float]:
    """The moments that answer a sentence, and the existence score, 1 where clips and sentences share no space."""
    joint = target.recipe["joint"] is not None
    if joint:
        of_video = target.clip_s, target.duration_s, top, target.recipe.get("shown")
        moments, exists = zero_shot.by_vector(target.features, vector, *of_video)
    if model is None:
        if not joint:
            name = target.recipe["encoder"]
            raise ValueError(f"encoder {name} has no space of clips and sentences; give a retriever, or ask by clip")
        return moments, exists
    sentence = retrievers.query_of_words(model, query, tokens, vector if joint else None)
    return _by_model(target, model, sentence, top), exists if joint else 1.0


def _by_clip(target: Index, clip: Index, model: MomentRetriever | None, top: int) -> tuple[list[list[float]], float]:
    """The moments that show what a clip shows, and the existence score."""
    if len(clip.features) > len(target.features):
        longer = (
            f"the clip {shown_path(clip.path)}, {clip.duration_s:g} s, is longer than the video "
            f"{shown_path(target.path)}, {target.duration_s:g} s"
        )
        if len(clip.features) > len(target.features) * max(zero_shot.SPEEDS):
            raise ValueError(f"{longer}; give a shorter clip, or swap the two")
        warnings.warn(f"{longer}; it can only be found as slow motion", stacklevel=3)
    moments, exists = zero_shot.by_rows(target.features, clip.features, target.clip_s, target.duration_s, top)
    if model is None:
        return moments, exists
    return _by_model(target, model, retrievers.query_of_clip(model, clip.path, clip.features), top), exists


def _by_model(target: Index, model: MomentRetriever, query: Query, top: int) -> list[list[float]]:
    """The moments that a retriever finds, in windows as long as its training videos."""
    training = retrievers.facts_of(model)
    rows = retrievers.prepared(target.features, training)
    length = retrievers.window_clips(training, target.clip_s)
    windows = windows_of(target.path, rows, target.duration_s, target.clip_s, length)
    return together(moments_in(model, windows, query, target.clip_s), top)
