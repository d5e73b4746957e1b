"""AP and R1 of predicted moments, as the QVHighlights evaluator computes them, for all queries at once.  [QVHighlights]

Letters  Q queries, K predicted moments (ten at most), W annotated windows
Order    rows of arrays are queries in the order of the predictions, because the last bit of a sum depends on its order
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mrlib.metrics.reading import read_rows
from mrlib.metrics.sums import percent, row_sums

IOUS = np.arange(50, 100, 5) / 100  # 0.5, 0.55, ... 0.95
RANGES_S = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (-np.inf, np.inf)}  # a < length <= b
MAX_MOMENTS = 10  # predictions that count, the first in the file


class Retrieval(NamedTuple):
    moments_s: np.ndarray  # (Q, K, 2) predicted start and end, seconds, in the order of the file
    counts: np.ndarray  # int (Q,) number of moments of each query; the rest of the K is padding
    ranks: np.ndarray  # int (Q, K) the moments by score, best first; equal scores keep their order
    windows_s: np.ndarray  # (Q, W, 2) annotated start and end, seconds
    real: np.ndarray  # bool (Q, W) False on padding


def read_retrieval(lines: list[Mapping], truth: list[Mapping]) -> Retrieval:
    moments, counts = read_rows(lines, "pred_relevant_windows", 3, most=MAX_MOMENTS)
    windows_s, windows = read_rows(truth, "relevant_windows", 2)
    scores = np.where(np.arange(moments.shape[1]) < counts[:, None], moments[..., 2], -np.inf)
    ranks = np.argsort(-scores, axis=1, kind="stable")
    return Retrieval(moments[..., :2], counts, ranks, windows_s, np.arange(windows.max()) < windows[:, None])


def retrieval_scores(retrieval: Retrieval) -> dict[str, dict[str, dict[str, float]]]:
    """mAP and R1 of every length range, on the windows of that length and the queries that have one."""
    iou, length = ranked_iou(retrieval), retrieval.windows_s[..., 1] - retrieval.windows_s[..., 0]
    names, scores = [str(t) for t in IOUS.tolist()], {}
    for name, (above, most) in RANGES_S.items():
        inside = retrieval.real & (above < length) & (length <= most)  # (Q, W)
        kept = inside.any(1)
        if not kept.any():
            continue
        precision = average_precision(iou[kept], inside[kept]).mean(0)
        recall = (first_iou(retrieval, inside)[kept, None] >= IOUS).mean(0)
        scores[name] = {
            "MR-mAP": dict(zip([*names, "average"], map(percent, [*precision, precision.mean()]), strict=True)),
            "MR-R1": dict(zip(names, map(percent, recall), strict=True)),
        }
    return scores


def length_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (...) of a and b (..., 2), the union computed from the two lengths; NaN if the union is 0."""
    both = _intersection(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return both / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - both)


def hull_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (...), the union computed as last end - first start: equal but for the last bit, and 0 for 0/0."""
    both = _intersection(a, b)
    hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    return np.divide(both, hull, out=np.zeros_like(both), where=hull != 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))


def ranked_iou(retrieval: Retrieval) -> np.ndarray:
    """IoU (Q, K, W) of every moment, best score first, with every window; -1 for a moment that is padding."""
    moments_s = np.take_along_axis(retrieval.moments_s, retrieval.ranks[..., None], axis=1)
    iou = length_iou(moments_s[:, :, None], retrieval.windows_s[:, None])
    iou[np.arange(iou.shape[1]) >= retrieval.counts[:, None]] = -1  # padding has no score and ranks last
    return iou


def first_iou(retrieval: Retrieval, inside: np.ndarray) -> np.ndarray:
    """IoU (Q,) of the first moment in the file with its best window among those in `inside` (Q, W); 0 without one.

    As in the evaluator, `length_iou` chooses the window, NaN counting as the highest, and `hull_iou` is the result.
    """
    first_s = retrieval.moments_s[:, 0]
    best = np.where(inside, length_iou(first_s[:, None], retrieval.windows_s), -1).argmax(1)
    iou = hull_iou(first_s, retrieval.windows_s[np.arange(len(best)), best])
    return np.where((retrieval.counts > 0) & inside.any(1), iou, 0)


def average_precision(iou: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """AP (Q, 10) of every query at `IOUS`, interpolated at every step of recall [Everingham et al. 2011].

    iou     (Q, K, W)  of the moments, best score first; -1 on padding
    inside  bool (Q, W)  the windows that count, at least one for each query
    """
    hits = _hits(iou, inside)  # (Q, 10, K)
    windows, recalled = inside.sum(1)[:, None, None], hits.cumsum(2)
    precision = np.maximum.accumulate((recalled / np.arange(1, recalled.shape[2] + 1))[..., ::-1], axis=2)[..., ::-1]
    area = (recalled / windows - (recalled - hits) / windows) * precision
    # The evaluator's sum has one more step, of area 0, from the last recall to 1.
    steps = np.concatenate([hits, recalled[..., -1:] < windows], axis=2)
    return row_sums(np.concatenate([area, np.zeros_like(area[..., :1])], axis=2), steps)


def _hits(iou: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Which moments match a window, bool (Q, 10, K); in turn, each takes the best free window of sufficient IoU.

    iou, inside   as in `average_precision`; NaN counts as the highest IoU
    """
    n_queries, n_moments, _ = iou.shape
    query, moment, window = np.nonzero(~(iou < IOUS[0]) & inside[:, None])  # candidates, grouped by moment
    row = query * n_moments + moment
    counts = np.bincount(row, minlength=n_queries * n_moments)
    choice = _places(counts)
    ends = counts.cumsum()
    for r in np.flatnonzero(counts > 1):  # rare; ties are broken as in the evaluator, by argsort
        windows = np.flatnonzero(inside[r // n_moments])
        best = windows[np.argsort(iou[r // n_moments, r % n_moments, windows])[::-1]]
        window[ends[r] - counts[r] : ends[r]] = best[: counts[r]]
    enough = ~(iou[query, moment, window][:, None] < IOUS)  # (candidates, 10)
    hits = np.zeros((n_queries, n_moments, len(IOUS)), bool)
    free = np.ones((*inside.shape, len(IOUS)), bool)
    for turn in np.unique(moment * inside.shape[1] + choice):
        current = np.flatnonzero(moment * inside.shape[1] + choice == turn)  # at most one candidate per query
        q, m, w = query[current], moment[current], window[current]
        take = enough[current] & free[q, w] & ~hits[q, m]
        hits[q, m] |= take
        free[q, w] &= ~take
    return hits.swapaxes(1, 2)


def _places(counts: np.ndarray) -> np.ndarray:
    """Concatenate 0, 1, ... n - 1 for every n of counts."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
