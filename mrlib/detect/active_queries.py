r"""AMR stage 2: a second set of moment queries is trained while distillation anchors the first.

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     `active_queries` adds the set to a trained detector  [AMR stage 2]; the two sets share everything but their
         initial spans and the linear layers of the feed-forward
Departs  SooLab/AMR drops the learned moment queries: one new random set serves both as original and as active moment
         queries, and the teacher gets another new set: `released_queries`
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mrlib.detect.dab import DabDecoder, refine
from mrlib.detect.detr import ContextTokens, Decoded
from mrlib.layers import FeedForward


class SplitFeedForward(nn.Module):
    """A feed-forward layer in which each half of the moment queries has linear layers of its own.  [AMR stage 2]"""

    def __init__(self, original: FeedForward):
        """The linear layers of the second half start as copies; activation and dropout are shared."""
        super().__init__()
        self.original = original
        self.active1, self.active2 = copy.deepcopy(original.linear1), copy.deepcopy(original.linear2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 2 K, d), original moment queries first; returns (B, 2 K, d)."""
        first, second = x.chunk(2, 1)  # (B, K, d) each
        y = self.original(first)  # (B, K, d); its dropout draws before that of the second half
        return torch.cat([y, self.original.through(second, self.active1, self.active2)], 1)


class TwoSetDecoder(nn.Module):
    """A `DabDecoder` turned into one with original and active moment queries.  [AMR stage 2]"""

    def __init__(self, decoder: DabDecoder, active: nn.Embedding | None):
        """Takes over the parts of the decoder, whose parameters keep their names, and splits its feed-forward layers.

        active  logits of centre and width (K, 2) of the second set; None: both sets start from the same spans
        """
        super().__init__()
        for name, part in decoder.named_children():
            setattr(self, name, part)
        for layer in self.layers:
            layer.feed_forward = SplitFeedForward(layer.feed_forward)
        self.content, self.active_queries = decoder.content, active

    def forward(self, target: Tensor, mask: Tensor, query_global: Tensor, context: ContextTokens | None) -> Decoded:
        """As `DabDecoder`, with 2 K moment queries, the original ones first."""
        return refine(self, self.sets(), target, mask, query_global)

    def sets(self) -> list[Tensor]:
        """Logits of the initial centres and widths of both sets, (K, 2) each."""
        active = self.moment_queries if self.active_queries is None else self.active_queries
        return [self.moment_queries.weight, active.weight]


def active_queries(retriever: nn.Module, teacher: bool = False) -> None:
    """Add active moment queries, which start as a copy of the learned ones; a teacher stays unchanged.  [AMR stage 2]

    raises  ValueError for a detector whose decoder is not a `DabDecoder`
    """
    if not teacher:
        decoder = _one_set_decoder(retriever)
        retriever.detector.decoder = TwoSetDecoder(decoder, copy.deepcopy(decoder.moment_queries))


def released_queries(retriever: nn.Module, teacher: bool = False) -> None:
    """Replace the moment queries by new random ones, which serve as both sets; a teacher gets one new random set.

    raises  ValueError for a detector whose decoder is not a `DabDecoder`
    """
    decoder = _one_set_decoder(retriever)
    if not teacher:
        retriever.detector.decoder = TwoSetDecoder(decoder, None)
    nn.init.normal_(decoder.moment_queries.weight)


def _one_set_decoder(retriever: nn.Module) -> DabDecoder:
    decoder = getattr(retriever.detector, "decoder", None)
    if not isinstance(decoder, DabDecoder):
        raise ValueError("moment queries are added to a detector whose decoder is a DabDecoder with one set")
    return decoder
