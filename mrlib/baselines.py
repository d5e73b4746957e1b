"""Baselines without training, to compare every model with.

Each returns prediction lines in the official format, {"qid", "query", "vid", "pred_relevant_windows"}, windows in
seconds as [start, end, score], best first.

    whole_video            the video from start to end
    centred_window         the middle 60 % of the video; the baseline for models that search with a video
    FixedList              ten windows, chosen once on a training set, for every query (blind: reads no features)
    query_similarity       runs of clips that are similar to the query. The decoding behind the published numbers is not
                           known and matters: smoothing over three clips alone triples the scores
    similarity_or_nothing  the same, with a "pred_exist_score" for queries that may have nothing to find
    anchor_interval        one interval around the clip most similar to the query [A2FA Eq. 5]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mrlib.data import Batch, MomentDataset, Sample
from mrlib.metrics import IOUS, MAX_MOMENTS
from mrlib.ops.boundary_search import anchor, boundaries

AT_07 = 5  # how many of `IOUS` an IoU of 0.7 reaches
GRID = 25  # candidate windows of a fixed list begin and end at multiples of 1/GRID of the video
BATCH = 64  # samples


def whole_video(dataset: MomentDataset) -> list[dict]:
    """Predict the whole video for every query."""
    return [_line(s, [[0.0, s.duration, 1.0]]) for s in dataset.samples]


def centred_window(dataset: MomentDataset, share: float = 0.6) -> list[dict]:
    """Predict the middle of the video for every query.

    share   of the video's length; ValueError unless 0 < share <= 1

    On ActivityNet-VRL, 0.6 reaches mIoU 34.8 and R1@0.5 29.8 on val, 38.6 and 36.7 on test; the whole video reaches
    29.8 and 19.4 on val, 33.3 and 22.1 on test.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    before = (1 - share) / 2
    return [_line(s, [[before * s.duration, (1 - before) * s.duration, 1.0]]) for s in dataset.samples]


# baselines that know only the length of the video; commands print their scores beside those of a model
LENGTH_ONLY = {"whole video": whole_video, "centred 60 %": centred_window}


class FixedList:
    """The same ten windows for every query, chosen on training samples; it knows only where moments tend to lie."""

    def __init__(self, train: MomentDataset | Sequence[Sample]):
        """Choose greedily: first the window of the best R1@0.7 on these samples, then whatever adds most to the mAP.

        Null queries, which have no window to find, do not count.

        raises  ValueError if a sample is not annotated, or if none has a window
        """
        samples = train.samples if isinstance(train, MomentDataset) else train
        if any(s.relevant_windows is None for s in samples):
            raise ValueError("a fixed list needs annotated samples; some of these have no windows")
        samples = [s for s in samples if s.relevant_windows]
        if not samples:
            raise ValueError("a fixed list needs annotated samples; none of these has a window")
        counts = np.array([len(s.relevant_windows) for s in samples])
        truth = np.concatenate([np.array(s.relevant_windows, np.float64) / s.duration for s in samples])
        self.spans = _greedy(truth, np.repeat(np.arange(len(samples)), counts), counts)  # (10, 2) fractions of a video

    def __call__(self, dataset: MomentDataset | Sequence[Sample]) -> list[dict]:
        samples = dataset.samples if isinstance(dataset, MomentDataset) else dataset
        score = 1 - np.arange(MAX_MOMENTS) / MAX_MOMENTS
        return [_line(s, np.column_stack([self.spans * s.duration, score]).tolist()) for s in samples]


def _greedy(truth: np.ndarray, query: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Choose the candidate that reaches IoU 0.7 most often, then those that add most to the mean of sum(precision) / W.

    The mean is over queries and IoU thresholds, the sum over the annotated windows that a chosen candidate reaches.

    truth    (W, 2)  annotated windows of all queries, fractions of the video
    query    (W,)    number of the query of each window
    counts   (Q,)    number of windows of each query
    returns  (10, 2)
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
    for rank in range(1, MAX_MOMENTS + 1):
        # gain (W, 11) from reaching 0, 1, ... 10 thresholds; a threshold that is already reached adds nothing. One
        # candidate cannot reach two disjoint windows of a query, so the gains of windows add up
        gains = (hits[query] + 1) / rank / counts[query, None] * (thresholds >= reached[:, None])
        gains = np.concatenate([np.zeros((len(truth), 1)), gains.cumsum(1)], 1)
        gain = np.array([gains[np.arange(len(truth)), row].sum() for row in level])
        if not chosen:
            gain = (level >= AT_07).sum(1) + gain / (1 + gain.max())  # the mAP breaks ties
        best = int(np.argmax(gain))
        new = (thresholds < level[best][:, None]) & (thresholds >= reached[:, None])
        np.add.at(hits, query, new)
        reached = np.maximum(reached, level[best])
        chosen.append(candidates[best])
    return np.array(chosen)


def query_similarity(dataset: MomentDataset) -> list[dict]:
    """Predict runs of clips whose cosine with the query is above the video's mean + 1 sd, ranked by their mean cosine.

    At most ten; the clip of the highest cosine always counts as above.

    raises  ValueError if no stream lives in a joint space
    """
    return [_similar_runs(sample, c, dataset.clip_s) for sample, c in _cosines(dataset)]


def similarity_or_nothing(dataset: MomentDataset) -> list[dict]:
    r"""`query_similarity` with an existence score: how unlikely its best clip is if no clip shows the query.

    $$\Phi(z)^n, \quad z = \frac{\max_i c_i - m}{s}, \quad s^2 = \frac{2}{n} \sum_i \min(c_i - m, 0)^2$$

    c are the cosines of the n clips of the video with its query, m is their median. The spread s is that of the clips
    below the median, since a moment raises those above it. For normally distributed cosines the score is the chance
    that n of them are all below the best one; so the threshold comes from the video's own scores and from its length,
    and nothing is trained. z = 0 if s = 0. On the simulator the mean cosine of the best run, which `query_similarity`
    gives as its score, ranks queries better (AUROC 79 to 90, here 74 to 81), but it has no scale to set a threshold on:
    at size "paper" it is never above 0.4.

    returns  lines of `query_similarity` with "pred_exist_score", 0 to 1
    raises   ValueError if no stream lives in a joint space
    """
    lines = []
    for sample, c in _cosines(dataset):
        lines.append(_similar_runs(sample, c, dataset.clip_s) | {"pred_exist_score": existence(c)})
    return lines


def existence(c: np.ndarray) -> float:
    """The score of `similarity_or_nothing`, 0 to 1, for the cosines (n,) of a video's clips with the query."""
    median = np.median(c)
    spread = np.sqrt(2 * np.square(np.minimum(c - median, 0)).mean())
    z = (c.max() - median) / spread if spread > 0 else 0.0
    return float(torch.special.ndtr(torch.tensor(z, dtype=torch.float64)) ** len(c))


def _cosines(dataset: MomentDataset) -> Iterator[tuple[Sample, np.ndarray]]:
    """Every sample with the cosines of its clips with its query, float64 (n,)."""
    for batch in _batches(dataset):
        cosine = torch.nn.functional.cosine_similarity(batch.target_joint, batch.query_joint[:, None], dim=-1)
        for sample, c, n in zip(batch.samples, cosine, batch.lengths, strict=True):
            yield sample, c[:n].double().numpy()


def _similar_runs(sample: Sample, c: np.ndarray, clip_s: float) -> dict:
    """The line of `query_similarity` for the cosines c (n,) of one sample."""
    above = c > c.mean() + c.std()
    above[c.argmax()] = True
    ends = np.flatnonzero(np.diff(above, prepend=False, append=False)).reshape(-1, 2)
    scores = np.add.reduceat(np.append(c, 0), ends.ravel())[::2] / np.diff(ends)[:, 0]
    best = np.argsort(-scores, kind="stable")[:MAX_MOMENTS]
    windows = np.column_stack([np.minimum(ends * clip_s, sample.duration), scores])[best]
    return _line(sample, windows.tolist())


def anchor_interval(dataset: MomentDataset) -> list[dict]:
    """Predict the interval between the transition points on both sides of the anchor.  [A2FA Eq. 5]

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
    """The share of queries whose anchor, the clip most similar to the query, is inside a window.  [A2FA Eq. 2]

    Null queries, which have no window, do not count.

    raises  ValueError if no stream lives in a joint space, or if there are no annotated windows
    """
    if not dataset.labelled or not any(s.relevant_windows != [] for s in dataset.samples):
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows; open a split that has them")
    inside = []
    for batch in _batches(dataset):
        anchors = anchor(batch.target_joint, batch.target_mask, batch.query_joint)  # (B,)
        inside.append(batch.labels.relevant.gather(1, anchors[:, None])[batch.labels.answered])
    return torch.cat(inside).double().mean().item()


def _batches(dataset: MomentDataset) -> Iterator[Batch]:
    if dataset.joint is None:
        raise ValueError(
            f"{dataset.name} was opened without a stream in the joint space, so its clips cannot be compared with the "
            'query; open it with streams="joint"'
        )
    for indices in torch.arange(len(dataset)).split(BATCH):
        yield dataset.batch(indices).to("cpu")


def _line(sample: Sample, windows: list[list[float]]) -> dict:
    return {"qid": sample.qid, "query": sample.query, "vid": sample.vid, "pred_relevant_windows": windows}
