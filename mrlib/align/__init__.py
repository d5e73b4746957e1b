"""Aligners, how query and target meet: `aligner(batch) -> Aligned`.

An aligner has `width`, d, known when it is built; `losses(aligned, batch) -> dict of scalars` are the terms that
train it, and they alone read `cache`. Its forward never reads `batch.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Aligned:
    """The target re-described in the light of the query."""

    target: Tensor  # (B, T, d) clips; what stands on padding is undefined
    mask: Tensor  # bool (B, T) True = real clip
    query: Tensor  # (B, N, d) words or query clips
    query_mask: Tensor  # bool (B, N)
    query_global: Tensor  # (B, d) the whole query
    saliency: Tensor | None = None  # (B, T) how relevant each clip is, any scale, higher is more
    context: Tensor | None = None  # (B, M, d) tokens beside the clips, for detectors that have a use for them
    context_mask: Tensor | None = None  # bool (B, M) True = real token; None: all are
    context_positions: Tensor | None = None  # (B, M, d) what attention adds to them as keys; None: nothing
    paths: dict[str, Tensor] = field(default_factory=dict)  # bool (B, T, N) which clips show which query vectors
    cache: dict[str, Any] = field(default_factory=dict)  # for this aligner's `losses` and for pictures
