"""The trainer of a paper's stage, from weights at random."""

from __future__ import annotations

from collections.abc import Sized

import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.data.dataset import MomentDataset
from mrlib.training.trainer import Setup, Trainer


def make_trainer(
    paper: papers.Paper,
    data: MomentDataset | Widths,
    *,
    stage: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    compile: bool = False,
    samples: Sized = (),
) -> Trainer:
    """A trainer with its retriever in training mode, and with a teacher if the stage has one.

    data     the training set, or the widths of the batches that are given to the trainer
    stage    of the paper; None: its last
    samples  in place of a training set
    """
    trained = [each for each in paper.stages if each.mine is None]
    chosen = next(each for each in trained if each.name == stage) if stage else trained[-1]
    retriever, teacher = papers.build(paper, data), None
    if chosen.prepare is not None:
        papers.prepare(retriever, chosen.prepare)
    if chosen.teacher is not None:
        teacher = papers.build(paper, data)
        papers.prepare(teacher, chosen.prepare, teacher=True)
        teacher.requires_grad_(False).eval().to(device)
    train = data if isinstance(data, MomentDataset) else samples
    retriever.to(device).train()
    setup = Setup(retriever, train, None, {}, paper, 0, torch.device(device), precision, compile)
    return Trainer(setup, chosen, train, teacher)
