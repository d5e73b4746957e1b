"""Arithmetic of spans: start and end, fractions of the target, `(..., 2)`."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of spans (..., 2) that broadcast; 0 where both are empty."""
    shared, union, _ = _parts(a, b)
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [Rezatofighi et al. 2019]: IoU less the share of the hull that neither span covers; -1 to 1."""
    shared, union, hull = _parts(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def inside(spans: Tensor, lengths: Tensor, T: int) -> Tensor:
    """The clips of every span: those whose middle is in it, and the one that its own middle is in.

    spans    (B, W, 2)  start and end
    lengths  int64 (B,)  real clips of each target, of which spans are fractions
    returns  bool (B, W, T)
    """
    t, n = torch.arange(T, device=lengths.device), lengths[:, None, None]
    middles = ((t + 0.5) / n >= spans[..., :1]) & ((t + 0.5) / n < spans[..., 1:])
    return (middles | (t == (spans.mean(-1, keepdim=True) * n).floor())) & (t < n)


def _parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shared = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return shared, (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared, hull


def nms(spans: Tensor, mask: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Which spans are kept if none may overlap a better one by an IoU above the threshold, greedily from the first.

    spans      (B, K, 2)  best first
    mask       bool (B, K)  spans that are there
    most       at most so many are kept
    returns    int64 (B, most) positions of the kept ones, best first, and bool (B, most), False where there are fewer
    """
    left, rows = mask.clone(), torch.arange(len(spans), device=spans.device)
    kept, there = [], []
    for _ in range(min(most, spans.shape[1])):
        first = left.int().argmax(1)
        kept.append(first)
        there.append(left[rows, first])
        overlaps = iou(spans, spans[rows, first][:, None]) > threshold
        left &= ~overlaps
        left[rows, first] = False
    return torch.stack(kept, 1), torch.stack(there, 1)
