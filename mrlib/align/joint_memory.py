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
from mrlib.align.projected import Projected, Sizes
from mrlib.align.text_to_video import Words
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, LearnedPositions, masked_mean, sine_positions
from mrlib.settings import require


class JointMemoryAligner(Projected):
    """Projections, Transformer layers over [target; query], a saliency for every clip.  [Moment-DETR]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        *,
        pre_norm: bool = False,
        query_positions: str = "none",
        places: int = 32,
        mix: nn.Module | None = None,
    ):
        """One stack of layers of these sizes.

        query_positions  "none", or "learned" (`places` of them)
        mix              a module `mix(x, positions, words) -> (B, T, d)`: the clips as the first layer gets them; None:
                         as they are projected
        """
        super().__init__(widths, sizes)
        require(query_positions in ("none", "learned"), "query_positions", query_positions, "none or learned")
        width, learned = sizes.width, query_positions == "learned"
        self.places = LearnedPositions(places, width, sizes.input_dropout) if learned else None
        self.layers = nn.ModuleList(EncoderLayer(*sizes.layer, pre_norm) for _ in range(sizes.layers))
        self.norm, self.mix = nn.LayerNorm(width) if pre_norm else nn.Identity(), mix
        self.saliency = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Aligned:
        target, query = self.project(batch)
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
