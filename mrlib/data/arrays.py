"""Read and check arrays of vectors from .npz, .npy, .hdf5 and GloVe files; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np

from mrlib.data.problems import DataError, MissingFile, MissingKey, Problem


def read_array(file: Path, key: str = "") -> np.ndarray:
    """The array of a .npy file, or the array `key` of an .npz or .hdf5 file.

    An .hdf5 key may be a path, and may lead to a group that holds nothing but the array.
    raises  FileNotFoundError, KeyError or ValueError, naming the file
    """
    try:
        if not file.is_file():
            raise MissingFile(Problem(str(file), None, "missing file", "no such feature file"))
        if file.suffix == ".hdf5":
            return _read_hdf5(file, key)
        if file.suffix == ".npy":
            with file.open("rb") as content:
                return np.lib.format.read_array(content, allow_pickle=False)
        with np.load(file, allow_pickle=False) as content:
            if key not in content.files:
                raise _missing_key(file, key, content.files)
            return content[key]
    except DataError:
        raise
    except Exception as error:  # numpy passes on whatever the zip reader, its header parser and malloc raise
        raise _unreadable(file, error) from error


def _read_hdf5(file: Path, key: str) -> np.ndarray:
    import h5py  # takes a tenth of a second, and most layouts do not need it

    with h5py.File(file, "r") as content:
        node = content
        for part in key.split("/"):
            if not isinstance(node, h5py.Group) or part not in node:
                raise _missing_key(file, key, list(node)[:8] if isinstance(node, h5py.Group) else [])
            node = node[part]
        if isinstance(node, h5py.Group) and len(node) == 1:
            node = next(iter(node.values()))
        if not isinstance(node, h5py.Dataset):
            raise _missing_key(file, key, list(node))
        return node[()]


def as_rows(array: np.ndarray, file: Path, *, parts: int = 1) -> np.ndarray:
    """An array as feature rows, float32 (L, D).

    array   (L, D), or (L, parts, D / parts)
    parts   vectors per row; they must divide D
    raises  ValueError for another type or shape, an empty array, NaN or Inf
    """

    def wrong(kind: str, message: str) -> DataError:
        return DataError(Problem(str(file), None, kind, message))

    shape = np.shape(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise wrong("dtype", f"{array.dtype} where floating-point features are expected; extract them again")
    if parts > 1 and len(shape) == 3 and shape[1] == parts:
        array = array.reshape(shape[0], -1)  # (L, D)
    if array.ndim != 2 or 0 in shape or array.shape[1] % parts:
        expected = "(rows, width)" if parts == 1 else f"(rows, {parts}, width)"
        raise wrong("shape", f"{shape} where {expected} is expected; extract the features again")
    with np.errstate(over="ignore"):
        rows = array.astype(np.float32)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        first, count = int(np.argmin(finite)), int((~finite).sum())
        raise wrong(
            "nan", f"NaN or Inf in {count} of {len(rows)} rows, the first is {first}; extract the features again"
        )
    return rows


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


def _missing_key(file: Path, key: str, keys: list[str]) -> MissingKey:
    return MissingKey(Problem(str(file), None, "missing key", f"no array {key!r}; the keys there are {keys}"))


def _unreadable(file: Path, error: BaseException) -> DataError:
    if "pickle" in str(error):
        reason = "holds no plain array; pickled objects are never loaded, save it again as an array of numbers"
        return DataError(Problem(str(file), None, "pickled", reason))
    reason = f"{type(error).__name__}: {error}; it is cut off or damaged, copy or download it again"
    return DataError(Problem(str(file), None, "unreadable", reason))


def read_glove(file: Path, words: Container[str]) -> dict[str, np.ndarray]:
    """The word vectors (D,) of a GloVe file; words that it lacks are left out. A line is a word and D numbers."""
    vectors, width = {}, None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            width = width or line.count(" ")
            word, *numbers = line.rsplit(" ", width)  # a word may contain spaces
            if word not in words:
                continue
            try:
                vectors[word] = np.array(numbers, dtype=np.float32)
            except ValueError:
                numbers = []
            if len(numbers) != width or not np.isfinite(vectors[word]).all():
                message = f"{word!r} has no {width} finite numbers; copy or download the file again"
                raise DataError(Problem(str(file), number, "word vector", message))
    return vectors
