r"""Words into clips: the cross-attention layer that QD-DETR, TD-DETR, AMR, UVCOM and TaskWeave share.

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874)
Here     `Words` is a query as attention reads it, `T2VLayer` the layer that lets clips take up words  [QD-DETR]
Ours     attention masks the padding of its keys and nothing else: `every_word`
Departs  wjun0830/QD-DETR also hides padded words from padded clips, with the masks of all heads of all samples in the
         wrong order, so that a sample loses words where others are padded: `released_masks`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrlib.layers import Attention, Dropout, FeedForward


class Words(NamedTuple):
    """A query as attention reads it."""

    keys: Tensor  # (B, N, d) with positions, where words have positions
    values: Tensor  # (B, N, d)
    mask: Tensor  # bool (B, N)
    seen: Tensor | None = None  # bool (B, heads, T, N) words that each clip may attend to; None: all real ones


def every_word(target_mask: Tensor, query_mask: Tensor) -> None:
    """`Words.seen` for clips that may attend to all words of their query."""
    return None


def released_masks(target_mask: Tensor, query_mask: Tensor, heads: int) -> Tensor:
    """`Words.seen` as the released code has it.  [QD-DETR]

    It means to hide padded words from padded clips, which would be harmless. But it repeats the B masks head by head,
    while attention reads mask b x heads + head for sample b, so that most samples get the masks of other samples.

    target_mask bool (B, T), query_mask bool (B, N); returns bool (B, heads, T, N)
    """
    B = len(target_mask)
    sample = torch.arange(B * heads, device=target_mask.device).reshape(B, heads) % B
    return (target_mask[:, :, None] | query_mask[:, None])[sample]  # (B, heads, T, N)


class T2VLayer(nn.Module):
    r"""Clips take up words: $Z = X + A$, $X \leftarrow \mathrm{LN}_2(Z + \mathrm{FFN}(\mathrm{LN}_1 Z))$.  [QD-DETR]

    A is what the clips gather from the words.
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
        """mix  a module `mix(x, positions, words) -> (B, T, d)` whose output replaces X in the sum; None: X itself"""
        super().__init__()
        self.cross_attn = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.mix = Dropout(dropout), mix

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> Tensor:
        """x, positions (B, T, d) -> (B, T, d)."""
        attended = self.cross_attn(x + positions, words.keys, words.values, words.mask, words.seen)
        z = (x if self.mix is None else self.mix(x, positions, words)) + self.dropout(attended)
        return self.norm2(z + self.dropout(self.feed_forward(self.norm1(z))))
