"""Read the CSV file of a grid, with one message for whatever is wrong with it."""

from __future__ import annotations

import csv
import io
import os
import reprlib
from pathlib import Path

import pandas as pd

from mrlib.downloads import wrong_download

IDENTITY = ("arm", "seed", "paper", "command")  # the columns that every file has
TEXT = ("arm", "paper", "command", "torch", "date")  # columns of text; all others are numbers
LARGEST = 4_000_000  # bytes; a row takes about 500


def read_rows(path: str | os.PathLike) -> pd.DataFrame:
    """The rows of a file that `mrlib.grid.run` wrote.

    raises  FileNotFoundError; ValueError, naming the file and its line, if it is damaged
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        text = path.read_bytes().decode("utf-8-sig")  # as spreadsheets write it
        _check_form(text)
        columns = next(csv.reader(io.StringIO(text)))
        numbers = [name for name in columns if name not in TEXT]
        kinds, empty = dict.fromkeys(set(TEXT) & set(columns), str), {name: [""] for name in numbers}
        rows = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=empty)
        _check_values(rows, numbers)
    except (ValueError, OverflowError, csv.Error) as error:
        if path.stat().st_size and (wrong := wrong_download(path)) is not None:
            raise ValueError(f"{path} {wrong}, or delete it to train its rows again") from None
        cure = "restore the file, or delete it to train its rows again"
        raise ValueError(f"{path} is no grid, or damaged: {error}; {cure}") from error
    return rows


def _check_form(text: str) -> None:
    """ValueError or csv.Error unless a text is a table with the columns of a grid."""
    if "\0" in text:
        raise ValueError("it has bytes that are no text")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns = next(lines, [])
    if missing := [name for name in IDENTITY if name not in columns]:
        raise ValueError(f"it has no column {missing[0]!r}")
    if len(set(columns)) < len(columns):
        raise ValueError("two columns have the same name")
    for fields in lines:
        if len(fields) not in (0, len(columns)):
            raise ValueError(f"line {lines.line_num}: {len(fields)} fields for {len(columns)} columns")


def _check_values(rows: pd.DataFrame, numbers: list[str]) -> None:
    """ValueError unless the columns have the right types and no two rows are of the same arm and seed."""
    for name in ("arm", "command"):
        if (rows[name] == "").any():
            raise ValueError(f"row {(rows[name] == '').idxmax() + 1} has no {name}")
    for name in numbers:
        kinds, wanted = ("i", "a whole number") if name == "seed" else ("iuf", "a number")
        if len(rows) and rows[name].dtype.kind not in kinds:
            values = pd.to_numeric(rows[name], errors="coerce").astype(float)  # text becomes NaN
            wrong = values % 1 != 0 if name == "seed" else values.isna() & rows[name].notna()
            value = reprlib.repr(str(rows[name][wrong.idxmax()]))  # on one line, whatever is in the cell
            raise ValueError(f"row {wrong.idxmax() + 1}: {name!r} is {value}, not {wanted}")
    twice = rows.duplicated(["arm", "seed"])
    if twice.any():
        arm, seed = rows.loc[twice.idxmax(), ["arm", "seed"]]
        raise ValueError(f"row {twice.idxmax() + 1} is a second one for arm {arm!r}, seed {seed}")
