"""Base classes of aligners that fuse clips with the words of a query and score every clip.

Here  `FusedAligner` projects clips and words and leaves the fusion to its subclasses; `GlobalTokenAligner` adds the
      encoder with a global token, and the saliency, of QD-DETR (Moon et al., CVPR 2023)  [QD-DETR]
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.data import Batch, Widths
from mrlib.layers import LearnedPositions, Projected, Sizes, masked_mean


@dataclass(frozen=True)
class Fused:
    """Fused clips and their saliency, as `FusedAligner.fuse` returns them."""

    target: Tensor  # (B, T, d) the fused clips
    saliency: Tensor  # (B, T)
    cache: dict[str, Any] = field(default_factory=dict)  # further inputs of the losses of the aligner


class FusedAligner(Projected, ABC):
    """Projections of clips and words, then `fuse`, which returns fused clips and the saliency."""

    def __init__(self, widths: Widths, sizes: Sizes):
        super().__init__(widths.target, widths.query, sizes)

    def forward(self, batch: Batch) -> Aligned:
        """Cache: `target`, the projected clips (B, T, d), and the cache of `fuse`; `query` is the projected words."""
        mask, query_mask = batch.target_mask, batch.query_mask
        target, query = self.project(batch.target, mask, batch.query)  # (B, T, d), (B, N, d)
        fused = self.fuse(target, mask, query, query_mask)
        return Aligned(
            target=fused.target,
            mask=mask,
            query=query,
            query_mask=query_mask,
            query_global=masked_mean(query, query_mask),  # (B, d)
            saliency=fused.saliency,
            cache={"target": target, **fused.cache},
        )

    @abstractmethod
    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Fused:
        """Fuse projected clips (B, T, d), mask bool (B, T), with projected words (B, N, d), query_mask bool (B, N)."""


class GlobalTokenAligner(FusedAligner, ABC):
    """A `FusedAligner` that encodes the clips together with a global token; both give the saliency.  [QD-DETR]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[nn.Module],
        encoder: Sequence[nn.Module],
        places: int | None = None,
    ):
        """The layers are built by the subclass, with these sizes.

        layers   cross-attention layers from clips to words; `fuse` decides their arguments
        encoder  self-attention layers over the global token and the clips, `layer(x, positions, mask)`
        places   number of learned positions of the words; None: words have no positions
        """
        super().__init__(widths, sizes)
        self.places = None if places is None else LearnedPositions(places, sizes.width, sizes.input_dropout)
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.global_token, self.global_position = (nn.Parameter(torch.randn(sizes.width)) for _ in range(2))
        self.clip_side, self.global_side = (nn.Linear(sizes.width, sizes.width) for _ in range(2))  # W_a, W_b

    def encode(self, token: Tensor, x: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a global token together with the clips.  [QD-DETR]

        token (B, 1, d), clips x and their positions (B, T, d), mask bool (B, T); returns (B, 1, d) and (B, T, d)
        """
        place = self.global_position.expand(len(x), 1, -1)  # (B, 1, d)
        x, positions = torch.cat([token.to(x.dtype), x], 1), torch.cat([place, positions], 1)  # (B, 1 + T, d)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)  # (B, 1 + T)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x[:, :1], x[:, 1:]  # (B, 1, d), (B, T, d)

    def relevance(self, token: Tensor, clips: Tensor) -> Tensor:
        r"""The saliency $s_t = \langle W_a M_t + b_a, W_b \bar g + b_b \rangle / \sqrt d$.  [QD-DETR]

        encoded global token $\bar g$ (B, 1, d), encoded clips M (B, T, d); returns (B, T)
        """
        side = self.global_side(token) / self.width**0.5  # (B, 1, d); the clips are multiplied by W_a^T times it
        return (clips @ (side @ self.clip_side.weight).mT)[..., 0] + side @ self.clip_side.bias  # (B, T)

    def saliency_losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """The terms of `saliency.terms`: margin, contrast, negative; `fuse` runs again for the last two.  [QD-DETR]"""
        clips = aligned.cache["target"], aligned.mask
        return saliency.terms(aligned, batch, lambda query, mask: self.fuse(*clips, query, mask).saliency)


def from_sizes(aligner: Callable[[Widths, Any], nn.Module], sizes: type[Sizes]) -> Callable[..., nn.Module]:
    """The builder `build(widths, **options)` of an aligner whose options are the fields of its sizes."""

    def build(widths: Widths, **options: Any) -> nn.Module:
        return aligner(widths, sizes(**options))

    build.__signature__ = inspect.signature(sizes)  # `arguments.keyword_defaults` then lists the fields
    return build
