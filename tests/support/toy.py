"""A small model with dropout, and a paper that uses it, for tests of training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib import papers
from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.ops.counts import shared_count

PAPER = papers.Paper(
    name="toy",
    title="A toy",
    aligner=papers.Choice("toy", {"dropout": 0.5}),
    detector=papers.Choice("toy"),
    stages=(papers.Stage("train", 3, 16, optimiser=papers.Optimiser("adam", 1e-2)),),
    streams="joint",
)


class ToyAligner(nn.Module):
    """The product of clip and query, number by number, with dropout; `calls` records every forward pass."""

    def __init__(self, width: int, *, dropout: float):
        super().__init__()
        self.width, self.dropout = width, nn.Dropout(dropout)
        self.linear = nn.Linear(width, width)
        self.unused = nn.Parameter(torch.ones(3))
        self.calls: list[dict[str, Any]] = []

    def forward(self, batch: Batch) -> Aligned:
        dropped = self.dropout(torch.ones(self.width))
        target, query = F.normalize(batch.target_joint, dim=-1), F.normalize(batch.query_joint, dim=-1)
        target = torch.tanh(self.linear(self.width * target * query[:, None])) * dropped
        self.calls.append(
            {
                "training": self.training,
                "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
                "dropped": dropped,
                "labels": batch.labels,
                "samples": batch.samples,
            }
        )
        return Aligned(target, batch.target_mask, batch.query, batch.query_mask, query, saliency=target.mean(-1))

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        return {"size": 1e-3 * aligned.target.square().mean((1, 2)).sum() / shared_count(len(batch))}


class ToyDetector(nn.Module):
    """A score for each clip; the three best clips are the predicted moments."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        return {"score": self.score(aligned.target)[..., 0]}

    def losses(self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher=None) -> dict[str, Tensor]:
        each = F.binary_cross_entropy_with_logits(
            outputs["score"].float(), batch.labels.relevant.float(), reduction="none"
        )
        return {"clips": each.mean(1).sum() / shared_count(len(batch))}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        scores, clip = outputs["score"].masked_fill(~batch.target_mask, -torch.inf).topk(3)
        spans = torch.stack([clip, clip + 1], -1) / batch.lengths[:, None, None]
        return Moments(spans, scores, scores > -torch.inf)


def register(set_item=dict.__setitem__) -> None:
    """Add the toy to the tables of parts and papers; `monkeypatch.setitem` removes it after the test."""
    set_item(papers.ALIGNERS, "toy", lambda widths, **options: ToyAligner(widths.joint, **options))
    set_item(papers.DETECTORS, "toy", lambda width, **options: ToyDetector(width, **options))
    set_item(papers.PAPERS, "toy", PAPER)
