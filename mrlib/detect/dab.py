r"""Moment queries that are spans, refined by every decoder layer (QD-DETR, after DAB-DETR).

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874), with the decoder of Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for
         DETR", ICLR 2022
Here     `DabDecoder` is that decoder  [QD-DETR]; `DetrDetector` and its heads are those of `mrlib.detect.detr`
Kept     as released: QD-DETR's content starts at zero, so three matrices of the first layer map only zeros and never
         learn; the sines of centre and width are both divided by the width
Departs  a width is at least 1e-4 where it divides
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mrlib.arguments import require
from mrlib.detect.detr import ContextTokens, Decoded, DetrDetector, build_with_decoder, inverse_sigmoid
from mrlib.layers import MLP, Dropout, FeedForward, check_heads, sine_positions, waves
from mrlib.ops.attention import attend
from mrlib.ops.recompute import recomputed

NARROWEST = 1e-4  # smallest width that sines are divided by


def span_positions(spans_cw: Tensor, width: int) -> Tensor:
    """Sines and cosines of the centre in the first half of the channels, of the width in the second.  [QD-DETR]

    spans_cw (B, K, 2); returns (B, K, width)
    """
    return waves(spans_cw * (2 * math.pi), width // 2).flatten(-2)  # (B, K, 2, width / 2) flattened


def zero_content(query_global: Tensor, dtype: torch.dtype) -> Tensor:
    """The content of every moment query starts with zeros, (B, d), in the dtype of the clips.  [QD-DETR]"""
    return torch.zeros_like(query_global, dtype=dtype)


def sentence_content(query_global: Tensor, dtype: torch.dtype) -> Tensor:
    """The content of every moment query starts with the vector of the whole query, (B, d).  [AMR, decoder]

    In its own dtype or that of the clips, whichever is more precise.
    """
    return query_global.to(torch.promote_types(query_global.dtype, dtype))


def _add_linears(module: nn.Module, width: int, *names: str) -> None:
    for name in names:
        setattr(module, name, nn.Linear(width, width))


class Positions(NamedTuple):
    """Sine positions of the clips of a batch, once for all videos of one length; most videos of a batch share it."""

    distinct: Tensor  # (U, T, d)
    rows: Tensor | None  # int64 (B,) which of them each sample has; None: sample b has those at b

    @staticmethod
    def of(mask: Tensor, like: Tensor) -> Positions:
        """Positions for clips of the width and dtype of `like` (..., d); mask bool (B, T)."""
        rows = None
        if mask.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it waits for their number
            mask, rows = mask.unique(dim=0, return_inverse=True)
        return Positions(sine_positions(mask, like.shape[-1]).to(like.dtype), rows)

    def mapped(self, linear: nn.Module) -> Tensor:
        """The positions of every sample through a linear layer, (B, T, d)."""
        y = linear(self.distinct)
        if self.rows is None:
            return y
        return y.expand(len(self.rows), -1, -1) if len(y) == 1 else y.index_select(0, self.rows)


class SelfAttention(nn.Module):
    """Moment queries attend to one another; content and place are mapped separately and added.  [QD-DETR]"""

    def __init__(self, width: int, heads: int, dropout: float, across_sets: bool):
        """across_sets  moment queries of different sets attend to one another, too"""
        super().__init__()
        self.heads, self.dropout, self.across_sets = heads, dropout, across_sets
        _add_linears(self, width, "q_content", "q_place", "k_content", "k_place", "value", "out_proj")

    def forward(self, x: Tensor, places: Tensor, sets: int) -> Tensor:
        """x (B or 1, K or 1, d), places (B or 1, K, d) -> (B, K, d); K moment queries in `sets` sets of equal size."""
        q, k = self.q_content(x) + self.q_place(places), self.k_content(x) + self.k_place(places)  # (B, K, d)
        v = self.value(x).expand_as(k)
        groups = 1 if self.across_sets else sets
        q, k, v = (y.unflatten(1, (groups, -1)).flatten(0, 1) for y in (q, k, v))  # (B groups, K / groups, d)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.heads, None, dropout).view(-1, *places.shape[1:]))


class CrossAttention(nn.Module):
    """Moment queries attend to clips; in every head, content is concatenated with place.  [QD-DETR]"""

    def __init__(self, width: int, heads: int, dropout: float, first: bool):
        """first  in the first layer, place is also added to content"""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        _add_linears(self, width, "q_content", "q_sine", "k_content", "k_place", "value", "out_proj")
        self.q_place = nn.Linear(width, width) if first else None

    def forward(
        self, x: Tensor, places: Tensor, sines: Tensor, memory: Tensor, positions: Positions, mask: Tensor
    ) -> Tensor:
        """x, sines (B, K, d), places (B or 1, K, d); memory (B, T, d); mask bool (B, T) -> (B, K, d)."""
        q, k, k_place = self.q_content(x), self.k_content(memory), positions.mapped(self.k_place)
        if self.q_place is not None:
            q, k = q + self.q_place(places), k + k_place
        q, k = self._concatenate(q, self.q_sine(sines)), self._concatenate(k, k_place)  # (B, K or T, 2 d)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, self.value(memory), self.heads, mask, dropout))

    def _concatenate(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (B, L, d) as one (B, L, 2 d), head by head."""
        return torch.cat([x.unflatten(-1, (self.heads, -1)) for x in (a, b)], -1).flatten(-2)


class DabLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a residual and a norm after the sum.  [QD-DETR]"""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, activation: str, *, first: bool, across_sets: bool
    ):
        super().__init__()
        check_heads(width, heads)
        self.self_attn = SelfAttention(width, heads, dropout, across_sets)
        self.cross_attn = CrossAttention(width, heads, dropout, first)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, places: Tensor, sines: Tensor, memory: Tensor, positions: Positions, mask: Tensor, sets: int
    ) -> Tensor:
        """Arguments of `CrossAttention` and `SelfAttention`; returns (B, K, d)."""
        return recomputed(memory.shape[1], self._decode, x, places, sines, memory, positions, mask, sets)

    def _decode(
        self, x: Tensor, places: Tensor, sines: Tensor, memory: Tensor, positions: Positions, mask: Tensor, sets: int
    ) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, places, sets)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, places, sines, memory, positions, mask)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class DabDecoder(nn.Module):
    r"""DAB-DETR's decoder: moment queries are spans that attend to nearby clips, and every layer moves them.  [QD-DETR]

    A layer gets the places p and the sines u, from the reference r = (c, w), its sines PE(r) and the content o:

    $$p = \mathrm{MLP}(\mathrm{PE}(r)), \quad
    u = \mathrm{PE}(r) \odot \mathrm{MLP}_{scale}(o) \cdot \sigma(\mathrm{MLP}_{anchor}(o)) / w$$

    (without MLP_scale in the first layer). After it, $r \leftarrow \sigma(\mathrm{MLP}_{move}(o) +
    \mathrm{logit}(r))$. No gradient flows from one layer to the next through r; the heads pass a gradient to it.
    """

    def __init__(
        self,
        width: int,
        *,
        moment_queries: int,
        decoder_layers: int,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        activation: str = "prelu",
        content: Callable[[Tensor, torch.dtype], Tensor] = zero_content,
        joint_self_attention: bool = True,
    ):
        """A stack of `DabLayer` and one set of moment queries.

        moment_queries        their number
        heads, hidden         of a layer: attention heads, and the width inside its feed-forward
        content               content(query_global, dtype of the clips) -> (B, d), what every moment query starts with
        joint_self_attention  if there are several sets of moment queries, they attend to one another
        """
        super().__init__()
        for name, count in (("moment_queries", moment_queries), ("decoder_layers", decoder_layers)):
            require(type(count) is int and count >= 1, name, count, "1 or more")
        self.moment_queries = nn.Embedding(moment_queries, 2)  # logits of centre and width
        self.content = content
        self.layers = nn.ModuleList(
            DabLayer(width, heads, hidden, dropout, activation, first=i == 0, across_sets=joint_self_attention)
            for i in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.place, self.scale = MLP(width, width, 2), MLP(width, width, 2)
        self.anchor, self.move = MLP(width, 1, 2), MLP(width, 2, 3)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("moment_queries"):
                nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.move.layers[-1].bias)
        for layer in self.layers:
            nn.init.zeros_(layer.self_attn.out_proj.bias)
            nn.init.zeros_(layer.cross_attn.out_proj.bias)

    def forward(self, target: Tensor, mask: Tensor, query_global: Tensor, context: ContextTokens | None) -> Decoded:
        """The states of the K moment queries after every layer, and their spans before it.

        target (B, T, d), mask bool (B, T), query_global (B, d); the context is not read
        """
        return refine(self, [self.moment_queries.weight], target, mask, query_global)


def refine(decoder: nn.Module, sets: list[Tensor], target: Tensor, mask: Tensor, query_global: Tensor) -> Decoded:
    """Let one or several sets of moment queries read the clips and move.  [QD-DETR]

    decoder  a module with the parts of `DabDecoder`
    sets     logits of centre and width of every set, (K, 2) each
    others   as for `DabDecoder.forward`
    """
    width, last = target.shape[-1], decoder.layers[-1]
    positions = Positions.of(mask, target)
    # at first, all samples have the same spans and all moment queries the same content
    reference = torch.cat(sets).sigmoid()[None]  # (1, K, 2), K of all sets
    x = decoder.content(query_global, target.dtype)[:, None]  # (B, 1, d)
    states, references = [], [reference.expand(len(target), -1, -1)]
    for i, layer in enumerate(decoder.layers):
        sines = span_positions(reference, width)  # (B or 1, K, d)
        scale = decoder.anchor(x).sigmoid() / reference[..., 1:].clamp(min=NARROWEST)  # (B, K, 1)
        scale = scale * decoder.scale(x) if i else scale  # (B, K, d)
        x = layer(x, decoder.place(sines), sines * scale, target, positions, mask, len(sets))  # (B, K, d)
        states.append(x)
        if layer is not last:
            references.append((decoder.move(x) + inverse_sigmoid(reference)).sigmoid())  # (B, K, 2)
            reference = references[-1].detach()
    return Decoded(decoder.norm(torch.stack(states)), torch.stack(references))  # (L, B, K, d), (L, B, K, 2)


# QD-DETR's detector is `DabDetector(DabDecoder(...), heads)`: that of Moment-DETR with another decoder  [QD-DETR]
DabDetector = DetrDetector


def build_dab(width: int, **options: Any) -> DetrDetector:
    """The detector "dab"; options of `mrlib.detect.detr.build_with_decoder` and `DabDecoder`."""
    return build_with_decoder(DabDecoder, width, **options)
