r"""Clips that have nothing to do with the query look at dummies instead of its words (CG-DETR).

Paper    Moon et al., "Correlation-Guided Query-Dependency Calibration for Video Temporal Grounding", 2023
         (arXiv 2311.08835)
Here     `AdaptiveAttention` and `AdaptiveLayer` are its cross-attention, `CgDetrAligner` the dummies that a query
         conditions, the saliency token and the losses  [CG-DETR]
Ours     padding is hidden everywhere. The share of a clip's attention that goes to words has the terms of the saliency,
         as in the released code, and stays 1e-6 away from 0 and 1 in their logarithms
Departs  wjun0830/CGDETR also aligns moments with sentences, distills that into the attention and keeps dummies, and
         prompts, at right angles: three losses that are left out here. To it, queries of two cuts of one film are not
         foreign to each other; here only those of one cut are not
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.projected import Sizes
from mrlib.align.text_to_video import T2VLayer, TextToVideoAligner, Words
from mrlib.align.uvcom import over_vectors, unit
from mrlib.data import Batch, Widths
from mrlib.layers import Attention, Dropout, EncoderLayer, attend, masked_mean, sine_positions
from mrlib.ops.counts import shared_count
from mrlib.settings import require


class DropPath(Dropout):
    """All of what is added to a sample is dropped, or nothing.  [CG-DETR]"""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x.new_ones(len(x), *[1] * (x.dim() - 1)))


class AdaptiveAttention(Attention):
    r"""Attention to dummies and words of which only the words give something.  [CG-DETR]

    $$A_t = W_o \sum_n a_{tn} W_v y_n + b_o, \quad \kappa_t = \sum_n a_{tn}, \quad
    a_{t \cdot} = \mathrm{softmax}([\text{dummies} \,|\, \text{words}])$$

    Both sums are over the words alone, so that a clip that likes the dummies takes up little; κ is the mean over heads.
    """

    def __init__(self, width: int, heads: int, dropout: float, dummies: int):
        """The first `dummies` keys are dummies."""
        super().__init__(width, heads, dropout)
        self.dummies = dummies

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, T, d); k, v (B, K + N, d); key_mask bool (B, K + N); returns (B, T, d) and κ (B, T)."""
        q, k, v = self.project(q, k, v)
        v = v.unflatten(-1, (self.heads, -1))
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)  # a channel more, which sums the weights
        words = torch.arange(v.shape[1], device=v.device) >= self.dummies
        v = (v * words[:, None, None]).flatten(-2)
        gathered = attend(q, k, v, self.heads, key_mask, self.dropout if self.training else 0.0)
        gathered = gathered.unflatten(-1, (self.heads, -1))
        return self.out_proj(gathered[..., :-1].flatten(-2)), gathered[..., -1].mean(-1)


class AdaptiveLayer(T2VLayer):
    """The layer of QD-DETR with adaptive attention, which drops what it adds whole.  [CG-DETR]"""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, activation: str, dummies: int):
        super().__init__(width, heads, hidden, dropout, activation)
        self.cross_attn = AdaptiveAttention(width, heads, dropout, dummies)
        self.dropout = DropPath(dropout)

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """x, positions (B, T, d), dummies before the words; returns (B, T, d) and κ (B, T)."""
        attended, kappa = self.cross_attn(x + positions, words.keys, words.values, words.mask)
        return self.take_up(x, attended), kappa

    def alone(self, x: Tensor) -> Tensor:
        """The same where there is nothing to attend to, of which the bias is left; (B, T, d) -> (B, T, d)."""
        return self.take_up(x, self.cross_attn.out_proj.bias.expand_as(x))


@dataclass(frozen=True, kw_only=True)
class CgDetrSizes(Sizes):
    """The released numbers; `layers` go from words to clips, `dropout` also drops what a layer adds.  [CG-DETR]"""

    encoder_layers: int = 3
    dummies: int = 45
    dummy_layers: int = 2  # in which dummies look at the words
    prompts: int = 10  # of which one joins the saliency token


class CgDetrAligner(TextToVideoAligner):
    """Words or dummies into clips, then clips and a token that knows the video among themselves.  [CG-DETR]"""

    def __init__(self, widths: Widths, sizes: CgDetrSizes):
        width, dummies, prompts = sizes.width, sizes.dummies, sizes.prompts
        require(dummies >= 1, "dummies", dummies, "1 or more")
        require(prompts >= 1, "prompts", prompts, "1 or more")
        counts = sizes.dummy_layers, sizes.encoder_layers
        before, among = ([EncoderLayer(*sizes.layer) for _ in range(n)] for n in counts)
        for layer in (*before, *among):
            layer.dropout = DropPath(sizes.dropout)
        into_clips = [AdaptiveLayer(*sizes.layer, dummies) for _ in range(sizes.layers)]
        super().__init__(widths, sizes, into_clips, among)
        self.dummy_encoder = nn.ModuleList(before)
        self.dummies, self.dummy_positions = (nn.Parameter(torch.randn(dummies, width)) for _ in range(2))
        self.global_token = nn.Parameter(torch.randn(prompts, width))  # the prompts
        self.clip_kind, self.word_kind = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> tuple[Tensor, ...]:
        """Clips in the light of a query, and how relevant they are to it.  [CG-DETR]

        Returns too, for the losses, κ (B, T): the share of every clip's attention that went to words, the mean over
        heads and layers.
        """
        target, query = target + self.clip_kind, query + self.word_kind
        positions, words = sine_positions(mask, self.width), self.words(query, query_mask)
        x, kappas = target, []
        for layer in self.layers:
            x, kappa = layer(x, positions, words)
            kappas.append(kappa)
        kappa = torch.stack(kappas).mean(0).clamp(0, 1)  # with dropout weights may sum to more
        token = self.saliency_token(target, mask, kappa)
        for layer in self.layers:
            token = layer.alone(token)
        whole, clips = self.encode(token, x, positions, mask)
        clips = clips + whole
        return clips, self.relevance(whole, clips), kappa

    def words(self, query: Tensor, query_mask: Tensor) -> Words:
        """Dummies that have looked at the words, and the words; query (B, N, d), query_mask bool (B, N).  [CG-DETR]"""
        dummies, places = (x.expand(len(query), -1, -1).to(query.dtype) for x in (self.dummies, self.dummy_positions))
        mask = torch.cat([query_mask.new_ones(dummies.shape[:2]), query_mask], 1)
        positions, y = torch.cat([places, torch.zeros_like(query)], 1), torch.cat([dummies, query], 1)
        for layer in self.dummy_encoder:
            y = layer(y, positions, mask)
        y = torch.cat([y[:, : dummies.shape[1]], query.to(y.dtype)], 1)
        return Words(y + positions, y, mask)

    def saliency_token(self, target: Tensor, mask: Tensor, kappa: Tensor) -> Tensor:
        r"""The mean clip and the prompt that is most like how relevant clips differ from it.  [CG-DETR]

        $$\bar x + p_{j^*} w_{j^*}, \quad w_j = \frac{\sum_t \kappa_t\, \mathrm{softmax}_j(\cos(x_t - \bar x, p_j))}
        {\sum_t \kappa_t}, \quad j^* = \arg\max_j w_j$$

        Neither $\bar x$ nor κ is taught by it.

        target (B, T, d); kappa (B, T); returns (B, 1, d)
        """
        mean = masked_mean(target, mask).detach()[:, None]
        # a single clip is its own mean, and what is 0 has no direction to be taught
        apart = (target - mean) * (mask.sum(1) > 1)[:, None, None]
        like = (unit(apart) @ unit(self.global_token).mT).softmax(2)
        weights = (over_vectors(kappa.detach()[:, None].to(like.dtype), mask) @ like)[:, 0]
        best, which = weights.max(1)
        return mean + (best[:, None] * self.global_token[which])[:, None]

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        r"""Those of QD-DETR's saliency, and the same of κ.  [CG-DETR]

        margin, contrast, negative              of the saliency, as in `saliency.terms`
        words_margin, ..._contrast, ..._negative  of κ, with the same pairs; the last is $-\log(1 - \kappa)$
        words_match                             the binary cross-entropy of κ, of relevant clips and others
        """
        labels = replace(batch.labels, pairs=saliency.ranking_pairs(batch))
        batch, (kappa,), foreign = replace(batch, labels=labels), aligned.cache["more"], []

        def asked(query: Tensor, query_mask: Tensor) -> Tensor:
            _, relevance, told = self.fuse(aligned.cache["target"], aligned.mask, query, query_mask)
            foreign.append(told)
            return relevance

        terms = saliency.terms(aligned, batch, asked)
        of_words = saliency.terms(replace(aligned, saliency=kappa), batch, lambda *_: foreign[0], shares=True)
        match = F.binary_cross_entropy_with_logits(
            saliency.logit(kappa), saliency.scores_of(batch).float().clamp(0, 1), reduction="none"
        )
        of_words["match"] = (match * aligned.mask).sum() / shared_count(aligned.mask.sum())
        return terms | {f"words_{name}": term for name, term in of_words.items()}
