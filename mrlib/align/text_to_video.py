r"""The words go into every clip before the clips look at one another (QD-DETR).

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874)
Here     `T2VLayer` is its cross-attention from clips to words, `TextToVideoAligner` the stack of them, the encoder with
         a global token and the saliency [QD-DETR]; negative pairs are a loss of the aligner [QD-DETR]
Ours     attention masks the padding of its keys and nothing else
Departs  wjun0830/QD-DETR hides padded words from padded clips too, with a mask of all heads of all samples in the wrong
         order, so that a sample loses words where others are padded: `masks="released"`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.projected import FusedAligner, Sizes
from mrlib.data import Batch, Widths
from mrlib.layers import Attention, Dropout, EncoderLayer, FeedForward, LearnedPositions, sine_positions
from mrlib.settings import require


class Words(NamedTuple):
    """A query as attention reads it."""

    keys: Tensor  # (B, N, d) with positions, where words have some
    values: Tensor  # (B, N, d)
    mask: Tensor  # bool (B, N)
    seen: Tensor | None = None  # bool (B, heads, T, N) which words each clip may see; None: all that are there


class T2VLayer(nn.Module):
    r"""Clips take up words: $Z = X + A$, $X \leftarrow \mathrm{LN}_2(Z + \mathrm{FFN}(\mathrm{LN}_1 Z))$.  [QD-DETR]

    A is what the clips gather from the words. `mix`, a module `mix(x, positions, words) -> (B, T, d)`, gives what takes
    the place of X in the sum; None: X itself.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        activation: str = "prelu",
        mix: nn.Module | None = None,
    ):
        super().__init__()
        self.cross_attn = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.mix = Dropout(dropout), mix

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> Tensor:
        """x, positions (B, T, d) -> (B, T, d)."""
        attended = self.cross_attn(x + positions, words.keys, words.values, words.mask, words.seen)
        return self.take_up(x if self.mix is None else self.mix(x, positions, words), attended)

    def take_up(self, carried: Tensor, attended: Tensor) -> Tensor:
        """What takes the place of X, and A, both (B, T, d) -> (B, T, d)."""
        z = carried + self.dropout(attended)
        return self.norm2(z + self.dropout(self.feed_forward(self.norm1(z))))


class TextToVideoAligner(FusedAligner):
    """Words into clips, then clips and a global token among themselves.  [QD-DETR]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[T2VLayer],
        encoder: Sequence[EncoderLayer],
        *,
        query_positions: str = "none",
        places: int = 32,
        masks: str = "keys",
    ):
        """Two stacks of layers of these sizes.

        query_positions  "none", or "learned" (`places` of them), which attention adds to its keys
        masks            "keys" hides padding; "released" also words of other samples, as the official code does
        """
        super().__init__(widths, sizes)
        require(query_positions in ("none", "learned"), "query_positions", query_positions, "none or learned")
        require(masks in ("keys", "released"), "masks", masks, "keys or released")
        self.heads, self.masks = sizes.heads, masks
        width, learned = sizes.width, query_positions == "learned"
        self.places = LearnedPositions(places, width, sizes.input_dropout) if learned else None
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.global_token, self.global_position = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.clip_side, self.global_side = nn.Linear(width, width), nn.Linear(width, width)

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> tuple[Tensor, ...]:
        """Clips in the light of a query, and how relevant they are to it.  [QD-DETR]

        target (B, T, d), query (B, N, d), both projected; returns (B, T, d), (B, T); behind them whatever the losses of
        another aligner that is made of this one read
        """
        positions = sine_positions(mask, self.width)
        keys = query if self.places is None else query + self.places(query)
        seen = released_masks(mask, query_mask, self.heads) if self.masks == "released" else None
        words, x = Words(keys, query, query_mask, seen), target
        for layer in self.layers:
            x = layer(x, positions, words)
        whole, clips = self.encode(self.global_token.expand(len(x), 1, -1), x, positions, mask)
        return clips, self.relevance(whole, clips)

    def encode(self, token: Tensor, x: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A global token (B, 1, d) and clips (B, T, d) among themselves; returns both.  [QD-DETR]"""
        place = self.global_position.expand(len(x), 1, -1)
        x, positions = torch.cat([token.to(x.dtype), x], 1), torch.cat([place, positions], 1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x[:, :1], x[:, 1:]

    def relevance(self, whole: Tensor, clips: Tensor) -> Tensor:
        r"""$s_t = \langle W_a M_t + b_a, W_b \bar g + b_b \rangle / \sqrt d$ of the encoded clips and global token.

        [QD-DETR]

        whole (B, 1, d), clips (B, T, d); returns (B, T)
        """
        return (self.clip_side(clips) * self.global_side(whole)).sum(-1) / self.width**0.5

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Those of `saliency.terms`: margin, contrast, negative.  [QD-DETR]"""
        clips = aligned.cache["target"], aligned.mask
        return saliency.terms(aligned, batch, lambda query, mask: self.fuse(*clips, query, mask)[1])


def released_masks(target_mask: Tensor, query_mask: Tensor, heads: int) -> Tensor:
    """Which words the released code lets each clip see.  [QD-DETR]

    Padded words are to be hidden from padded clips, which would do no harm. But of the B x heads masks, counted head by
    head, attention takes sample b's where b x heads + head says, so that it gets those of other samples.

    target_mask bool (B, T), query_mask bool (B, N); returns bool (B, heads, T, N)
    """
    B = len(target_mask)
    sample = torch.arange(B * heads, device=target_mask.device).reshape(B, heads) % B
    return (target_mask[:, :, None] | query_mask[:, None])[sample]
