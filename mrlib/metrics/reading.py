"""Match prediction lines with those of the truth, check both, and read their fields into arrays.

The truth passes the check of the readers, `mrlib.data.lines`, except that empty windows, and those that end after their
video, are scored as they are. Every error is a ValueError that names the id and the field.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, compress
from numbers import Real
from typing import Any

import numpy as np

from mrlib.data.clips import require_clip_s
from mrlib.data.lines import EMPTY, Defect, duration_defects, saliency_defects, window_defects


def matched_lines(predictions: Iterable, ground_truth: Iterable) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both, matched by id, in the order of the predictions."""
    lines, truth = _lines(predictions, "predictions"), _lines(ground_truth, "ground truth")
    repeated = _repeated(lines) | _repeated(truth)
    lines, truth = _by_id(lines, repeated, "predictions"), _by_id(truth, repeated, "ground truth")
    for name, by_id in (("predictions", lines), ("ground truth", truth)):
        if without_vid := [key for key in by_id if isinstance(key, tuple) and key[1] is None]:
            raise ValueError(
                f"{name}: vid is missing, which tells the lines of one query apart: qid {_few(without_vid)}"
            )
    if lines.keys() != truth.keys():
        unmatched = [_few([key for key in a if key not in b]) for a, b in ((lines, truth), (truth, lines))]
        hint = "; in one of the two, numbers are written as text" if {*map(str, lines)} == {*map(str, truth)} else ""
        raise ValueError(
            f"query ids differ: only in the predictions {unmatched[0]}; only in the ground truth {unmatched[1]}{hint}"
        )
    return list(lines.values()), [truth[key] for key in lines]


def _lines(lines: Iterable, name: str) -> list[Mapping]:
    """The lines as dicts of plain values; ValueError if there are none or one has no valid qid."""
    dicts = []
    for number, line in enumerate(lines, 1):
        line = line.as_line() if hasattr(line, "as_line") else line
        if not isinstance(line.get("qid") if isinstance(line, Mapping) else None, int | str | np.integer):
            raise ValueError(f"{name}, line {number}: qid is missing, or neither a whole number nor text")
        lists = {field: _as_lists(value) for field, value in line.items()}
        dicts.append(line if all(lists[field] is line[field] for field in line) else lists)
    if not dicts:
        raise ValueError(f"{name}: no lines")
    return dicts


def _as_lists(value: Any) -> Any:
    """Arrays and tensors, and lists of them, as lists of numbers; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_as_lists(row) for row in value] if value and hasattr(value[0], "tolist") else value
    return value.tolist() if hasattr(value, "tolist") else value


def _repeated(lines: list[Mapping]) -> set[int | str]:
    """The ids of queries with more than one line."""
    return {qid for qid, n in Counter(line["qid"] for line in lines).items() if n > 1}


def _by_id(lines: list[Mapping], repeated: set[int | str], name: str) -> dict[int | str | tuple, Mapping]:
    """Lines by qid, or by (qid, vid) if the qid is in `repeated`."""
    by_id, twice = {}, []
    for line in lines:
        key = (line["qid"], line.get("vid")) if line["qid"] in repeated else line["qid"]
        if isinstance(key, tuple) and not isinstance(key[1], int | str | np.integer | None):
            raise ValueError(f"{name}: qid {key[0]!r}: vid is neither a whole number nor text")
        if key in by_id:
            twice.append(key)
        by_id[key] = line
    if twice:
        raise ValueError(f"{name}: query ids given more than once: {_few(list(dict.fromkeys(twice)))}")
    return by_id


def _few(keys: list) -> str:
    """At most five keys as text."""
    pairs = [key if isinstance(key, tuple) else (key, None) for key in keys[:5]]
    names = [repr(qid) if vid is None else f"{qid!r} on {vid!r}" for qid, vid in pairs]
    return (", ".join(names) or "none") + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def ranked_lines(predictions: Iterable) -> list[Mapping]:
    """Prediction lines of [start, end] as lines of [start, end, score], the scores falling from 1 in their order."""
    ranked = []
    for line in _lines(predictions, "predictions"):
        if line.get("pred_relevant_windows") is not None:
            read_rows([line], "pred_relevant_windows", 2)
            windows = line["pred_relevant_windows"]
            scored = [[start, end, 1 - k / len(windows)] for k, (start, end) in enumerate(windows)]
            line = {**line, "pred_relevant_windows": scored}
        ranked.append(line)
    return ranked


def with_windows(lines: list[Mapping], truth: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both without those of null queries, whose relevant_windows is an empty list."""
    windows = [line.get("relevant_windows") for line in truth]
    kept = [not isinstance(each, list | tuple) or len(each) > 0 for each in windows]
    return list(compress(lines, kept)), list(compress(truth, kept))


def checked_truth(lines: list[Mapping], truth: list[Mapping], clip_s: float) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both; ValueError, naming id and field, if the check of the readers finds a defect in the truth.

    A truth line may lack all that is not scored. Empty windows, and those that end after their video, are let through.
    """
    require_clip_s(clip_s)
    for line in truth:
        refuse(line, window_defects("relevant_windows", line.get("relevant_windows"), np.inf, clip_s))
        if line.get("saliency_scores") is not None:
            refuse(line, duration_defects(line.get("duration")) or saliency_defects(line, clip_s))
    return lines, truth


def refuse(line: Mapping, defects: list[Defect]) -> None:
    """ValueError for the first defect of a truth line that is not an empty window."""
    for defect in defects:
        if defect.place != EMPTY:
            raise ValueError(f"qid {line['qid']!r}: {defect.field} {defect.message}")


# ---- fields as arrays ----


def read_rows(
    lines: list[Mapping], field: str, width: int, *, most: int | None = None, fill: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Read a field that lists rows of `width` numbers (plain numbers if 1).

    most     only the first `most` rows of a line are read
    fill     value of the padding
    returns  float64 (Q, longest, width), and the number of rows of each line, int (Q,)
    """
    lists = []
    for line in lines:
        rows = line.get(field)
        if not isinstance(rows, list | tuple):
            problem = f"is {reprlib.repr(rows)}, not a list" if field in line else "is missing"
            raise ValueError(f"qid {line['qid']!r}: {field} {problem}")
        lists.append(rows[:most])
    counts = np.array([len(rows) for rows in lists])
    padded = np.full((len(lines), max(counts.max(), 1), width), fill)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = checked_rows(lines, field, lists, width)
    return padded, counts


def checked_rows(lines: list[Mapping], field: str, lists: list[list], width: int) -> np.ndarray:
    """The rows of all lists as one array (rows, width); ValueError names the first that is malformed."""
    array = _array(list(chain.from_iterable(lists)), width)
    if array is not None:
        return array
    kind = "a finite number" if width == 1 else f"{width} finite numbers"
    line, row = next(
        (line, row) for line, rows in zip(lines, lists, strict=True) for row in rows if _array([row], width) is None
    )
    no_score = field == "pred_relevant_windows" and width == 3 and _array([row], 2) is not None
    hint = "; unscored=True, or --unscored, takes windows without scores in their order" if no_score else ""
    if field == "pred_relevant_windows" and width == 2 and _array([row], 3) is not None:
        hint = "; windows with scores are read without unscored=True or --unscored"
    raise ValueError(f"qid {line['qid']!r}: {field} has {reprlib.repr(row)} where {kind} should stand{hint}")


def _array(rows: list, width: int) -> np.ndarray | None:
    """Rows of `width` finite numbers as float64 (rows, width); None if a row is anything else."""
    if width > 1:
        if not all(issubclass(kind, list | tuple) for kind in set(map(type, rows))) or set(map(len, rows)) - {width}:
            return None
        rows = list(chain.from_iterable(rows))
    if not all(issubclass(kind, Real) and kind is not bool for kind in set(map(type, rows))):
        return None
    try:
        array = np.array(rows, np.float64).reshape(-1, width)
    except OverflowError:  # an integer beyond float64
        return None
    return array if np.isfinite(array).all() else None
