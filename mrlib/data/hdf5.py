"""Arrays in HDF5 files, not read yet. An HDF5 file can lead to other files; nothing outside the file itself is read.

Links to other files, arrays whose numbers lie in other files and virtual arrays are refused by name before anything is
read, as are arrays that were never written and pieces that unpack to more than they declare.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from mrlib.data.problems import DataError, Problem
from mrlib.data.stored import MOST_NUMBERS, StoredArray, missing_key, unreadable, wrong_dtype

_SHUFFLE, _FLETCHER32, _LZF = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF
_DEFLATE = h5py.h5z.FILTER_DEFLATE
_SMALL = {_DEFLATE: 1 << 16, _LZF: 1 << 20}  # bytes of a packed piece that unpack to 64 and 90 MB at the most
_MOST_PIECES = 1 << 16
_MOST_LINKS = 16  # soft links on the way to an array


@contextmanager
def open_hdf5(file: Path, key: str, numbers: int = MOST_NUMBERS) -> Iterator[StoredArray]:
    """The array `key` of an HDF5 file, or the only array of the group `key`, while the file is open.

    raises  KeyError or ValueError, naming the file; h5py raises errors of its own for damaged files
    """
    with h5py.File(file, "r") as content:
        node = _find(content, key, file)
        if isinstance(node, h5py.Group) and len(node) == 1:
            node = _follow(content, node, next(iter(node)), file, key)
        if not isinstance(node, h5py.Dataset):
            raise missing_key(file, key, node if isinstance(node, h5py.Group) else ())
        _refuse_other_files(node, file, key)
        if node.shape is None:
            message = f"{key!r} is an empty dataset; extract the features again"
            raise DataError(Problem(str(file), None, "shape", message))
        if node.dtype.kind not in "fiu":
            raise wrong_dtype(file, node.dtype)
        _check_storage(node, file, key)
        yield StoredArray(node.shape, node.dtype, lambda start, stop: node[start:stop])


def has_key(file: Path, key: str) -> bool:
    """Whether an HDF5 file that can be opened has something of this name."""
    try:
        with h5py.File(file, "r") as content:
            return content.id.links.exists(key.split("/")[0].encode())
    except Exception:  # h5py raises errors of every kind for damaged files
        return False


def _find(content: h5py.File, key: str, file: Path) -> h5py.Group | h5py.Dataset:
    node = content
    for part in key.split("/") if key else ():
        if not isinstance(node, h5py.Group) or not node.id.links.exists(part.encode()):
            raise missing_key(file, key, node if isinstance(node, h5py.Group) else ())
        node = _follow(content, node, part, file, key)
    return node


def _follow(content: h5py.File, group: h5py.Group, name: str, file: Path, key: str, links: int = 0):
    """What a link of a group leads to; it must lie in the same file."""
    kind = group.id.links.get_info(name.encode()).type
    if kind == h5py.h5l.TYPE_HARD:
        return group[name]
    if kind != h5py.h5l.TYPE_SOFT or links > _MOST_LINKS:
        reason = f"{key!r} is a link to another file, which is never followed; copy the array into this file"
        raise DataError(Problem(str(file), None, "external link", reason))
    path = group.id.links.get_val(name.encode()).decode()
    node = content if path.startswith("/") else group
    for part in (part for part in path.split("/") if part not in ("", ".")):
        if not isinstance(node, h5py.Group) or not node.id.links.exists(part.encode()):
            raise missing_key(file, key, node if isinstance(node, h5py.Group) else ())
        node = _follow(content, node, part, file, key, links + 1)
    return node


def _refuse_other_files(node: h5py.Dataset, file: Path, key: str) -> None:
    """Refuse an array whose numbers lie in other files."""
    plist = node.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        kind, what = "virtual dataset", "is put together from other arrays or files"
    elif plist.get_external_count():
        kind, what = "external storage", "has its numbers in another file"
    else:
        return
    message = f"{key!r} {what}, which are never read; copy the array itself into this file"
    raise DataError(Problem(str(file), None, kind, message))


def _check_storage(node: h5py.Dataset, file: Path, key: str) -> None:
    """Refuse an array that is not stored as a whole, or that would unpack to more than it declares."""
    plist = node.id.get_create_plist()
    declared = math.prod(node.shape) * node.dtype.itemsize
    if plist.get_layout() != h5py.h5d.CHUNKED:
        if node.id.get_storage_size() < declared:
            raise unreadable(file, f"{key!r}, {node.shape}, was never written as a whole")
        return
    piece = math.prod(node.chunks) * node.dtype.itemsize
    pieces = math.prod(-(-n // c) for n, c in zip(node.shape, node.chunks, strict=True))
    if piece > 4 * MOST_NUMBERS or pieces > _MOST_PIECES:
        reason = f"{key!r} is stored in {pieces} pieces of {piece} bytes; save it with h5py's own settings"
        raise DataError(Problem(str(file), None, "chunks", reason))
    if node.id.get_num_chunks() < pieces:
        raise unreadable(file, f"{key!r}, {node.shape}, was never written as a whole")
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if set(filters) - {_SHUFFLE, _FLETCHER32, *_SMALL} or len(set(filters)) < len(filters):
        raise _unusual(file, key)
    for packing in set(filters) & set(_SMALL):
        _check_pieces(node, file, key, piece, packing, 1 << filters.index(packing))


def _check_pieces(node: h5py.Dataset, file: Path, key: str, piece: int, packing: int, skipped: int) -> None:
    """Refuse pieces that unpack to more than `piece` bytes; HDF5 itself would make room for whatever comes.

    packing  the filter
    skipped  a piece whose filter mask has this bit is not packed
    """
    large = []
    node.id.chunk_iter(lambda chunk: large.append(chunk) if chunk.size > _SMALL[packing] else None)
    size = file.stat().st_size
    for chunk in large:
        unpacked = chunk.size
        if chunk.size > size:
            raise unreadable(file, f"a piece of {key!r} has {chunk.size} bytes, the file {size}")
        if not chunk.filter_mask & skipped:
            if packing != _DEFLATE:
                raise _unusual(file, key)
            _, data = node.id.read_direct_chunk(chunk.chunk_offset)
            unpacked = len(zlib.decompressobj().decompress(data, piece + 1))
        if unpacked > piece:
            raise unreadable(file, f"a piece of {key!r} unpacks to more than its {piece} bytes")


def _unusual(file: Path, key: str) -> DataError:
    reason = f"{key!r} is packed in an unusual way; save it with h5py, packed by gzip or not at all"
    return DataError(Problem(str(file), None, "chunks", reason))
