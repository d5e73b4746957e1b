"""The feature bank: the rows of many videos (or queries) in one contiguous tensor; one gather reads any batch of them.

On disk a bank is a .safetensors file with a record of what it holds and a checksum, memory-mapped when it is opened.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data.digests import Checksum, checksum_of
from mrlib.files import whole_file

_DTYPES = {torch.float32: (np.dtype("<f4"), "F32"), torch.float16: (np.dtype("<f2"), "F16")}
_HEADER = 4096  # bytes before the tensors, one memory page
RENEWED = ("state",)  # parts of a record that may change while the bank stays the same


@dataclass(frozen=True)
class Bank:
    """Feature rows of V items, one after the other."""

    rows: Tensor  # (R, D) float32 or float16; memory-mapped or resident
    offsets: Tensor  # int64 (V + 1,) item v has rows[offsets[v] : offsets[v + 1]]
    places: Tensor | None = None  # int64 (P,) if items share rows: item v has rows[places[offsets[v] : offsets[v + 1]]]

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], dtype: torch.dtype = torch.float32) -> Bank:
        """A bank with one item per array (L_v, D)."""
        offsets = torch.tensor([0, *np.cumsum([len(a) for a in arrays])])
        return cls(torch.from_numpy(np.concatenate(arrays)).to(dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.rows.shape[1]

    @property
    def lengths(self) -> Tensor:
        """The number of rows of every item, int64 (V,)."""
        return self.offsets.diff()

    def index(self, items: Tensor) -> Tensor:
        """The positions in the bank of all rows of some items.

        items    int64 (B,)
        returns  int64 (B, T)  rows of the bank, T the length of the longest of these items; -1 on padding
        """
        lengths = self.lengths[items]
        t = torch.arange(int(lengths.max()), device=items.device)
        mask = t < lengths[:, None]  # (B, T)
        return torch.where(mask, self.at(items, torch.where(mask, t, 0)), -1)

    def at(self, items: Tensor, clips: Tensor) -> Tensor:
        """The positions in the bank of chosen rows of some items.

        items    int64 (B,)
        clips    int64 (B, T)  numbers of the rows in their items, from 0
        returns  int64 (B, T)  rows of the bank
        """
        rows = self.offsets[items][:, None] + clips  # (B, T)
        return rows if self.places is None else self.places[rows]

    def gather(self, rows: Tensor) -> Tensor:
        """The features of some rows of the bank.

        rows     int64 (B, T)  rows of the bank; -1 is padding
        returns  float32 (B, T, D)  0 on padding
        """
        flat = rows.flatten()  # (B * T,)
        features = self.rows.index_select(0, flat.clamp(min=0)).float()  # (B * T, D)
        padding = (flat < 0).nonzero().squeeze(1)  # (number of padded rows,)
        features.index_fill_(0, padding, 0)  # seven times as fast as masked_fill_, which reads every number
        return features.view(*rows.shape, -1)  # (B, T, D)

    def to(self, device: torch.device | str) -> Bank:
        """The same bank with all its rows on `device`."""
        places = None if self.places is None else self.places.to(device)
        return replace(self, rows=self.rows.to(device), offsets=self.offsets.to(device), places=places)


# ---- on disk ----


def load_bank(file: Path, record: Mapping[str, str] | None = None) -> tuple[Bank, Tensor | None] | None:
    """A bank and the vectors beside it as `save_bank` wrote them, memory-mapped.

    record   what the file must say about itself; None: anything
    returns  None if there is no such file, if it says something else, or if a bit of it has changed
    """
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        with file.open("rb") as content:
            entries, said = _read_header(content)
            if any(said.get(name) != value for name, value in (record or {}).items()):
                return None
            size = os.fstat(content.fileno()).st_size
            offsets = np.frombuffer(content.read(min(size, entries["offsets"]["data_offsets"][1])), "<i8")
            payload = checksum_of(content, _HEADER + offsets.nbytes, size)
        if said.get("checksum") != _checksum(payload, offsets, entries, said):
            return None
        tensors = {name: _mapped(file, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return Bank(tensors["rows"], tensors["offsets"].clone()), tensors.get("vectors")


def _mapped(file: Path, entry: dict[str, Any]) -> Tensor:
    """A tensor of a .safetensors file, memory-mapped; safetensors itself cannot open paths that are no UTF-8."""
    kind = {"I64": "<i8", "F32": "<f4", "F16": "<f2"}[entry["dtype"]]
    start = _HEADER + entry["data_offsets"][0]
    return torch.from_numpy(np.memmap(file, kind, "c", start, tuple(entry["shape"])))  # changes stay in memory


def save_bank(
    file: Path,
    items: Iterable[tuple[np.ndarray, np.ndarray | None]],
    count: int,
    dtype: torch.dtype,
    record: Mapping[str, str] | None = None,
) -> None:
    """Write a bank item by item, with one item in memory at a time, under a temporary name until it is complete.

    items   `count` pairs: rows (L_v, D) and a vector (J,) beside them, or None in every pair
    dtype   torch.float32 or torch.float16
    record  what the file says about itself, see `load_bank`; short texts
    raises  ValueError for another dtype, or a feature too large for it
    """
    require(dtype in _DTYPES, "dtype", dtype, "torch.float32 or torch.float16")
    kind, name = _DTYPES[dtype]
    offsets, vectors, payload = np.zeros(count + 1, "<i8"), [], Checksum()
    with whole_file(file) as out:

        def write(array: np.ndarray) -> None:
            data = array.tobytes()
            payload.update(data)
            out.write(data)

        out.seek(_HEADER + offsets.nbytes)
        for i, (rows, vector) in enumerate(items):
            write(_cast(rows, kind))
            offsets[i + 1] = offsets[i] + len(rows)
            vectors += [] if vector is None else [_cast(vector, kind)]
        shapes = {"offsets": ("I64", offsets.shape), "rows": (name, (int(offsets[-1]), rows.shape[1]))}
        if vectors:
            shapes["vectors"] = (name, np.shape(vectors))
            write(np.stack(vectors))
        entries, said = _entries(shapes), dict(record or {})
        said["checksum"] = _checksum(payload, offsets, entries, said)
        out.seek(0)
        out.write(_header(entries, said))
        out.write(offsets.tobytes())


def renew_record(file: Path, record: Mapping[str, str]) -> None:
    """Change what the file of a bank says about itself, in place; only names in `RENEWED` may change."""
    with file.open("r+b") as content:
        entries, said = _read_header(content)
        content.seek(0)
        content.write(_header(entries, said | {name: record[name] for name in RENEWED}))


def _cast(rows: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind.itemsize < rows.itemsize and np.abs(rows).max() > np.finfo(kind).max:
        raise ValueError(f"a feature is too large for {kind}; normalise it, or save with dtype=torch.float32")
    return rows.astype(kind)


def _entries(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    """The entries of the header of a .safetensors file whose tensors follow one another."""
    entries, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=object)) * {"I64": 8, "F32": 4, "F16": 2}[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return entries


def _header(entries: dict[str, Any], said: Mapping[str, str]) -> bytes:
    """The header of a .safetensors file, padded with spaces to `_HEADER` bytes."""
    text = json.dumps({"__metadata__": dict(said), **entries}).encode().ljust(_HEADER - 8)
    require(len(text) == _HEADER - 8, "record", said, "short")
    return struct.pack("<Q", len(text)) + text


def _read_header(content: BinaryIO) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of the header of a bank's file, and what the file says about itself; ValueError for another file."""
    header = content.read(_HEADER)
    if len(header) < _HEADER or struct.unpack("<Q", header[:8])[0] != _HEADER - 8:
        raise ValueError("no header of a bank")
    entries = json.loads(header[8:])
    said = entries.pop("__metadata__", None) if isinstance(entries, dict) else None
    if not isinstance(said, dict):
        raise ValueError("no record of a bank")
    return entries, said


def _checksum(payload: Checksum, offsets: np.ndarray, entries: dict[str, Any], said: Mapping[str, str]) -> str:
    """The checksum of a whole file: rows, vectors, offsets and header, without the parts that may be renewed."""
    fixed = {name: value for name, value in said.items() if name not in (*RENEWED, "checksum")}
    whole = Checksum()
    whole.update(json.dumps([payload.hexdigest(), entries, fixed], sort_keys=True).encode())
    whole.update(offsets.tobytes())
    return whole.hexdigest()
