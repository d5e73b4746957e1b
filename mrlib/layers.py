"""Transformer layers that aligners and detectors share: sizes, projections, positions, attention, encoder, decoder.

Positions are added to the queries and keys of every attention, never to the values, as in DETR [Carion et al. 2020] and
in all models here that descend from Moment-DETR. If all keys are masked, attention falls on padding so that the softmax
stays finite; the output is unused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.arguments import require
from mrlib.ops.attention import attend
from mrlib.ops.dropout import dropout as drop_out
from mrlib.ops.dropout import norm_dropout_linear
from mrlib.ops.feed_forward import feed_forward
from mrlib.ops.prelu import prelu
from mrlib.ops.recompute import recomputed


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that the Transformer aligners share; the defaults are QD-DETR's."""

    width: int = 256
    layers: int = 2  # of each stack
    heads: int = 8
    hidden: int = 1024  # width inside feed-forward layers
    projections: int = 2  # layers of each input projection
    dropout: float = 0.1  # within attention and feed-forward layers
    input_dropout: float = 0.5  # within input projections
    tef: bool = True  # append the temporal endpoint feature to every clip
    activation: str = "prelu"

    @property
    def layer(self) -> tuple[int, int, int, float, str]:
        """The arguments of one layer: width, heads, hidden, dropout, activation."""
        return self.width, self.heads, self.hidden, self.dropout, self.activation


class Dropout(nn.Dropout):
    """`nn.Dropout` with a faster CPU implementation, which draws other masks of the same probability."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_out(x, self.p) if self.training else x


class PReLU(nn.PReLU):
    """`nn.PReLU` with one slope and a backward pass that is faster on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return prelu(x, self.weight)


ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "prelu": PReLU}


def waves(angle: Tensor, width: int) -> Tensor:
    """Sines and cosines of an angle at falling frequencies: channels 2m and 2m + 1 over 10000^(2m / width).

    angle (...), width even; returns (..., width)
    """
    channels = torch.arange(0, width, 2, device=angle.device, dtype=torch.float32)
    angle = angle[..., None] / 10000 ** (channels / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def sine_positions(mask: Tensor, width: int) -> Tensor:
    r"""Sine and cosine positions of the clips within their own video.  [MATR §3.2]

    $\hat p_i = 2 \pi p_i / (n + 10^{-6})$ with $p_i$ = 1..n; channels 2m and 2m + 1 are its sine and cosine over
    $10000^{2m / d}$. Padding gets the position of the last real clip.

    mask     bool (B, T)
    width    d, even
    returns  (B, T, d)
    """
    p = mask.cumsum(1, dtype=torch.float32)  # (B, T)
    return waves(p * (2 * math.pi) / (p[:, -1:] + 1e-6), width)


def endpoints(mask: Tensor) -> Tensor:
    """The temporal endpoint feature, TEF: start and end of every clip as fractions of the target, 0 on padding.

    mask     bool (B, T)
    returns  (B, T, 2)
    """
    t = torch.arange(mask.shape[1], device=mask.device)
    ends = torch.stack([t, t + 1], -1) / mask.sum(1).clamp(min=1)[:, None, None]  # (B, T, 2)
    return ends * mask[..., None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real vectors of every row, 0 where a row has none; (B, N, d), bool (B, N) -> (B, d)."""
    weight = mask / mask.sum(1, keepdim=True).clamp(min=1)  # (B, N)
    return (weight[..., None] * x).sum(1)


def masked_softmax(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the entries where `mask` is True, uniform where none is; x and mask broadcast."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(dim)


def full_precision(x: Tensor) -> Tensor:
    """x in float32 if it is of half precision; float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_vectors(x: Tensor) -> Tensor:
    """x divided by its norm along the last axis, in float32 or float64 also where x is of half precision."""
    return F.normalize(full_precision(x), dim=-1, eps=1e-6)


def normalised_shares(share: Tensor, mask: Tensor) -> Tensor:
    """Non-negative shares (B, K, N) of the real vectors, bool (B, N), scaled to sum to 1 over N; 0 where none is."""
    share = share * mask[:, None]  # (B, K, N)
    return share / share.sum(2, keepdim=True).clamp(min=1e-9)


class LearnedPositions(nn.Module):
    """Add a learned vector per position, then LayerNorm and dropout; so positions depend on the features."""

    def __init__(self, places: int, width: int, dropout: float):
        super().__init__()
        self.position_embeddings = nn.Embedding(places, width)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, d) -> (B, N, d); ValueError for more than `places` vectors."""
        places = self.position_embeddings.num_embeddings
        if x.shape[1] > places:
            raise ValueError(
                f"a query of {x.shape[1]} vectors is longer than the {places} learned positions; raise places"
            )
        return self.dropout(self.norm(x + self.position_embeddings.weight[: x.shape[1]]))


class Projection(nn.Sequential):
    """Layers of LayerNorm, dropout and Linear, ReLU between them."""

    def __init__(self, inputs: int, width: int, layers: int, dropout: float):
        require(type(layers) is int and layers >= 1, "projections", layers, "1 or more")
        widths = [inputs] + [width] * layers
        parts: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            parts += [nn.ReLU()] if i else []
            parts += [nn.LayerNorm(a), Dropout(dropout), nn.Linear(a, b)]
        super().__init__(*parts)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """x (..., X), extra (..., inputs - X) further features without a gradient; returns (..., width)."""
        norm, dropped, linear, *others = self
        p = dropped.p if self.training else 0.0
        x = norm_dropout_linear(x, norm.weight, norm.bias, norm.eps, p, linear.weight, linear.bias, extra)
        for part in others:
            x = part(x)
        return x


class Projected(nn.Module):
    """Clips and query in one width, each through a projection of its own; the base of the Transformer aligners."""

    def __init__(self, target: int, query: int, sizes: Sizes):
        """target, query  widths D and D' of the input features"""
        super().__init__()
        self.width, self.tef = sizes.width, sizes.tef
        self.project_target, self.project_query = (
            Projection(inputs, sizes.width, sizes.projections, sizes.input_dropout)
            for inputs in (target + 2 * sizes.tef, query)
        )

    def project(self, target: Tensor, target_mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """target (B, T, D), target_mask bool (B, T), query (B, N, D') -> (B, T, d), (B, N, d)."""
        extra = endpoints(target_mask) if self.tef else None  # (B, T, 2)
        return self.project_target(target, extra), self.project_query(query)


class MLP(nn.Module):
    """Linear layers with ReLU between them; the inner width is `hidden`, or that of the input."""

    def __init__(self, inputs: int, outputs: int, layers: int, hidden: int | None = None):
        super().__init__()
        widths = [inputs] + [hidden or inputs] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i else x)
        return x


def check_heads(width: int, heads: int) -> None:
    """ValueError unless width and heads are 1 or more, and the width is a multiple of the heads."""
    require(type(heads) is int and heads >= 1, "heads", heads, "1 or more")
    require(width >= 1, "width", width, "1 or more")
    if width % heads:
        raise ValueError(f"{heads} heads cannot share a width of {width}; the width must be a multiple of heads")


class AttentionWeights(nn.Module):
    """The parameters of multi-head attention, as in `nn.MultiheadAttention`; the base of the kinds of attention."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        """width must be a multiple of heads."""
        super().__init__()
        check_heads(width, heads)
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project_qkv(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """q (B, L, d) and k, v (B, S, d), each through its own linear layer; shapes stay; faster if q and k are one."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if q is k:  # one product for both
            d = q.shape[-1]
            return [
                *F.linear(q, weight[: 2 * d], bias[: 2 * d]).chunk(2, -1),
                F.linear(v, weight[2 * d :], bias[2 * d :]),
            ]
        return [F.linear(x, *part) for x, *part in zip((q, k, v), weight.chunk(3), bias.chunk(3), strict=True)]


class Attention(AttentionWeights):
    """Multi-head attention, (B, L, d) -> (B, L, d)."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """q (B, L, d); k, v (B, S, d); key_mask, visible as in `attend`; returns (B, L, d)."""
        q, k, v = self.project_qkv(q, k, v)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.heads, key_mask, dropout, visible))


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear."""

    def __init__(self, width: int, hidden: int, dropout: float, activation: str):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.activation = Dropout(dropout), ACTIVATIONS[activation]()
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.through(x, self.linear1, self.linear2)

    def through(self, x: Tensor, linear1: nn.Linear, linear2: nn.Linear) -> Tensor:
        """`forward` with other linear layers, of the same shapes."""
        if isinstance(self.activation, nn.GELU):
            return linear2(self.dropout(self.activation(linear1(x))))
        slope, p = getattr(self.activation, "weight", None), self.dropout.p if self.training else 0.0
        return feed_forward(x, linear1.weight, linear1.bias, slope, linear2.weight, linear2.bias, p)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual and a norm: after the sum, or before with `pre_norm`."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        activation: str = "relu",
        pre_norm: bool = False,
        residual_dropout: Callable[[float], nn.Module] = Dropout,
    ):
        """residual_dropout  the kind of dropout on both branches; its argument is `dropout`"""
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.pre_norm = residual_dropout(dropout), pre_norm

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x, positions (B, L, d); mask bool (B, L); returns (B, L, d)."""
        return recomputed(x.shape[1], self._encode, x, positions, mask)

    def _encode(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        if self.pre_norm:
            y = self.norm1(x)
            q = y + positions
            x = x + self.dropout(self.self_attn(q, q, y, mask))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        q = x + positions
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x, mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """DETR's decoder layer: tokens attend to one another, then to a memory; norms after the sums, or `pre_norm`."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.self_attn, self.cross_attn = (Attention(width, heads, dropout) for _ in range(2))
        self.feed_forward = FeedForward(width, hidden, dropout, "relu")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(
        self, x: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor, memory_mask: Tensor
    ) -> Tensor:
        """x, positions (B, K, d); memory, memory_positions (B, T, d); memory_mask bool (B, T); returns (B, K, d)."""
        if self.pre_norm:
            y = self.norm1(x)
            q = y + positions
            x = x + self.dropout(self.self_attn(q, q, y))
            q = self.norm2(x) + positions
            x = x + self.dropout(self.cross_attn(q, memory + memory_positions, memory, memory_mask))
            return x + self.dropout(self.feed_forward(self.norm3(x)))
        q = x + positions
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x)))
        attended = self.cross_attn(x + positions, memory + memory_positions, memory, memory_mask)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.feed_forward(x)))
