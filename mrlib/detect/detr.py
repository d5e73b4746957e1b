r"""Moment queries: learned vectors ask the memory, each answers with one span and how sure it is (Moment-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021
         (arXiv 2107.09609), after Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020
Here     `DetrDetector` is a decoder and heads: it matches windows with queries, sums what the heads lose after every
         decoder layer and decodes [Moment-DETR]; `DetrDecoder` is Moment-DETR's, `SpanHead` and `ClassHead` are
         everybody's
A head   has `forward(decoded, aligned)`, a dict of tensors (L, B, K, ...) that joins the outputs;
         `cost(outputs, truth)`, (L, B, K, W) for the matching; `losses(outputs, truth, matched)`, a dict of terms (L,);
         `score(outputs)`, the factor (B, K) that it adds to the score, or None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.layers import MLP, DecoderLayer, sine_positions
from mrlib.ops import spans
from mrlib.ops.counts import shared_count
from mrlib.ops.matching import match
from mrlib.settings import require

NEAR_END = 1e-3  # how near 0 and 1 a reference comes in its logit


class Decoded(NamedTuple):
    """What a decoder knows after each of its L layers."""

    states: Tensor  # (L, B, K, d) of the moment queries
    references: Tensor | None = None  # (L, B, K, 2) centre and width that each layer began with; None: there are none


class Truth(NamedTuple):
    """The windows that queries are matched with."""

    spans: Tensor  # (B, W, 2) start and end
    mask: Tensor  # bool (B, W)
    rows: Tensor  # bool (B,) samples that have clips: the others teach nothing
    batch: Batch


def logit(x: Tensor) -> Tensor:
    """The inverse of the sigmoid, its argument kept away from 0 and 1."""
    return (x.clamp(min=NEAR_END) / (1 - x).clamp(min=NEAR_END)).log()


def to_ends(spans_cw: Tensor) -> Tensor:
    """Centre and width (..., 2) as start and end (..., 2)."""
    centre, half = spans_cw[..., 0], spans_cw[..., 1] / 2
    return torch.stack([centre - half, centre + half], -1)


def to_centre(ends: Tensor) -> Tensor:
    """Start and end (..., 2) as centre and width (..., 2)."""
    return torch.stack([ends.mean(-1), ends[..., 1] - ends[..., 0]], -1)


class DetrDecoder(nn.Module):
    """Transformer decoder of learned queries over the clips and the tokens beside them.  [Moment-DETR]"""

    def __init__(
        self,
        width: int,
        *,
        moment_queries: int,
        decoder_layers: int,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        super().__init__()
        for name, count in (("moment_queries", moment_queries), ("decoder_layers", decoder_layers)):
            require(type(count) is int and count >= 1, name, count, "1 or more")
        self.moment_queries = nn.Embedding(moment_queries, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, aligned: Aligned) -> Decoded:
        memory, mask = aligned.target, aligned.mask
        positions = sine_positions(mask, memory.shape[-1])
        if aligned.context is not None:
            tokens, there, places = aligned.context, aligned.context_mask, aligned.context_positions
            there = mask.new_ones(tokens.shape[:2]) if there is None else there
            places = torch.zeros_like(tokens) if places is None else places
            memory, mask = torch.cat([memory, tokens], 1), torch.cat([mask, there], 1)
            positions = torch.cat([positions, places], 1)
        asked = self.moment_queries.weight.expand(len(memory), -1, -1)
        x, states = torch.zeros_like(asked), []
        for layer in self.layers:
            x = layer(x, asked, memory, positions, mask)
            states.append(self.norm(x))
        return Decoded(torch.stack(states))


class SpanHead(nn.Module):
    r"""Where the moment is: $(\hat c, \hat w) = \sigma(\mathrm{MLP}(\eta) + \mathrm{logit}(r))$, r the reference.

    Without references the logit is left out  [Moment-DETR]; with them  [QD-DETR]
    """

    def __init__(self, width: int, *, cost_l1: float = 10.0, cost_giou: float = 1.0):
        """cost_l1, cost_giou  what a distance and an overlap weigh in the matching"""
        super().__init__()
        self.mlp, self.cost_l1, self.cost_giou = MLP(width, 2, 3), cost_l1, cost_giou

    def forward(self, decoded: Decoded, aligned: Aligned) -> dict[str, Tensor]:
        """spans_cw (L, B, K, 2), centre and width"""
        x = self.mlp(decoded.states)
        return {"spans_cw": (x if decoded.references is None else x + logit(decoded.references)).sigmoid()}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        found, windows = outputs["spans_cw"].float()[:, :, :, None], truth.spans[None, :, None]
        distance = (found - to_centre(windows)).abs().sum(-1)
        return self.cost_l1 * distance - self.cost_giou * spans.giou(to_ends(found), windows)

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """l1 and giou, means over the matched pairs; l1 of centre and width."""
        there, count = matched >= 0, shared_count((matched[0] >= 0).sum())
        found = outputs["spans_cw"].float()
        found = found.gather(2, matched.clamp(min=0)[..., None].expand(-1, -1, -1, 2))  # (L, B, W, 2)
        distance = (found - to_centre(truth.spans)).abs().mean(-1)
        apart = 1 - spans.giou(to_ends(found), truth.spans.expand_as(found))
        return {name: (x * there).sum((1, 2)) / count for name, x in (("l1", distance), ("giou", apart))}

    def score(self, outputs: dict[str, Tensor]) -> None:
        return None


class ClassHead(nn.Module):
    """How sure a query is that it answers: two logits, foreground and background.  [Moment-DETR]"""

    def __init__(self, width: int, *, cost_class: float = 4.0, background: float = 0.1):
        """cost_class weighs the probability in the matching, background the queries without a window in the loss"""
        super().__init__()
        self.linear, self.cost_class, self.background = nn.Linear(width, 2), cost_class, background

    def forward(self, decoded: Decoded, aligned: Aligned) -> dict[str, Tensor]:
        """logits (L, B, K, 2)"""
        return {"logits": self.linear(decoded.states)}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        return -self.cost_class * outputs["logits"].float().softmax(-1)[..., :1].expand(-1, -1, -1, truth.mask.shape[1])

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """class, the cross-entropy: a plain mean over all queries, in which those of the background count less."""
        logits = outputs["logits"].float()
        chosen = torch.arange(logits.shape[2], device=matched.device) == matched[..., None]  # (L, B, W, K)
        background = (~chosen.any(2)).long()
        weight = torch.where(background == 1, self.background, 1.0) * truth.rows[:, None]
        each = F.cross_entropy(logits.flatten(0, 2), background.flatten(), reduction="none").view_as(weight)
        return {"class": (each * weight).sum((1, 2)) / shared_count(truth.rows.sum() * logits.shape[2])}

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["logits"][-1].float().softmax(-1)[..., 0]


class DetrDetector(nn.Module):
    """A decoder and the heads that read it.  [Moment-DETR]"""

    def __init__(
        self,
        decoder: nn.Module,
        heads: Sequence[nn.Module],
        *,
        most_windows: int = 5,
        surplus: str = "drawn",
        length: str = "clips",
    ):
        """decoder(aligned) -> Decoded, and heads as the module says.

        most_windows  of a sample that are matched
        surplus       which these are where there are more: "drawn" anew at every step, or the "first"
        length        what a span is a fraction of when it is decoded: the real "clips", as in training; "duration", as
                      in the official inference
        """
        super().__init__()
        require(length in ("clips", "duration"), "length", length, "clips or duration")
        require(surplus in ("drawn", "first"), "surplus", surplus, "drawn or first")
        require(type(most_windows) is int and most_windows >= 1, "most_windows", most_windows, "1 or more")
        self.decoder, self.heads = decoder, nn.ModuleList(heads)
        self.most_windows, self.surplus, self.length = most_windows, surplus, length

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """What the heads say after every decoder layer, and the states (L, B, K, d) that they read."""
        decoded = self.decoder(aligned)
        said = {name: x for head in self.heads for name, x in head(decoded, aligned).items()}
        return said | {"states": decoded.states}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """A moment of every query, after the last layer; no suppression."""
        duration = (batch.duration_s / (batch.lengths * batch.clip_s).clamp(min=1e-6))[:, None, None]
        found = to_ends(outputs["spans_cw"][-1].float())
        found = found * duration if self.length == "duration" else found
        found = found.clamp(min=0).minimum(duration.clamp(max=1))
        factors = [factor for head in self.heads if (factor := head.score(outputs)) is not None]
        scores, order = torch.stack(factors).prod(0).sort(dim=-1, descending=True, stable=True)
        there = batch.target_mask.any(1, keepdim=True).expand_as(scores)
        return Moments(found.gather(1, order[..., None].expand_as(found)), scores, there)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict | None = None
    ) -> dict[str, Tensor]:
        """The terms of the heads, of all decoder layers together; with a teacher's outputs also "distill".

        distill  how far the directions of the first queries' states are from the teacher's, all layers  [AMR stage 2]
        """
        terms = {name: x.sum() for name, x in self.layer_losses(outputs, batch).items()}
        if teacher is None:
            return terms
        base = teacher["states"].float()
        alike = F.cosine_similarity(outputs["states"][:, :, : base.shape[2]].float(), base, dim=-1)
        rows = batch.target_mask.any(1)
        apart = (1 - alike.mean((0, 2))) * rows
        return terms | {"distill": apart.sum() / shared_count(rows.sum())}

    def layer_losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms of the heads, (L,), every layer with its own matching."""
        truth = self.truth(batch)
        matched = self.match(outputs, truth)
        return {name: x for head in self.heads for name, x in head.losses(outputs, truth, matched).items()}

    def truth(self, batch: Batch) -> Truth:
        """The windows of a batch, `most_windows` of a sample."""
        windows, mask = batch.labels.spans.float(), batch.labels.span_mask
        if mask.shape[1] > self.most_windows:
            first = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
            drawn = (
                first if self.surplus == "first" else torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2)
            )
            kept = drawn.argsort(1)[:, : self.most_windows]
            windows, mask = windows.gather(1, kept[..., None].expand(-1, -1, 2)), mask.gather(1, kept)
        rows = batch.target_mask.any(1)
        return Truth(windows, mask & rows[:, None], rows, batch)

    def match(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        """The query of every window after every layer, int64 (L, B, W); -1: none."""
        return match(sum(head.cost(outputs, truth) for head in self.heads), truth.mask)
