"""Clips and words in one Transformer, and both of them are the memory that is asked (Moment-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021
         (arXiv 2107.09609)
Here     `JointMemoryAligner` is its encoder and its saliency [Moment-DETR]; the words after the encoder go on as the
         `context` of `Aligned`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.text_to_video import Words
from mrlib.data import Batch
from mrlib.layers import EncoderLayer, LearnedPositions, Projection, endpoints, masked_mean, sine_positions
from mrlib.settings import require


class JointMemoryAligner(nn.Module):
    """Projections, Transformer layers over [target; query], a saliency for every clip.  [Moment-DETR]"""

    def __init__(
        self,
        target_width: int,
        query_width: int,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        projections: int = 2,
        pre_norm: bool = False,
        dropout: float = 0.1,
        input_dropout: float = 0.5,
        tef: bool = True,
        query_positions: str = "none",
        places: int = 32,
        mix: nn.Module | None = None,
    ):
        """An encoder of a width.

        target_width, query_width  D and D' of the batch
        projections      layers of each projection
        tef              append the ends of every clip to its features
        query_positions  "none", or "learned" (`places` of them)
        mix              a module `mix(x, positions, words) -> (B, T, d)`: the clips as the first layer gets them; None:
                         as they are projected
        """
        super().__init__()
        require(query_positions in ("none", "learned"), "query_positions", query_positions, "none or learned")
        self.width, self.tef = width, tef
        self.project_target = Projection(target_width + 2 * tef, width, projections, input_dropout)
        self.project_query = Projection(query_width, width, projections, input_dropout)
        self.places = LearnedPositions(places, width, input_dropout) if query_positions == "learned" else None
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, pre_norm=pre_norm) for _ in range(layers)
        )
        self.norm, self.mix = nn.LayerNorm(width) if pre_norm else nn.Identity(), mix
        self.saliency = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Aligned:
        target = torch.cat([batch.target, endpoints(batch.target_mask)], -1) if self.tef else batch.target
        target, query = self.project_target(target), self.project_query(batch.query)
        places = torch.zeros_like(query) if self.places is None else self.places(query)
        positions = sine_positions(batch.target_mask, self.width)
        if self.mix is not None:
            target = self.mix(target, positions, Words(query + places, query, batch.query_mask))
        x, positions = torch.cat([target, query], 1), torch.cat([positions, places], 1)
        mask = torch.cat([batch.target_mask, batch.query_mask], 1)
        for layer in self.layers:
            x = layer(x, positions, mask)
        clips, words = self.norm(x).split([target.shape[1], query.shape[1]], dim=1)
        return Aligned(
            clips,
            batch.target_mask,
            words,
            batch.query_mask,
            query_global=masked_mean(words, batch.query_mask),
            saliency=self.saliency(clips)[..., 0],
            context=words,
            context_mask=batch.query_mask,
            context_positions=places,
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """margin, of two pairs of clips per sample  [Moment-DETR]"""
        return {"margin": saliency.margin(aligned.saliency, saliency.ranking_pairs(batch))}
