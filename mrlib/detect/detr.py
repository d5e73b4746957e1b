r"""Moment queries: learned vectors that read the clips, each predicting one span and its confidence (Moment-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021
         (arXiv 2107.09609), after Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020
Here     `DetrDetector` is a decoder and heads: it matches windows with moment queries, sums the heads' losses over the
         decoder layers and decodes  [Moment-DETR]; `DetrDecoder` is Moment-DETR's decoder; `SpanHead` and `ClassHead`
         are shared by all DETR detectors
A head   has `forward(decoded, target, mask)`, a dict of tensors (L, B, K, ...) that joins the outputs;
         `cost(outputs, truth)`, its part (L, B, K, W) of the matching cost, or 0.0; `losses(outputs, truth, matched)`,
         a dict of terms (L,); `score(outputs)`, a factor (B, K) of the score, or None. If only the first three of them
         read its outputs, it says so by `only_trains = True`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.arguments import require
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.span_length import in_video, of_clips, span_length
from mrlib.layers import MLP, DecoderLayer, full_precision, sine_positions
from mrlib.ops import spans
from mrlib.ops.counts import shared_count
from mrlib.ops.matching import checked_cost, match
from mrlib.ops.whole_batch import drawn

SPAN_EPS = 1e-3  # smallest x and 1 - x in the logit of x


class Decoded(NamedTuple):
    """The output of each of the L layers of a decoder."""

    states: Tensor  # (L, B, K, d) of the moment queries
    references: Tensor | None = None  # (L, B, K, 2) centre and width before each layer; None: no references


class ContextTokens(NamedTuple):
    """Tokens beside the clips that a decoder may read."""

    tokens: Tensor  # (B, M, d)
    mask: Tensor  # bool (B, M) True = real token
    positions: Tensor  # (B, M, d) added to the tokens as keys


class Truth(NamedTuple):
    """The windows that moment queries are matched with."""

    spans: Tensor  # (B, W, 2) start and end
    mask: Tensor  # bool (B, W)
    rows: Tensor  # bool (B,) samples that have clips; the others have no loss
    clip_mask: Tensor  # bool (B, T) real clips


def have_window(matched: Tensor, moment_queries: int) -> Tensor:
    """Which moment queries were matched with a window; matched int64 (L, B, W), -1: none -> bool (L, B, K)."""
    return (torch.arange(moment_queries, device=matched.device) == matched[..., None]).any(2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """The logit of x, finite also at 0 and 1."""
    return (x.clamp(min=SPAN_EPS) / (1 - x).clamp(min=SPAN_EPS)).log()


def to_ends(spans_cw: Tensor) -> Tensor:
    """Centre and width (..., 2) as start and end (..., 2)."""
    centre, half = spans_cw[..., 0], spans_cw[..., 1] / 2
    return torch.stack([centre - half, centre + half], -1)


def to_centre(ends: Tensor) -> Tensor:
    """Start and end (..., 2) as centre and width (..., 2)."""
    return torch.stack([ends.mean(-1), ends[..., 1] - ends[..., 0]], -1)


class DetrDecoder(nn.Module):
    """Transformer decoder of moment queries that reads the clips and the aligner's context.  [Moment-DETR]"""

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
        """A stack of `DecoderLayer` and the moment queries; `moment_queries` is their number."""
        super().__init__()
        for name, count in (("moment_queries", moment_queries), ("decoder_layers", decoder_layers)):
            require(type(count) is int and count >= 1, name, count, "1 or more")
        self.moment_queries = nn.Embedding(moment_queries, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, target: Tensor, mask: Tensor, query_global: Tensor, context: ContextTokens | None) -> Decoded:
        """The states of the K moment queries after every layer; the memory is T clips and M tokens of the context.

        target (B, T, d), mask bool (B, T); query_global is not read
        """
        memory, positions = target, sine_positions(mask, target.shape[-1])  # (B, T, d)
        if context is not None:
            memory = torch.cat([memory, context.tokens], 1)  # (B, T + M, d)
            mask = torch.cat([mask, context.mask], 1)  # (B, T + M)
            positions = torch.cat([positions, context.positions], 1)  # (B, T + M, d)
        moment_queries = self.moment_queries.weight.expand(len(memory), -1, -1)  # (B, K, d)
        x, states = torch.zeros_like(moment_queries), []
        for layer in self.layers:
            x = layer(x, moment_queries, memory, positions, mask)  # (B, K, d)
            states.append(x)
        return Decoded(self.norm(torch.stack(states)))  # (L, B, K, d)


class SpanHead(nn.Module):
    r"""Centre and width of the moment: $(\hat c, \hat w) = \sigma(\mathrm{MLP}(\eta) + \mathrm{logit}(r))$.

    η is the state and r the reference  [QD-DETR]; without references  [Moment-DETR] the logit is left out.
    """

    def __init__(self, width: int, *, cost_l1: float, cost_giou: float):
        """cost_l1, cost_giou  weights of L1 distance and generalised IoU in the matching"""
        super().__init__()
        self.mlp, self.cost_l1, self.cost_giou = MLP(width, 2, 3), cost_l1, cost_giou

    def forward(self, decoded: Decoded, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """spans_cw  (L, B, K, 2) centre and width"""
        x = self.mlp(decoded.states)  # (L, B, K, 2)
        return {"spans_cw": (x if decoded.references is None else x + inverse_sigmoid(decoded.references)).sigmoid()}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        """L1 distance minus generalised IoU, weighted, of every moment query and window, (L, B, K, W)."""
        predicted = full_precision(outputs["spans_cw"])[:, :, :, None]  # (L, B, K, 1, 2)
        windows = truth.spans[None, :, None]  # (1, B, 1, W, 2)
        distance = (predicted - to_centre(windows)).abs().sum(-1)  # (L, B, K, W)
        return self.cost_l1 * distance - self.cost_giou * spans.giou(to_ends(predicted), windows)

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """l1, of centre and width, and giou; means over the matched pairs, of which a null query has none."""
        valid, count = matched >= 0, shared_count((matched[0] >= 0).sum())  # (L, B, W)
        predicted = full_precision(outputs["spans_cw"])  # (L, B, K, 2)
        predicted = predicted.gather(2, matched.clamp(min=0)[..., None].expand(-1, -1, -1, 2))  # (L, B, W, 2)
        distance = (predicted - to_centre(truth.spans)).abs().mean(-1)  # (L, B, W)
        non_overlap = 1 - spans.giou(to_ends(predicted), truth.spans.expand_as(predicted))  # (L, B, W)
        return {name: (x * valid).sum((1, 2)) / count for name, x in (("l1", distance), ("giou", non_overlap))}

    def score(self, outputs: dict[str, Tensor]) -> None:
        return None


class CrossEntropy:
    """Cross-entropy in which the background, the class of most moment queries, has a lower weight.  [Moment-DETR]"""

    def __init__(self, background: float):
        """background  weight of the moment queries without a window"""
        self.background = background

    def __call__(self, logits: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        """The mean over all moment queries of the weighted terms, not divided by their weights.

        logits    (L, B, K, 2)  foreground and background
        positive  bool (L, B, K)  moment queries that have a window
        rows      bool (B,)  samples that count
        returns   (L,)
        """
        background = (~positive).long()  # (L, B, K) class 0 is the foreground
        weight = torch.where(background == 1, self.background, 1.0) * rows[:, None]  # (L, B, K)
        # (L, B, K)
        each = F.cross_entropy(logits.flatten(0, 2), background.flatten(), reduction="none").view_as(weight)
        return (each * weight).sum((1, 2)) / shared_count(rows.sum() * logits.shape[2])


class ClassHead(nn.Module):
    """Two logits of every moment query: foreground (matched to a window) and background.  [Moment-DETR]"""

    def __init__(self, width: int, *, cost_class: float, loss: Callable[[Tensor, Tensor, Tensor], Tensor]):
        """A head for moment queries of this width.

        cost_class  weight of the probability in the matching
        loss        loss(logits (L, B, K, 2), positive bool (L, B, K), rows bool (B,)) -> (L,), as `CrossEntropy`
        """
        super().__init__()
        self.linear, self.cost_class, self.loss = nn.Linear(width, 2), cost_class, loss

    def forward(self, decoded: Decoded, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """logits  (L, B, K, 2)"""
        return {"logits": self.linear(decoded.states)}

    def cost(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        """Minus the weighted probability of the foreground, the same for every window, (L, B, K, W)."""
        foreground = full_precision(outputs["logits"]).softmax(-1)[..., :1]  # (L, B, K, 1)
        return -self.cost_class * foreground.expand(-1, -1, -1, truth.mask.shape[1])

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """class, the loss that the head was built with; all moment queries of a null query are background."""
        logits = full_precision(outputs["logits"])  # (L, B, K, 2)
        return {"class": self.loss(logits, have_window(matched, logits.shape[2]), truth.rows)}

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        """The probability of the foreground after the last layer, (B, K)."""
        return full_precision(outputs["logits"][-1]).softmax(-1)[..., 0]


def context_of(aligned: Aligned) -> ContextTokens | None:
    """The context tokens of an aligner, if it has any, with a mask and positions."""
    tokens, mask, positions = aligned.context, aligned.context_mask, aligned.context_positions
    if tokens is None:
        return None
    mask = aligned.mask.new_ones(tokens.shape[:2]) if mask is None else mask
    return ContextTokens(tokens, mask, torch.zeros_like(tokens) if positions is None else positions)


def drawn_windows(mask: Tensor) -> Tensor:
    """Keys that sort the windows of a sample in random order, real ones first; mask bool (B, W) -> (B, W)."""
    return torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2)


def first_windows(mask: Tensor) -> Tensor:
    """Keys that sort the windows of a sample in annotated order; mask bool (B, W) -> (B, W)."""
    return torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)


class DetrDetector(nn.Module):
    """A decoder and the heads that read it.  [Moment-DETR]"""

    def __init__(
        self,
        decoder: nn.Module,
        heads: Sequence[nn.Module],
        *,
        most_windows: int = 5,
        surplus: Callable[[Tensor], Tensor] = drawn_windows,
        length: Callable[[Tensor, Tensor], Tensor] = of_clips,
    ):
        """decoder(target, mask, query_global, context) -> Decoded, and heads as described at the top of this module.

        most_windows  windows of a sample that are matched, at most
        surplus       if a sample has more, which of them: `drawn_windows`, new ones at every step, or `first_windows`
        length        what a predicted span is a fraction of, see `mrlib.detect.span_length`
        """
        super().__init__()
        require(type(most_windows) is int and most_windows >= 1, "most_windows", most_windows, "1 or more")
        self.decoder, self.heads = decoder, nn.ModuleList(heads)
        self.most_windows, self.surplus, self.length = most_windows, surplus, length
        self.contrast: nn.Module | None = None  # see `mrlib.detect.word_contrast`

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """The outputs of the heads after every decoder layer, and the states (L, B, K, d) that they read."""
        decoded = self._decoded(aligned)
        outputs = self._read(self.heads, decoded, aligned)
        if self.contrast is not None:
            outputs |= self.contrast(decoded.states, aligned.query, aligned.query_mask)
        return outputs | {"states": decoded.states}

    def decodable(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """The outputs that `decode` reads: those after the last layer, without the heads that only train."""
        last = Decoded(*(None if x is None else x[-1:] for x in self._decoded(aligned)))  # (1, B, K, ...)
        return self._read((head for head in self.heads if not getattr(head, "only_trains", False)), last, aligned)

    def _decoded(self, aligned: Aligned) -> Decoded:
        return self.decoder(aligned.target, aligned.mask, aligned.query_global, context_of(aligned))

    def _read(self, heads: Iterable[nn.Module], decoded: Decoded, aligned: Aligned) -> dict[str, Tensor]:
        """The joint outputs of some heads."""
        outputs: dict[str, Tensor] = {}
        for head in heads:
            outputs |= head(decoded, aligned.target, aligned.mask)
        return outputs

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """The span of every moment query after the last layer, clamped to the video; no suppression."""
        predicted = to_ends(full_precision(outputs["spans_cw"][-1]))  # (B, K, 2)
        predicted = in_video(predicted, batch.duration_s, batch.lengths * batch.clip_s, self.length)
        factors = [factor for head in self.heads if (factor := head.score(outputs)) is not None]  # (B, K) each
        scores, order = torch.stack(factors).prod(0).sort(dim=-1, descending=True, stable=True)  # (B, K)
        mask = batch.target_mask.any(1, keepdim=True).expand_as(scores)  # (B, K)
        return Moments(predicted.gather(1, order[..., None].expand_as(predicted)), scores, mask)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The terms of the heads, summed over the decoder layers; with a teacher's outputs also "distill".

        distill  one minus the mean cosine of the states with the teacher's, over all layers and the first moment
                 queries, as many as the teacher has  [AMR stage 2]
        """
        terms = {name: x.sum() for name, x in self.layer_losses(outputs, batch).items()}
        if teacher is None:
            return terms
        teacher_states = full_precision(teacher["states"])  # (L, B, K, d)
        states = full_precision(outputs["states"][:, :, : teacher_states.shape[2]])  # (L, B, K, d)
        cosine = F.cosine_similarity(states, teacher_states, dim=-1)  # (L, B, K)
        rows = batch.target_mask.any(1)  # (B,)
        distance = (1 - cosine.mean((0, 2))) * rows  # (B,)
        return terms | {"distill": distance.sum() / shared_count(rows.sum())}

    def layer_losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms of the heads, (L,); every layer has its own matching."""
        truth = self.truth(batch)
        matched = self.match(outputs, truth)
        parts = self.heads if self.contrast is None else [*self.heads, self.contrast]
        return {name: x for part in parts for name, x in part.losses(outputs, truth, matched).items()}

    def truth(self, batch: Batch) -> Truth:
        """The windows of a batch, at most `most_windows` of a sample."""
        windows, mask = full_precision(batch.labels.spans), batch.labels.span_mask  # (B, W, 2), (B, W)
        if mask.shape[1] > self.most_windows:
            kept = drawn(self.surplus, mask).argsort(1)[:, : self.most_windows]  # (B, most_windows)
            # (B, most_windows, 2), (B, most_windows)
            windows, mask = windows.gather(1, kept[..., None].expand(-1, -1, 2)), mask.gather(1, kept)
        rows = batch.target_mask.any(1)
        return Truth(windows, mask & rows[:, None], rows, batch.target_mask)

    def match(self, outputs: dict[str, Tensor], truth: Truth) -> Tensor:
        """The moment query of every window after every layer, int64 (L, B, W); -1: none.

        raises  NotFiniteError, a ValueError and a FloatingPointError, that names the batch element whose cost is NaN
        """
        cost = sum(head.cost(outputs, truth) for head in self.heads)  # (L, B, K, W)
        return match(checked_cost(cost, truth.mask), truth.mask)


def windows_order(name: str) -> Callable[[Tensor], Tensor]:
    """`drawn_windows` or `first_windows`, by the option "drawn" or "first"."""
    require(name in ("drawn", "first"), "surplus", name, "drawn or first")
    return drawn_windows if name == "drawn" else first_windows


def build_with_decoder(
    decoder: Callable[..., nn.Module],
    width: int,
    *,
    cost_l1: float,
    cost_giou: float,
    cost_class: float,
    background: float,
    most_windows: int,
    length: str,
    **options: Any,
) -> DetrDetector:
    """A detector with a span head and a class head; the decoder is built as decoder(width, **options)."""
    span_head = SpanHead(width, cost_l1=cost_l1, cost_giou=cost_giou)
    class_head = ClassHead(width, cost_class=cost_class, loss=CrossEntropy(background))
    heads = [span_head, class_head]
    return DetrDetector(decoder(width, **options), heads, most_windows=most_windows, length=span_length(length))
