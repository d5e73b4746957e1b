"""Annotation files: JSON lines in the QVHighlights schema, one (video, query) pair per line; every line is checked.

A reader of another format, such as `mrlib.data.pairs`, yields samples and problems as `read_annotations` does.
A line of TVSum has no windows; its `label`, which goes to `extra`, holds the annotators' labels of every clip, 1 to 5.
An empty list of windows is a null query: it was annotated, and nothing in the video answers it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mrlib.data import Sample
from mrlib.data.problems import DataError, MissingFile, Problem

_PLAIN = re.compile(r"(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,200}")
_LONGEST_S = 1e9  # no number from here on is a time: infinite, or too large for a float
_OPTIONAL = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
_FIELDS = frozenset(("qid", "query", "duration", "vid", *_OPTIONAL))

Line = tuple[int | None, Sample | None, list[Problem]]  # the line's number, its sample, its problems
Defect = tuple[str, str, bool]  # the field, a message, whether it is fatal


def is_plain_name(name: str) -> bool:
    """Whether an id can be part of a file name without leaving its folder: no separator, no leading dot, not empty."""
    return _PLAIN.fullmatch(name) is not None


def load_annotations(path: str | os.PathLike, clip_s: float = 2.0, *, words: bool = True) -> list[Sample]:
    """The samples of a .jsonl or .jsonl.gz file.

    clip_s   seconds per clip; a window that ends after its video by less than a clip is clamped, with one warning per
             file that counts such windows
    words    every query is a sentence; False: queries are videos, `query` may be absent, and a `qid`, which then names
             a query video, may occur again with another `vid`
    raises   FileNotFoundError if there is no such file; ValueError naming file, line and field at the first bad line
    """
    return checked_samples(path, clip_s, read_annotations(path, clip_s, words=words))


def checked_samples(path: str | os.PathLike, clip_s: float, lines: Iterable[Line]) -> list[Sample]:
    """The samples that a reader of `path` yields; raises its first fatal problem and warns of the others."""
    samples, clamped = [], 0
    for number, sample, problems in lines:
        for problem in problems:
            if problem.fatal:
                raise (MissingFile if problem.kind == "missing file" else DataError)(problem)
            if number is None:
                warnings.warn(str(problem), stacklevel=3)
        clamped += len(problems) if number is not None else 0
        if sample is not None:
            samples.append(sample)
    if clamped:
        warnings.warn(
            f"{path}: {clamped} windows end after their video by less than a clip of {clip_s:g} s; clamped to its end",
            stacklevel=3,
        )
    return samples


def read_annotations(path: str | os.PathLike, clip_s: float = 2.0, *, words: bool = True) -> Iterator[Line]:
    """Every line of an annotation file: its number, its sample (None if the line has a fatal problem) and its problems.

    A problem of the file as a whole comes last, as (None, None, [problem]).
    """
    file, path, seen = str(path), Path(path), {}
    if not path.is_file():
        raise MissingFile(Problem(file, None, "missing file", "no such annotation file"))
    number, empty = 0, True
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                empty = False
                sample, defects = _parse(line, clip_s, words)
                if sample is not None:
                    key = (str(sample.qid), None if words else sample.vid)
                    if seen.setdefault(key, number) != number:
                        unique = "a qid" if words else "a pair of qid and vid"
                        message = f"{sample.qid!r} is also on line {seen[key]}; {unique} comes once"
                        defects.append(("qid", message, True))
                problems = [Problem(file, number, *each) for each in defects]
                yield number, None if any(p.fatal for p in problems) else sample, problems
    except (OSError, EOFError, zlib.error) as error:
        yield None, None, [Problem(file, number + 1, "unreadable", f"{error}; copy or download the file again")]
        return
    if empty:
        yield None, None, [Problem(file, None, "empty", "no annotation in this file; copy or download it again")]


def _parse(line: bytes, clip_s: float, words: bool) -> tuple[Sample | None, list[Defect]]:
    """The sample of a line, None if a defect is fatal, and the line's defects."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, [("json", f"{error}; every line is one JSON object", True)]
    if not isinstance(fields, dict):
        return None, [("json", f"a {type(fields).__name__} where one JSON object is expected", True)]
    return sample_of(fields, clip_s, words)


def sample_of(fields: dict[str, Any], clip_s: float, words: bool) -> tuple[Sample | None, list[Defect]]:
    """The sample of a line's fields, or None if a defect is fatal, and the defects.

    fields  those of the QVHighlights schema; all others go to the sample's `extra`

    A video of TVSum ends with its last label. Where its duration is about its number of labels, as in the released
    files, the duration counts clips; the sample has seconds.
    """
    defects = _field_defects(fields, words)
    if not defects:
        defects = _window_defects("relevant_windows", fields, clip_s) + _saliency_defects(fields, clip_s)
        defects += _label_defects(_labels(fields, words))
        defects += [each for each in _window_defects("wrong_spans", fields, clip_s) if each[2]]
    if any(fatal for *_, fatal in defects):
        return None, defects
    duration = float(fields["duration"])
    labels = _labels(fields, words)
    if labels is not None:
        counts_clips = abs(duration - len(labels)) <= len(labels) / 20
        duration = min(duration * clip_s if counts_clips else duration, len(labels) * clip_s)
    windows = fields.get("relevant_windows")
    if defects and windows is not None:
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
    ), defects


def shared_classes(field: str, classes: Mapping[Path, set[Hashable]]) -> list[Problem]:
    """A problem for every two splits that share a class.

    field    the field that holds the class
    classes  the classes in each annotation file
    """
    problems = []
    for file, file_classes in classes.items():
        for other, other_classes in classes.items():
            if other != file and (shared := sorted(file_classes & other_classes, key=str)):
                more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
                message = f"{', '.join(map(str, shared[:5]))}{more} also in {other.name}; no two splits share a class"
                problems.append(Problem(str(file), None, field, message))
    return problems


def _field_defects(fields: dict[str, Any], words: bool) -> list[Defect]:
    """Defects of qid, query, duration and vid."""
    defects = []
    for name, types in (("qid", (int, str)), ("query", (str,)), ("duration", (int, float)), ("vid", (str,))):
        value = fields.get(name)
        if value is None and name == "query" and not words:
            continue
        expected = " or ".join(t.__name__ for t in types)
        if name not in fields:
            defects.append((name, f"is missing; every line needs it, {expected}", True))
        elif type(value) not in types:
            defects.append((name, f"is {_short(value)}, not {expected}", True))
        elif name in ("qid", "vid") and not is_plain_name(str(value)):
            defects.append(
                (name, f"{_short(value)} is not a plain name: no / or \\, no leading dot, not empty; rename it", True)
            )
        elif name == "query" and words and not any(c.isalnum() for c in value):
            defects.append((name, f"{_short(value)} has no word; describe the moment, or take the line out", True))
        elif name == "duration" and not 0 < value < _LONGEST_S:
            defects.append((name, f"is {value}, not a positive number of seconds", True))
    return defects


def _window_defects(name: str, fields: dict[str, Any], clip_s: float) -> list[Defect]:
    """Defects of a field of windows, in seconds."""
    windows, duration = fields.get(name), fields["duration"]
    if windows is None:
        return []
    if not isinstance(windows, list):
        return [(name, f"is {_short(windows)}, not [[start, end], ...]; leave it out where nothing is annotated", True)]
    defects = []
    for window in windows:
        if not isinstance(window, list) or len(window) != 2 or not all(map(_is_number, window)):
            defects.append((name, f"{_short(window)} is not [start, end] in seconds", True))
            continue
        start, end = window
        if end <= start:
            defects.append((name, f"{window} ends before it starts; swap or correct the two", True))
        elif start < 0:
            defects.append((name, f"{window} starts before the video; times count from its beginning, 0", True))
        elif start >= duration:
            defects.append((name, f"{window} starts after the video, {duration:g} s; correct it or the duration", True))
        elif end - duration >= clip_s:
            late = f"{window} ends a clip or more after the video, {duration:g} s"
            defects.append((name, f"{late}; correct it or the duration", True))
        elif end > duration:
            defects.append((name, f"{window} ends after the video, {duration:g} s; clamped to its end", False))
    return defects


def _saliency_defects(fields: dict[str, Any], clip_s: float) -> list[Defect]:
    """Defects of relevant_clip_ids and saliency_scores."""
    clips, scores = fields.get("relevant_clip_ids"), fields.get("saliency_scores")
    if clips is None:
        return [] if scores is None else [("saliency_scores", "is given without relevant_clip_ids; add them", True)]
    if not isinstance(clips, list) or not all(type(c) is int for c in clips):
        return [("relevant_clip_ids", f"is {_short(clips)}, not a list of integers", True)]
    defects, duration = [], fields["duration"]
    outside = [c for c in clips if c < 0 or c >= duration / clip_s]
    if outside:
        end = f"the video, {duration:g} s in clips of {clip_s:g} s"
        defects.append(("relevant_clip_ids", f"clip {outside[0]} lies outside {end}; correct it or the duration", True))
    if len(set(clips)) < len(clips):
        defects.append(("relevant_clip_ids", "names a clip twice; take one out", True))
    if scores is None:
        return defects
    if not isinstance(scores, list) or len(scores) != len(clips):
        count = len(scores) if isinstance(scores, list) else _short(scores)
        return [*defects, ("saliency_scores", f"{count} for {len(clips)} relevant_clip_ids; one entry per clip", True)]
    for clip, score in zip(clips, scores, strict=True):
        if not isinstance(score, list) or len(score) != 3 or not all(type(s) is int and 0 <= s <= 4 for s in score):
            defects.append(("saliency_scores", f"clip {clip} has {_short(score)}, not three scores from 0 to 4", True))
            break
    return defects


def _labels(fields: dict[str, Any], words: bool) -> Any:
    """TVSum's labels of every clip; None in a line with windows or a video query, where `label` names a class."""
    return fields.get("label") if words and fields.get("relevant_windows") is None else None


def _label_defects(labels: Any) -> list[Defect]:
    """Defects of the labels of every clip."""
    if labels is None:
        return []
    if not isinstance(labels, list) or not labels:
        expected = "a list per clip of the annotators' labels; leave it out where nothing is annotated"
        return [("label", f"is {_short(labels)}, not {expected}", True)]
    for clip, row in enumerate(labels):
        if not isinstance(row, list) or not row or not all(_is_number(x) and 1 <= x <= 5 for x in row):
            return [("label", f"clip {clip} has {_short(row)}, not numbers from 1 to 5, one of each annotator", True)]
        if len(row) != len(labels[0]):
            message = (
                f"clip {clip} has {len(row)} labels, clip 0 has {len(labels[0])}; every annotator labels every clip"
            )
            return [("label", message, True)]
    return []


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) < _LONGEST_S


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
