"""Detectors predict moments from aligned clips: `detector(aligned, batch) -> outputs`, a dict of tensors.

`detector.decode(outputs, batch) -> Moments`, sorted by score, with NMS inside where the paper has it. A detector that
computes more than `decode` reads may have `detector.decodable(aligned, batch) -> outputs`, for predictions.
`detector.losses(outputs, aligned, batch, teacher=None) -> dict of scalars` are the terms that train it. The
`losses` of aligners and detectors are the only model code that reads `batch.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The predicted moments of a batch, best first."""

    spans: Tensor  # (B, K, 2) start and end, fractions of the n_b real clips
    scores: Tensor  # (B, K) higher is better, any scale
    mask: Tensor  # bool (B, K) False where there are fewer than K moments
