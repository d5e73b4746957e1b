"""Aligners let query and target meet: `aligner(batch) -> Aligned`.

An aligner has `width`, d, known when it is built; `losses(aligned, batch) -> dict of scalars` returns the terms that
train it, and is the only reader of `cache` besides pictures. Its forward never reads `batch.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Aligned:
    """The clips of the target after they met the query."""

    target: Tensor  # (B, T, d) clips; undefined on padding
    mask: Tensor  # bool (B, T) True = real clip
    query: Tensor  # (B, N, d) words or query clips
    query_mask: Tensor  # bool (B, N)
    query_global: Tensor  # (B, d) the whole query
    saliency: Tensor | None = None  # (B, T) how relevant each clip is; any scale, higher is more relevant
    context: Tensor | None = None  # (B, M, d) further tokens, for detectors that read them
    context_mask: Tensor | None = None  # bool (B, M) True = real token; None: all are real
    context_positions: Tensor | None = None  # (B, M, d) added to the tokens as keys; None: zeros
    paths: dict[str, Tensor] = field(default_factory=dict)  # bool (B, T, N) target clips matched with query clips
    cache: dict[str, Any] = field(default_factory=dict)  # for this aligner's `losses` and for pictures
