"""What aligners begin with whose layers are a Transformer's: their sizes, and a projection of clips and of words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch, Widths
from mrlib.layers import Projection, endpoints, masked_mean


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The options that such aligners share; their defaults are QD-DETR's."""

    width: int = 256
    layers: int = 2  # of each stack
    heads: int = 8
    hidden: int = 1024  # width inside feed-forward layers
    projections: int = 2  # layers of each projection of the input
    dropout: float = 0.1  # within attention and feed-forward layers
    input_dropout: float = 0.5  # within projections
    tef: bool = True  # append the ends of every clip to its features
    activation: str = "prelu"

    @property
    def layer(self) -> tuple[int, int, int, float, str]:
        """What a layer takes."""
        return self.width, self.heads, self.hidden, self.dropout, self.activation


class Projected(nn.Module):
    """Clips and words in one width, each through a projection of its own."""

    def __init__(self, widths: Widths, sizes: Sizes):
        super().__init__()
        self.width, self.tef = sizes.width, sizes.tef
        inputs = widths.target + 2 * sizes.tef, widths.query
        self.project_target, self.project_query = (
            Projection(each, sizes.width, sizes.projections, sizes.input_dropout) for each in inputs
        )

    def project(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clips (B, T, d) and words (B, N, d)."""
        target = torch.cat([batch.target, endpoints(batch.target_mask)], -1) if self.tef else batch.target
        return self.project_target(target), self.project_query(batch.query)


class FusedAligner(Projected, ABC):
    """Clips in the light of words, both projected, and how relevant they are: all that `fuse` says."""

    def forward(self, batch: Batch) -> Aligned:
        target, query = self.project(batch)
        clips, relevance, *more = self.fuse(target, batch.target_mask, query, batch.query_mask)
        return Aligned(
            clips,
            batch.target_mask,
            query,
            batch.query_mask,
            query_global=masked_mean(query, batch.query_mask),
            saliency=relevance,
            cache={"target": target, "more": more},
        )

    @abstractmethod
    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> tuple[Tensor, ...]:
        """Clips (B, T, d) in the light of a query and their saliency (B, T), and behind them what the losses read.

        target (B, T, d), query (B, N, d), both projected; masks bool (B, T), (B, N)
        """
