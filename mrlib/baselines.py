"""What can be had without labels of the query at hand, to stand beside every model.

Each gives prediction lines in the official format, {"qid", "query", "vid", "pred_relevant_windows"}, windows in seconds
as [start, end, score], best first.

    whole_video       the video from start to end
    centred_window    the middle 60 % of the video: stands beside every model that searches with a video
    FixedList         ten windows chosen once on a training set, whatever the query: blind
    query_similarity  where clips are most like the query; how the published numbers were decoded is not known, ours is
                      named here and with every score: a smoothing over three clips alone lifts them threefold
    anchor_interval   one interval around the most query-like clip [A2FA Eq. 5]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mrlib.data import Batch, MomentDataset, Sample
from mrlib.metrics import IOUS, MOMENTS
from mrlib.ops.boundary_search import anchor, boundaries

AT_07 = 5  # of these an IoU of 0.7 reaches
GRID = 25  # candidate windows of a fixed list begin and end at multiples of 1/GRID of the video
BATCH = 64


def whole_video(dataset: MomentDataset) -> list[dict]:
    """The whole video, for every query."""
    return [_line(s, [[0.0, s.duration, 1.0]]) for s in dataset.samples]


def centred_window(dataset: MomentDataset, share: float = 0.6) -> list[dict]:
    """The middle of the video, for every query.

    share   of the video's length; ValueError if it is not above 0 and 1 at most

    Of the crops of ActivityNet-VRL, val and test, 0.6 has an mIoU of 34.8 and 38.6, an R1@0.5 of 29.8 and 36.7, the
    whole crop 29.8 and 33.3, 19.4 and 22.1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; above 0, and 1 for the whole video")
    before = (1 - share) / 2
    return [_line(s, [[before * s.duration, (1 - before) * s.duration, 1.0]]) for s in dataset.samples]


# what knows only how long the video is; stands beside every score that a command prints
LENGTH_ONLY = {"whole video": whole_video, "centred 60 %": centred_window}


class FixedList:
    """Ten windows for every query, chosen on the training samples: what is gained by knowing only where moments lie."""

    def __init__(self, train: MomentDataset | Sequence[Sample]):
        """Greedy: the first place goes to the best R1@0.7 on these samples, each other to what adds most to the mAP.

        raises  ValueError if the samples have no windows
        """
        samples = train.samples if isinstance(train, MomentDataset) else train
        if not samples or any(not s.relevant_windows for s in samples):
            raise ValueError("a fixed list is chosen on annotated samples; some of these have no windows")
        counts = np.array([len(s.relevant_windows) for s in samples])
        truth = np.concatenate([np.array(s.relevant_windows, np.float64) / s.duration for s in samples])
        self.spans = _greedy(truth, np.repeat(np.arange(len(samples)), counts), counts)  # (10, 2) fractions of a video

    def __call__(self, dataset: MomentDataset | Sequence[Sample]) -> list[dict]:
        samples = dataset.samples if isinstance(dataset, MomentDataset) else dataset
        score = 1 - np.arange(MOMENTS) / MOMENTS
        return [_line(s, np.column_stack([self.spans * s.duration, score]).tolist()) for s in samples]


def _greedy(truth: np.ndarray, of: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The window that most queries have at IoU 0.7; then what adds most to the mean of sum(precision) / W.

    The mean is over queries and IoU thresholds, the sum over the windows that are found.

    truth    (W, 2)  all annotated windows
    of       (W,)    the query of each
    counts   (Q,)    windows of each query
    """
    start, end = np.triu_indices(GRID + 1, 1)
    candidates = np.stack([start, end], 1) / GRID  # (C, 2)
    level = np.empty((len(candidates), len(truth)), np.int8)  # how many thresholds the IoU reaches
    for c, (s, e) in enumerate(candidates):
        shared = np.clip(np.minimum(e, truth[:, 1]) - np.maximum(s, truth[:, 0]), 0, None)
        iou = shared / (e - s + truth[:, 1] - truth[:, 0] - shared)
        level[c] = np.searchsorted(IOUS - 1e-9, iou, side="right")
    thresholds = np.arange(len(IOUS))
    reached = np.zeros(len(truth), np.int8)
    hits = np.zeros((len(counts), len(IOUS)))
    chosen = []
    for rank in range(1, MOMENTS + 1):
        # worth of reaching so many thresholds, those already reached being worth nothing; disjoint windows of a query
        # cannot both be reached by one candidate
        worth = (hits[of] + 1) / rank / counts[of, None] * (thresholds >= reached[:, None])
        worth = np.concatenate([np.zeros((len(truth), 1)), worth.cumsum(1)], 1)
        gain = np.array([worth[np.arange(len(truth)), row].sum() for row in level])
        if not chosen:
            gain = (level >= AT_07).sum(1) + gain / (1 + gain.max())  # the mAP decides between equals
        best = int(np.argmax(gain))
        new = (thresholds < level[best][:, None]) & (thresholds >= reached[:, None])
        np.add.at(hits, of, new)
        reached = np.maximum(reached, level[best])
        chosen.append(candidates[best])
    return np.array(chosen)


def query_similarity(dataset: MomentDataset) -> list[dict]:
    """Runs of clips whose cosine with the query is above the video's mean + 1 sd, ranked by their mean cosine.

    Ten at most; the best clip where there is no run.  raises  ValueError if no stream lives in a joint space
    """
    lines = []
    for batch in _batches(dataset):
        cosine = torch.nn.functional.cosine_similarity(batch.target_joint, batch.query_joint[:, None], dim=-1)
        for c, n, clip_s, sample in zip(cosine, batch.lengths, batch.clip_s.tolist(), batch.samples, strict=True):
            c = c[:n].double().numpy()
            above = c > c.mean() + c.std()
            above[c.argmax()] = True
            ends = np.flatnonzero(np.diff(above, prepend=False, append=False)).reshape(-1, 2)
            scores = np.add.reduceat(np.append(c, 0), ends.ravel())[::2] / np.diff(ends)[:, 0]
            best = np.argsort(-scores, kind="stable")[:MOMENTS]
            windows = np.column_stack([np.minimum(ends * clip_s, sample.duration), scores])[best]
            lines.append(_line(sample, windows.tolist()))
    return lines


def anchor_interval(dataset: MomentDataset) -> list[dict]:
    """The interval between the transition points on both sides of the anchor, one per query.  [A2FA Eq. 5]

    raises  ValueError if no stream lives in a joint space
    """
    lines = []
    for batch in _batches(dataset):
        _, left, right = boundaries(batch.target_joint, batch.target_mask, batch.query_joint)
        start_s, end_s = left * batch.clip_s, torch.minimum((right + 1) * batch.clip_s, batch.duration_s)
        lines += [
            _line(sample, [[s, e, 1.0]])
            for sample, s, e in zip(batch.samples, start_s.tolist(), end_s.tolist(), strict=True)
        ]
    return lines


def anchor_inside(dataset: MomentDataset) -> float:
    """The share of queries whose anchor, the most query-like clip, lies inside an annotated window.  [A2FA Eq. 2]

    raises  ValueError if no stream lives in a joint space, or without annotations
    """
    if not dataset.labelled:
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows")
    inside = [
        batch.labels.relevant.gather(1, anchor(batch.target_joint, batch.target_mask, batch.query_joint)[:, None])
        for batch in _batches(dataset)
    ]
    return torch.cat(inside).double().mean().item()


def _batches(dataset: MomentDataset) -> Iterator[Batch]:
    if dataset.joint is None:
        raise ValueError(f"{dataset.name} was opened without a stream in the joint space; clips cannot meet the query")
    for indices in torch.arange(len(dataset)).split(BATCH):
        yield dataset.batch(indices).to("cpu")


def _line(sample: Sample, windows: list[list[float]]) -> dict:
    return {"qid": sample.qid, "query": sample.query, "vid": sample.vid, "pred_relevant_windows": windows}
