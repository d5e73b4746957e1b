"""Arrays in .npy, .npz and .pt files, not read yet: shape and type first, then rows; of pickles only tensors are read.

A file is untrusted. What it declares costs no memory before a reader has compared it with what is possible, and data
that do not fit the declaration are refused. `mrlib.data.hdf5` does the same for HDF5 files.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mrlib.data.problems import DataError, MissingFile, MissingKey, Problem
from mrlib.downloads import wrong_download

MOST_NUMBERS = 1 << 23  # of an array whose size nothing else limits; 32 MiB as float32
HDF5 = (".hdf5", ".h5")
USUAL_KEYS = ("features", "last_hidden_state")
_HEADER = 10_000  # bytes of the header of an .npy file, as numpy allows
_DIRECTORY = 1 << 20  # bytes of the directory of a zip file; a thousand times as many as one array needs


@dataclass(frozen=True)
class StoredArray:
    """An array in an open file."""

    shape: tuple[int, ...]
    dtype: np.dtype  # of integers or floating-point numbers
    read: Callable[[int, int], np.ndarray]  # the rows from one number to another; rows are read once and in order


def is_file(file: Path) -> bool:
    """Whether there is a regular file of that name; False for a name that is too long for the file system."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False


def require_file(file: Path) -> None:
    """FileNotFoundError if there is no file of that name, ValueError if it is no regular one, such as a pipe."""
    if not is_file(file):
        if (wrong := wrong_download(file)) is not None:
            raise DataError(Problem(str(file), None, "download", wrong))
        raise MissingFile(Problem(str(file), None, "missing file", "no such feature file"))


def wrong_dtype(file: Path, dtype: object) -> DataError:
    """The error for an array whose numbers are of another type."""
    if getattr(dtype, "hasobject", False):
        reason = "holds no plain array; pickled objects are never loaded, save it again as an array of numbers"
        return DataError(Problem(str(file), None, "pickled", reason))
    reason = f"{reprlib.repr(str(dtype))[1:-1]} where floating-point features are expected; extract them again"
    return DataError(Problem(str(file), None, "dtype", reason))


def missing_key(file: Path, key: str, keys: Iterable[str]) -> MissingKey:
    """The error for a key that a file lacks; names some of its keys."""
    names = [name if len(name) <= 60 else name[:57] + "..." for name in islice(keys, 8)]
    return MissingKey(Problem(str(file), None, "missing key", f"no array {key!r}; the keys there are {names}"))


def unreadable(file: Path, error: BaseException | str) -> DataError:
    """The error for a file that cannot be read: it is something else, or damaged."""
    if (wrong := wrong_download(file)) is not None:
        return DataError(Problem(str(file), None, "download", wrong))
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {str(error)[:300]}"
    message = f"{reason}; it is cut off or damaged, copy or download it again"
    return DataError(Problem(str(file), None, "unreadable", message))


def _only(keys: list[str]) -> str:
    """The key that is meant where none is given: the only one, or a usual one; "" if it is not clear."""
    return keys[0] if len(keys) == 1 else next((key for key in USUAL_KEYS if key in keys), "")


# ---- .npy and .npz ----


@contextmanager
def open_npy(file: Path, key: str, numbers: int) -> Iterator[StoredArray]:
    with file.open("rb") as content:
        yield _npy(file, content, os.fstat(content.fileno()).st_size)


@contextmanager
def open_npz(file: Path, key: str, numbers: int) -> Iterator[StoredArray]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        key = key or _only([name.removesuffix(".npy") for name in names if name.endswith(".npy")])
        name = f"{key}.npy"
        if name not in names:
            if key in names:
                reason = f"{key!r} is no .npy array; save it with numpy.savez"
                raise DataError(Problem(str(file), None, "entry", reason))
            raise missing_key(file, key, (name.removesuffix(".npy") for name in names))
        entry = archive.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                Problem(str(file), None, "entry", f"{key!r} is packed in an unusual way; save it with numpy")
            )
        with archive.open(entry) as content:
            yield _npy(file, content, entry.file_size, exact=True)


def _npy(file: Path, content: BinaryIO, size: int, exact: bool = False) -> StoredArray:
    """The array of an .npy file of `size` bytes; exact: nothing may follow it."""
    shape, fortran, dtype = _npy_header(file, content)
    if dtype.kind not in "fiu":
        raise wrong_dtype(file, dtype)
    declared = math.prod(shape) * dtype.itemsize
    remaining = size - content.tell()
    if declared > remaining or (exact and declared < remaining):
        raise unreadable(file, f"an array {shape} of {dtype} takes {declared} bytes, and there are {remaining}")
    row = math.prod(shape[1:])
    kept: list[np.ndarray] = []  # an array in Fortran's order, which is read as a whole

    def read(start: int, stop: int) -> np.ndarray:
        if fortran and len(shape) > 1:
            if not kept:
                kept.append(_numbers(content, math.prod(shape), dtype).reshape(shape, order="F"))
            return kept[0][start:stop]
        return _numbers(content, (stop - start) * row, dtype).reshape(stop - start, *shape[1:])

    return StoredArray(shape, dtype, read)


def _npy_header(file: Path, content: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type."""
    start = content.read(8)
    if start[:6] != b"\x93NUMPY":
        raise unreadable(file, "holds no .npy array")
    version, count = start[6:8], 2 if start[6] == 1 else 4
    length = content.read(count)
    if version not in (b"\x01\x00", b"\x02\x00") or len(length) < count:
        raise unreadable(file, f"an .npy header of version {start[6:].hex()}")
    (bytes_there,) = struct.unpack("<H" if count == 2 else "<I", length)
    if bytes_there > _HEADER:
        raise unreadable(file, f"an .npy header of {bytes_there} bytes")
    header = io.BytesIO(length + content.read(bytes_there))
    read = np.lib.format.read_array_header_1_0 if count == 2 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise unreadable(file, f"an .npy header with the shape {shape}")
    return shape, fortran, dtype


def _numbers(content: BinaryIO, count: int, dtype: np.dtype) -> np.ndarray:
    data = content.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise EOFError(f"{len(data)} of {count * dtype.itemsize} bytes")
    return np.frombuffer(data, dtype)


def _check_directory(file: Path) -> None:
    """Refuse a zip file whose directory is so long that a list of its entries would not fit into memory."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - 22 - 0xFFFF - 20))  # end record, its longest comment, locator of the zip64 record
        end = content.read()
        at = end.rfind(b"PK\x05\x06")
        if at < 0 or len(end) < at + 22:
            raise unreadable(file, "its end is missing")
        lengths = [struct.unpack_from("<I", end, at + 12)[0]]
        if at >= 20 and end[at - 20 : at - 16] == b"PK\x06\x07":
            content.seek(min(struct.unpack_from("<Q", end, at - 12)[0], size))
            record = content.read(56)
            lengths = [struct.unpack_from("<Q", record, 40)[0]] if len(record) == 56 else [size]
    if max(lengths) > _DIRECTORY:
        raise unreadable(file, f"a directory of {max(lengths)} bytes")


# ---- .pt ----


@contextmanager
def open_pt(file: Path, key: str, numbers: int) -> Iterator[StoredArray]:
    most = 4 * numbers  # bytes
    with file.open("rb") as content:
        start = content.read(2)
        packed = start == b"PK"
        if not packed and start[:1] != b"\x80":
            raise unreadable(file, "holds no tensor that torch saved")
        size = os.fstat(content.fileno()).st_size
        if packed:
            _check_directory(file)
            with zipfile.ZipFile(content) as archive:
                entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if any(e.file_size > 1 << 20 for e in entries if e.filename.endswith(".pkl")):
                raise unreadable(file, "a list of tensors of more than a megabyte")
        if size > most:
            message = (
                f"{size} bytes, where at most {most} are possible; save the features alone, or correct the duration"
            )
            raise DataError(Problem(str(file), None, "size", message))
        content.seek(0)
        try:
            loaded = torch.load(content, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if (wrong := wrong_download(file)) is not None:
                raise DataError(Problem(str(file), None, "download", wrong)) from None
            reason = "holds something else than tensors, which is never loaded; save the tensor alone, by torch.save"
            raise DataError(Problem(str(file), None, "pickled", reason)) from error
    yield _tensor(file, key, loaded)


def _tensor(file: Path, key: str, loaded: object) -> StoredArray:
    if isinstance(loaded, dict):
        key = key or _only([name for name in loaded if isinstance(name, str)])
        if key not in loaded:
            raise missing_key(file, key, map(str, loaded))
        loaded = loaded[key]
    if not isinstance(loaded, Tensor):
        kind = type(loaded).__name__
        raise DataError(
            Problem(str(file), None, "pickled", f"holds a {kind}, no tensor; save the tensor, by torch.save")
        )
    if loaded.layout is not torch.strided or loaded.device.type != "cpu" or loaded.is_quantized:
        raise wrong_dtype(file, f"a {loaded.device.type} tensor of layout {loaded.layout}")
    tensor = loaded.detach()
    if tensor.is_floating_point():  # bfloat16, too, which numpy lacks
        return StoredArray(tuple(tensor.shape), np.dtype(np.float32), lambda a, b: tensor[a:b].float().numpy())
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return StoredArray(tuple(tensor.shape), dtype, lambda a, b: tensor[a:b].numpy())
