"""Base classes of aligners that fuse the clips with the words of a query and give every clip a saliency."""

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
    """Clips after they met a query."""

    target: Tensor  # (B, T, d)
    saliency: Tensor  # (B, T)
    cache: dict[str, Any] = field(default_factory=dict)  # what the losses of the aligner read besides


class FusedAligner(Projected, ABC):
    """Projections, then `fuse`: the clips in the light of the words, and how relevant each clip is."""

    def __init__(self, widths: Widths, sizes: Sizes):
        super().__init__(widths.target, widths.query, sizes)

    def forward(self, batch: Batch) -> Aligned:
        """Cache: `target`, the projected clips (B, T, d), and the cache of `fuse`."""
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
    """A `FusedAligner` whose clips pass an encoder together with a global token that yields the saliency.  [QD-DETR]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[nn.Module],
        encoder: Sequence[nn.Module],
        places: int | None = None,
    ):
        """Two stacks of layers of these sizes.

        layers   bring words into clips
        encoder  works among the clips and the global token
        places   number of learned positions of the words; None: words have no positions
        """
        super().__init__(widths, sizes)
        self.places = None if places is None else LearnedPositions(places, sizes.width, sizes.input_dropout)
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.global_token, self.global_position = (nn.Parameter(torch.randn(sizes.width)) for _ in range(2))
        self.clip_side, self.global_side = (nn.Linear(sizes.width, sizes.width) for _ in range(2))

    def encode(self, token: Tensor, x: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a global token (B, 1, d) together with the clips (B, T, d); returns both.  [QD-DETR]"""
        place = self.global_position.expand(len(x), 1, -1)  # (B, 1, d)
        x, positions = torch.cat([token.to(x.dtype), x], 1), torch.cat([place, positions], 1)  # (B, 1 + T, d)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)  # (B, 1 + T)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x[:, :1], x[:, 1:]

    def relevance(self, token: Tensor, clips: Tensor) -> Tensor:
        r"""$s_t = \langle W_a M_t + b_a, W_b \bar g + b_b \rangle / \sqrt d$ of encoded clips, global token.

        [QD-DETR]

        token (B, 1, d), clips (B, T, d); returns (B, T)
        """
        return (self.clip_side(clips) * self.global_side(token)).sum(-1) / self.width**0.5

    def saliency_losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """The terms of `saliency.terms`: margin, contrast, negative.  [QD-DETR]"""
        clips = aligned.cache["target"], aligned.mask
        return saliency.terms(aligned, batch, lambda query, mask: self.fuse(*clips, query, mask).saliency)


def from_sizes(aligner: Callable[[Widths, Any], nn.Module], sizes: type[Sizes]) -> Callable[..., nn.Module]:
    """A function `build(widths, **options)` of an aligner whose options are the fields of its sizes."""

    def build(widths: Widths, **options: Any) -> nn.Module:
        return aligner(widths, sizes(**options))

    build.__signature__ = inspect.signature(sizes)  # `arguments.keyword_defaults` then lists the fields
    return build
