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


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU [Zheng et al. 2020]: IoU less the square of the centres' distance, as a share of the hull."""
    shared, union, hull = _parts(a, b)
    tiny = torch.finfo(union.dtype).tiny
    apart = (a.mean(-1) - b.mean(-1)) / hull.clamp(min=torch.finfo(union.dtype).eps)
    return shared / union.clamp(min=tiny) - apart**2


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


def soft_nms(
    spans: Tensor, scores: Tensor, mask: Tensor, *, sigma: float, least: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Greedily the best span, after which the others' scores fall by how they overlap it.  [Bodla et al. 2017]

    $$s_k \leftarrow s_k \exp(-\mathrm{IoU}^2 / \sigma)$$

    spans, scores  (B, K, 2), (B, K)  scores above 0, in any order
    mask           bool (B, K)  spans that are there
    least          a span whose score has fallen to this is dropped
    most           at most so many are taken
    returns        int64 (B, M) positions of those taken, best first; their scores, fallen as they are (B, M); and bool
                   (B, M), False where there are fewer. M is the smaller of `most` and K
    """
    left, rows = scores.masked_fill(~mask, 0), torch.arange(len(spans), device=spans.device)
    taken, fallen = [], []
    for _ in range(min(most, spans.shape[1])):
        first = left.argmax(1)
        taken.append(first)
        fallen.append(left[rows, first])
        left = left * torch.exp(-(iou(spans, spans[rows, first][:, None]) ** 2) / sigma)
        left[rows, first] = 0
    values = torch.stack(fallen, 1)
    return torch.stack(taken, 1), values, values > least


def vote(chosen: Tensor, spans: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Every chosen span as the mean, weighed by score, of all that overlap it by an IoU from the threshold on.

    chosen   (B, M, 2)  of the spans
    spans    (B, K, 2)
    scores   (B, K)  0 for what has no vote
    returns  (B, M, 2)  as they were where nothing has a vote
    """
    weights = scores[:, None] * (iou(chosen[:, :, None], spans[:, None]) >= threshold)
    total = weights.sum(-1, keepdim=True)
    mean = weights @ spans / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, mean, chosen)
