"""Datasets of known values, for tests of augmenters; the annotations of QVHighlights; a chi-square statistic."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mrlib.data import Bank, MomentDataset, Sample, load_annotations


def world(lengths: list[int], annotated: list[tuple], clip_s: float = 2.0, late: int = 0) -> MomentDataset:
    """A dataset whose features are known: clip t of video v is the row (v, t), query i is i.

    annotated  for every sample the number of its video, its windows and mined windows in clips, and its saliency,
               {clip: scores} or None
    late       number of clips by which a video is longer than its features
    """
    samples = [
        Sample(
            qid=i,
            query=f"query {i}",
            duration=(lengths[v] + late) * clip_s,
            vid=f"v{v}",
            relevant_windows=[[a * clip_s, b * clip_s] for a, b in windows],
            relevant_clip_ids=None if saliency is None else list(saliency),
            saliency_scores=None if saliency is None else list(saliency.values()),
            extra={"wrong_spans": [[a * clip_s, b * clip_s] for a, b in mined]} if mined else {},
        )
        for i, (v, windows, mined, saliency) in enumerate(annotated)
    ]
    clips = [np.stack([np.full(n, v), np.arange(n)], 1).astype(np.float32) for v, n in enumerate(lengths)]
    queries = [np.full((1 + i % 3, 1), i, dtype=np.float32) for i in range(len(samples))]
    return MomentDataset(
        name="worlds",
        split="train",
        samples=samples,
        target=Bank.from_arrays(clips),
        video=torch.tensor([a[0] for a in annotated]),
        query=Bank.from_arrays(queries),
        query_item=torch.arange(len(samples)),
        query_joint=None,
        streams={"number": slice(0, 1), "clip": slice(1, 2)},
        joint=None,
        clip_s=clip_s,
    )


def odd_windows(dice: random.Random, n: int, most: int) -> list[tuple[int, int]]:
    """Windows of n clips: the whole video, two that touch, very many, overlapping ones, or one after the last clip."""
    kind = dice.randrange(5)
    if kind == 0:
        return [(0, n)]
    if kind == 1 and n > 2:
        middle = dice.randrange(1, n - 1)
        return [(middle, n), (middle - 1, middle)]
    count = 25 if kind == 2 and most > 9 else dice.randint(1, most)
    ends = [sorted(dice.sample(range(n + 1), 2)) for _ in range(count)]
    return [(a, b) for a, b in ends] + ([(n, n + 1)] if kind == 3 else [])


def real_training_set() -> MomentDataset:
    """The annotations of QVHighlights in the folder MRLIB_DATA, with the feature 1 for every clip."""
    samples = load_annotations(Path(os.environ["MRLIB_DATA"], "qvhighlights", "highlight_train_release.jsonl"))
    videos = {s.vid: int(s.duration // 2) for s in samples}
    numbers = {vid: i for i, vid in enumerate(videos)}
    return replace(
        world([1], [(0, [(0, 1)], [], None)]),
        samples=samples,
        target=Bank.from_arrays([np.ones((n, 1), np.float32) for n in videos.values()]),
        video=torch.tensor([numbers[s.vid] for s in samples]),
        query=Bank.from_arrays([np.zeros((1, 1), np.float32)]),
        query_item=torch.zeros(len(samples), dtype=torch.long),
        _annotations=None,
    )


def chi_square(counts: Counter, outcomes: list) -> float:
    """The statistic of counts of equally likely outcomes; other outcomes fail."""
    assert set(counts) <= set(outcomes)
    expected = counts.total() / len(outcomes)
    return sum((counts[x] - expected) ** 2 / expected for x in outcomes)
