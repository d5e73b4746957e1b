"""SportsMoments from its CSV files: moments of soccer and cricket matches, searched with a clip of another match.

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     a row of `train.csv`, `val.csv`, `test.csv` is a pair: the query clip, the reference clip in which to search,
         the moment in the reference clip in seconds, the class of both
Departs  a clip is named as its features are, without the ".mp4" of the files; a repeated row is read once

vl2g/MATR has the files for val and test, and the names of the classes in `id_class_mapping.json`; it links train.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrlib.data import Sample
from mrlib.data.lines import Defect, Line, sample_of
from mrlib.data.problems import Problem
from mrlib.data.tables import table_rows

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
_FIELD = {"qid": "query_id", "vid": "reference_id", "duration": "reference_duration"}  # field of a sample: column
_COLUMNS = (*_FIELD.values(), *_WINDOW, "action_class")


def read_csv(path: Path, clip_s: float = 2.0, *, clamp: bool = False) -> Iterator[Line]:
    """Every row as `mrlib.data.annotations.read_annotations` yields a line; `extra` has "action_class" and "action".

    clip_s  seconds per clip
    clamp   as in `mrlib.data.lines.sample_of`
    """
    file, first_uses, repeated = str(path), {}, []
    for number, row, problems in table_rows(path, _COLUMNS):
        if row is None:
            yield number, None, problems
            continue
        sample, defects = _sample(row, clip_s, clamp)
        if sample is not None:
            first_number, first_sample = first_uses.setdefault((sample.qid, sample.vid), (number, sample))
            if first_number != number and first_sample == sample:
                repeated.append(number)
                continue
            if first_number != number:
                message = f"the pair of query_id and reference_id is on line {first_number} with other values; keep one"
                sample, defects = None, [Defect("query_id", message)]
        yield number, sample, [defect.at(file, number) for defect in defects]
    if repeated:
        message = f"{len(repeated)} rows repeat an earlier one, the first on line {repeated[0]}; each is read once"
        yield None, None, [Problem(file, None, "query_id", message, fatal=False)]


def _sample(row: dict, clip_s: float, clamp: bool) -> tuple[Sample | None, list[Defect]]:
    """The sample of a row, None if a defect is fatal, and the row's defects, by column."""
    fields = {
        "qid": row["query_id"].removesuffix(".mp4"),
        "vid": row["reference_id"].removesuffix(".mp4"),
        "duration": _number(row["reference_duration"]),
        "relevant_windows": [[_number(row[column]) for column in _WINDOW]],
        "action_class": _number(row["action_class"]),
    }
    fields["action"] = CLASSES.get(fields["action_class"])
    sample, defects = sample_of(fields, clip_s, words=False, clamp=clamp)
    defects = [defect._replace(field=_FIELD.get(defect.field, " and ".join(_WINDOW))) for defect in defects]
    if fields["action"] is None:
        known = f"not one of the {len(CLASSES)} class ids, 1 to {max(CLASSES)}"
        return None, [*defects, Defect("action_class", f"is {row['action_class']!r}, {known}")]
    return sample, defects


def _number(text: str) -> int | float | str:
    """The number that a text spells, or the text if it spells none."""
    for kind in (int, float) if "_" not in text else ():  # Python reads 1_0 as ten
        try:
            return kind(text)
        except ValueError:
            pass
    return text
