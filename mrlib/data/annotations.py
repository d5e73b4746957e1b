"""Annotation files: JSON lines in the QVHighlights schema, one (video, query) pair per line; every line is checked.

A reader of another format, such as `mrlib.data.pairs`, yields samples and problems as `read_annotations` does.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from mrlib.data import Sample
from mrlib.data.agreement import disagreements
from mrlib.data.clips import require_clip_s
from mrlib.data.lenient import Mode, mode_of, settle
from mrlib.data.lines import Defect, Line, sample_of
from mrlib.data.lines import is_plain_name as is_plain_name
from mrlib.data.problems import MissingFile, Problem
from mrlib.downloads import wrong_download
from mrlib.files import LongLine, numbered_lines

MOST_FATAL = 50_000  # lines with fatal problems, before a file is given up


def load_annotations(
    path: str | os.PathLike, clip_s: float = 2.0, *, words: bool = True, bad: Mode = "clamp"
) -> list[Sample]:
    """The samples of a .jsonl or .jsonl.gz file.

    clip_s   seconds per clip
    words    every query is a sentence; False: queries are videos, `query` may be absent, and a `qid`, which then names
             a query video, may occur again with another `vid`
    bad      what to do with lines that are not right, see `mrlib.data.lenient`. Here the default is "clamp", because
             this function is for looking at a file, in which published windows of no length, or some that end after
             their video, should not hide the rest; `mrlib.open_dataset`, which makes what is trained on and scored,
             begins with "error"
    raises   FileNotFoundError if there is no such file; ValueError naming file, line and field at the first line that
             `bad` does not allow

    One warning per file counts what was changed or left out.
    """
    lines = read_annotations(path, clip_s, words=words, clamp=mode_of(bad) == "clamp")
    return checked_samples(path, clip_s, lines, bad, alike=False)


def checked_samples(
    path: str | os.PathLike, clip_s: float, lines: Iterable[Line], bad: Mode = "error", *, alike: bool = True
) -> list[Sample]:
    """The samples that a reader of `path` yields, in its order; raises the first problem that `bad` does not allow.

    lines  with `clamp` as `bad` says
    bad    see `mrlib.data.lenient`; one warning counts what was changed or left out, others are the file's own
    alike  all lines must have windows, or all must have none, as a dataset needs
    """
    lines = _to_first_fatal(lines) if bad == "error" else lines
    return settle(path, clip_s, examined(path, lines, alike=alike), mode_of(bad))


def _to_first_fatal(lines: Iterable[Line]) -> Iterator[Line]:
    """The lines up to the first with a fatal problem; the rest of a file is not read for nothing."""
    for line in lines:
        yield line
        if any(problem.fatal for problem in line[2]):
            return


def examined(path: str | os.PathLike, lines: Iterable[Line], *, alike: bool = True) -> list[Line]:
    """The lines of a file, with the problems of those that contradict others added; these have no sample.

    alike  as in `checked_samples`
    """
    file = str(path)
    lines, unit = list(_to_many_fatal(file, lines)), "item" if file.endswith(".json") else "line"
    defects = disagreements([line[1] for line in lines], [line[0] for line in lines], alike=alike)
    for i, found in defects.items():
        number, _, problems = lines[i]
        lines[i] = number, None, [*problems, *(defect.at(file, number, unit) for defect in found)]
    return lines


def _to_many_fatal(file: str, lines: Iterable[Line]) -> Iterator[Line]:
    """The lines up to MOST_FATAL with fatal problems, then a problem of the whole file."""
    fatal = 0
    for line in lines:
        yield line
        fatal += any(problem.fatal for problem in line[2])
        if fatal > MOST_FATAL:
            message = f"more than {MOST_FATAL} lines cannot be used; the rest is not read"
            yield None, None, [Problem(file, line[0], "unreadable", message)]
            return


def read_annotations(
    path: str | os.PathLike, clip_s: float = 2.0, *, words: bool = True, clamp: bool = False
) -> Iterator[Line]:
    """Every line of an annotation file: its number, its sample (None if the line has a fatal problem) and its problems.

    clamp  windows are brought into their videos, see `mrlib.data.lines.clamped`

    A problem of the file as a whole comes last, as (None, None, [problem]).
    """
    require_clip_s(clip_s)
    file, path, seen = str(path), Path(path), {}
    if not path.is_file():
        raise MissingFile(Problem(file, None, "missing file", "no such annotation file"))
    if (wrong := wrong_download(path)) is not None and path.stat().st_size:
        yield None, None, [Problem(file, None, "download", wrong)]
        return
    number, empty = 0, True
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in numbered_lines(lines):
                empty = False
                sample, defects = _parse(line, clip_s, words, clamp)
                if sample is not None:
                    key = (str(sample.qid), None if words else sample.vid)
                    if seen.setdefault(key, number) != number:
                        unique = "a qid" if words else "a pair of qid and vid"
                        message = f"{sample.qid!r} is also on line {seen[key]}; {unique} comes once"
                        defects = [*defects, Defect("qid", message)]
                problems = [defect.at(file, number) for defect in defects]
                yield number, None if any(p.fatal for p in problems) else sample, problems
    except (OSError, EOFError, zlib.error, LongLine) as error:
        where = error.number if isinstance(error, LongLine) else number + 1
        yield None, None, [Problem(file, where, "unreadable", f"{error}; copy or download the file again")]
        return
    if empty:
        yield None, None, [Problem(file, None, "empty", "no annotation in this file; copy or download it again")]


def _parse(line: bytes, clip_s: float, words: bool, clamp: bool) -> tuple[Sample | None, list[Defect]]:
    """The sample of a line, None if a defect is fatal, and the line's defects."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, [Defect("json", f"{error}; every line is one JSON object")]
    if not isinstance(fields, dict):
        return None, [Defect("json", f"a {type(fields).__name__} where one JSON object is expected")]
    return sample_of(fields, clip_s, words, clamp=clamp)


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
