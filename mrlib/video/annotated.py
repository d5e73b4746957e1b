"""A folder of somebody's own videos with their annotations, read into samples.

    moments.csv      video,start,end,query: a moment per row. A second moment of a query has a row of its own. Times are
                     seconds, 1:02.5 or 1:00:02. `video` is a file of the folder, or of a folder below, with or without
                     its ending. A column `split` is optional. With `query_video` in place of `query`, the queries are
                     videos of the folder
    {split}.jsonl    lines in the QVHighlights schema, also as highlight_{split}_release.jsonl

The duration of a video is that of its file, not that of a line. In a table a qid is a hash of video and sentence, so it
stays when rows are added, moved or taken out. Without a column `split`, a hash of the video's name puts four of five
videos into train and the others into val; each gets one at least, if there are two.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

from mrlib.data import Sample
from mrlib.data.annotations import checked_samples, examined
from mrlib.data.lenient import Mode, refusals
from mrlib.data.lines import Defect, Line, is_plain_name, sample_of, short
from mrlib.data.problems import DataError, MissingFile, Problem, counted
from mrlib.data.tables import table_rows
from mrlib.files import numbered_objects
from mrlib.video.shards import stable_hash

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv", ".3gp")
ENDINGS += (".ogv", ".gif")
TRAIN = 0.8  # of the videos, where no split is given
_COLUMNS = ("video", "start", "end")
_UNKNOWN_S = 5e8  # the duration of a video that another process looks at: no window ends after it
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")
_NOT_A_SPLIT = "is {}, not the name of a split: letters, digits, - and _, as train"


@dataclass(frozen=True)
class Row:
    """A line of an annotation file."""

    number: int | None
    fields: Mapping[str, Any]  # of the QVHighlights schema, without the duration; in a table also "split"
    problems: Sequence[Problem] = ()

    @property
    def usable(self) -> bool:
        """Whether nothing about the line keeps it from being read."""
        return not any(problem.fatal for problem in self.problems)

    @property
    def video(self) -> str | None:
        """The name of its video; None if it names none."""
        vid = self.fields.get("vid")
        return vid if isinstance(vid, str) else None


@dataclass(frozen=True)
class Annotated:
    """Videos, and what is annotated about them."""

    videos: Mapping[str, Path]  # name -> file of every video that is searched in, in the order of the annotations
    queries: Mapping[str, Path]  # name -> file of every video that is a query
    tables: Mapping[Path, tuple[str | None, Sequence[Row]]]  # annotation file -> its split, None if rows say it; rows
    words: bool  # queries are sentences

    def sentences(self) -> dict[str, dict[int | str, str]]:
        """The sentence of every query by its qid, by the name of its video."""
        sentences: dict[str, dict[int | str, str]] = defaultdict(dict)
        for _, rows in self.tables.values() if self.words else ():
            for row in rows:
                sample = sample_of(row.fields | {"duration": _UNKNOWN_S}, 1, True, clamp=True)[0]
                if row.usable and sample is not None:
                    sentences[sample.vid][sample.qid] = sample.query
        return sentences

    def check(self, durations: Mapping[str, float], failed: Collection[str], clip_s: float, bad: Mode) -> None:
        """Raise the first problem that `bad` does not allow, see `mrlib.data.lenient`, and say how many there are.

        durations  in seconds; windows of other videos are not compared with their ends
        failed     videos that cannot be read, whose lines are not looked at
        """
        for file, (_, rows) in self.tables.items():
            lines = list(self._lines(file, rows, durations, failed, clip_s, bad))
            if refused := refusals(file, examined(file, lines), bad) if lines else []:
                more = f"; beside it there is {counted(len(refused) - 1, 'problem')}" if len(refused) > 1 else ""
                raise DataError(replace(refused[0], message=refused[0].message + more))

    def samples(
        self, durations: Mapping[str, float], failed: Collection[str], clip_s: float, bad: Mode
    ) -> dict[str, list[Sample]]:
        """The samples of every split; one warning per file counts what `bad` changed or left out.

        durations  in seconds, of all videos but the failed ones
        failed     videos that cannot be read, whose lines are left out
        """
        drawn, merged = _drawn_splits(self.videos), {}
        for file, (split, rows) in self.tables.items():
            lines = list(self._lines(file, rows, durations, failed, clip_s, bad))
            for sample in checked_samples(file, clip_s, lines, bad) if lines else ():
                if split is None:
                    extra = dict(sample.extra)
                    key = extra.pop("split") or drawn[sample.vid], sample.qid, sample.vid
                    windows = [*(merged[key].relevant_windows if key in merged else ()), *sample.relevant_windows]
                    sample = replace(sample, relevant_windows=_sorted(windows), extra=extra)
                else:
                    key = split, sample.qid, sample.vid
                merged[key] = sample
        splits: dict[str, list[Sample]] = defaultdict(list)
        for (split, _, _), sample in merged.items():
            splits[split].append(sample)
        _warn_of_shared_videos(splits)
        return splits

    def _lines(
        self,
        file: Path,
        rows: Sequence[Row],
        durations: Mapping[str, float],
        failed: Collection[str],
        clip_s: float,
        bad: Mode,
    ) -> Iterator[Line]:
        """The rows of a file as `mrlib.data.annotations.read_annotations` yields lines."""
        failed_names = set(failed)
        for row in rows:
            if not row.usable:
                yield row.number, None, list(row.problems)
            elif not failed_names & {row.video, None if self.words else row.fields["qid"]}:
                fields = row.fields | {"duration": durations.get(row.video, _UNKNOWN_S)}
                sample, defects = sample_of(fields, clip_s, self.words, clamp=bad == "clamp")
                if "split" in row.fields and file.suffix == ".csv":
                    defects = [defect._replace(field=_COLUMN.get(defect.field, defect.field)) for defect in defects]
                yield row.number, sample, [*row.problems, *(defect.at(str(file), row.number) for defect in defects)]


_COLUMN = {"vid": "video", "relevant_windows": "start and end"}  # of a table, by the field of a sample


def _sorted(windows: list[list[float]]) -> list[list[float]]:
    """Windows in their order, each once."""
    return [list(window) for window in sorted({tuple(window) for window in windows})]


def _drawn_splits(videos: Collection[str]) -> dict[str, str]:
    """The split of every video where none is given."""
    order = sorted(videos, key=lambda name: (stable_hash(f"split {name}"), name))
    train = sum(stable_hash(f"split {name}") < TRAIN * 2**64 for name in order)
    train = min(max(train, 1), max(len(order) - 1, 1))
    return {name: "train" if i < train else "val" for i, name in enumerate(order)}


def _warn_of_shared_videos(splits: Mapping[str, Sequence[Sample]]) -> None:
    """One warning if a video is in two splits."""
    first: dict[str, str] = {}
    shared = {
        sample.vid: (first[sample.vid], split)
        for split, samples in splits.items()
        for sample in samples
        if first.setdefault(sample.vid, split) != split
    }
    if shared:
        vid, (one, other) = next(iter(shared.items()))
        message = f"{counted(len(shared), 'video')} in two splits, as {vid} in {one} and {other}"
        warnings.warn(f"{message}; a model is then scored on what it was trained on", stacklevel=4)


# ---- read ----


def read_folder(folder: Path, annotations: Sequence[str | os.PathLike] = ()) -> Annotated:
    """The annotated videos of a folder.

    annotations  files; none: those of the folder
    raises       FileNotFoundError or ValueError, naming a file, the problem and what to do. Problems of single rows are
                 kept with them
    """
    if not folder.is_dir():
        raise MissingFile(Problem(str(folder), None, "missing file", "no such folder of videos"))
    place = _Videos(folder)
    files = _annotation_files(folder, [Path(file) for file in annotations])
    tables: dict[Path, tuple[str | None, list[Row]]] = {}
    for file in files:
        split = None if file.suffix == ".csv" else _split_of(file)
        rows = list(_table(file, place) if split is None else _lines_of(file, place))
        for row in rows:
            for problem in row.problems if row.number is None else ():
                raise DataError(problem)
        tables[file] = split, rows
    return Annotated(place.targets, place.queries, tables, words=not place.queries)


def _annotation_files(folder: Path, given: list[Path]) -> list[Path]:
    """The files given, or the one table or all .jsonl files of a folder."""
    files = given or [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and f.is_file()]
    tables, lines = ([file for file in files if file.suffix == suffix] for suffix in (".csv", ".jsonl"))
    if others := [file for file in given if file not in tables + lines]:
        raise DataError(Problem(str(others[0]), None, "annotations", "is neither a .csv nor a .jsonl file"))
    if not tables and not lines:
        message = "no annotations: a .csv file with the columns video,start,end,query is needed, or train.jsonl"
        raise MissingFile(Problem(str(folder), None, "missing file", message))
    if len(tables) > 1 or (tables and lines):
        names = ", ".join(file.name for file in tables + lines)
        message = f"{names} are there, and only one table or .jsonl files can be read; say which by annotations"
        raise DataError(Problem(str(folder), None, "annotations", message))
    splits: dict[str, Path] = {}
    for file in lines:
        if splits.setdefault(_split_of(file), file) != file:
            message = f"{splits[_split_of(file)].name} is of the same split; keep one of them"
            raise DataError(Problem(str(file), None, "annotations", message))
    return tables + lines


def _split_of(file: Path) -> str:
    """The split of a .jsonl file, from its name."""
    name = file.stem.removeprefix("highlight_").removesuffix("_release")
    if not _SPLIT.fullmatch(name):
        raise DataError(Problem(str(file), None, "split", _NOT_A_SPLIT.format(short(name))))
    return name


class _Videos:
    """The videos of a folder, and which of them annotations name."""

    def __init__(self, folder: Path):
        self.folder, self.targets, self.queries = folder, {}, {}
        self.files: dict[str, list[Path]] = defaultdict(list)
        for path, below, files in os.walk(folder):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for file in sorted(files):
                if not file.startswith(".") and file.lower().endswith(ENDINGS):
                    self.files[normalize("NFC", Path(file).stem)].append(Path(path, file))

    def find(self, name: str, searched: bool = True) -> str | Defect:
        """The name, without folder and ending, of the video that annotations call so; or what is wrong with it.

        searched  it is searched in; False: it is a query
        raises    ValueError, naming both, if two files have that name
        """
        last = normalize("NFC", name.replace("\\", "/").rpartition("/")[2])  # macOS writes accents as letters
        stem = Path(last).stem if last.lower().endswith(ENDINGS) else last
        files = self.files.get(stem, [])
        if len(files) > 1:
            names = " and ".join(str(file) for file in files)
            message = f"{names} have one name, which their features would share; rename or move one"
            raise DataError(Problem(str(self.folder), None, "ambiguous", message))
        if not files or stem != last and normalize("NFC", files[0].name) != last:
            others = f"; there is {files[0].name}" if files else ""
            message = f"{short(name)} is not in {self.folder}{others}; correct the name, or add the video"
            return Defect("video" if searched else "query_video", message)
        if not is_plain_name(stem):
            message = f"{short(name)} is not a plain name: no leading dot, no line break, not empty; rename the file"
            return Defect("video" if searched else "query_video", message)
        (self.targets if searched else self.queries).setdefault(stem, files[0])
        return stem


def _table(file: Path, place: _Videos) -> Iterator[Row]:
    """The rows of a .csv file."""
    for number, row, problems in table_rows(file, _COLUMNS):
        if row is None:
            yield Row(number, {}, problems)
            continue
        kinds = [column for column in ("query", "query_video") if column in row]
        if len(kinds) != 1:
            message = "both columns are there; keep one" if kinds else "no such column, and no query_video either"
            yield Row(None, {}, [Problem(str(file), 1, "query", message)])
            return
        fields, defects = _fields(row, kinds[0], place)
        yield Row(number, fields, [defect.at(str(file), number) for defect in defects])


def _fields(row: Mapping[str, str], kind: str, place: _Videos) -> tuple[dict[str, Any], list[Defect]]:
    """The fields of a sample from a row of a table, and their defects; kind  the column of the query."""
    times = {column: _seconds(row[column]) for column in ("start", "end")}
    expected = "not a time; write seconds as 62.5, or 1:02.5, or 1:00:02"
    defects = [Defect(c, f"is {short(row[c])}, {expected}") for c, time in times.items() if time is None]
    split, query = row.get("split", "").strip(), " ".join(row[kind].split())
    if split and not _SPLIT.fullmatch(split):
        defects.append(Defect("split", _NOT_A_SPLIT.format(short(split))))
    vid, qid = place.find(row["video"].strip()), None
    if kind == "query_video":
        qid = place.find(query, searched=False)
    defects += [name for name in (vid, qid) if isinstance(name, Defect)]
    fields = {"vid": vid, "relevant_windows": [list(times.values())], "split": split}
    if kind == "query_video":
        return fields | {"qid": qid}, defects
    return fields | {"qid": stable_hash(json.dumps([vid, query])) >> 11, "query": query}, defects  # exact as a float


def _seconds(text: str) -> float | None:
    """The seconds of "62.5", "1:02.5" or "0:01:02.5"; None for another text."""
    *above, last = text.strip().split(":")
    if not re.fullmatch(r"-?[0-9]+\.?[0-9]*|\.[0-9]+", last) or len(above) > 2:
        return None
    if not all(re.fullmatch("[0-9]+", part) for part in above):
        return None
    numbers = [float(part) for part in (*above, last)]
    if not all(0 <= number < 60 for number in numbers[1:]):
        return None
    return sum(number * 60**power for power, number in enumerate(reversed(numbers)))


def _lines_of(file: Path, place: _Videos) -> Iterator[Row]:
    """The lines of a .jsonl file."""
    if not file.is_file():
        raise MissingFile(Problem(str(file), None, "missing file", "no such annotation file"))
    first_lines, empty = {}, True
    for number, fields in numbered_objects(file):
        empty, defects, vid = False, [], fields.get("vid")
        if isinstance(vid, str) and isinstance(name := place.find(vid), Defect):
            defects.append(name._replace(field="vid"))
        elif isinstance(vid, str):
            fields["vid"] = name
        if "qid" in fields and first_lines.setdefault(str(fields["qid"]), number) != number:
            first = first_lines[str(fields["qid"])]
            defects.append(Defect("qid", f"{short(fields['qid'])} is also on line {first}; a qid comes once"))
        yield Row(number, fields, [defect.at(str(file), number) for defect in defects])
    if empty:
        yield Row(None, {}, [Problem(str(file), None, "empty", "no annotation in this file")])
