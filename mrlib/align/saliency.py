r"""Losses that make an aligner's saliency rank clips as the annotators did (Moment-DETR, QD-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021, and Moon
         et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
Here     `margin` orders pairs of clips  [Moment-DETR]; `rank_contrast` separates the clips of each rank from all others
         and `negative` lowers the saliency for a negative query  [QD-DETR]; `terms` is all three. `ranking_pairs` and
         `negative_rows` give the labels that these need, unless the batch brings them
Departs  with windows only, the official code pairs clips inside and outside the first window, and pairs a clip with
         itself where all clips are inside; we use all windows, and no pair in that case. There, another query of
         the same video can be the negative query; here it cannot
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.ops.counts import shared_count
from mrlib.ops.whole_batch import drawn, own, whole

MARGIN, TEMPERATURE = 0.2, 0.5
RANKS = 12  # summed scores of three annotators, 0..12
PROBABILITY_EPS = 1e-6  # probabilities are kept this far from 0 and 1 before their logit is taken


def saliency_labels(batch: Batch) -> Tensor:
    """The annotators' summed scores (B, T); where a sample has none, 1 inside a window and 0 outside."""
    labels = batch.labels
    return torch.where(labels.saliency_mask[:, None], labels.saliency, labels.relevant.to(labels.saliency.dtype))


def ranking_pairs(batch: Batch) -> Tensor:
    """Two pairs of clips per sample; the first clip of a pair ranks above the second.  [Moment-DETR]

    With saliency scores: the best and the worst relevant clip; and a relevant and an irrelevant clip, both drawn at
    random. With windows only: two random pairs of a clip inside and a clip outside. Without an irrelevant clip: the
    first kind twice. With scores and no window: twice the best and the worst of all clips  [TVSum]. With neither, which
    is a null query: no pair. If the batch brings pairs, those are returned.

    returns  int64 (B, P, 2), -1 where there is no such pair
    """
    labels, real = batch.labels, batch.target_mask
    if labels.pairs is not None:
        return labels.pairs
    scored_only = labels.saliency_mask & labels.saliency.any(1) & ~labels.span_mask.any(1)  # scores, but no window
    candidates = labels.relevant | scored_only[:, None]  # (B, T)
    relevant, irrelevant = candidates & real, ~candidates & real
    best = labels.saliency.masked_fill(~relevant, -torch.inf).argmax(1)  # (B,)
    worst = labels.saliency.masked_fill(~relevant, torch.inf).argmin(1)  # (B,)
    hard = torch.stack([best, worst], -1).masked_fill(~(labels.saliency_mask & relevant.any(1))[:, None], -1)  # (B, 2)
    order = drawn(_random_pairs, real).movedim(0, 2)  # pair, side of the pair, sample, clip
    inside, outside = (order[:, i].masked_fill(~clips, -1).argmax(-1) for i, clips in enumerate((relevant, irrelevant)))
    both = relevant.any(1) & irrelevant.any(1)  # (B,)
    easy = torch.stack([inside, outside], -1).masked_fill(~both[None, :, None], -1)  # (2, B) each -> (2, B, 2)
    first = torch.where(labels.saliency_mask[:, None], hard, easy[0])  # (B, 2)
    return torch.stack([first, torch.where(both[:, None], easy[1], hard)], 1)  # (B, 2, 2)


def _random_pairs(mask: Tensor) -> Tensor:
    """Uniform numbers for the two sides of two pairs; mask (B, T) -> (B, 2, 2, T)."""
    return torch.rand(2, 2, *mask.shape, device=mask.device).movedim(2, 0)


def margin(saliency: Tensor, pairs: Tensor) -> Tensor:
    r"""Margin loss: the first clip of a pair must score 0.2 more than the second.  [Moment-DETR]

    $$\frac{2}{|P|} \sum_{(i, j) \in P} \max(0,\ 0.2 + s_j - s_i)$$

    P are the pairs of the whole batch; a null query has none.

    saliency (B, T); pairs int64 (B, P, 2), -1: no pair; returns a scalar
    """
    valid = (pairs >= 0).all(-1)  # (B, P)
    scores = saliency.float().gather(1, pairs.clamp(min=0).flatten(1)).unflatten(1, (-1, 2))  # (B, P, 2)
    high, low = scores.unbind(-1)  # (B, P), (B, P)
    return 2 * ((MARGIN + low - high).relu() * valid).sum() / shared_count(valid.sum())


def rank_contrast(saliency: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    r"""Contrast of the clips of rank r or above with all clips, for every rank r.  [QD-DETR]

    $$\frac{1}{12 B} \sum_{r=1}^{11} \sum_b \frac{-1}{|P_r|} \sum_{t \in P_r} \log \mathrm{softmax}(s_b / 0.5)_t, \quad
    P_r = \{t : y_t \geq r\}$$

    A sample without a clip of rank r adds nothing to that rank, a null query to none; B counts the samples that have
    clips, null queries included.

    saliency  s (B, T)  clips scored for a negative query may be appended, with y = 0
    scores    y (B, T)  from 0 to 12
    mask      bool (B, T)  clips that take part
    returns   scalar
    """
    logits = (saliency.float() / TEMPERATURE).masked_fill(~mask, torch.finfo(torch.float32).min)  # (B, T)
    log_share = logits.log_softmax(1)  # (B, T)
    ranks = torch.arange(1, RANKS, device=scores.device)[:, None, None]  # (11, 1, 1)
    positive = (scores >= ranks) & mask  # (11, B, T)
    each = (log_share * positive).sum(2) / positive.sum(2).clamp(min=1)  # (11, B)
    return -each.sum() / RANKS / shared_count(mask.any(1).sum())


def negative_rows(batch: Batch) -> Tensor:
    """Row of each sample's negative query: `labels.negative`, else the next row.  [QD-DETR]

    returns  int64 (B,) rows of the whole batch, -1 where there is none, as for two rows of the same video
    """
    if batch.labels.negative is not None:
        return batch.labels.negative
    video = whole(batch.video)
    rows = torch.arange(len(video), device=video.device).roll(-1)
    return own(torch.where(video[rows] == video, -1, rows))


def negative(saliency: Tensor, mask: Tensor, samples: int | Tensor) -> Tensor:
    r"""Saliency for a negative query should be low: $-\log(1 - \sigma(s^-))$ summed over the clips.  [QD-DETR]

    saliency  (B, T)  logits of the clips for the negative query
    mask      bool (B, T)  clips that count
    samples   number of samples that the sum is divided by
    returns   scalar
    """
    return F.softplus(saliency.float().masked_fill(~mask, -torch.inf)).sum() / shared_count(samples)


def terms(
    aligned: Aligned, batch: Batch, score: Callable[[Tensor, Tensor], Tensor], *, probabilities: bool = False
) -> dict[str, Tensor]:
    """The three losses of the saliency, for an aligner that can score its clips for another query.  [QD-DETR]

    score          score(query (B, N, d), query_mask bool (B, N)) -> (B, T), the saliency of the clips for that query
    probabilities  the saliency is a probability, whose logit "negative" needs; False: it is a logit

    margin    `margin` of two pairs of clips per sample
    contrast  `rank_contrast` over the clips of the sample and the same clips scored for a negative query
    negative  `negative` of the clips scored for a negative query

    Of a null query only the clips scored for its negative query count, in "negative"; it adds nothing to the others.
    """
    mask, scores, rows = aligned.mask, saliency_labels(batch), negative_rows(batch)  # (B, T), (B, T), (B,)
    negative_mask, rows = (rows >= 0)[:, None] & mask, rows.clamp(min=0)  # (B, T), (B,)
    negative_saliency = score(whole(aligned.query)[rows], whole(aligned.query_mask)[rows])  # (B, T)
    joined = ((aligned.saliency, negative_saliency), (scores, torch.zeros_like(scores)), (mask, negative_mask))
    logits = negative_saliency.float().logit(PROBABILITY_EPS) if probabilities else negative_saliency  # (B, T)
    return {
        "margin": margin(aligned.saliency, ranking_pairs(batch)),
        "contrast": rank_contrast(*(torch.cat(sides, 1) for sides in joined)),  # of (B, 2 T)
        "negative": negative(logits, negative_mask, negative_mask.any(1).sum()),
    }
