r"""Cross-attention from clips to words: the layer that QD-DETR, TD-DETR, AMR, UVCOM and TaskWeave share.

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874)
Here     `Words` holds the keys and values of a query, `T2VLayer` is the layer  [QD-DETR]
Ours     padded words are masked, and nothing else: `every_word`
Departs  wjun0830/QD-DETR adds masks with heads and samples in the wrong order, so that a real clip loses real words
         where another sample is padded: `released_masks`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrlib.layers import Attention, Dropout, FeedForward
from mrlib.ops.recompute import recomputed
from mrlib.ops.whole_batch import own, whole


class Words(NamedTuple):
    """The words of a query as keys and values of attention."""

    keys: Tensor  # (B, N, d) words plus their positions, if they have any
    values: Tensor  # (B, N, d) words without positions
    mask: Tensor  # bool (B, N) True = real word
    visible: Tensor | None = None  # bool (B, heads, T, N) words that each clip may attend to; None: all real words


def every_word(target_mask: Tensor, query_mask: Tensor) -> None:
    """`Words.visible` if every clip may attend to all real words; target_mask bool (B, T), query_mask bool (B, N)."""
    return None


def released_masks(target_mask: Tensor, query_mask: Tensor, heads: int) -> Tensor:
    """`Words.visible` as in the released code.  [QD-DETR]

    The code means to hide padded words from padded clips, which the mask of the keys does already. It stacks the masks
    of all B samples once per head, but attention reads entry b x heads + head for sample b. So most samples get the
    masks of other samples.

    target_mask bool (B, T), query_mask bool (B, N); returns bool (B, heads, T, N)
    """
    target_mask, query_mask = whole(target_mask), whole(query_mask)
    B = len(target_mask)
    sample = own(torch.arange(B * heads, device=target_mask.device).reshape(B, heads) % B)  # whose mask is read
    return (target_mask[:, :, None] | query_mask[:, None])[sample]  # (B, T, N) -> (B, heads, T, N)


class T2VLayer(nn.Module):
    r"""Clips attend to words: $Z = X + A$, $X \leftarrow \mathrm{LN}_2(Z + \mathrm{FFN}(\mathrm{LN}_1 Z))$.  [QD-DETR]

    A is the output of multi-head attention from the clips X, with their positions, to the words. The sum Z is not
    normalised before it enters the second residual.
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
        """The numbers and the activation are those of `Sizes`.

        mix  a module `mix(x, positions, words) -> (B, T, d)` whose output replaces X in the sum Z; None: X itself
        """
        super().__init__()
        self.cross_attn = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.mix = Dropout(dropout), mix

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> Tensor:
        """x, positions (B, T, d) -> (B, T, d)."""
        return recomputed(x.shape[1], self._attend, x, positions, words)

    def _attend(self, x: Tensor, positions: Tensor, words: Words) -> Tensor:
        attended = self.cross_attn(x + positions, words.keys, words.values, words.mask, words.visible)  # A (B, T, d)
        z = (x if self.mix is None else self.mix(x, positions, words)) + self.dropout(attended)
        return self.norm2(z + self.dropout(self.feed_forward(self.norm1(z))))
