"""Annotation files: JSON lines in the QVHighlights schema, one (video, query) pair a line, every line checked.

A reader of another form, such as `mrlib.data.pairs`, hands its samples and problems on as `read_annotations` does.
A line of TVSum has no windows; its `label`, which goes to `extra`, is what the annotators give every clip, 1 to 5.
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
_LONGEST_S = 1e9  # beyond is no time: infinite, or too large for a float
_OPTIONAL = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
_FIELDS = frozenset(("qid", "query", "duration", "vid", *_OPTIONAL))

Line = tuple[int | None, Sample | None, list[Problem]]  # its number, its sample, what is wrong with it


def plain_name(name: str) -> bool:
    """Whether an id can be part of a file name and stays in its folder: no separator, no leading dot, not empty."""
    return _PLAIN.fullmatch(name) is not None


def load_annotations(path: str | os.PathLike, clip_s: float = 2.0, *, words: bool = True) -> list[Sample]:
    """The samples of a .jsonl or .jsonl.gz file.

    clip_s   seconds per clip: a window may end this much after its video, less than a clip, and is clamped; how many
             were is one warning per file
    words    every query is a sentence; False: queries are videos, `query` may be absent and a `qid`, which then names
             a query video, may come again with another `vid`

    FileNotFoundError if there is no such file; ValueError naming file, line and field at the first bad line.
    """
    return sound(path, clip_s, read_annotations(path, clip_s, words=words))


def sound(path: str | os.PathLike, clip_s: float, lines: Iterable[Line]) -> list[Sample]:
    """The samples that a reader of `path` gives; its first fatal problem is raised, what it bears is warned of."""
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
    """Every line: its number, its sample (None where the line has a fatal problem) and what is wrong with it.

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
                sample, found = _parse(line, clip_s, words)
                if sample is not None:
                    key = (str(sample.qid), None if words else sample.vid)
                    if seen.setdefault(key, number) != number:
                        what = "a qid" if words else "a pair of qid and vid"
                        found.append(("qid", f"{sample.qid!r} is also on line {seen[key]}; {what} comes once", True))
                problems = [Problem(file, number, *each) for each in found]
                yield number, None if any(p.fatal for p in problems) else sample, problems
    except (OSError, EOFError, zlib.error) as error:
        yield None, None, [Problem(file, number + 1, "unreadable", f"{error}; copy or download the file again")]
        return
    if empty:
        yield None, None, [Problem(file, None, "empty", "no annotation in this file; copy or download it again")]


def _parse(line: bytes, clip_s: float, words: bool) -> tuple[Sample | None, list[tuple[str, str, bool]]]:
    """A line as a sample, None where it is too broken to be one, and (field, message, fatal) of what is wrong."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, [("json", f"{error}; every line is one JSON object", True)]
    if not isinstance(fields, dict):
        return None, [("json", f"a {type(fields).__name__} where one JSON object is expected", True)]
    return sample_of(fields, clip_s, words)


def sample_of(fields: dict[str, Any], clip_s: float, words: bool) -> tuple[Sample | None, list[tuple[str, str, bool]]]:
    """A line's fields as a sample, None where it is too broken to be one, and (field, message, fatal) of what is wrong.

    fields  of the QVHighlights schema; all others go to the sample's `extra`

    A video of TVSum ends with its last label, and where its duration is as many as it has labels, that counts clips, as
    in the released files; the sample has seconds.
    """
    found = _wrong(fields, words)
    if not found:
        found = _wrong_windows("relevant_windows", fields, clip_s) + _wrong_saliency(fields, clip_s)
        found += _wrong_labels(_labels(fields, words))
        if fields.get("wrong_spans") != []:  # of clips that confuse a model there may be none
            found += [each for each in _wrong_windows("wrong_spans", fields, clip_s) if each[2]]
    if any(fatal for *_, fatal in found):
        return None, found
    duration = float(fields["duration"])
    labels = _labels(fields, words)
    if labels is not None:
        counts_clips = abs(duration - len(labels)) <= len(labels) / 20
        duration = min(duration * clip_s if counts_clips else duration, len(labels) * clip_s)
    windows = fields.get("relevant_windows")
    if found and windows is not None:
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
    ), found


def shared_classes(field: str, classes: Mapping[Path, set[Hashable]]) -> list[Problem]:
    """What splits have in common that should have no class in common; the classes of each annotation file."""
    problems = []
    for file, own in classes.items():
        for other, others in classes.items():
            if other != file and (both := sorted(own & others, key=str)):
                more = f" and {len(both) - 5} more" if len(both) > 5 else ""
                message = f"{', '.join(map(str, both[:5]))}{more} also in {other.name}; no two splits share a class"
                problems.append(Problem(str(file), None, field, message))
    return problems


def _wrong(fields: dict[str, Any], words: bool) -> list[tuple[str, str, bool]]:
    """What is wrong with qid, query, duration and vid."""
    found = []
    for name, types in (("qid", (int, str)), ("query", (str,)), ("duration", (int, float)), ("vid", (str,))):
        value = fields.get(name)
        if value is None and name == "query" and not words:
            continue
        expected = " or ".join(t.__name__ for t in types)
        if name not in fields:
            found.append((name, f"is missing; every line has it, {expected}", True))
        elif type(value) not in types:
            found.append((name, f"is {_short(value)}, not {expected}", True))
        elif name in ("qid", "vid") and not plain_name(str(value)):
            found.append(
                (name, f"{_short(value)} is not a plain name: no / or \\, no leading dot, not empty; rename it", True)
            )
        elif name == "query" and words and not any(c.isalnum() for c in value):
            found.append((name, f"{_short(value)} has no word; describe the moment, or take the line out", True))
        elif name == "duration" and not 0 < value < _LONGEST_S:
            found.append((name, f"is {value}, not a positive number of seconds", True))
    return found


def _wrong_windows(name: str, fields: dict[str, Any], clip_s: float) -> list[tuple[str, str, bool]]:
    windows, duration = fields.get(name), fields["duration"]
    if windows is None:
        return []
    if not isinstance(windows, list) or not windows:
        return [(name, f"is {_short(windows)}, not [[start, end], ...]; leave it out where nothing is annotated", True)]
    found = []
    for window in windows:
        if not isinstance(window, list) or len(window) != 2 or not all(map(_is_number, window)):
            found.append((name, f"{_short(window)} is not [start, end] in seconds", True))
            continue
        start, end = window
        if end <= start:
            found.append((name, f"{window} ends before it starts; swap or correct the two", True))
        elif start < 0:
            found.append((name, f"{window} starts before the video; times count from its beginning, 0", True))
        elif start >= duration:
            found.append((name, f"{window} starts after the video, {duration:g} s; correct it or the duration", True))
        elif end - duration >= clip_s:
            late = f"{window} ends a clip or more after the video, {duration:g} s"
            found.append((name, f"{late}; correct it or the duration", True))
        elif end > duration:
            found.append((name, f"{window} ends after the video, {duration:g} s; clamped to its end", False))
    return found


def _wrong_saliency(fields: dict[str, Any], clip_s: float) -> list[tuple[str, str, bool]]:
    clips, scores = fields.get("relevant_clip_ids"), fields.get("saliency_scores")
    if clips is None:
        return [] if scores is None else [("saliency_scores", "is there without relevant_clip_ids; add them", True)]
    if not isinstance(clips, list) or not all(type(c) is int for c in clips):
        return [("relevant_clip_ids", f"is {_short(clips)}, not a list of integers", True)]
    found, duration = [], fields["duration"]
    outside = [c for c in clips if c < 0 or c >= duration / clip_s]
    if outside:
        end = f"the video, {duration:g} s in clips of {clip_s:g} s"
        found.append(("relevant_clip_ids", f"clip {outside[0]} lies outside {end}; correct it or the duration", True))
    if len(set(clips)) < len(clips):
        found.append(("relevant_clip_ids", "names a clip twice; take one out", True))
    if scores is None:
        return found
    if not isinstance(scores, list) or len(scores) != len(clips):
        count = len(scores) if isinstance(scores, list) else _short(scores)
        return [*found, ("saliency_scores", f"{count} for {len(clips)} relevant_clip_ids; one entry per clip", True)]
    for clip, score in zip(clips, scores, strict=True):
        if not isinstance(score, list) or len(score) != 3 or not all(type(s) is int and 0 <= s <= 4 for s in score):
            found.append(("saliency_scores", f"clip {clip} has {_short(score)}, not three scores from 0 to 4", True))
            break
    return found


def _labels(fields: dict[str, Any], words: bool) -> Any:
    """What the annotators of TVSum say of every clip; beside windows, or for a video query, `label` is a name."""
    return fields.get("label") if words and fields.get("relevant_windows") is None else None


def _wrong_labels(labels: Any) -> list[tuple[str, str, bool]]:
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
