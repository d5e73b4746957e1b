r"""The moment queries that have a window resemble the words more than the others do (Moment-DETR).

Paper    Lei et al., "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS 2021
         (arXiv 2107.09609), after Kamath et al., "MDETR: Modulated Detection for End-to-End Multi-Modal Understanding",
         ICCV 2021. It stands in the release, where an option turns it on, and not in the paper
Here     `WordContrast` is that loss, contrastive_align, with its two projections  [Moment-DETR]
Departs  jayleicn/moment_detr also sums over padded words: padding="seen". A third projection there, of the clips, is
         read by no loss and left out. In the releases of QD-DETR, TD-DETR, AMR and CG-DETR no word is left in the
         memory that this loss reads, so that it is the constant log K: nothing to learn, and left out
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.arguments import require
from mrlib.detect.detr import DetrDecoder, DetrDetector, Truth, build_with_decoder, have_window
from mrlib.layers import full_precision
from mrlib.ops.counts import shared_count


class WordContrast(nn.Module):
    r"""Moment queries and words meet in a space of their own.  [Moment-DETR]

    $$z_m = \frac{1}{\tau} \sum_n \cos(W_q \eta_m + b_q,\ W_t y_n + b_t), \quad
    \mathcal{L} = \log \sum_m e^{z_m} - \frac{1}{|P|} \sum_{m \in P} z_m$$

    η are the states of the moment queries, y the encoded words, P the moment queries that have a window.
    """

    def __init__(self, width: int, contrast_width: int, *, temperature: float, padding: str):
        """width, contrast_width: of the states and the words, and of the space in which they meet.

        temperature  τ
        padding      "hidden", or "seen": padded words count as words, as in the release
        """
        super().__init__()
        require(type(contrast_width) is int and contrast_width >= 1, "contrast_width", contrast_width, "1 or more")
        fits = temperature > 0 and math.isfinite(temperature)
        require(fits, "contrast_temperature", temperature, "a number above 0")
        require(padding in ("hidden", "seen"), "contrast_padding", padding, "hidden or seen")
        self.queries, self.words = (nn.Linear(width, contrast_width) for _ in range(2))
        self.temperature, self.hides_padding = temperature, padding == "hidden"

    def forward(self, states: Tensor, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """word_logits  z (L, B, K)

        states (L, B, K, d), words (B, N, d), mask bool (B, N)
        """
        queries = F.normalize(full_precision(self.queries(states)), dim=-1)  # (L, B, K, contrast_width)
        words = F.normalize(full_precision(self.words(words)), dim=-1)  # (B, N, contrast_width)
        if self.hides_padding:
            words = words.masked_fill(~mask[..., None], 0)
        return {"word_logits": (queries * words.sum(1)[:, None]).sum(-1) / self.temperature}

    def losses(self, outputs: dict[str, Tensor], truth: Truth, matched: Tensor) -> dict[str, Tensor]:
        """contrastive_align, (L,): the mean over the samples that have a window; a null query adds nothing."""
        logits = outputs["word_logits"]  # (L, B, K)
        positive = have_window(matched, logits.shape[2])  # (L, B, K)
        count = positive.sum(2)  # (L, B)
        each = logits.logsumexp(2) - (logits * positive).sum(2) / count.clamp(min=1)  # (L, B)
        return {"contrastive_align": (each * (count > 0)).sum(1) / shared_count((count[0] > 0).sum())}


def build_detr(
    width: int,
    *,
    contrast_width: int | None = None,
    contrast_temperature: float = 0.07,
    contrast_padding: str = "hidden",
    **options: Any,
) -> DetrDetector:
    """The detector "detr".

    contrast_width                          of the space of `WordContrast`; None: no such loss
    contrast_temperature, contrast_padding  of `WordContrast`
    options                                 of `mrlib.detect.detr.build_with_decoder` and `DetrDecoder`
    """
    detector = build_with_decoder(DetrDecoder, width, **options)
    if contrast_width is not None:
        parts = {"temperature": contrast_temperature, "padding": contrast_padding}
        detector.contrast = WordContrast(width, contrast_width, **parts)
    return detector
