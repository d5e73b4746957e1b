"""Spans clamped to the video, and the length of which they are fractions: the real clips or the duration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrlib.arguments import require


def duration_in_clips(duration_s: Tensor, length_s: Tensor) -> Tensor:
    """The duration of every video in units of the total length of its real clips; all (B,)."""
    return duration_s / length_s.clamp(min=1e-6)


def of_clips(duration_s: Tensor, length_s: Tensor) -> Tensor:
    """The total length of the real clips in the same unit: 1 for every video, (B,). Spans are trained with it."""
    return torch.ones_like(duration_s)


def in_video(
    spans: Tensor, duration_s: Tensor, length_s: Tensor, length: Callable[[Tensor, Tensor], Tensor] = of_clips
) -> Tensor:
    """Spans as fractions of the real clips, clamped to the video, which may end before its features.

    spans       (B, K, 2)  fractions of `length`, `of_clips` or `duration_in_clips`
    duration_s  (B,)  durations of the videos
    length_s    (B,)  total lengths of the real clips
    returns     (B, K, 2)
    """
    latest = duration_in_clips(duration_s, length_s).clamp(max=1)  # (B,)
    spans = spans * length(duration_s, length_s)[:, None, None]  # (B, K, 2)
    return spans.clamp(min=0).minimum(latest[:, None, None])


def span_length(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`of_clips` for the option "clips", or `duration_in_clips` for "duration", as in the official inference."""
    require(name in ("clips", "duration"), "length", name, "clips or duration")
    return of_clips if name == "clips" else duration_in_clips
