"""Mine windows: confident predictions of a trained model that do not answer the query (AMR, Boost).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     [AMR, mining] `halves` splits the training set by video; a model trained on one half predicts the other half,
         and `confusing` selects from its predictions. `mrlib.training.stages.MiningRunner` trains the two models
Ours     the authors' mining script is not published: the score threshold is a setting of the stage, and a query gets at
         most `MOST` windows
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrlib.data import MomentDataset
from mrlib.files import read_jsonl, write_jsonl, write_whole
from mrlib.ops.draw import Draw

MOST = 3  # mined windows per query


def has_wrong_spans(dataset: MomentDataset) -> bool:
    """Whether the samples already have `wrong_spans`, even if all of them are empty."""
    return any("wrong_spans" in s.extra for s in dataset.samples)


def halves(dataset: MomentDataset, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a dataset by video into two random halves; all queries of a video are in the same half.

    returns  the positions of the samples of each half, ascending
    raises   ValueError if samples have no annotated windows, or if there is only one video
    """
    if any(s.relevant_windows is None for s in dataset.samples):
        raise ValueError(
            f"{dataset.name} {dataset.split} has samples without annotated windows; leave out the stage that mines"
        )
    videos, position = dataset.video.unique(return_inverse=True)  # (V,), (S,)
    if len(videos) < 2:
        raise ValueError(f"{dataset.name} {dataset.split} has one video; mining needs two, one for each half")
    rank = draw("half", videos).argsort().argsort()  # (V,)
    first = (rank < len(videos) // 2)[position]  # (S,)
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]


def confusing(lines: Sequence[Mapping[str, Any]], dataset: MomentDataset, threshold: float) -> list[list[list[float]]]:
    """Confident predictions that overlap no annotated window, in seconds, one list per sample.  [AMR, mining]

    Starts and ends are moved to the nearest clip border. Of predictions that overlap each other, only the one with
    the highest score is kept; at most `MOST` are kept, sorted by start.

    lines      predictions as `mrlib.training.scoring.predict_all` gives them, one line per sample of `dataset`
    threshold  only predictions with a higher score are kept
    """
    mined_s = []
    lengths = dataset.target.lengths[dataset.video].tolist()
    for line, sample, clips in zip(lines, dataset.samples, lengths, strict=True):
        kept_s: list[list[float]] = []
        for start_s, end_s, score in sorted(line["pred_relevant_windows"], key=lambda w: -w[2]):
            first, last = (min(max(round(t / dataset.clip_s), 0), clips) for t in (start_s, end_s))
            window_s = [first * dataset.clip_s, min(last * dataset.clip_s, sample.duration)]
            overlaps = any(_overlap(window_s, other_s) for other_s in [*sample.relevant_windows, *kept_s])
            if score > threshold and window_s[0] < window_s[1] and not overlaps and len(kept_s) < MOST:
                kept_s.append(window_s)
        mined_s.append(sorted([_whole(t) for t in window_s] for window_s in kept_s))
    return mined_s


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two windows share more than a border."""
    return one[0] < other[1] and other[0] < one[1]


def _whole(seconds: float) -> float:
    """An int if the seconds are whole, as in the annotations of QVHighlights."""
    return int(seconds) if seconds == int(seconds) else seconds


def with_wrong_spans(dataset: MomentDataset, mined_s: Sequence[list[list[float]]]) -> MomentDataset:
    """The dataset with mined windows, one list in seconds per sample, as `wrong_spans` in their `extra`."""
    pairs = zip(dataset.samples, mined_s, strict=True)
    samples = [replace(s, extra={**s.extra, "wrong_spans": windows_s}) for s, windows_s in pairs]
    return replace(dataset, samples=samples, _annotations=None)


def write(file: Path, dataset: MomentDataset, settings: Mapping[str, Any]) -> None:
    """Write a training set with its mined windows in the format of AMR's training file, one sample a line.

    settings  of the stage that mined them; written to a .json file of the same name, with `MOST`
    """
    write_whole(file.with_suffix(".json"), json.dumps({**settings, "most": MOST}, indent=1) + "\n")
    write_jsonl(file, (s.as_line() for s in dataset.samples))


def read(file: Path) -> list[list[list[float]]]:
    """The mined windows of every sample, [[start, end], ...] in seconds, from a file that `write` wrote.

    raises  ValueError, naming the file and its line, if it is damaged
    """
    mined_s = [line.get("wrong_spans") for line in read_jsonl(file)]
    for number, windows_s in enumerate(mined_s, 1):
        if not (isinstance(windows_s, list) and all(map(_is_window, windows_s))):
            message = "wrong_spans must be [[start, end], ...] in seconds; the file is damaged, give another out_dir"
            raise ValueError(f"{file}, line {number}: {message}")
    return mined_s


def _is_window(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(type(t) in (int, float) and math.isfinite(t) for t in x)
