"""Natural Language Queries of Ego4D from its own JSON files, nlq_train.json, nlq_val.json, nlq_test_unannotated.json.

Paper    Grauman et al., "Ego4D: Around the World in 3,000 Hours of Egocentric Video", CVPR 2022 (arXiv 2110.07058)
Here     a sample is a query about a clip of a video: `vid` is the `clip_uid`, whose features are searched, `qid` the
         `annotation_uid` and the number of the query in it, as "{annotation_uid}_{number}". Times count from the start
         of the clip, and the duration is that of the clip. `extra` has "video_uid", "annotation_uid", "query_idx" and
         "template"
Departs  a query without text is left out, as in the baselines of `EGO4D/episodic-memory`, here with a note. About one
         window in seven has almost no length; one of none at all is widened by `bad="clamp"`, left out by `bad="skip"`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrlib.data import Sample
from mrlib.data.documents import read_document
from mrlib.data.lines import Defect, Line, sample_of, short
from mrlib.data.problems import DataError, Problem

_TIMES = ("clip_start_sec", "clip_end_sec")  # of a query in its clip; of a clip in the video it was cut from
_CLIP_TIMES = (("video_start_sec", "video_end_sec"), _TIMES)  # of a clip; the first pair that it has counts


def read_nlq(file: Path, clip_s: float = 2.0, *, clamp: bool = False) -> Iterator[Line]:
    """Every query as `mrlib.data.annotations.read_annotations` yields a line; numbers count queries, from 0.

    clip_s  seconds per row of features
    clamp   as in `mrlib.data.lines.sample_of`
    """
    path, number, without_text, first_uses = str(file), -1, [], {}
    try:
        for number, (video, clip, annotation, index, query) in enumerate(_queries(file)):
            text = query.get("query") if isinstance(query, dict) else ""
            if text is None or (isinstance(text, str) and isinstance(query, dict) and not text.strip()):
                without_text.append(number)
                continue
            sample, defects = _sample(video, clip, annotation, index, query, clip_s, clamp)
            if sample is not None and first_uses.setdefault(sample.qid, number) != number:
                defects = [Defect("annotation_uid", f"{sample.qid!r} is also the id of item {first_uses[sample.qid]}")]
            fatal = any(defect.fatal for defect in defects)
            yield number, None if fatal else sample, [defect.at(path, number, "item") for defect in defects]
    except DataError as error:
        yield None, None, [error.problem]
        return
    if number < 0:
        yield None, None, [Problem(path, None, "empty", "no query in this file; copy or download it again")]
    elif without_text:
        message = f"{len(without_text)} queries without text are left out, the first is item {without_text[0]}"
        yield None, None, [Problem(path, None, "query", message, fatal=len(without_text) == number + 1)]


def _queries(file: Path) -> Iterator[tuple[dict, dict, dict, int, Any]]:
    """Every query of a file, after its video, its clip, its annotation and its number in the annotation."""
    document = read_document(file, dict)
    for v, video in enumerate(_members(file, "the file", document, "videos")):
        for c, clip in enumerate(_members(file, f"video {v}", video, "clips")):
            for annotation in _members(file, f"clip {c} of video {v}", clip, "annotations"):
                place = f"an annotation of clip {c} of video {v}"
                queries = _members(file, place, annotation, "language_queries")
                for index, query in enumerate(queries):
                    yield video, clip, annotation, index, query


def _members(file: Path, place: str, parent: Any, name: str) -> list[Any]:
    members = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(members, list):
        what = short(members) if isinstance(parent, dict) else f"in {short(parent)}"
        raise DataError(Problem(str(file), None, name, f"of {place} is {what}, not a list; download the file again"))
    return members


def _sample(
    video: dict, clip: dict, annotation: dict, index: int, query: Any, clip_s: float, clamp: bool
) -> tuple[Sample | None, list[Defect]]:
    """The sample of a query, None if a defect is fatal, and the defects, by the names of the file."""
    if not isinstance(query, dict):
        return None, [Defect("language_queries", f"has {short(query)} where an object is expected")]
    uid, times = annotation.get("annotation_uid"), [query.get(name) for name in _TIMES]
    if not isinstance(uid, str):
        return None, [Defect("annotation_uid", f"is {short(uid)}, not text")]
    fields = {
        "qid": f"{uid}_{index}",
        "query": query.get("query"),
        "duration": _duration_s(clip),
        "vid": clip.get("clip_uid"),
        "relevant_windows": None if times == [None, None] else [times],
        "video_uid": video.get("video_uid"),
        "annotation_uid": uid,
        "query_idx": index,
        "template": query.get("template"),
    }
    names = {"qid": "annotation_uid", "vid": "clip_uid", "relevant_windows": " and ".join(_TIMES)}
    sample, defects = sample_of(fields, clip_s, words=True, clamp=clamp)
    return sample, [defect._replace(field=names.get(defect.field, defect.field)) for defect in defects]


def _duration_s(clip: Mapping[str, Any]) -> Any:
    """The length of a clip in seconds, or what stands in its place."""
    for names in _CLIP_TIMES:
        start, end = (clip.get(name) for name in names)
        if start is not None and end is not None:
            return end - start if all(type(t) in (int, float) for t in (start, end)) else [start, end]
    return None
