"""One annotated line: the check that readers, `mrlib.data.check`, `mrlib.fit` and the evaluator share, and its sample.

A line has the fields of the QVHighlights schema. An empty list of windows is a null query: it was annotated, and
nothing in the video answers it. A line without windows may have a `label`: for every clip the labels of the annotators,
from 1 to 5 as on TVSum, or 0 and 1 as on YouTube Highlights. Such a label goes to the sample's `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from mrlib.data import Sample
from mrlib.data.clips import count_clips
from mrlib.data.problems import Problem

_PLAIN = re.compile(r"(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,200}")
_LONGEST_S = 1e9  # no number from here on is a time: infinite, or too large for a float
_NEEDED = {"qid": "int or str", "query": "str", "duration": "int or float", "vid": "str"}
_OPTIONAL = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
_FIELDS = frozenset((*_NEEDED, *_OPTIONAL))
LATE, EARLY, EMPTY = "end after their video", "start before their video", "have no length"  # windows that can be mended

Line = tuple[int | None, Sample | None, list[Problem]]  # as readers yield it: its number, its sample, its problems


class Defect(NamedTuple):
    """What is wrong with a field of a line."""

    field: str
    message: str  # what is wrong and what to do
    fatal: bool = True  # False: the line is read
    place: str = ""  # of a window that is not inside its video: LATE, EARLY or EMPTY

    def at(self, file: str, number: int, unit: str = "line") -> Problem:
        """The defect as a problem of a line, or of what else `unit` names."""
        return Problem(file, number, self.field, self.message, self.fatal, unit, self.place)


def is_plain_name(name: str) -> bool:
    """Whether an id can be part of a file name without leaving its folder: no separator, no leading dot, not empty."""
    return _PLAIN.fullmatch(name) is not None


def sample_of(
    fields: Mapping[str, Any], clip_s: float, words: bool, *, clamp: bool = False
) -> tuple[Sample | None, list[Defect]]:
    """The sample of a line's fields, or None if a defect is fatal, and the defects.

    fields  those of the schema; all others go to the sample's `extra`
    clamp   bring windows into the video and widen those of no length, see `clamped`. False: only a window that ends
            after its video by less than a clip is cut
    """
    fields, changes = clamped(fields, clip_s) if clamp else (fields, [])
    defects = line_defects(fields, clip_s, words)
    if any(defect.fatal for defect in defects):
        return None, defects
    duration, labels, windows = float(fields["duration"]), clip_labels(fields, words), fields.get("relevant_windows")
    if labels is not None:
        duration = _labelled_s(duration, labels, clip_s)
    if any(defect.place == LATE for defect in defects):
        windows = [[start, min(end, duration)] for start, end in windows]
    return Sample(
        qid=fields["qid"],
        query=fields.get("query") or "",
        duration=duration,
        vid=fields["vid"],
        relevant_windows=windows,
        relevant_clip_ids=fields.get("relevant_clip_ids"),
        saliency_scores=fields.get("saliency_scores"),
        extra={k: v for k, v in fields.items() if k not in _FIELDS},
    ), changes + defects


def line_defects(fields: Mapping[str, Any], clip_s: float, words: bool) -> list[Defect]:
    """All defects of a line's fields; those of qid, query, duration and vid alone, if there are any.

    clip_s  seconds per clip
    words   the query is a sentence; False: it is a video, and `query` may be absent
    """
    if defects := _id_defects(fields, words):
        return defects
    duration, mined = fields["duration"], fields.get("wrong_spans")
    return [
        *window_defects("relevant_windows", fields.get("relevant_windows"), duration, clip_s),
        *saliency_defects(fields, clip_s),
        *label_defects(clip_labels(fields, words)),
        *(defect for defect in window_defects("wrong_spans", mined, duration, clip_s) if defect.fatal),
    ]


def shape_defects(sample: Sample) -> list[Defect]:
    """Defects of a sample's annotation that no length of its video, and no length of a clip, can put right."""
    duration, labels = _LONGEST_S / 2, clip_labels({"label": sample.extra.get("label")}, words=False)
    windows = {"relevant_windows": sample.relevant_windows, "wrong_spans": sample.extra.get("wrong_spans")}
    saliency = {"relevant_clip_ids": sample.relevant_clip_ids, "saliency_scores": sample.saliency_scores}
    return [
        *(defect for field, each in windows.items() for defect in window_defects(field, each, duration, 1)),
        *saliency_defects(saliency | {"duration": duration}, 1),
        *label_defects(labels if sample.relevant_windows is None else None),
    ]


def _id_defects(fields: Mapping[str, Any], words: bool) -> list[Defect]:
    """Defects of qid, query, duration and vid."""
    defects = []
    for name, kinds in _NEEDED.items():
        value = fields.get(name)
        fits = _is_real(value) if name == "duration" else isinstance(value, str) or (name == "qid" and is_whole(value))
        if value is None and name == "query" and not words:
            continue
        if name not in fields:
            defects.append(Defect(name, f"is missing; every line needs it, {kinds}"))
        elif not fits:
            defects.append(Defect(name, f"is {short(value)}, not {kinds}"))
        elif name == "duration":
            defects += duration_defects(value)
        elif name == "query" and words and not any(c.isalnum() for c in value):
            defects.append(Defect(name, f"{short(value)} has no word; describe the moment, or take the line out"))
        elif name in ("qid", "vid") and not is_plain_name(_name(value)):
            message = f"{short(value)} is not a plain name: no / or \\, no leading dot, not empty; rename it"
            defects.append(Defect(name, message))
    return defects


def _name(value: int | str) -> str:
    """An id as text; empty for an integer of more than 4,300 digits, which Python does not write out."""
    try:
        return str(value)
    except ValueError:
        return ""


def duration_defects(duration: Any) -> list[Defect]:
    """Defects of the length of a video."""
    if not _is_real(duration) or not 0 < duration < _LONGEST_S:
        return [Defect("duration", f"is {short(duration)}, not a positive number of seconds")]
    return []


# ---- windows ----


def window_defects(field: str, windows: Any, duration: float, clip_s: float) -> list[Defect]:
    """Defects of a field of windows, in seconds; None, no annotation, has none.

    duration  of the video, seconds; infinity if it is not known
    """
    if windows is None:
        return []
    if not isinstance(windows, list | tuple):
        message = f"is {short(windows)}, not [[start, end], ...]; leave it out where nothing is annotated"
        return [Defect(field, message)]
    defects = []
    for window in windows:
        if not _is_window(window):
            defects.append(Defect(field, f"{short(window)} is not [start, end] in seconds"))
            continue
        start, end = window
        if not 0 <= start < end <= duration:
            defects.append(Defect(field, *_place_defect(start, end, duration, clip_s)))
    return defects


def _place_defect(start: float, end: float, duration: float, clip_s: float) -> tuple[str, bool, str]:
    """The message of a window that is not inside its video, whether it is fatal, and the window's place."""
    window = [start, end]
    if end < start:
        return f"{window} ends before it starts; swap or correct the two", True, ""
    if start == end:
        inside = EMPTY if 0 <= start <= duration else ""
        return f"{window} has no length; widen it to the clip that is meant, or take it out", True, inside
    if start < 0:
        inside = EARLY if end > 0 else ""
        return f"{window} starts before the video; times count from its beginning, 0", True, inside
    if start >= duration:
        return f"{window} starts after the video, {duration:g} s; correct it or the duration", True, ""
    if end - duration >= clip_s:
        return f"{window} ends a clip or more after the video, {duration:g} s; correct it or the duration", True, LATE
    return f"{window} ends after the video, {duration:g} s; clamped to its end", False, LATE


def clamped(fields: Mapping[str, Any], clip_s: float) -> tuple[Mapping[str, Any], list[Defect]]:
    """The fields with windows brought into the video, and what was changed.

    A start before the video becomes 0, an end after it the duration. A window of no length becomes the clip that holds
    it, cut at the duration. All other windows, and mined ones that the readers accept as they are, stay.
    """
    duration = fields.get("duration")
    if duration_defects(duration):
        return fields, []
    changed, changes = dict(fields), []
    for field in ("relevant_windows", "wrong_spans"):
        windows = fields.get(field)
        if not isinstance(windows, list | tuple):
            continue
        changed[field] = list(windows)
        for i, window in enumerate(windows):
            if not _is_window(window) or 0 <= window[0] < window[1] <= duration:
                continue
            _, fatal, place = _place_defect(*window, duration, clip_s)
            if place and (fatal or field == "relevant_windows"):
                changed[field][i] = _inside_video(*window, duration, clip_s)
                changes.append(Defect(field, f"{list(window)} is read as {changed[field][i]}", False, place))
    return (changed, changes) if changes else (fields, [])


def _inside_video(start: float, end: float, duration: float, clip_s: float) -> list[float]:
    """The part of a window that is inside the video; the clip that holds it if it has no length."""
    if start < end:
        return [max(start, 0), min(end, duration)]
    clip = min(int(start // clip_s), count_clips(duration, clip_s) - 1)
    return [clip * clip_s, min((clip + 1) * clip_s, duration)]


# ---- labels of clips ----


def saliency_defects(fields: Mapping[str, Any], clip_s: float) -> list[Defect]:
    """Defects of relevant_clip_ids and saliency_scores in a line that has a valid duration."""
    clips, scores, duration = fields.get("relevant_clip_ids"), fields.get("saliency_scores"), fields["duration"]
    if clips is None:
        return [] if scores is None else [Defect("saliency_scores", "is given without relevant_clip_ids; add them")]
    if not isinstance(clips, list | tuple) or not all(map(is_whole, clips)):
        return [Defect("relevant_clip_ids", f"is {short(clips)}, not a list of integers")]
    defects, count = [], count_clips(duration, clip_s)
    if clips and not 0 <= min(clips) <= max(clips) < count:
        outside = next(c for c in clips if not 0 <= c < count)
        video = f"the video, {duration:g} s in clips of {clip_s:g} s"
        message = f"clip {short(outside)} lies outside {video}; correct it or the duration"
        defects.append(Defect("relevant_clip_ids", message))
    if len(set(clips)) < len(clips):
        defects.append(Defect("relevant_clip_ids", "names a clip twice; take one out"))
    if scores is None:
        return defects
    if not isinstance(scores, list | tuple) or len(scores) != len(clips):
        given = len(scores) if isinstance(scores, list | tuple) else short(scores)
        message = f"{given} for {len(clips)} relevant_clip_ids; one entry per clip"
        return [*defects, Defect("saliency_scores", message)]
    for clip, row in zip(clips, scores, strict=True):
        if not isinstance(row, list | tuple) or not row or not all(map(_is_score, row)):
            message = f"clip {clip} has {short(row)}, not scores from 0 to 4, one of each annotator"
            return [*defects, Defect("saliency_scores", message)]
        if len(row) != len(scores[0]):
            message = f"clip {clip} has {len(row)} scores, clip {clips[0]} has {len(scores[0])}; one of each annotator"
            return [*defects, Defect("saliency_scores", message)]
    return defects


def clip_labels(fields: Mapping[str, Any], words: bool = True) -> Any:
    """The labels of every clip, a list of rows, in a line without windows; None where `label` is the name of a class.

    That is a line with windows, or one whose query is a video and whose `label` is no list. A list of numbers is that
    of one annotator. Nothing is checked here.
    """
    label = fields.get("label")
    if fields.get("relevant_windows") is not None or not (words or isinstance(label, list | tuple)):
        return None
    if isinstance(label, list | tuple) and label and all(map(_is_real, label)):
        return [[x] for x in label]
    return label


def label_defects(labels: Any) -> list[Defect]:
    """Defects of the labels of every clip, as `clip_labels` gives them."""
    if labels is None:
        return []
    if not isinstance(labels, list | tuple) or not labels:
        expected = "a list per clip of the annotators' labels; leave it out where nothing is annotated"
        return [Defect("label", f"is {short(labels)}, not {expected}")]
    zero_one = label_scale(labels) == "0/1"
    for clip, row in enumerate(labels):
        if not _is_row(row) or not all(x in (0, 1) if zero_one else 1 <= x <= 5 for x in row):
            expected = "numbers from 1 to 5, or 0 and 1 in the whole video, one of each annotator"
            return [Defect("label", f"clip {clip} has {short(row)}, not {expected}")]
        if len(row) != len(labels[0]):
            counts = f"clip {clip} has {len(row)} labels, clip 0 has {len(labels[0])}"
            return [Defect("label", f"{counts}; every annotator labels every clip")]
    return []


def label_scale(labels: Any) -> str:
    """What labels say: "0/1" whether a clip is a highlight, "1 to 5" how important it is, "" if they fit both.

    Labels of 1 alone fit both if they are those of one annotator.
    """
    values = {x for row in labels if _is_row(row) for x in row}
    if 0 in values and values <= {0, 1}:
        return "0/1"
    return "" if values == {1} and all(map(_is_row, labels)) and len(labels[0]) == 1 else "1 to 5"


def _labelled_s(duration: float, labels: list[list[float]], clip_s: float) -> float:
    """The seconds of a video that ends with its last label.

    On TVSum, where the duration is about the number of labels, as in the released files, it counts clips. On YouTube
    Highlights a clip is a label, whatever the frames per second of the video.
    """
    labelled_s = len(labels) * clip_s
    if label_scale(labels) != "1 to 5":
        return labelled_s
    counts_clips = abs(duration - len(labels)) <= len(labels) / 20
    return min(duration * clip_s if counts_clips else duration, labelled_s)


# ---- values ----


def is_whole(x: Any) -> bool:
    """Whether x is a whole number, and no bool."""
    return type(x) is int or (isinstance(x, Integral) and type(x) is not bool)


def _is_real(x: Any) -> bool:
    return type(x) in (int, float) or (isinstance(x, Real) and type(x) is not bool)


def _is_score(x: Any) -> bool:
    """Whether x is a score of saliency: 0, 1, 2, 3 or 4, also as the float that a table of numbers makes of it."""
    return _is_real(x) and x in (0, 1, 2, 3, 4)


def _is_window(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) == 2 and all(_is_real(t) and abs(t) < _LONGEST_S for t in x)


def _is_row(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) > 0 and all(map(_is_real, x))


def short(value: Any) -> str:
    """A value as a text of at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= 60 else text[:57] + "..."
