"""Random numbers that are a function of where they are used, not of how many were drawn before.

The same numbers come on every device, in every order of the samples and after every resume.
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
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where >> on int64 is arithmetic


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser [Steele et al. 2014]; int64 products wrap round, as they should."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Draw:
    """Uniform numbers for one (seed, stage, epoch); `draw(name, indices)` names what they are for."""

    seed: int
    stage: str = ""
    epoch: int = 0

    def __call__(self, name: str, indices: Tensor, size: int | tuple[int, ...] = ()) -> Tensor:
        """`size` numbers for every index.

        name     what the numbers decide; other names give independent numbers
        indices  int64 (B,)  positions in the dataset
        returns  float64 (B, *size)  uniform in [0, 1), on the device of `indices`
        """
        size = (size,) if isinstance(size, int) else tuple(size)
        digest = hashlib.blake2b(f"{self.seed}/{self.stage}/{self.epoch}/{name}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "little", signed=True)
        counter = torch.arange(torch.Size(size).numel(), device=indices.device)
        state = _mix(indices.long()[:, None] * _GOLDEN + key)
        bits = _mix(_mix(state + (counter + 1) * _GOLDEN))
        return (_shift(bits, 11).double() * 2.0**-53).reshape(len(indices), *size)
