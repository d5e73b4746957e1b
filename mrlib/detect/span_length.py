"""The length that a predicted span is a fraction of, when it is decoded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import Batch


def duration_in_clips(batch: Batch) -> Tensor:
    """The duration of every video as a multiple of the length of its real clips, (B,)."""
    return batch.duration_s / (batch.lengths * batch.clip_s).clamp(min=1e-6)


def of_clips(batch: Batch) -> Tensor:
    """Predicted spans are fractions of the real clips, as in training: the factor 1, (B,)."""
    return torch.ones_like(batch.duration_s)


def span_length(name: str) -> Callable[[Batch], Tensor]:
    """`of_clips` by the option "clips"; `duration_in_clips`, as in the official inference, by "duration"."""
    require(name in ("clips", "duration"), "length", name, "clips or duration")
    return of_clips if name == "clips" else duration_in_clips
