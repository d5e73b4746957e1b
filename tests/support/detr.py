"""DETR detectors of width 16, and random outputs of an aligner as their input."""

from __future__ import annotations

import torch
from torch import nn

from mrlib import papers
from mrlib.align import Aligned
from mrlib.data import Batch, Widths
from mrlib.detect.detr import Decoded, DetrDetector, context_of
from tests.support.modules import shaken

MOMENT_QUERIES = 5


def make(name: str = "detr", **options) -> DetrDetector:
    """A detector whose parameters all differ from their initial values; name: "detr" or "dab"."""
    sizes = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "moment_queries": MOMENT_QUERIES}
    paper = papers.get("moment_detr" if name == "detr" else "qd_detr", **sizes | {"detector": name} | options)
    return shaken(papers.build(paper, Widths(24, 12, 16), seed=1).detector)


def aligned_of(batch: Batch, width: int = 16, tokens: int = 0, seed: int = 0) -> Aligned:
    """Random clips (B, T, width), the query of the batch, and random context tokens."""
    g = torch.Generator().manual_seed(seed)
    B, T = batch.target_mask.shape
    context = torch.randn(B, tokens, width, generator=g) if tokens else None
    clips = torch.randn(B, T, width, generator=g)
    return Aligned(clips, batch.target_mask, batch.query, batch.query_mask, clips[:, 0], context=context)


def run_decoder(decoder: nn.Module, aligned: Aligned) -> Decoded:
    """The output of a decoder, called as `DetrDetector` calls it."""
    return decoder(aligned.target, aligned.mask, aligned.query_global, context_of(aligned))
