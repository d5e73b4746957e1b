"""Find moments in one video: by a sentence or by a clip, without training or by any retriever, however long it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from mrlib.arguments import require
from mrlib.video import retrievers, zero_shot
from mrlib.video.encode import Encoder, Pixels, open_encoder
from mrlib.video.index import Index, index
from mrlib.video.read import Progress
from mrlib.video.windows import moments_in, together, windows_of

TOP = 5  # moments
HERE = {False: 0.05, True: 0.3}  # the existence score below which the answer is "not here": of sentences, of clips


def find(
    video: str | os.PathLike | Index,
    query: str | None = None,
    clip: str | os.PathLike | Index | None = None,
    retriever: str | os.PathLike | nn.Module | None = None,
    encoder: Encoder | str | None = None,
    *,
    top: int = TOP,
    here: float | None = None,
    cache: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The moments of a video that answer a sentence, or show what a clip shows, best first.

    video      a file, or what `mrlib.video.index` made of it
    query      a sentence; or else
    clip       a video, no longer than the one that is searched, or its index
    retriever  what `mrlib.video.retrievers.open_retriever` opens: a run's folder, a checkpoint, an official release;
               None: answers without training, see `mrlib.video.zero_shot`
    encoder    makes the features, or its name, see `mrlib.video.encode.open_encoder`. None: CLIP as MRLIB_CLIP says;
               for a clip without a retriever `Pixels`, which needs no weights
    top        the most moments
    here       the existence score, 0 to 1, from which something is here; 0: always answer. None: as `HERE` says
    cache      folder for the features, see `mrlib.video.index.index`
    progress   is told the seconds done and in all while a video is encoded
    returns    dicts of "video", "start_s", "end_s", "score". [] if nothing is here
    raises     ValueError or FileNotFoundError that names the argument or the file and says what to do
    """
    _check(query, clip, top, here)
    model = None if retriever is None else retrievers.open_retriever(retriever)
    encoder = _encoder(encoder, video, clip, model)
    if query is not None:
        tokens, vector = encoder.text(query)  # an encoder without words is refused before the video is encoded
    target = _indexed(video, encoder, cache, progress)
    if query is not None:
        answer = _by_words(target, query, tokens, vector, model, top)
    else:
        answer = _by_clip(target, _indexed(clip, encoder, cache, progress), model, top)
    moments, exists = answer
    if exists < (HERE[clip is not None] if here is None else here):
        return []
    return [{"video": target.path, "start_s": start, "end_s": end, "score": score} for start, end, score in moments]


def _check(query: Any, clip: Any, top: Any, here: Any) -> None:
    """ValueError for arguments that do not go together, or have no meaning."""
    if (query is None) == (clip is None):
        given = "neither" if query is None else "both"
        raise ValueError(f"give either query=, a sentence, or clip=, a video; {given} is given")
    if query is not None:
        require(isinstance(query, str) and query.strip() != "", "query", query, "a sentence with at least one word")
    require(type(top) is int and top >= 1, "top", top, "a whole number of at least 1")
    number = type(here) in (int, float) and 0 <= here <= 1
    require(here is None or number, "here", here, "a number from 0 to 1, or None")


def _encoder(encoder: Encoder | str | None, video: Any, clip: Any, model: nn.Module | None) -> Encoder:
    """The encoder of a search: the one that is given or named, or the usual one."""
    if encoder is not None and not isinstance(encoder, str):
        return encoder
    pixels = isinstance(video, Index) and video.recipe["encoder"] == "pixels"
    if encoder is None and (pixels or (clip is not None and model is None and not isinstance(video, Index))):
        return Pixels()
    return open_encoder(encoder)


def _indexed(
    video: str | os.PathLike | Index, encoder: Encoder, cache: str | os.PathLike | None, progress: Progress | None
) -> Index:
    """The index of a video; ValueError for one that another encoder made."""
    if not isinstance(video, Index):
        if not Path(video).is_file():
            raise FileNotFoundError(f"{os.fspath(video)}: no such video; give the path of a file")
        return index(video, encoder, cache, progress)
    if dict(video.recipe) != dict(encoder.recipe):
        raise ValueError(
            f"{video.path}: its index was made by encoder {video.recipe['encoder']}, not by this encoder, "
            f"{encoder.recipe['encoder']}; give the same encoder, or make the index again"
        )
    return video


def _by_words(target: Index, query: str, tokens, vector, model, top: int) -> tuple[list[list[float]], float]:
    """The moments that answer a sentence, and the existence score."""
    moments, exists = zero_shot.by_vector(target.features, vector, target.clip_s, target.duration_s, top)
    if model is None:
        return moments, exists
    retrievers.require_fit(retrievers.facts_of(model), target.recipe, by_clip=False)
    return _by_model(target, model, retrievers.query_of_words(model, query, tokens, vector), top), exists


def _by_clip(target: Index, clip: Index, model, top: int) -> tuple[list[list[float]], float]:
    """The moments that show what a clip shows, and the existence score."""
    if len(clip.features) > len(target.features):
        raise ValueError(
            f"the clip {clip.path}, {clip.duration_s:g} s, is longer than the video {target.path}, "
            f"{target.duration_s:g} s; give a shorter clip, or swap the two"
        )
    moments, exists = zero_shot.by_rows(target.features, clip.features, target.clip_s, target.duration_s, top)
    if model is None:
        return moments, exists
    retrievers.require_fit(retrievers.facts_of(model), target.recipe, by_clip=True)
    return _by_model(target, model, retrievers.query_of_clip(model, clip.path, clip.features), top), exists


def _by_model(target: Index, model, query, top: int) -> list[list[float]]:
    """The moments that a retriever finds, in windows as long as its training videos."""
    training = retrievers.facts_of(model)
    rows = retrievers.prepared(target.features, training)
    length = retrievers.window_clips(training, target.clip_s)
    windows = windows_of(target.path, rows, target.duration_s, target.clip_s, length)
    return together(moments_in(model, windows, query, target.clip_s), top)
