"""Rows of a CSV file with a header, each with its line; problems name the file and the place."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from mrlib.data.problems import MissingFile, Problem
from mrlib.downloads import wrong_download
from mrlib.files import LongLine, numbered_lines

Row = tuple[int | None, dict[str, str] | None, list[Problem]]  # its number, its fields by column, its problems


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Every row of a .csv or .csv.gz file; its number is that of its last line, from 1.

    columns  that are needed; others may be there too
    raises   FileNotFoundError if there is no such file

    A row with more or fewer fields than the header has no fields here, but a problem. A problem of the file as a whole
    comes last, as (None, None, [problem]); a file without rows has one.
    """
    file, lines = str(path), _Counted()
    if not path.is_file():
        raise MissingFile(Problem(file, None, "missing file", "no such annotation file"))
    if (wrong := wrong_download(path)) is not None and path.stat().st_size:
        yield None, None, [Problem(file, None, "download", wrong)]
        return
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as content:
            text = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
            yield from _rows(csv.DictReader(lines.read(text), strict=True), lines, file, columns)
    except UnicodeEncodeError:
        message = "bytes that are no text in UTF-8; save the file as CSV in UTF-8, or copy or download it again"
        yield None, None, [Problem(file, lines.number, "unreadable", message)]
    except (OSError, EOFError, csv.Error, zlib.error, LongLine) as error:
        message = f"{error}; copy or download the file again"
        yield None, None, [Problem(file, lines.number + 1, "unreadable", message)]


class _Counted:
    """The lines of a file, and the number of the last one that was read."""

    number = 0

    def read(self, text: IO[str]) -> Iterator[str]:
        """The lines of an open file, counted."""
        for self.number, line in numbered_lines(text):
            line.encode()  # UnicodeEncodeError for bytes that are no UTF-8
            yield line


def _rows(reader: csv.DictReader, lines: _Counted, file: str, needed: Sequence[str]) -> Iterator[Row]:
    columns, empty = reader.fieldnames or (), True
    if missing := [column for column in needed if column not in columns]:
        message = f"no such column; needed are {', '.join(needed)}, there are {', '.join(columns) or 'none'}"
        yield None, None, [Problem(file, 1, missing[0], message)]
        return
    for row in reader:
        empty = False
        if None in row or None in row.values():  # fields beyond the columns, columns without a field
            message = "has more or fewer fields than there are columns"
            yield lines.number, None, [Problem(file, lines.number, "row", message)]
        else:
            yield lines.number, row, []
    if empty:
        yield None, None, [Problem(file, None, "empty", "no row in this file; copy or download it again")]
