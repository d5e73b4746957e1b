"""Clips and words in one Transformer; the decoder attends to both (Moment-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021
         (arXiv 2107.09609)
Here     `JointMemoryAligner` is its encoder and its saliency  [Moment-DETR]; the encoded words become the `context`
         of `Aligned`, so that the memory of the decoder is clips and words together
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.dynamics import dynamics
from mrlib.align.words import Words
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, LearnedPositions, Projected, Sizes, masked_mean, sine_positions


class JointMemoryAligner(Projected):
    """Projections, Transformer layers over [target; query], a linear saliency of every clip.  [Moment-DETR]"""

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
        """Projections and `sizes.layers` layers of these sizes.

        pre_norm         LayerNorm before attention and feed-forward and at the end, instead of after each sum
        query_positions  "none" or "learned"
        places           number of learned positions
        mix              a module `mix(x, positions, words) -> (B, T, d)` from the projected clips to the clips that
                         enter the first layer; None: they enter as they are
        """
        super().__init__(widths.target, widths.query, sizes)
        require(query_positions in ("none", "learned"), "query_positions", query_positions, "none or learned")
        width, learned = sizes.width, query_positions == "learned"
        self.places = LearnedPositions(places, width, sizes.input_dropout) if learned else None
        self.layers = nn.ModuleList(EncoderLayer(*sizes.layer, pre_norm) for _ in range(sizes.layers))
        self.norm, self.mix = nn.LayerNorm(width) if pre_norm else nn.Identity(), mix
        self.saliency = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Aligned:
        """The encoded words are `query` and `context`."""
        mask, query_mask = batch.target_mask, batch.query_mask
        target, query = self.project(batch.target, mask, batch.query)  # (B, T, d), (B, N, d)
        query_positions = torch.zeros_like(query) if self.places is None else self.places(query)  # (B, N, d)
        positions = sine_positions(mask, self.width)  # (B, T, d)
        if self.mix is not None:
            target = self.mix(target, positions, Words(query + query_positions, query, query_mask))  # (B, T, d)
        x, positions = torch.cat([target, query], 1), torch.cat([positions, query_positions], 1)  # (B, T + N, d)
        joint_mask = torch.cat([mask, query_mask], 1)  # (B, T + N)
        for layer in self.layers:
            x = layer(x, positions, joint_mask)
        clips, words = self.norm(x).split([target.shape[1], query.shape[1]], dim=1)  # (B, T, d), (B, N, d)
        return Aligned(
            target=clips,
            mask=mask,
            query=words,
            query_mask=query_mask,
            query_global=masked_mean(words, query_mask),  # (B, d)
            saliency=self.saliency(clips)[..., 0],  # (B, T)
            context=words,
            context_mask=query_mask,
            context_positions=query_positions,
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """margin: that of two pairs of clips per sample; a null query has none.  [Moment-DETR]"""
        return {"margin": saliency.margin(aligned.saliency, saliency.ranking_pairs(batch))}


def build_joint_memory(
    widths: Widths, *, beta: float | None = None, pre_norm: bool, query_positions: str, places: int, **options: Any
) -> JointMemoryAligner:
    """The aligner "joint_memory".

    beta                               weight of the clips against their dynamics, see `Dynamics`; None: no dynamics
    pre_norm, query_positions, places  of `JointMemoryAligner`
    options                            of `Sizes`, without the activation, which is ReLU
    """
    sizes = Sizes(**options, activation="relu")
    mix = dynamics(1, sizes, beta)[0]
    return JointMemoryAligner(widths, sizes, pre_norm=pre_norm, query_positions=query_positions, places=places, mix=mix)
