"""The file of a corpus: the features of many videos, one after the other, only ever appended to.

    first line   "mrlib corpus 1, <twenty digits> bytes": how long the file is
    second line  JSON: the recipe of the encoder. Both lines together fill whole pages
    a video      a line of JSON, see `Entry`, that fills whole rows; then the rows, float16 (n, D), each of norm 1
    ...          further videos; a later entry of the same path replaces an earlier one

So all that follows the header is one matrix of rows of D numbers, which is memory-mapped. A line of JSON has a checksum
of itself and of the rows that follow it. The first line is renewed last, after a video is on the disk: what lies beyond
the length that it gives is the rest of a process that was killed, and the next one writes over it; a file that is
shorter has been truncated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mrlib.data.digests import Checksum, checksum_of
from mrlib.downloads import what_it_is
from mrlib.files import write_whole

_FIRST = "mrlib corpus 1, {:020d} bytes\n"
_LENGTH = len(_FIRST.format(0))
_PAGE = 4096
_LONGEST = 1 << 20  # bytes of a line of JSON


@dataclass(frozen=True)
class Entry:
    """What the file says about a video."""

    path: str
    duration_s: float
    rows: int
    size: int | None = None  # bytes of the video file when it was added; None: there was no such file
    mtime_ns: int | None = None  # time of its last change
    removed: bool = False  # the video has been removed; without rows


@dataclass(frozen=True)
class Placed:
    """An entry and where its rows are."""

    entry: Entry
    first: int  # number of its first row in the matrix of all rows


@dataclass(frozen=True)
class Header:
    """The first two lines of a corpus file."""

    recipe: dict[str, Any]
    start: int  # bytes before the matrix of rows
    end: int  # bytes of the file that are valid


def create(file: Path, recipe: Mapping[str, Any]) -> None:
    """Write the file of an empty corpus; OSError, naming it, if it cannot be written."""
    line = _sealed({"recipe": dict(recipe)}, b"", _PAGE, _LENGTH)
    write_whole(file, _FIRST.format(_LENGTH + len(line)).encode() + line)


def read_header(file: Path) -> Header:
    """The header of a corpus file.

    raises  ValueError for a file that is no corpus, or is damaged or truncated
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no corpus of mrlib, it is {what_it_is(file)}; give a file")
    with file.open("rb") as content:
        match = re.fullmatch(rb"mrlib corpus (\d+), (\d{20}) bytes\n", content.read(_LENGTH))
        if match is None:
            kind = what_it_is(file)
            is_what = "" if kind is None else f", it is {kind}"
            raise ValueError(f"{file} is no corpus of mrlib{is_what}; give another file, or a new name to make one")
        if match[1] != b"1":
            raise ValueError(f"{file} is a corpus of a newer version of mrlib; update mrlib, or give another file")
        end, size = int(match[2]), os.fstat(content.fileno()).st_size
        if size < end:
            raise ValueError(f"{file} is truncated: it has {size} of {end} bytes; copy it again, or make a new corpus")
        fields, start = _unsealed(content, file, "its header", end, 0, _PAGE)
    if not isinstance(fields.get("recipe"), dict):
        raise _damage(file, "its header")
    return Header(fields["recipe"], start, end)


def read_entries(file: Path, header: Header, width: int, after: int | None = None) -> Iterator[Placed]:
    """The entries of a corpus file in their order, each checked against its checksum.

    width   D
    after   byte at which the first of them begins; None: all
    raises  ValueError, naming the file, where it is damaged
    """
    row_bytes = 2 * width
    with file.open("rb") as content:
        content.seek(header.start if after is None else after)
        number = 0
        while content.tell() < header.end:
            number += 1
            fields, start = _unsealed(content, file, f"entry {number}", header.end, header.start, row_bytes)
            yield Placed(Entry(**fields), (start - header.start) // row_bytes)


def append(file: Path, entry: Entry, rows: np.ndarray) -> None:
    """Append a video to a corpus file, all or nothing; the caller holds the lock.

    rows    float16 (n, D)
    raises  OSError, naming the file, if it cannot be written
    """
    header = read_header(file)
    payload = np.ascontiguousarray(rows, "<f2").tobytes()
    line = _sealed(asdict(entry), payload, 2 * rows.shape[1])
    try:
        with file.open("r+b", buffering=0) as content:
            try:
                content.truncate(header.end)  # without the rest of a process that was killed
                content.seek(header.end)
                _write(content, line)
                _write(content, payload)
                os.fsync(content.fileno())
                content.seek(0)
                _write(content, _FIRST.format(header.end + len(line) + len(payload)).encode())
                os.fsync(content.fileno())
            except OSError:
                with suppress(OSError):
                    content.truncate(header.end)
                raise
    except OSError as error:
        hint = "free some space; the corpus has what was added before"
        raise OSError(error.errno, f"cannot write {file}: {os.strerror(error.errno or 0)}; {hint}") from error


def _write(content: FileIO, data: bytes) -> None:
    """Write all of some bytes; a full disk takes a part of them first."""
    view = memoryview(data)
    while view:
        view = view[content.write(view) :]


def _sealed(fields: dict[str, Any], payload: bytes, unit: int, before: int = 0) -> bytes:
    """A line of JSON with the checksum of itself and of what follows it, padded with spaces to whole units.

    before  bytes before the line that are a part of its first unit
    """
    digest = Checksum()
    digest.update(payload)
    seal = _seal(fields, digest)
    line = json.dumps(fields | {"checksum": seal}).encode()
    if len(line) >= _LONGEST:
        raise ValueError(f"a line of a corpus has at most {_LONGEST} bytes, not {len(line)}; give shorter names")
    return line + b" " * (-(len(line) + 1 + before) % unit) + b"\n"


def _seal(fields: Mapping[str, Any], payload: Checksum) -> str:
    whole = Checksum()
    whole.update(json.dumps([fields, payload.hexdigest()], sort_keys=True).encode())
    return whole.hexdigest()


def _unsealed(
    content: BinaryIO, file: Path, subject: str, end: int, origin: int, unit: int
) -> tuple[dict[str, Any], int]:
    """What a line says, without its checksum, and where it ends; the content is then after the rows that follow it.

    end           bytes of the file that are valid
    origin, unit  the line ends a whole number of units after the origin
    raises        ValueError if the line, or a row that follows it, is damaged
    """
    line = content.readline(min(_LONGEST, end - content.tell()))
    start = content.tell()
    try:
        fields = json.loads(line)
        seal = fields.pop("checksum")
        stop = start + fields.get("rows", 0) * unit
        if not line.endswith(b"\n") or (start - origin) % unit or not start <= stop <= end:
            raise ValueError("a line or rows of another length")
        if _seal(fields, checksum_of(content, start, stop)) != seal:
            raise ValueError("another checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damage(file, subject) from None
    content.seek(stop)
    return fields, start


def _damage(file: Path, subject: str) -> ValueError:
    return ValueError(f"{file} is damaged, {subject} is not what was written; copy it again, or make a new corpus")
