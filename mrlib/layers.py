"""Transformer layers that aligners and detectors share: projections, positions, attention, encoder, decoder.

Positions are added to queries and keys of every attention, never to values, as in DETR [Carion et al. 2020] and all
models here that descend from Moment-DETR. A row without a single key attends to what stands on its padding, so that it
gives numbers, which nobody reads, and no NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.ops.dropout import dropout as drop_out
from mrlib.ops.dropout import fused, norm_dropout_linear
from mrlib.ops.prelu import prelu
from mrlib.settings import require


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on the CPU; the same share of zeros, but others."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_out(x, self.p) if self.training else x


class PReLU(nn.PReLU):
    """`nn.PReLU` of one slope, its way back faster on the CPU."""

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
    r"""Where a clip is in its own sequence, as sines and cosines.  [MATR §3.2]

    $\hat p_i = 2 \pi p_i / (n + 10^{-6})$ with $p_i$ = 1..n; channels 2m and 2m + 1 are its sine and cosine over
    $10000^{2m / d}$. What stands on padding is as the last real position.

    mask     bool (B, T)
    width    d, even
    returns  (B, T, d)
    """
    p = mask.cumsum(1, dtype=torch.float32)
    return waves(p * (2 * math.pi) / (p[:, -1:] + 1e-6), width)


def endpoints(mask: Tensor) -> Tensor:
    """Start and end of every clip as fractions of the target, 0 on padding: the temporal endpoint feature, TEF.

    mask     bool (B, T)
    returns  (B, T, 2)
    """
    t = torch.arange(mask.shape[1], device=mask.device)
    ends = torch.stack([t, t + 1], -1) / mask.sum(1).clamp(min=1)[:, None, None]
    return ends * mask[..., None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real vectors of every row, 0 where there is none; (B, N, d), bool (B, N) -> (B, d)."""
    weight = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return (weight[..., None] * x).sum(1)


class LearnedPositions(nn.Module):
    """A vector per place, added to the features, normalised: positions that depend on what stands there."""

    def __init__(self, places: int, width: int, dropout: float):
        super().__init__()
        self.position_embeddings = nn.Embedding(places, width)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, d) -> (B, N, d); ValueError for more than `places` vectors."""
        places = self.position_embeddings.num_embeddings
        if x.shape[1] > places:
            raise ValueError(f"a query of {x.shape[1]} vectors is longer than the {places} learned positions")
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

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        norm, dropped, linear, *others = self
        x = norm_dropout_linear(x, norm.weight, norm.bias, norm.eps, dropped.p, linear.weight, linear.bias)
        for part in others:
            x = part(x)
        return x


class MLP(nn.Module):
    """Linear layers, ReLU between them; inside as wide as `hidden`, or as what comes in."""

    def __init__(self, inputs: int, outputs: int, layers: int, hidden: int | None = None):
        super().__init__()
        widths = [inputs] + [hidden or inputs] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i else x)
        return x


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, key_mask: Tensor | None, dropout: float, seen: Tensor | None = None
) -> Tensor:
    """What every vector gathers from the others, head by head, weighed by the softmax of the scaled products.

    q (B, L, e), k (B, S, e), v (B, S, f), heads side by side in their channels; e and f may differ
    key_mask  bool (B, S)  vectors that are there; None: all
    seen      bool (B, heads, L, S)  which of them each may look at; None: all
    returns   (B, L, f)
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if key_mask is not None:
        key_mask = (key_mask | ~key_mask.any(1, keepdim=True))[:, None, None]
        key_mask = key_mask if seen is None else key_mask & seen
    if dropout and fused(q):  # torch has no kernel of its own for attention with dropout on the CPU
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if key_mask is not None:
            hidden = torch.zeros_like(key_mask, dtype=q.dtype)
            scores = scores + hidden.masked_fill(~key_mask, torch.finfo(q.dtype).min)
        x = drop_out(scores.softmax(-1), dropout) @ v
    else:
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)
    return x.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention, (B, L, d) to (B, L, d); parameters as in `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        """width must be a multiple of heads."""
        super().__init__()
        require(type(heads) is int and heads >= 1, "heads", heads, "1 or more")
        require(width >= 1, "width", width, "1 or more")
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}; the width must be a multiple of heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """q (B, L, d); k, v (B, S, d); key_mask bool (B, S), None: all real; seen as in `attend`."""
        q, k, v = self.project(q, k, v)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.heads, key_mask, dropout, seen))

    def project(self, *given: Tensor) -> list[Tensor]:
        """Queries, keys and values, each through its own layer."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]


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
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and norm: after the sum, or before with `pre_norm`."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, activation: str = "relu", pre_norm: bool = False
    ):
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x, positions (B, L, d); mask bool (B, L)."""
        if self.pre_norm:
            y = self.norm1(x)
            x = x + self.dropout(self.self_attn(y + positions, y + positions, y, mask))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.self_attn(x + positions, x + positions, x, mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """DETR's: tokens attend to one another, then to a memory; norms after the sums, or before with `pre_norm`."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.self_attn, self.cross_attn = (Attention(width, heads, dropout) for _ in range(2))
        self.feed_forward = FeedForward(width, hidden, dropout, "relu")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(
        self, x: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor, memory_mask: Tensor
    ) -> Tensor:
        """x, positions (B, K, d); memory, memory_positions (B, T, d); memory_mask bool (B, T)."""
        if self.pre_norm:
            y = self.norm1(x)
            x = x + self.dropout(self.self_attn(y + positions, y + positions, y))
            asked = self.norm2(x) + positions
            x = x + self.dropout(self.cross_attn(asked, memory + memory_positions, memory, memory_mask))
            return x + self.dropout(self.feed_forward(self.norm3(x)))
        x = self.norm1(x + self.dropout(self.self_attn(x + positions, x + positions, x)))
        attended = self.cross_attn(x + positions, memory + memory_positions, memory, memory_mask)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.feed_forward(x)))
