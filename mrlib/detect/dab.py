r"""Moment queries that are spans, moved a little by every layer (QD-DETR, after DAB-DETR).

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874), with the decoder of Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for
         DETR", ICLR 2022
Here     `DabDecoder` is that decoder [QD-DETR], `DabDetector` the detector around it and its heads
Kept     as released: QD-DETR's content starts at zero, so that three matrices of the first layer have nothing to map
         and never learn; the width divides the positions of centre and width alike
Departs  a width is at least 1e-4 where it divides
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.detect.detr import Decoded, DetrDetector, logit
from mrlib.layers import MLP, Dropout, FeedForward, attend, sine_positions, waves
from mrlib.settings import require

NARROWEST = 1e-4  # width by which positions are divided


def span_positions(spans_cw: Tensor, width: int) -> Tensor:
    """Sines and cosines of the centre, then of the width, in half of the channels each.  [QD-DETR]

    spans_cw (B, K, 2); returns (B, K, width)
    """
    return waves(spans_cw * (2 * math.pi), width // 2).flatten(-2)


def _linears(module: nn.Module, width: int, *names: str) -> None:
    for name in names:
        setattr(module, name, nn.Linear(width, width))


class SelfAttention(nn.Module):
    """Queries among themselves: content and place are mapped apart and added.  [QD-DETR]"""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        _linears(self, width, "q_content", "q_place", "k_content", "k_place", "value", "out_proj")

    def forward(self, x: Tensor, places: Tensor, sets: int) -> Tensor:
        """x, places (B, K, d) -> (B, K, d); K queries in `sets` that do not see one another."""
        q, k = self.q_content(x) + self.q_place(places), self.k_content(x) + self.k_place(places)
        q, k, v = (y.unflatten(1, (sets, -1)).flatten(0, 1) for y in (q, k, self.value(x)))
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.heads, None, dropout).view_as(x))


class CrossAttention(nn.Module):
    """Queries to clips: in every head, content beside place. The first layer adds place to content too.  [QD-DETR]"""

    def __init__(self, width: int, heads: int, dropout: float, first: bool):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        _linears(self, width, "q_content", "q_sine", "k_content", "k_place", "value", "out_proj")
        self.q_place = nn.Linear(width, width) if first else None

    def forward(
        self, x: Tensor, places: Tensor, sines: Tensor, memory: Tensor, positions: Tensor, mask: Tensor
    ) -> Tensor:
        """x, places, sines (B, K, d); memory, positions (B, T, d); mask bool (B, T) -> (B, K, d)."""
        q, k, where = self.q_content(x), self.k_content(memory), self.k_place(positions)
        if self.q_place is not None:
            q, k = q + self.q_place(places), k + where
        q, k = self._beside(q, self.q_sine(sines)), self._beside(k, where)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, self.value(memory), self.heads, mask, dropout))

    def _beside(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (B, L, d) as one (B, L, 2 d), head by head."""
        return torch.cat([x.unflatten(-1, (self.heads, -1)) for x in (a, b)], -1).flatten(-2)


class DabLayer(nn.Module):
    """Both attentions and a feed-forward, norms after the sums.  [QD-DETR]"""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, activation: str, first: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}; the width must be a multiple of heads")
        self.self_attn = SelfAttention(width, heads, dropout)
        self.cross_attn = CrossAttention(width, heads, dropout, first)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, places: Tensor, sines: Tensor, memory: Tensor, positions: Tensor, mask: Tensor, sets: int
    ) -> Tensor:
        """As `CrossAttention`, and as `SelfAttention`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, places, sets)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, places, sines, memory, positions, mask)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class DabDecoder(nn.Module):
    r"""Learned spans that ask where they are, and move.  [QD-DETR]

    Before layer l, of the reference r = (c, w) with its sines PE(r) and the content o:

    $$p = \mathrm{MLP}(\mathrm{PE}(r)), \quad
    u = \mathrm{PE}(r) \odot \mathrm{MLP}_{scale}(o) \cdot \sigma(\mathrm{MLP}_{anchor}(o)) / w$$

    (without the scale in the first layer), and after it $r \leftarrow \sigma(\mathrm{MLP}_{move}(o) +
    \mathrm{logit}(r))$. The next layer reads r without its gradient, the heads with it.
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
        content: str = "zero",
        joint_self_attention: bool = True,
    ):
        """moment_queries a set, of which there is one until `mrlib.detect.dual_query` adds another.

        content               what queries begin with: "zero", or the "query" as a whole  [AMR, decoder]
        joint_self_attention  the queries of two sets see one another
        """
        super().__init__()
        require(content in ("zero", "query"), "content", content, "zero or query")
        for name, count in (("moment_queries", moment_queries), ("decoder_layers", decoder_layers)):
            require(type(count) is int and count >= 1, name, count, "1 or more")
        self.moment_queries = nn.Embedding(moment_queries, 2)  # logits of centre and width
        self.active_queries: nn.Embedding | None = None  # of a second set; None: it begins where the first does
        self.content, self.joint_self_attention, self.sets = content, joint_self_attention, 1
        self.layers = nn.ModuleList(
            DabLayer(width, heads, hidden, dropout, activation, first=i == 0) for i in range(decoder_layers)
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

    def forward(self, aligned: Aligned) -> Decoded:
        memory, width = aligned.target, aligned.target.shape[-1]
        positions = sine_positions(aligned.mask, width)
        reference = self.anchors().sigmoid().expand(len(memory), -1, -1)
        x = memory.new_zeros(*reference.shape[:2], width)
        x = x if self.content == "zero" else x + aligned.query_global[:, None]
        sets = 1 if self.joint_self_attention else self.sets
        states, references, moved = [], [], reference
        for i, layer in enumerate(self.layers):
            references.append(moved)
            sines = span_positions(reference, width)
            scale = self.anchor(x).sigmoid() / reference[..., 1:].clamp(min=NARROWEST)
            scale = scale * self.scale(x) if i else scale
            x = layer(x, self.place(sines), sines * scale, memory, positions, aligned.mask, sets)
            states.append(self.norm(x))
            moved = (self.move(x) + logit(reference)).sigmoid()
            reference = moved.detach()
        return Decoded(torch.stack(states), torch.stack(references))

    def anchors(self) -> Tensor:
        """The logits of the spans that queries begin with, (K, 2); of two sets one after the other, (2 K, 2)."""
        first = self.moment_queries.weight
        if self.sets == 1:
            return first
        return torch.cat([first, first if self.active_queries is None else self.active_queries.weight])


class DabDetector(DetrDetector):
    """`DabDetector(DabDecoder(...), heads)`: the detector of `mrlib.detect.detr` around such a decoder.  [QD-DETR]"""
