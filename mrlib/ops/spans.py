"""Arithmetic of spans: `(..., 2)`, start and end as fractions of the target."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union.  a, b (..., 2) that broadcast; returns (...), 0 where both spans are empty"""
    intersection, union, _ = _lengths(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [Rezatofighi et al. 2019]: IoU less the share of the hull that neither span covers; -1 to 1.

    a, b (..., 2) that broadcast; returns (...)
    """
    intersection, union, hull = _lengths(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU [Zheng et al. 2020]: IoU less the squared distance of the centres, as a share of the hull.

    a, b (..., 2) that broadcast; returns (...)
    """
    intersection, union, hull = _lengths(a, b)
    tiny = torch.finfo(union.dtype).tiny
    distance = (a.mean(-1) - b.mean(-1)) / hull.clamp(min=torch.finfo(union.dtype).eps)
    return intersection / union.clamp(min=tiny) - distance**2


def inside(spans: Tensor, lengths: Tensor, T: int) -> Tensor:
    """The clips inside each span: those with their middle in the span, and the clip that holds the span's middle.

    spans    (B, W, 2)  start and end
    lengths  int64 (B,)  real clips of each target, of which spans are fractions
    returns  bool (B, W, T)
    """
    t, n = torch.arange(T, device=lengths.device), lengths[:, None, None]
    middles = ((t + 0.5) / n >= spans[..., :1]) & ((t + 0.5) / n < spans[..., 1:])  # (B, W, T)
    return (middles | (t == (spans.mean(-1, keepdim=True) * n).floor())) & (t < n)


def _lengths(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths (...) of the intersection, the union and the hull of two spans (..., 2)."""
    intersection = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return intersection, (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection, hull


def nms(spans: Tensor, mask: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression: take the first remaining span, drop those whose IoU with it is above the threshold.

    spans      (B, K, 2)  best first
    mask       bool (B, K)  real spans
    threshold  an IoU equal to it is kept
    most       the largest number of spans to keep
    returns    positions  int64 (B, M)  of the kept spans, best first; M is the smaller of `most` and K
               kept       bool (B, M)  False where fewer than M spans are kept
    """
    remaining, samples = mask.clone(), torch.arange(len(spans), device=spans.device)  # (B, K), (B,)
    positions, kept = [], []
    for _ in range(min(most, spans.shape[1])):
        best = remaining.int().argmax(1)  # (B,)
        positions.append(best)
        kept.append(remaining[samples, best])
        overlapping = iou(spans, spans[samples, best][:, None]) > threshold  # (B, K)
        remaining &= ~overlapping
        remaining[samples, best] = False
    return torch.stack(positions, 1), torch.stack(kept, 1)


def soft_nms(
    spans: Tensor, scores: Tensor, mask: Tensor, *, sigma: float, least: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Take the span with the highest score, lower the other scores by their overlap with it.  [Bodla et al. 2017]

    $$s_k \leftarrow s_k \exp(-\mathrm{IoU}^2 / \sigma)$$

    spans    (B, K, 2)
    scores   (B, K)  above 0, in any order
    mask     bool (B, K)  real spans
    least    a span whose score has fallen to this is dropped
    most     the largest number of spans to keep
    returns  positions  int64 (B, M)  of the kept spans, best first; M is the smaller of `most` and K
             lowered    (B, M)  their scores when they were taken
             kept       bool (B, M)  False where fewer than M spans are kept
    """
    remaining = scores.masked_fill(~mask, 0)  # (B, K)
    samples = torch.arange(len(spans), device=spans.device)
    positions, lowered = [], []
    for _ in range(min(most, spans.shape[1])):
        best = remaining.argmax(1)  # (B,)
        positions.append(best)
        lowered.append(remaining[samples, best])
        remaining = remaining * torch.exp(-(iou(spans, spans[samples, best][:, None]) ** 2) / sigma)
        remaining[samples, best] = 0
    values = torch.stack(lowered, 1)  # (B, M)
    return torch.stack(positions, 1), values, values > least


def vote(chosen: Tensor, spans: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Replace each chosen span by the mean, weighted by score, of all spans whose IoU with it reaches the threshold.

    chosen   (B, M, 2)
    spans    (B, K, 2)
    scores   (B, K)  0 for spans without a vote
    returns  (B, M, 2)  a chosen span that gets no vote stays as it is
    """
    weights = scores[:, None] * (iou(chosen[:, :, None], spans[:, None]) >= threshold)  # (B, M, K)
    total = weights.sum(-1, keepdim=True)  # (B, M, 1)
    mean = weights @ spans / total.clamp(min=torch.finfo(total.dtype).tiny)  # (B, M, 2)
    return torch.where(total > 0, mean, chosen)
