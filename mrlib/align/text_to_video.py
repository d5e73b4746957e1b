"""Every clip attends to the words before the clips attend to one another (QD-DETR).

Paper    Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection", CVPR 2023
         (arXiv 2303.13874)
Here     `TextToVideoAligner`: a stack of `T2VLayer` from words to clips, an encoder with a global token, the saliency;
         negative pairs are a loss of the aligner  [QD-DETR]. With `beta` the layers mix in the dynamics of TD-DETR
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from mrlib.align import Aligned
from mrlib.align.dynamics import dynamics
from mrlib.align.fused import Fused, GlobalTokenAligner
from mrlib.align.words import T2VLayer, Words, every_word, released_masks
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, Sizes, sine_positions


class TextToVideoAligner(GlobalTokenAligner):
    """Clips attend to words, then clips and a global token to one another.  [QD-DETR]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[T2VLayer],
        encoder: Sequence[EncoderLayer],
        *,
        places: int | None = None,
        masks: Callable[[Tensor, Tensor], Tensor | None] = every_word,
    ):
        """The layers have these sizes.

        layers   from words to clips
        encoder  over the global token and the clips
        places   number of learned positions of the words, added to the keys; None: words have no positions
        masks    masks(target_mask, query_mask) -> `Words.visible`: `every_word`, or `released_masks` with its heads
        """
        super().__init__(widths, sizes, layers, encoder, places)
        self.masks = masks

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Fused:
        """Projected clips (B, T, d) and words (B, N, d) -> clips (B, T, d) and their saliency (B, T).  [QD-DETR]"""
        positions = sine_positions(mask, self.width)  # (B, T, d)
        keys = query if self.places is None else query + self.places(query)  # (B, N, d)
        words, x = Words(keys, query, query_mask, self.masks(mask, query_mask)), target
        for layer in self.layers:
            x = layer(x, positions, words)  # (B, T, d)
        token, clips = self.encode(self.global_token.expand(len(x), 1, -1), x, positions, mask)  # (B, 1, d), (B, T, d)
        return Fused(clips, self.relevance(token, clips))

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """The terms of `saliency.terms`: margin, contrast, negative; null queries as there.  [QD-DETR]"""
        return self.saliency_losses(aligned, batch)


def build_text_to_video(
    widths: Widths, *, query_positions: str, places: int, masks: str, beta: float | None = None, **options: Any
) -> TextToVideoAligner:
    """The aligner "text_to_video".

    query_positions  "none", or "learned": `places` learned positions
    masks            words that clips may attend to: "keys", all words of their query; "released", see `released_masks`
    beta             weight of the clips against their dynamics; None: no dynamics  [TD-DETR Eq. 6]
    options          of `Sizes`
    """
    require(query_positions in ("none", "learned"), "query_positions", query_positions, "none or learned")
    require(masks in ("keys", "released"), "masks", masks, "keys or released")
    sizes = Sizes(**options)
    layers = [T2VLayer(*sizes.layer, mix) for mix in dynamics(sizes.layers, sizes, beta)]
    return TextToVideoAligner(
        widths,
        sizes,
        layers,
        [EncoderLayer(*sizes.layer) for _ in range(sizes.layers)],
        places=places if query_positions == "learned" else None,
        masks=every_word if masks == "keys" else partial(released_masks, heads=sizes.heads),
    )
