"""A second set of moment queries that learns what is new while the first is held to what it knew (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     `active_queries` adds the set to a trained detector [AMR stage 2]; all but the spans it begins with and its
         feed-forward layers is shared
Departs  SooLab/AMR asks with one new set twice, as original and as active queries, and gives the teacher a third one,
         so that what the moment queries learned in the first stage is lost: `released_queries`
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mrlib.detect.dab import DabDecoder
from mrlib.layers import FeedForward
from mrlib.retriever import MomentRetriever


class SplitFeedForward(nn.Module):
    """One feed-forward for the first half of the queries, linear layers of their own for the second.  [AMR stage 2]"""

    def __init__(self, original: FeedForward):
        """The second half begins as a copy; activation and dropout are shared."""
        super().__init__()
        self.original = original
        self.active1, self.active2 = copy.deepcopy(original.linear1), copy.deepcopy(original.linear2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 2 K, d), original queries first."""
        first, second = x.chunk(2, 1)
        shared = self.original
        return torch.cat([shared(first), self.active2(shared.dropout(shared.activation(self.active1(second))))], 1)


def active_queries(retriever: MomentRetriever, teacher: bool = False) -> None:
    """Add active queries, a copy of the learned ones; a teacher stays as it is.  [AMR stage 2]"""
    if not teacher:
        decoder = _split(retriever)
        decoder.active_queries = copy.deepcopy(decoder.moment_queries)


def released_queries(retriever: MomentRetriever, teacher: bool = False) -> None:
    """Ask with new queries, drawn at random, as original and as active ones; a teacher asks with new ones too."""
    decoder = _decoder(retriever) if teacher else _split(retriever)
    nn.init.normal_(decoder.moment_queries.weight)


def _split(retriever: MomentRetriever) -> DabDecoder:
    decoder = _decoder(retriever)
    decoder.sets = 2
    for layer in decoder.layers:
        layer.feed_forward = SplitFeedForward(layer.feed_forward)
    return decoder


def _decoder(retriever: MomentRetriever) -> DabDecoder:
    decoder = getattr(retriever.detector, "decoder", None)
    if not isinstance(decoder, DabDecoder) or decoder.sets > 1:
        raise ValueError("a set of moment queries is added to a detector whose decoder is a DabDecoder with one set")
    return decoder
