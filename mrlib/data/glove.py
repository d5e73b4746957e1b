"""Word vectors from a GloVe text file, whose lines are a word and D numbers."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from mrlib.data.problems import DataError, MissingFile, Problem
from mrlib.downloads import wrong_download

MOST_NUMBERS = 4096  # of a word; the published vectors have up to 300
_LONGEST = 1 << 17  # bytes of a line


def read_glove(file: Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """The word vectors (D,) of a GloVe file; words that it lacks are left out.

    A word may contain spaces. Of the lines of other words only the beginning and the number of spaces are looked at.

    raises  FileNotFoundError or ValueError, naming file and line, for a file that is no text in UTF-8, a line that is
            too long or has too few numbers, and a word of `words` without D finite numbers or with two vectors
    """
    vectors: dict[str, np.ndarray] = {}
    wanted = {word.encode(): word for word in words}
    beginnings = {word.split(b" ")[0] for word in wanted}
    width = None
    for number, line in _lines(file):
        width = width or _width(file, line)
        beginning, _, rest = line.partition(b" ")
        if beginning not in beginnings:
            continue
        word, *numbers = line.rsplit(b" ", width)
        if word not in wanted:
            if _vector(rest.split(b" ")) is None:
                continue  # another word with spaces
            word, numbers = beginning, []  # too many numbers
        vector = _vector(numbers) if len(numbers) == width else None
        if vector is None:
            message = f"{word.decode()!r} has no {width} finite numbers; copy or download the file again"
            raise DataError(Problem(str(file), number, "word vector", message))
        if not np.array_equal(vectors.setdefault(wanted[word], vector), vector):
            message = f"{wanted[word]!r} has another vector on an earlier line; download the file again"
            raise DataError(Problem(str(file), number, "word vector", message))
    return vectors


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file in UTF-8, numbered from 1."""
    if not file.exists():
        raise MissingFile(Problem(str(file), None, "missing file", "no such file of word vectors"))
    if (wrong := wrong_download(file)) is not None:
        raise DataError(Problem(str(file), None, "download", wrong))
    number = 0
    try:
        with file.open("rb") as content:
            for number, line in enumerate(iter(lambda: content.readline(_LONGEST + 1), b""), 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if len(line) > _LONGEST:
                    raise ValueError(f"longer than {_LONGEST} bytes")
                if not line.isascii():
                    line.decode("utf-8")
                yield number, line.rstrip(b"\r\n")
    except DataError:
        raise
    except (OSError, ValueError) as error:
        message = f"{error}; copy or download the file of word vectors again"
        raise DataError(Problem(str(file), max(1, number), "unreadable", message)) from None


def _width(file: Path, line: bytes) -> int:
    """The number of numbers in the first line."""
    width = line.count(b" ")
    if not 0 < width <= MOST_NUMBERS:
        message = f"{width} numbers, where a word and 1 to {MOST_NUMBERS} numbers are expected; download the file again"
        raise DataError(Problem(str(file), 1, "word vector", message))
    return width


def _vector(numbers: list[bytes]) -> np.ndarray | None:
    """Finite numbers as an array float32; None for anything else."""
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(x) for x in numbers], dtype=np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
