"""The feature bank: rows of many videos (or queries) in one contiguous tensor, and any batch of them by one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Bank:
    """Feature rows of V items, one after the other."""

    rows: Tensor  # (R, D) float32 or float16; memory-mapped or resident
    offsets: Tensor  # int64 (V + 1,) item v owns rows[offsets[v] : offsets[v + 1]]

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], dtype: torch.dtype = torch.float32) -> Bank:
        """One item per array (L_v, D)."""
        offsets = torch.tensor([0, *np.cumsum([len(a) for a in arrays])])
        return cls(torch.from_numpy(np.concatenate(arrays)).to(dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Rows of every item, int64 (V,)."""
        return self.offsets.diff()

    def index(self, items: Tensor) -> Tensor:
        """Where the rows of some items are.

        items    int64 (B,)
        returns  int64 (B, T)  rows of the bank, T the longest of these items; -1 on padding
        """
        lengths = self.lengths[items]
        t = torch.arange(int(lengths.max()), device=items.device)
        return torch.where(t < lengths[:, None], self.offsets[items][:, None] + t, -1)

    def gather(self, rows: Tensor) -> Tensor:
        """The features of some rows.

        rows     int64 (B, T)  rows of the bank; -1 is padding
        returns  float32 (B, T, D)  0 on padding
        """
        padding = rows < 0
        features = self.rows[rows.clamp(min=0).flatten()].view(*rows.shape, -1).float()
        return features.masked_fill_(padding[..., None], 0) if padding.any() else features

    def to(self, device: torch.device | str) -> Bank:
        return replace(self, rows=self.rows.to(device), offsets=self.offsets.to(device))
