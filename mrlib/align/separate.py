r"""Clips and words side by side, each without a look at the other: they meet in the detector (SnAG).

Paper    Mu et al., "SnAG: Scalable and Accurate Video Grounding", CVPR 2024 (arXiv 2404.02257)
Here     `SeparateAligner` is its text encoder, and the projection of the clips  [SnAG]; what a video is made into does
         not depend on the query, so many queries can share it
Ours     one width for clips and words, where the released configurations give words half of it; the layers are those of
         `mrlib.layers`, without LayerScale and stochastic depth; projections begin with a norm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, Projection, masked_mean, waves


class SeparateAligner(nn.Module):
    """Projected clips, encoded words, nothing between them.  [SnAG]

    A detector that looks at clips alone is blind behind it.
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
        """Two ways of a width; layers, heads and hidden are those of the words' encoder."""
        super().__init__()
        self.width = width
        self.project_target = Projection(widths.target, width, 1, dropout)
        self.project_query = Projection(widths.query, width, 1, dropout)
        self.nothing = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, "gelu", pre_norm=True) for _ in range(layers)
        )

    def forward(self, batch: Batch) -> Aligned:
        """`query` (B, 1 + N, d) begins with a learned token, for clips that no word describes."""
        words = self.project_query(batch.query)
        places = torch.arange(words.shape[1], device=words.device)
        words = words + waves(places, self.width) / self.width**0.5
        x = torch.cat([self.nothing.to(words.dtype).expand(len(words), 1, -1), words], 1)
        mask = torch.cat([batch.query_mask.new_ones(len(words), 1), batch.query_mask], 1)
        for layer in self.layers:
            x = layer(x, torch.zeros_like(x), mask)
        return Aligned(
            self.project_target(batch.target),
            batch.target_mask,
            x,
            mask,
            query_global=masked_mean(x[:, 1:], batch.query_mask),
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """None of its own."""
        return {}
