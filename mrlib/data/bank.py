"""The feature bank: the rows of many videos (or queries) in one contiguous tensor; one gather reads any batch of them.

On disk a bank is a .safetensors file, memory-mapped when it is opened.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mrlib.arguments import require
from mrlib.files import whole_file

_DTYPES = {torch.float32: (np.dtype("<f4"), "F32"), torch.float16: (np.dtype("<f2"), "F16")}
_HEADER = 4096  # bytes before the tensors, one memory page


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


def load_bank(file: Path) -> tuple[Bank, Tensor | None] | None:
    """A bank and the vectors beside it as `save_bank` wrote them, memory-mapped; None if the file is not complete."""
    try:
        with safe_open(file, framework="pt") as tensors:
            vectors = tensors.get_tensor("vectors") if "vectors" in tensors.keys() else None  # noqa: SIM118
            return Bank(tensors.get_tensor("rows"), tensors.get_tensor("offsets").clone()), vectors
    except (OSError, SafetensorError):
        return None


def save_bank(
    file: Path, items: Iterable[tuple[np.ndarray, np.ndarray | None]], count: int, dtype: torch.dtype
) -> None:
    """Write a bank item by item, with one item in memory at a time, under a temporary name until it is complete.

    items   `count` pairs: rows (L_v, D) and a vector (J,) beside them, or None in every pair
    dtype   torch.float32 or torch.float16
    raises  ValueError for another dtype, or a feature too large for it
    """
    require(dtype in _DTYPES, "dtype", dtype, "torch.float32 or torch.float16")
    kind, name = _DTYPES[dtype]
    offsets, vectors = np.zeros(count + 1, "<i8"), []
    with whole_file(file) as out:
        out.seek(_HEADER + offsets.nbytes)
        for i, (rows, vector) in enumerate(items):
            out.write(_cast(rows, kind).tobytes())
            offsets[i + 1] = offsets[i] + len(rows)
            vectors += [] if vector is None else [_cast(vector, kind)]
        shapes = {"offsets": ("I64", offsets.shape), "rows": (name, (int(offsets[-1]), rows.shape[1]))}
        if vectors:
            shapes["vectors"] = (name, np.shape(vectors))
            out.write(np.stack(vectors).tobytes())
        out.seek(0)
        out.write(_header(shapes))
        out.write(offsets.tobytes())


def _cast(rows: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind.itemsize < rows.itemsize and np.abs(rows).max() > np.finfo(kind).max:
        raise ValueError(f"a feature is too large for {kind}; normalise it, or save with dtype=torch.float32")
    return rows.astype(kind)


def _header(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header of a .safetensors file whose tensors follow one another, padded with spaces to `_HEADER` bytes."""
    entries, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=object)) * {"I64": 8, "F32": 4, "F16": 2}[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode().ljust(_HEADER - 8)
    return struct.pack("<Q", len(text)) + text
