"""Short training runs of a small paper on simulated data, and what they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mrlib import files, papers
from mrlib.data import MomentDataset, open_dataset
from mrlib.retriever import MomentRetriever
from mrlib.train import History, fit
from mrlib.training.trainer import Setup

SIZE = {"size": "small", "streams": "joint"}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # of processes that a test starts
COMMAND = ["f2sgd", "--size", "small", "--data", "n=48", "--set", "kernel=5", "channels=2", "batch_size=16"]


def open_world() -> tuple[MomentDataset, MomentDataset]:
    """48 training samples and 20 for validation."""
    return open_dataset("sim", split="train", n=48, **SIZE), open_dataset("sim", split="val", n=20, **SIZE)


def small(**settings: Any) -> papers.Paper:
    """F2SGD with few parameters: three epochs of three steps on the training samples of `open_world`."""
    return papers.get("f2sgd", "small", **({"kernel": 5, "channels": 2, "batch_size": 16, "epochs": 3} | settings))


def run(
    world: tuple[MomentDataset, MomentDataset | None],
    paper: papers.Paper,
    out_dir: Path | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[History, dict[str, Tensor]]:
    """Build and train a model; the history of the run and the weights that it ends with."""
    retriever = papers.build(paper, world[0], seed)
    history = fit(retriever, *world, paper, out_dir, seed=seed, device="cpu", progress=False, **options)
    return history, retriever.state_dict()


def trained(
    paper: papers.Paper,
    data: tuple[MomentDataset, MomentDataset | None],
    out_dir: Path | None = None,
    **options: Any,
) -> tuple[MomentRetriever, History]:
    """Build and train a model of any paper; the trained model and the history of the run."""
    retriever = papers.build(paper, data[0])
    history = fit(retriever, *data, paper, out_dir, device="cpu", progress=False, **options)
    return retriever, history


def setup_of(world: tuple[MomentDataset, MomentDataset | None], paper: papers.Paper) -> Setup:
    """What the stages of a run without probes share, on the CPU."""
    return Setup(papers.build(paper, world[0]), *world, {}, paper, 0, torch.device("cpu"), "fp32", False)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes, except the seconds that a run took."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "times.jsonl"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool = False) -> list[str]:
    """Let a run stop at the rename of that number, by which a file appears, counted from 1.

    after    the run stops right after the rename; False: right before it
    returns  the files that appeared or, for the last one, would have appeared; it grows as the run goes on
    """
    targets, rename = [], os.replace

    def stop(source: str, target: str) -> None:
        targets.append(target)
        if len(targets) == number and not after:
            raise KeyboardInterrupt
        rename(source, target)
        if len(targets) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    return targets
