"""Feature rows from the arrays of .npz, .npy, .hdf5 and .pt files, checked before and while they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrlib.data.problems import DataError, Problem
from mrlib.data.stored import (
    HDF5,
    MOST_NUMBERS,
    StoredArray,
    open_npy,
    open_npz,
    open_pt,
    require_file,
    unreadable,
    wrong_dtype,
)

MOST_COLUMNS = 1 << 16  # of any feature; the widest published have 4,096
_PER_CLIP = 1 << 14  # numbers of a clip that are always allowed, however long the video
_BLOCK = 1 << 21  # numbers that are read at a time, 8 MiB as float32
_NO_VIDEO = 4096  # rows of what is no video searched in: words, or clips of a query video


@dataclass(frozen=True)
class Limit:
    """The most that an array may hold, known before its file is opened.

    rows     of the array
    numbers  that are kept at a time: rows, or clips where rows are averaged, times columns
    """

    rows: int = _NO_VIDEO
    numbers: int = MOST_NUMBERS

    @classmethod
    def of_video(cls, clips: int, rows: float) -> Limit:
        """For a video of so many clips, of which about so many rows are expected: four times as many, and 64 more.

        A row has at most 65,536 columns. At most 8,388,608 numbers are kept, 32 MiB, or 16,384 for each clip.
        """
        return cls(4 * math.ceil(rows) + 64, max(MOST_NUMBERS, _PER_CLIP * clips))


@contextmanager
def open_array(file: Path, key: str = "", numbers: int = MOST_NUMBERS) -> Iterator[StoredArray]:
    """The array of an .npy or .pt file, or the array `key` of an .npz, .hdf5, .h5 or .pt file, while the file is open.

    key      in an HDF5 file it may be a path, and may lead to a group that holds nothing but the array; a .pt file may
             hold a dict of tensors. "" is the only array, or "features" or "last_hidden_state" if there are others
    numbers  the most numbers of a .pt file, which is loaded as a whole
    raises   FileNotFoundError, KeyError or ValueError, naming the file; errors inside the block that are no DataError
             are taken for damage of the file
    """
    try:
        require_file(file)
        with _opener(file)(file, key, numbers) as array:
            if array.dtype.kind not in "fiu":
                raise wrong_dtype(file, array.dtype)
            yield array
    except DataError:
        raise
    except Exception as error:  # zip readers, header parsers, HDF5 and malloc raise whatever they like
        raise unreadable(file, error) from error


def _opener(file: Path) -> Callable:
    suffix = file.suffix.lower()
    if suffix in HDF5:
        from mrlib.data.hdf5 import open_hdf5  # h5py takes a tenth of a second, and most layouts do not need it

        return open_hdf5
    return {".npy": open_npy, ".pt": open_pt}.get(suffix, open_npz)


def read_array(file: Path, key: str = "", most: int = MOST_NUMBERS) -> np.ndarray:
    """The array of a small .npy file, or the array `key` of a small .npz, .hdf5 or .pt file, see `open_array`.

    most    numbers in the array
    raises  FileNotFoundError, KeyError or ValueError, naming the file
    """
    with open_array(file, key, most) as stored:
        if math.prod(stored.shape) > most:
            message = f"{stored.shape} where at most {most} numbers are possible; download the file again"
            raise DataError(Problem(str(file), None, "size", message))
        if not stored.shape:
            raise DataError(Problem(str(file), None, "shape", "a single number where an array is expected"))
        return stored.read(0, stored.shape[0])


def read_rows(
    file: Path,
    key: str = "",
    *,
    parts: int = 1,
    limit: Limit | None = None,
    starts: Callable[[int], np.ndarray | None] = lambda rows: None,
) -> tuple[np.ndarray, int]:
    """The array of a file as feature rows, float32 (L, D), and the number of its rows; read in blocks of 8 MiB.

    parts   vectors per row; they must divide D
    limit   of the array; None: of a query
    starts  from the number of rows to the first row of every clip and the end of the last clip, (L + 1,), where rows
            are to be averaged over clips; to None where rows are clips
    raises  FileNotFoundError, KeyError or ValueError, naming the file, for a file or array that cannot be read, an
            array that is larger than its limit, another type or shape, an empty array, NaN or Inf
    """
    limit = limit or Limit()
    with open_array(file, key, limit.numbers) as stored:
        rows, columns = row_shape(stored.shape, stored.dtype, file, parts)
        first = starts(rows)
        _check_size(stored, limit, rows, columns, first, file)
        return _gathered(stored, rows, columns, first, file), rows


def read_vector(file: Path, key: str) -> np.ndarray:
    """The vector in an array (J,), or the first row of an array (L, J), as a row: float32 (1, J)."""
    array = read_array(file, key, MOST_NUMBERS // 8)
    return as_rows(array[None] if array.ndim == 1 else array, file)[:1]


def _check_size(
    stored: StoredArray, limit: Limit, rows: int, columns: int, first: np.ndarray | None, file: Path
) -> None:
    """ValueError if an array is larger than its limit."""
    kept = (rows if first is None else len(first) - 1) * columns
    longest = 0 if first is None else int(np.diff(first).max(initial=1)) * columns
    if columns > MOST_COLUMNS:
        most = f"at most {MOST_COLUMNS} columns"
    elif rows > limit.rows:
        most = f"at most {limit.rows} rows"
    elif kept > limit.numbers or longest > MOST_NUMBERS:
        most = f"at most {limit.numbers} numbers, and {MOST_NUMBERS} in a clip,"
    else:
        return
    message = f"{stored.shape} where {most} are possible; correct the duration or extract the features again"
    raise DataError(Problem(str(file), None, "size", message))


def _gathered(stored: StoredArray, rows: int, columns: int, first: np.ndarray | None, file: Path) -> np.ndarray:
    """All rows, or with `first` their means over clips."""
    finite = np.empty(rows, bool)
    out = np.empty((rows if first is None else len(first) - 1, columns), np.float32)
    for start, stop, clips in _blocks(rows, columns, first):
        block = out[start:stop] if first is None else np.empty((stop - start, columns), np.float32)
        with np.errstate(over="ignore"):
            block[:] = stored.read(start, stop).reshape(block.shape)
        finite[start:stop] = np.isfinite(block).all(1)
        if clips.stop > clips.start:
            inside = first[clips.start : clips.stop + 1] - start
            counts = np.maximum(np.diff(inside), 1)
            sums = np.add.reduceat(block[: max(inside[-1], inside[-2] + 1)], inside[:-1])
            out[clips] = sums / counts[:, None].astype(np.float32)
    _check_finite(finite, file)
    return out


def _blocks(rows: int, columns: int, first: np.ndarray | None) -> Iterator[tuple[int, int, slice]]:
    """The rows of every block, from one to another, and the clips that begin in it."""
    size = max(1, _BLOCK // columns)
    if first is None:
        yield from ((start, min(start + size, rows), slice(0, 0)) for start in range(0, rows, size))
        return
    if rows <= size or (np.diff(first[:-1]) == 0).any():  # where clips share rows there are fewer rows than clips
        yield 0, rows, slice(0, len(first) - 1)
        return
    clip, clips = 0, len(first) - 1
    while clip < clips:
        after = max(clip + 1, int(np.searchsorted(first, first[clip] + size, "right")) - 1)
        yield int(first[clip]), int(first[after]), slice(clip, after)
        clip = after
    yield from ((start, min(start + size, rows), slice(0, 0)) for start in range(int(first[-1]), rows, size))


def row_shape(shape: tuple[int, ...], dtype: np.dtype, file: Path, parts: int = 1) -> tuple[int, int]:
    """The number of rows and columns of an array (L, D) or (L, parts, D / parts).

    Axes of length 1 around D, as in (L, 1, 1, D), do not matter; networks that pool over space leave them.

    raises  ValueError for another type or shape, or an empty array
    """
    if not np.issubdtype(dtype, np.floating):
        raise wrong_dtype(file, dtype)
    stacked = parts > 1 and len(shape) == 3 and shape[1] == parts
    if len(shape) > 2 and not stacked and sum(n != 1 for n in shape[1:]) == 1 and (shape[0] > 1 or shape[1] == 1):
        shape = shape[0], math.prod(shape[1:])
    if not (stacked or len(shape) == 2) or 0 in shape or (not stacked and shape[1] % parts):
        expected = "(rows, width)" if parts == 1 else f"(rows, {parts}, width)"
        message = f"{shape} where {expected} is expected; extract the features again"
        raise DataError(Problem(str(file), None, "shape", message))
    return shape[0], math.prod(shape[1:])


def as_rows(array: np.ndarray, file: Path, *, parts: int = 1) -> np.ndarray:
    """An array as feature rows, float32 (L, D).

    array   (L, D), or (L, parts, D / parts)
    parts   vectors per row; they must divide D
    raises  ValueError for another type or shape, an empty array, NaN or Inf
    """
    shape = row_shape(array.shape, array.dtype, file, parts)
    with np.errstate(over="ignore"):
        rows = array.reshape(shape).astype(np.float32)
    _check_finite(np.isfinite(rows).all(1), file)
    return rows


def _check_finite(finite: np.ndarray, file: Path) -> None:
    """ValueError unless all rows are finite, bool (L,)."""
    if not finite.all():
        first, count = int(np.argmin(finite)), int((~finite).sum())
        reason = f"NaN or Inf in {count} of {len(finite)} rows, the first is {first}; extract the features again"
        raise DataError(Problem(str(file), None, "nan", reason))


def same_width(shape: tuple[int, ...], width: int | None, file: Path) -> int:
    """The width D of a shape (L, D); ValueError if it is not `width`, where that is known."""
    if width is not None and shape[1] != width:
        message = f"vectors of width {shape[1]} where others have {width}; extract all with one model"
        raise DataError(Problem(str(file), None, "shape", message))
    return shape[1]


def normalized_rows(rows: np.ndarray, parts: int = 1) -> np.ndarray:
    """Rows divided by their L2 norm + 1e-5, as in the official loaders; each of a row's `parts` by its own norm.

    rows  float32 (L, D)
    """
    vectors = rows.reshape(len(rows), parts, -1)  # (L, parts, D / parts)
    return (vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-5)).reshape(rows.shape)
