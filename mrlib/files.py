"""Read JSON and files of JSON lines; write files so that they appear complete or not at all."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import reprlib
import secrets
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from mrlib.downloads import wrong_download

try:
    import fcntl
except ImportError:  # Windows, which does not let a process remove a file that another one has open
    fcntl = None

PARTIAL = ".partial"  # suffix of temporary files; a process that is killed while it writes leaves one behind
LONGEST_LINE = 3_000_000  # characters; a line of JSON takes up to 25 times as much memory once it is decoded
MOST_BLANK = 100_000  # lines in a row
MOST_REPEATED = 1_000  # equal lines in a row; every line has an id of its own
MOST_GROWTH = 100  # times the size of a compressed file; annotations and predictions grow about fifteenfold


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, one per line, see `numbered_objects`."""
    return [fields for _, fields in numbered_objects(Path(path))]


def numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and object of every line of a .jsonl or .jsonl.gz file.

    Blank lines, and a byte order mark, are skipped.

    raises  ValueError for a file that cannot be read or a line that is no JSON object, naming the file and the line, or
            saying what a file is that is no file of lines, such as a web page
    """
    if path.is_file() and path.stat().st_size and (wrong := wrong_download(path)) is not None:
        raise ValueError(f"{path} {wrong}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, text in numbered_lines(file):
                fields = parse_json(text.rstrip(), f"{path}, line {number}")
                if not isinstance(fields, dict):
                    raise ValueError(f"{path}, line {number}: {reprlib.repr(fields)} is not a JSON object")
                yield number, fields
    except LongLine as error:
        raise ValueError(f"{path}, line {error.number}: {error}") from None
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read, {error}") from None


class LongLine(ValueError):
    """A line that no file of lines has; `number` is its place in the file, from 1."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def numbered_lines(file: IO[AnyStr]) -> Iterator[tuple[int, AnyStr]]:
    """Number, from 1, and text of every line of an open file that is not blank; no more than one line is in memory.

    raises  LongLine for what a small compressed file can grow into: a line longer than LONGEST_LINE, more than
            MOST_BLANK blank or MOST_REPEATED equal lines in a row, or, beyond ten such lines, MOST_GROWTH times the
            size of the file
    """
    last, previous, repeated = 0, None, 0
    left = 10 * LONGEST_LINE + MOST_GROWTH * os.fstat(file.fileno()).st_size
    for number in count(1):
        text = file.readline(LONGEST_LINE + 1)
        if not text:
            return
        left -= len(text)
        repeated = repeated + 1 if text == previous else 0
        previous = text
        if len(text) > LONGEST_LINE:
            raise LongLine(number, f"longer than {LONGEST_LINE} characters")
        if left < 0:
            raise LongLine(number, f"the file unpacks to more than {MOST_GROWTH} times its size")
        if text.strip():
            if repeated > MOST_REPEATED:
                raise LongLine(number, f"the same line more than {MOST_REPEATED} times in a row")
            last = number
            yield number, text
        elif number - last > MOST_BLANK:
            raise LongLine(number, f"more than {MOST_BLANK} blank lines in a row")


def parse_json(text: str, where: str) -> Any:
    """What a JSON text says; ValueError, beginning with `where`, if it says nothing."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{where}: lists or objects are nested too deeply") from None
    except ValueError:  # of the conversion of a number
        raise ValueError(f"{where}: a number has more than {sys.get_int_max_str_digits()} digits") from None


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing; it gets its name, complete, when the block ends, and is dropped if the block fails.

    An existing file of that name is replaced only then. Temporary files that dead processes left of it are removed.
    A writer that has to read what it wrote finds it at `raw.temporary` of the file, after a flush.

    raises  OSError that names the file and says what to do, if it cannot be written; other errors of the block as
            they are
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, path.name)
        temporary, raw = _new_temporary(path)
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()
                os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _NamedFile(io.FileIO):
    """A file whose errors of writing name the path that it will have; until then it is at `temporary`."""

    def __init__(self, handle: int, path: Path, temporary: Path):
        super().__init__(handle, "w")
        self.path, self.temporary = path, temporary

    def write(self, data) -> int:
        with _naming(self.path):
            return super().write(data)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system in this block say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        hint = "free some space or choose another folder; an older file of that name is unchanged"
        message = f"cannot write {shown_path(path)}: {os.strerror(error.errno or 0)}; {hint}"
        raise OSError(error.errno, message) from error


def shown_path(path: str | os.PathLike) -> str:
    """A path as part of a message, which has one line."""
    path = os.fsdecode(path)
    return path if path.isprintable() and path else repr(path)


def _new_temporary(path: Path) -> tuple[Path, _NamedFile]:
    """A new temporary file for `path`, locked while it is open; its mode follows the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        handle = os.open(temporary, flags, 0o666)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: nobody takes the file for dead there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, _NamedFile(handle, path, temporary)
        os.close(handle)  # `remove_dead` of another process came before the lock


def remove_dead(folder: Path, name: str = "*") -> None:
    """Remove the temporary files of processes that were killed while they wrote to this folder.

    A file that is still being written is locked by its process, and stays.

    name  of the file that was to be written; "*": of any
    """
    pattern = f".{name if name == '*' else glob.escape(name)}.*{PARTIAL}"
    for temporary in folder.glob(pattern):
        with suppress(OSError):  # it is locked, gone already, or may not be removed
            if fcntl is None:
                temporary.unlink()
                continue
            handle = os.open(temporary, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(handle)


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a whole file in one step, see `whole_file`."""
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each row, see `whole_file`."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
