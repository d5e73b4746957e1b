r"""Clips unrelated to the query attend to dummy tokens instead of its words (CG-DETR).

Paper    Moon et al., "Correlation-Guided Query-Dependency Calibration for Video Temporal Grounding", 2023
         (arXiv 2311.08835)
Here     `AdaptiveAttention` and `AdaptiveLayer` are its cross-attention, `CgDetrAligner` has the dummies that depend on
         the query, the saliency token and the losses  [CG-DETR]
Ours     padding is hidden everywhere. The share of a clip's attention that falls on words has the same losses as the
         saliency, as in the released code; it is kept 1e-6 away from 0 and 1 in their logarithms
Kept     as released, for its checkpoints: `released_masks`, and attention without maps of its own, `projected=False`
Departs  wjun0830/CGDETR also aligns moments with sentences, distils that into the attention, and keeps dummies, and
         prompts, orthogonal: these losses are left out here. There, a query of another cut of the same video cannot be
         the negative query; here only a query of the same cut cannot
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.fused import Fused, GlobalTokenAligner, from_sizes
from mrlib.align.words import Words, every_word, released_masks
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import (
    AttentionWeights,
    EncoderLayer,
    FeedForward,
    Sizes,
    masked_mean,
    normalised_shares,
    sine_positions,
    unit_vectors,
)
from mrlib.ops.attention import attend
from mrlib.ops.counts import shared_count
from mrlib.ops.dropout import dropout as drop_out


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for a share p of the samples.  [CG-DETR]"""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (B, ...): in training, 0 for a share p of the samples, x / (1 - p) for the others."""
        ones = x.new_ones(len(x), *[1] * (x.dim() - 1))  # (B, 1, ...)
        return x * drop_out(ones, self.p) if self.training else x


class AdaptiveAttention(AttentionWeights):
    r"""Attention over dummies and words whose output sums over the words only.  [CG-DETR]

    $$A_t = W_o \sum_n a_{tn} W_v y_n + b_o, \quad \kappa_t = \sum_n a_{tn}, \quad
    a_{t \cdot} = \mathrm{softmax}([\text{dummies} \,|\, \text{words}])$$

    Both sums run over the words only: the more a clip attends to the dummies, the less it changes. κ is averaged over
    the heads.
    """

    def __init__(self, width: int, heads: int, dropout: float, dummies: int, projected: bool = True):
        """The first `dummies` keys are dummies.

        projected  False: queries, keys and values enter as they are, as in the released code
        """
        super().__init__(width, heads, dropout)
        self.dummies = dummies
        if not projected:
            self.in_proj_weight = self.in_proj_bias = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """q (B, T, d); k, v (B, P + N, d); key_mask, visible as in `attend`; returns (B, T, d) and κ (B, T)."""
        if self.in_proj_weight is not None:
            q, k, v = self.project_qkv(q, k, v)
        v = v.unflatten(-1, (self.heads, -1))  # (B, P + N, heads, d / heads)
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)  # (B, P + N, heads, d / heads + 1), ones sum the weights
        is_word = torch.arange(v.shape[1], device=v.device) >= self.dummies  # (P + N,)
        v = (v * is_word[:, None, None]).flatten(-2)  # (B, P + N, d + heads)
        dropout = self.dropout if self.training else 0.0
        output = attend(q, k, v, self.heads, key_mask, dropout, visible)  # (B, T, d + heads)
        output = output.unflatten(-1, (self.heads, -1))  # (B, T, heads, d / heads + 1)
        return self.out_proj(output[..., :-1].flatten(-2)), output[..., -1].mean(-1)  # (B, T, d), (B, T)


class AdaptiveLayer(nn.Module):
    """QD-DETR's layer, `T2VLayer`, with adaptive attention, and drop path instead of dropout.  [CG-DETR]"""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        activation: str,
        dummies: int,
        projected: bool = True,
    ):
        super().__init__()
        self.cross_attn = AdaptiveAttention(width, heads, dropout, dummies)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = DropPath(dropout)
        # initialised again after the feed-forward, so that a seed gives the weights that it has always given
        self.cross_attn = AdaptiveAttention(width, heads, dropout, dummies, projected)

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """x, positions (B, T, d); words begin with the dummies; returns (B, T, d) and κ (B, T)."""
        attended, kappa = self.cross_attn(x + positions, words.keys, words.values, words.mask, words.visible)
        return self._add(x, attended), kappa

    def without_words(self, x: Tensor) -> Tensor:
        """The output if there are no words, so that attention returns its bias; (B, T, d) -> (B, T, d)."""
        return self._add(x, self.cross_attn.out_proj.bias.expand_as(x))

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        """The two residual sums of the layer; (B, T, d) -> (B, T, d)."""
        z = x + self.dropout(attended)
        return self.norm2(z + self.dropout(self.feed_forward(self.norm1(z))))


@dataclass(frozen=True, kw_only=True)
class CgDetrSizes(Sizes):
    """The released sizes; `layers` counts those from words to clips, `dropout` is also the drop path's.  [CG-DETR]"""

    encoder_layers: int = 3
    dummies: int = 45  # P
    dummy_layers: int = 2  # of the encoder in which dummies attend to the words
    prompts: int = 10  # candidates, the best of which are added to the saliency token
    best_prompts: int = 1  # how many of them; as many as Lighthouse takes: 2
    masks: str = "keys"  # what clips may attend to: all dummies and words of their query, or "released"
    projected: bool = True  # the cross-attention maps queries, keys and values; False: not, as released


class CgDetrAligner(GlobalTokenAligner):
    """Clips attend to words and dummies, then clips and a saliency token to one another.  [CG-DETR]"""

    def __init__(self, widths: Widths, sizes: CgDetrSizes):
        """The saliency token takes the place of the global token; `global_token` (prompts, d) holds the prompts."""
        width, dummies, prompts = sizes.width, sizes.dummies, sizes.prompts
        require(dummies >= 1, "dummies", dummies, "1 or more")
        require(prompts >= 1, "prompts", prompts, "1 or more")
        require(1 <= sizes.best_prompts <= prompts, "best_prompts", sizes.best_prompts, "from 1 to prompts")
        require(sizes.masks in ("keys", "released"), "masks", sizes.masks, "keys or released")
        counts = sizes.dummy_layers, sizes.encoder_layers
        dummy_encoder, encoder = (
            [EncoderLayer(*sizes.layer, residual_dropout=DropPath) for _ in range(n)] for n in counts
        )
        into_clips = [AdaptiveLayer(*sizes.layer, dummies, sizes.projected) for _ in range(sizes.layers)]
        super().__init__(widths, sizes, into_clips, encoder)
        self.best_prompts = sizes.best_prompts
        self.masks = every_word if sizes.masks == "keys" else partial(released_masks, heads=sizes.heads)
        self.dummy_encoder = nn.ModuleList(dummy_encoder)
        self.dummies, self.dummy_positions = (nn.Parameter(torch.randn(dummies, width)) for _ in range(2))
        self.global_token = nn.Parameter(torch.randn(prompts, width))  # the prompts
        self.clip_kind, self.word_kind = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))  # token types

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Fused:
        """Projected clips (B, T, d) and words (B, N, d) -> clips (B, T, d) and their saliency (B, T).  [CG-DETR]

        Cache: `kappa` (B, T), the share of every clip's attention that falls on words, the mean over heads and layers.
        """
        target, query = target + self.clip_kind, query + self.word_kind
        positions, words = sine_positions(mask, self.width), self.words(query, query_mask)
        words = words._replace(visible=self.masks(mask, words.mask))
        x, kappas = target, []
        for layer in self.layers:
            x, kappa = layer(x, positions, words)  # (B, T, d), (B, T)
            kappas.append(kappa)
        kappa = torch.stack(kappas).mean(0).clamp(0, 1)  # (B, T), dropout may scale the weights to a sum above 1
        token = self.saliency_token(target, mask, kappa)  # (B, 1, d)
        for layer in self.layers:
            token = layer.without_words(token)
        token, clips = self.encode(token, x, positions, mask)  # (B, 1, d), (B, T, d)
        clips = clips + token  # (B, T, d)
        return Fused(clips, self.relevance(token, clips), {"kappa": kappa})

    def words(self, query: Tensor, query_mask: Tensor) -> Words:
        """P dummies that attended to the words, followed by the words.  [CG-DETR]

        query (B, N, d), query_mask bool (B, N); returns keys and values (B, P + N, d) and a mask bool (B, P + N)
        """
        # (B, P, d) each
        dummies, places = (x.expand(len(query), -1, -1).to(query.dtype) for x in (self.dummies, self.dummy_positions))
        mask = torch.cat([query_mask.new_ones(dummies.shape[:2]), query_mask], 1)  # (B, P + N)
        positions, y = torch.cat([places, torch.zeros_like(query)], 1), torch.cat([dummies, query], 1)  # (B, P + N, d)
        for layer in self.dummy_encoder:
            y = layer(y, positions, mask)
        y = torch.cat([y[:, : dummies.shape[1]], query], 1)  # (B, P + N, d)
        return Words(y + positions, y, mask)

    def saliency_token(self, target: Tensor, mask: Tensor, kappa: Tensor) -> Tensor:
        r"""The mean clip plus the prompt that best matches how relevant clips differ from it.  [CG-DETR]

        $$\bar x + p_{j^*} w_{j^*}, \quad w_j = \frac{\sum_t \kappa_t\, \mathrm{softmax}_j(\cos(x_t - \bar x, p_j))}
        {\sum_t \kappa_t}, \quad j^* = \arg\max_j w_j$$

        With several best prompts, they are summed. No gradient flows into $\bar x$ or κ.

        target x (B, T, d), mask bool (B, T), kappa (B, T); returns (B, 1, d)
        """
        mean = masked_mean(target, mask).detach()[:, None]  # (B, 1, d)
        # a single clip equals the mean; the difference is multiplied by 0, since a zero vector has no direction
        difference = (target - mean) * (mask.sum(1) > 1)[:, None, None]  # (B, T, d)
        match = (unit_vectors(difference) @ unit_vectors(self.global_token).mT).softmax(2)  # (B, T, prompts)
        weights = (normalised_shares(kappa.detach()[:, None].to(match.dtype), mask) @ match)[:, 0]  # (B, prompts)
        # (B, best_prompts); of equal ones, as for a single clip, the first, where the released code takes any
        best, which = (x[:, : self.best_prompts] for x in weights.sort(dim=1, descending=True, stable=True))
        return mean + (best[..., None] * self.global_token[which]).sum(1, keepdim=True)

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        r"""The saliency losses of QD-DETR, and the same of κ.  [CG-DETR]

        margin, contrast, negative                      of the saliency, as in `saliency.terms`
        words_margin, words_contrast, words_negative    of κ, with the same pairs; the last is $-\log(1 - \kappa)$
        words_match                                     binary cross-entropy of κ, with the annotators' scores, at most
                                                        1, as labels; all 0 for a null query
        """
        with_pairs = replace(batch.labels, pairs=saliency.ranking_pairs(batch))
        batch, kappa, negative_kappa = replace(batch, labels=with_pairs), aligned.cache["kappa"], []

        def score(query: Tensor, query_mask: Tensor) -> Tensor:
            """The saliency (B, T) for another query; its κ is kept for the second set of terms."""
            fused = self.fuse(aligned.cache["target"], aligned.mask, query, query_mask)
            negative_kappa.append(fused.cache["kappa"])
            return fused.saliency

        terms = saliency.terms(aligned, batch, score)
        of_kappa = saliency.terms(
            replace(aligned, saliency=kappa), batch, lambda *_: negative_kappa[0], probabilities=True
        )
        logits = kappa.float().logit(saliency.PROBABILITY_EPS)  # (B, T)
        labels = saliency.saliency_labels(batch).clamp(0, 1)  # (B, T)
        match = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")  # (B, T)
        of_kappa["match"] = (match * aligned.mask).sum() / shared_count(aligned.mask.sum())
        return terms | {f"words_{name}": term for name, term in of_kappa.items()}


build_cg_detr = from_sizes(CgDetrAligner, CgDetrSizes)
