"""Aligners combine query and target: `aligner(batch) -> Aligned`.

`aligner.width` is d, known when it is built. `aligner.losses(aligned, batch) -> dict of scalars` returns the terms that
train it; besides pictures it is the only reader of `cache`. Its forward never reads `batch.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Aligned:
    """Target and query as an aligner returns them."""

    target: Tensor  # (B, T, d) clips; undefined on padding
    mask: Tensor  # bool (B, T) True = real clip
    query: Tensor  # (B, N, d) words or query clips, possibly with further tokens; undefined on padding
    query_mask: Tensor  # bool (B, N) True = real
    query_global: Tensor  # (B, d) the whole query as one vector
    saliency: Tensor | None = None  # (B, T) how relevant each clip is: any scale, higher is more, undefined on padding
    context: Tensor | None = None  # (B, M, d) further tokens, for detectors that read them
    context_mask: Tensor | None = None  # bool (B, M) True = real token; None: all are real
    context_positions: Tensor | None = None  # (B, M, d) added to the tokens when they are keys; None: zeros
    paths: dict[str, Tensor] = field(default_factory=dict)  # bool (B, T, N) clip i matched with query clip j, by stage
    cache: dict[str, Any] = field(default_factory=dict)  # for this aligner's `losses` and for pictures
