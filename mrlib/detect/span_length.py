"""The length that a predicted span is a fraction of, when it is decoded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrlib.arguments import require


def duration_in_clips(duration_s: Tensor, length_s: Tensor) -> Tensor:
    """The duration of every video as a multiple of the length of its real clips; all (B,), in seconds."""
    return duration_s / length_s.clamp(min=1e-6)


def of_clips(duration_s: Tensor, length_s: Tensor) -> Tensor:
    """Predicted spans are fractions of the real clips, as in training: the factor 1, (B,)."""
    return torch.ones_like(duration_s)


def span_length(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`of_clips` by the option "clips"; `duration_in_clips`, as in the official inference, by "duration"."""
    require(name in ("clips", "duration"), "length", name, "clips or duration")
    return of_clips if name == "clips" else duration_in_clips
