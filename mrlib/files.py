"""Read files of JSON lines; write files so that they appear complete or not at all."""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  # suffix of temporary files; a process that is killed while it writes leaves one behind


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, one per line; blank lines are skipped.

    raises  ValueError for a file that cannot be read or a line that is no JSON object, naming the file and the line
    """
    path, lines = Path(path), []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    try:
                        lines.append(json.loads(text.rstrip()))
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{path}, line {number}: {error.msg} at column {error.colno}") from None
                    if not isinstance(lines[-1], dict):
                        raise ValueError(f"{path}, line {number}: {reprlib.repr(lines[-1])} is not a JSON object")
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read, {error}") from None
    return lines


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing; it gets its name, complete, when the block ends, and is dropped if the block fails.

    An existing file of that name is replaced only then.

    raises  OSError that names the file and says what to do
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            hint = "free some space or choose another folder; an older file of that name is unchanged"
            raise OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno or 0)}; {hint}") from error
        raise


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a whole file in one step, see `whole_file`."""
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each row, see `whole_file`."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
