"""SportsMoments from its CSV files: moments of soccer and cricket matches, searched with a clip of another one.

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     a row of `train.csv`, `val.csv`, `test.csv` is a pair: the query clip, the reference clip in which to search,
         the moment there in seconds, the class of both
Departs  a clip is named as its features are, without the files' ".mp4"; a row that comes again is read once

vl2g/MATR has the files for val and test, and the names of the classes in `id_class_mapping.json`; train lies elsewhere.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from mrlib.data import Sample
from mrlib.data.annotations import Line, sample_of
from mrlib.data.problems import MissingFile, Problem

_CRICKET = {
    1: "lbw",
    2: "four",
    3: "cover drive",
    4: "ducking a bouncer",
    5: "run out",
    8: "full toss",
    9: "bowled",
    10: "yorker",
    11: "stumping",
    14: "wide ball",
    15: "pull shot",
    18: "catching",
    21: "bouncer",
    27: "sweep shot",
    28: "six",
    29: "upper cut",
}
_SOCCER = {
    6: "corner kick",
    7: "goal kick",
    12: "red card",
    13: "sliding tackle",
    16: "throw",
    17: "offside",
    19: "penalty",
    20: "substitute",
    22: "goal",
    23: "save",
    24: "yellow card",
    25: "free kick",
    26: "header",
}
CLASSES = _CRICKET | _SOCCER

_WINDOW = ("reference_segment_start", "reference_segment_end")
_FIELD = {"qid": "query_id", "vid": "reference_id", "duration": "reference_duration"}  # of a sample: of a row
_COLUMNS = (*_FIELD.values(), *_WINDOW, "action_class")


def read_csv(path: Path, clip_s: float = 2.0) -> Iterator[Line]:
    """Every row as `mrlib.data.annotations.read_annotations` gives a line; `extra` has "action_class" and "action".

    clip_s  a window may end this much after its video, less than a clip, and is clamped
    """
    file, rows = str(path), None
    if not path.is_file():
        raise MissingFile(Problem(file, None, "missing file", "no such annotation file"))
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as content:
            rows = csv.DictReader(io.TextIOWrapper(content, "utf-8-sig", newline=""), strict=True)
            yield from _rows(rows, file, clip_s)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        number = 1 if rows is None else rows.line_num + 1
        yield None, None, [Problem(file, number, "unreadable", f"{error}; copy or download the file again")]


def _rows(rows: csv.DictReader, file: str, clip_s: float) -> Iterator[Line]:
    columns = rows.fieldnames or ()
    if missing := [column for column in _COLUMNS if column not in columns]:
        message = f"no such column; needed are {', '.join(_COLUMNS)}, there are {', '.join(columns) or 'none'}"
        yield None, None, [Problem(file, 1, missing[0], message)]
        return
    seen, again, empty = {}, [], True
    for row in rows:
        empty, number = False, rows.line_num
        sample, found = _sample(row, clip_s)
        if sample is not None:
            first, before = seen.setdefault((sample.qid, sample.vid), (number, sample))
            if first != number and before == sample:
                again.append(number)
                continue
            if first != number:
                message = f"the pair of query_id and reference_id is on line {first} with other values; keep one"
                sample, found = None, [("query_id", message, True)]
        yield number, sample, [Problem(file, number, *each) for each in found]
    if again:
        message = f"{len(again)} rows are there before, the first on line {again[0]}; read once"
        yield None, None, [Problem(file, None, "query_id", message, fatal=False)]
    if empty:
        yield None, None, [Problem(file, None, "empty", "no row in this file; copy or download it again")]


def _sample(row: dict, clip_s: float) -> tuple[Sample | None, list[tuple[str, str, bool]]]:
    """A row as a sample, None where it is too broken to be one, and (column, message, fatal) of what is wrong."""
    if None in row or None in row.values():  # fields beyond the columns, columns without a field
        return None, [("row", "has more or fewer fields than there are columns", True)]
    fields = {
        "qid": row["query_id"].removesuffix(".mp4"),
        "vid": row["reference_id"].removesuffix(".mp4"),
        "duration": _number(row["reference_duration"]),
        "relevant_windows": [[_number(row[column]) for column in _WINDOW]],
        "action_class": _number(row["action_class"]),
    }
    fields["action"] = CLASSES.get(fields["action_class"])
    sample, found = sample_of(fields, clip_s, words=False)
    found = [(_FIELD.get(field, " and ".join(_WINDOW)), message, fatal) for field, message, fatal in found]
    if fields["action"] is None:
        known = f"not one of the {len(CLASSES)} class ids, 1 to {max(CLASSES)}"
        return None, [*found, ("action_class", f"is {row['action_class']!r}, {known}", True)]
    return sample, found


def _number(text: str) -> int | float | str:
    """The number that a text is; the text where it is none."""
    for kind in (int, float) if "_" not in text else ():  # Python reads 1_0 as ten
        try:
            return kind(text)
        except ValueError:
            pass
    return text
