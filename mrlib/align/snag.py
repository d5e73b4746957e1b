"""Clips and words are encoded separately; the detector combines them (SnAG).

Paper    Mu et al., "SnAG: Scalable and Accurate Video Grounding", CVPR 2024 (arXiv 2404.02257)
Here     `SnagAligner` is its text encoder and the projection of the clips  [SnAG]; as the clips do not depend on the
         query, many queries can share them
Ours     one width for clips and words, while the released configurations give words half of it; the layers are those of
         `mrlib.layers`, without LayerScale and stochastic depth; projections begin with a LayerNorm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, Projection, masked_mean, waves


class SnagAligner(nn.Module):
    """Projected clips and encoded words, without attention between them.  [SnAG]

    A detector that reads only the clips never sees the query of this aligner.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
    ):
        """Projections of one layer each, and the encoder of the words.

        width                  d of clips and words
        layers, heads, hidden  of the encoder of the words
        dropout                of the encoder and of both projections
        """
        super().__init__()
        self.width = width
        self.project_target = Projection(widths.target, width, 1, dropout)
        self.project_query = Projection(widths.query, width, 1, dropout)
        self.nothing = nn.Parameter(0.02 * torch.randn(width))  # a token that clips may attend to instead of words
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, "gelu", pre_norm=True) for _ in range(layers)
        )

    def forward(self, batch: Batch) -> Aligned:
        """`query` (B, 1 + N, d) begins with a learned token, for clips that no word describes."""
        words = self.project_query(batch.query)  # (B, N, d)
        index = torch.arange(words.shape[1], device=words.device)  # (N,)
        words = words + waves(index, self.width) / self.width**0.5
        x = torch.cat([self.nothing.expand(len(words), 1, -1), words], 1)  # (B, 1 + N, d)
        mask = torch.cat([batch.query_mask.new_ones(len(words), 1), batch.query_mask], 1)  # (B, 1 + N)
        for layer in self.layers:
            x = layer(x, torch.zeros_like(x), mask)
        return Aligned(
            target=self.project_target(batch.target),  # (B, T, d)
            mask=batch.target_mask,
            query=x,
            query_mask=mask,
            query_global=masked_mean(x[:, 1:], batch.query_mask),  # (B, d)
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """None: the detector's losses train the aligner."""
        return {}
