r"""What makes an aligner's saliency rank clips as the annotators did (Moment-DETR, QD-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021, and Moon
         et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
Here     `margin` orders pairs of clips  [Moment-DETR]; `rank_contrast` sets the clips of each rank apart from all
         others and `negative` says no to a foreign query  [QD-DETR]; `terms` is all three. `ranking_pairs` and
         `foreign_rows` make the labels that these need, where the batch brings none
Departs  with windows only, the official code pairs clips in and out of the first window and, where all is inside, a
         clip with itself; we take all windows, and no pair there. To it, two queries of one video are foreign to each
         other; to us they are not
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.ops.counts import shared_count

MARGIN, TEMPERATURE = 0.2, 0.5
RANKS = 12  # summed scores of three annotators, 0..12


def scores_of(batch: Batch) -> Tensor:
    """(B, T) the annotators' summed scores; where there are none, 1 inside a window and 0 outside."""
    labels = batch.labels
    return torch.where(labels.saliency_mask[:, None], labels.saliency, labels.relevant.to(labels.saliency.dtype))


def ranking_pairs(batch: Batch) -> Tensor:
    """Two pairs of clips per sample of which the first ranks above the second.  [Moment-DETR]

    With saliency scores: the best and the worst relevant clip; a relevant and an irrelevant clip, both drawn. With
    windows only: twice a clip inside and a clip outside, drawn. Where there is no irrelevant clip, the first kind
    twice. With scores and no window: twice the best and the worst of all clips  [TVSum]. Those of the batch, if it
    brings some.

    returns  int64 (B, P, 2), -1 where there is no such pair
    """
    labels, real = batch.labels, batch.target_mask
    if labels.pairs is not None:
        return labels.pairs
    alone = labels.saliency_mask & labels.saliency.any(1) & ~labels.span_mask.any(1)  # scores of all clips, no window
    among = labels.relevant | alone[:, None]
    relevant, other = among & real, ~among & real
    best = labels.saliency.masked_fill(~relevant, -torch.inf).argmax(1)
    worst = labels.saliency.masked_fill(~relevant, torch.inf).argmin(1)
    hard = torch.stack([best, worst], -1).masked_fill(~(labels.saliency_mask & relevant.any(1))[:, None], -1)
    drawn = torch.rand(2, 2, *real.shape, device=real.device)  # pair, side, sample, clip
    inside, outside = (drawn[:, i].masked_fill(~among, -1).argmax(-1) for i, among in enumerate((relevant, other)))
    there = relevant.any(1) & other.any(1)
    easy = torch.stack([inside, outside], -1).masked_fill(~there[None, :, None], -1)
    first = torch.where(labels.saliency_mask[:, None], hard, easy[0])
    return torch.stack([first, torch.where(there[:, None], easy[1], hard)], 1)


def margin(saliency: Tensor, pairs: Tensor) -> Tensor:
    r"""How far clips are from being 0.2 above those they rank above.  [Moment-DETR]

    $$\frac{2}{|P|} \sum_{(i, j) \in P} \max(0,\ 0.2 + s_j - s_i)$$

    saliency (B, T); pairs int64 (B, P, 2), -1: none; returns a scalar
    """
    there = (pairs >= 0).all(-1)
    high, low = saliency.float().gather(1, pairs.clamp(min=0).flatten(1)).unflatten(1, (-1, 2)).unbind(-1)
    return 2 * ((MARGIN + low - high).relu() * there).sum() / shared_count(there.sum())


def rank_contrast(saliency: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    r"""Clips of at least rank r against all others, for every r.  [QD-DETR]

    $$\frac{1}{12 B} \sum_{r=1}^{11} \sum_b \frac{-1}{|P_r|} \sum_{t \in P_r} \log \mathrm{softmax}(s_b / 0.5)_t, \quad
    P_r = \{t : y_t \geq r\}$$

    A sample without a clip of rank r adds nothing to it.

    saliency, scores  (B, T), y of 0..12; to set a foreign query apart too, its clips stand behind with y = 0
    mask              bool (B, T)  clips that take part
    """
    logits = (saliency.float() / TEMPERATURE).masked_fill(~mask, torch.finfo(torch.float32).min)
    likely = logits.log_softmax(1).masked_fill(~mask, 0)
    ranks = torch.arange(1, RANKS, device=scores.device)[:, None, None]
    positive = (scores >= ranks) & mask  # (11, B, T)
    each = (likely * positive).sum(2) / positive.sum(2).clamp(min=1)
    return -each.sum() / RANKS / shared_count(mask.any(1).sum())


def foreign_rows(batch: Batch) -> Tensor:
    """The row of the batch whose query is foreign to this video: the next one's, unless the batch says.  [QD-DETR]

    returns  int64 (B,), -1 where there is none
    """
    if batch.labels.negative is not None:
        return batch.labels.negative
    rows = torch.arange(len(batch), device=batch.video.device).roll(-1)
    return torch.where(batch.video[rows] == batch.video, -1, rows)


def negative(saliency: Tensor, mask: Tensor, samples: int | Tensor) -> Tensor:
    r"""How loudly clips say yes to a foreign query, $-\log(1 - \sigma(s^-))$ summed over the clips.  [QD-DETR]

    saliency (B, T) for the foreign query; mask bool (B, T); the sum is divided by the number of samples
    """
    return F.softplus(saliency.float().masked_fill(~mask, -torch.inf)).sum() / shared_count(samples)


def logit(share: Tensor) -> Tensor:
    """Of a probability that may be 0 or 1, without an infinity."""
    return share.float().logit(1e-6)


def terms(
    aligned: Aligned, batch: Batch, asked: Callable[[Tensor, Tensor], Tensor], *, shares: bool = False
) -> dict[str, Tensor]:
    """What makes an aligner's saliency, where its clips can be asked another query.  [QD-DETR]

    asked     asked(query (B, N, d), query_mask bool (B, N)) -> (B, T), the saliency of the same clips for that query
    shares    the saliency is from 0 to 1, as a probability is, and not its logit
    margin    two pairs of clips per sample
    contrast  clips of each rank against all others, those of the same video under a foreign query among them
    negative  of the foreign query
    """
    mask, scores, rows = aligned.mask, scores_of(batch), foreign_rows(batch)
    there, rows = (rows >= 0)[:, None] & mask, rows.clamp(min=0)
    foreign = asked(aligned.query[rows], aligned.query_mask[rows])
    pairs = ((aligned.saliency, foreign), (scores, torch.zeros_like(scores)), (mask, there))
    return {
        "margin": margin(aligned.saliency, ranking_pairs(batch)),
        "contrast": rank_contrast(*(torch.cat(pair, 1) for pair in pairs)),
        "negative": negative(logit(foreign) if shares else foreign, there, there.any(1).sum()),
    }
