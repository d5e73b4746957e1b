"""Counter-based random numbers: each is a function of what it is used for, not of how many were drawn before it.

They are the same on every device, in every order of the samples and after resuming a training run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = (
    -7046029254386353131,  # 0x9E3779B97F4A7C15, the constants of SplitMix64 as signed integers
    -4658895280553007687,  # 0xBF58476D1CE4E5B9
    -7723592293110705685,  # 0x94D049BB133111EB
)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; >> on int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 [Steele et al. 2014]; its products are modulo 2^64, as int64 products are."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Draw:
    """Uniform random numbers of one (seed, stage, epoch): `draw("order", indices)`."""

    seed: int
    stage: str = ""
    epoch: int = 0

    def __call__(self, name: str, indices: Tensor, size: int | tuple[int, ...] = ()) -> Tensor:
        """`size` numbers for each index.

        name     what the numbers decide; different names give independent numbers
        indices  int64 (B,)  positions in the dataset
        returns  float64 (B, *size)  uniform in [0, 1), on the device of `indices`
        """
        size = (size,) if isinstance(size, int) else tuple(size)
        digest = hashlib.blake2b(f"{self.seed}/{self.stage}/{self.epoch}/{name}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "little", signed=True)
        counter = torch.arange(torch.Size(size).numel(), device=indices.device)  # (M,), M the product of size
        state = _mix(indices.long()[:, None] * _GOLDEN + key)  # (B, 1)
        bits = _mix(_mix(state + (counter + 1) * _GOLDEN))  # (B, M)
        return (_shift(bits, 11).double() * 2.0**-53).reshape(len(indices), *size)  # (B, *size)
