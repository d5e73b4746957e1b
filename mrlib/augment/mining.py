"""Windows that a model takes for the moment and that are none: each half of the videos shows the other's (AMR, Boost).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     [AMR, mining] a model trained on one half predicts the other: `halves`, `confusing`; the training itself is
         `mrlib.train`'s, for any paper with a stage that mines
Ours     the script that mined is not published: the threshold is a setting of the stage, at most `MOST` windows a query
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mrlib.data import MomentDataset
from mrlib.files import write_whole
from mrlib.metrics import read_jsonl
from mrlib.ops.draw import Draw
from mrlib.papers import Stage

MOST = 3  # mined windows of a query


def done(dataset: MomentDataset) -> bool:
    """Whether samples bring `wrong_spans`, which may all be empty."""
    return any("wrong_spans" in s.extra for s in dataset.samples)


def halves(dataset: MomentDataset, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of two halves of the samples, drawn by video: all queries of a video are in one.

    raises  ValueError where there is one video only, or no window that a mined one could be told from
    """
    if any(s.relevant_windows is None for s in dataset.samples):
        raise ValueError(
            f"{dataset.name} {dataset.split} has no annotated windows beside which to mine; leave mining out"
        )
    videos, item = dataset.video.unique(return_inverse=True)
    if len(videos) < 2:
        raise ValueError(f"{dataset.name} {dataset.split} has one video; to mine, one half of them is needed per model")
    rank = draw("half", videos).argsort().argsort()
    first = (rank < len(videos) // 2)[item]
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]


def confusing(lines: Sequence[Mapping[str, Any]], dataset: MomentDataset, threshold: float) -> list[list[list[float]]]:
    """What was predicted with confidence and touches no annotated window, in seconds, a list per sample.  [AMR, mining]

    Ends go to the nearest clip's; of moments that overlap the better stays, `MOST` at most, sorted by start.

    lines      predictions as `mrlib.train.predict_all` gives them, a line per sample of `dataset`
    threshold  only moments of a higher score
    """
    found = []
    for line, sample in zip(lines, dataset.samples, strict=True):
        kept: list[list[float]] = []
        clips = int(dataset.target.lengths[dataset.video[len(found)]])
        for start, end, score in sorted(line["pred_relevant_windows"], key=lambda w: -w[2]):
            first, last = (min(max(round(t / dataset.clip_s), 0), clips) for t in (start, end))
            window = [first * dataset.clip_s, min(last * dataset.clip_s, sample.duration)]
            apart = all(window[1] <= a or b <= window[0] for a, b in [*sample.relevant_windows, *kept])
            if score > threshold and window[0] < window[1] and apart and len(kept) < MOST:
                kept.append(window)
        found.append(sorted([int(t) if t == int(t) else t for t in window] for window in kept))
    return found


def with_wrong(dataset: MomentDataset, wrong: Sequence[list[list[float]]]) -> MomentDataset:
    """The dataset with mined windows, a list per sample, as `wrong_spans`."""
    pairs = zip(dataset.samples, wrong, strict=True)
    samples = [replace(s, extra={**s.extra, "wrong_spans": windows}) for s, windows in pairs]
    return replace(dataset, samples=samples, _annotations=None)


def write(file: Path, dataset: MomentDataset, stage: Stage) -> None:
    """The annotations of a training set with what was mined, as AMR's training file; beside it the settings."""
    write_whole(file.with_suffix(".json"), json.dumps(asdict(stage) | {"most": MOST}, indent=1) + "\n")
    write_whole(file, "".join(json.dumps(s.as_line()) + "\n" for s in dataset.samples))


def read(file: Path) -> list[list[list[float]]]:
    """What `write` wrote, the mined windows of every sample."""
    return [line["wrong_spans"] for line in read_jsonl(file)]
