r"""Scores of retrieval in which a query may have nothing to find: its list of windows is empty (Soccer-GMR).

Paper    Ding et al., "Retrieving Any Relevant Moments: Benchmark and Models for Generalized Moment Retrieval", 2026
         (arXiv 2605.02623); its evaluator is the folder eval of `dymm9977/generalized-moment-retrieval`
Here     `scores` gives the numbers of that evaluator from arrays, `percentages` from lines; `mrlib.metrics.evaluate`
         adds them to "brief" if the truth has a query with nothing to find, a null query  [GMR]
Names    mR@k and mIoU@k are not those of `mrlib.metrics.moment_scores`, which are of another benchmark, QV-M2

Order    rows of arrays are queries in the order of the truth, since the last bit of a sum depends on it
Letters  Q queries, K moments in the order of the line (those beyond the fifth do not count), W annotated windows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mrlib.metrics.moments import IOUS, average_precision, length_iou, ranked_iou, read_retrieval
from mrlib.metrics.reading import checked_rows, read_rows, with_windows
from mrlib.metrics.sums import percent

FIRST = (1, 3, 5)  # k, how many moments count
DECISIONS = (0.4, 0.6)  # a query is answered if its existence score is above
GATE = 0.4  # the decision before G-mIoU
NAMES = (  # of the scores, in the order of the evaluator
    "AUROC",
    *(f"{name}@{t}" for t in DECISIONS for name in ("Rej-F1", "Acc")),
    *(f"G-mIoU@{k}" for k in FIRST),
    "mAP",
    *(f"{name}@{k}" for name in ("mR", "mR+", "mIoU", "mIoU+") for k in FIRST),
)


def tidy_windows(windows_s: Sequence[Sequence[float]], duration_s: float | None) -> list[list[float]]:
    """The windows cut to the video, without those of no length, sorted, each once.

    windows_s   start and end of each, seconds
    duration_s  None: they are not cut
    """
    last = np.inf if duration_s is None else duration_s
    cut = {(max(0.0, float(start)), min(last, float(end))) for start, end in windows_s}
    return [[start, end] for start, end in sorted(cut) if start < end]


def existence(line: Mapping) -> float:
    """How sure a prediction line is that its query has a window: pred_exist_score, or the largest window score, or 0.

    The scale of window scores is that of the model; only pred_exist_score is known to be from 0 to 1.
    """
    if "pred_exist_score" in line:
        return float(line["pred_exist_score"])
    return float(max((score for _, _, score in line["pred_relevant_windows"]), default=0.0))


def note(lines: Sequence[Mapping], null: int) -> str:
    """What stands below printed scores: where the existence scores come from.  null: number of null queries"""
    rated = sum("pred_exist_score" in line for line in lines)
    return (
        f"{null} of {len(lines)} queries have nothing to find; {rated} prediction lines give pred_exist_score.\n"
        "For a line without it, AUROC, Rej-F1, Acc and G-mIoU take its largest window score, whose scale differs from "
        "model to model."
    )


def scores(
    iou: np.ndarray, answered_iou: np.ndarray, answers: np.ndarray, windows: np.ndarray, exists: np.ndarray
) -> dict[str, float]:
    """All scores of the evaluator but the mAP, as shares, under its names.  [GMR]

    iou           (Q, K, W)  of the first moments; -1 where there is no moment or no window, NaN for 0/0
    answered_iou  (Q, K, W)  the same without the moments of no length, which the evaluator leaves out of G-mIoU
    answers       int (Q,)   how many moments `answered_iou` has
    windows       int (Q,)   0 for a query with nothing to find
    exists        (Q,)       existence scores
    returns       "AUROC", "Rej-F1@t" and "Acc@t", "G-mIoU@k", over all queries; "mR@k", "mIoU@k", over the queries with
                  a window; "mR+@k", "mIoU+@k", over those with two or more, 0 if there are none. If no query has a
                  window, only the scores over all queries
    """
    result = {"AUROC": auroc(exists, windows > 0)}
    for t in DECISIONS:
        result |= {f"{name}@{t}": value for name, value in rejection(exists > t, windows > 0).items()}
    result |= set_iou(answered_iou, np.where(exists > GATE, answers, 0), windows)
    if windows.any():
        result |= recall(iou, windows) | overlap(iou, windows)
    return result


def auroc(exists: np.ndarray, real: np.ndarray) -> float:
    """The chance that a query with a window has a higher score than one without, ties half; 0.5 if one kind is missing.

    exists (Q,), real bool (Q,)
    """
    if real.all() or not real.any():
        return 0.5
    distinct, place = np.unique(-exists, return_inverse=True)  # best first
    steps = [np.bincount(place[group], minlength=len(distinct)).cumsum() for group in (real, ~real)]
    hits, false = (np.concatenate([[0], step / step[-1]]) for step in steps)
    return float((np.diff(false) * (hits[1:] + hits[:-1]) / 2).sum())


def rejection(answered: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """The F1 of leaving queries unanswered, and the share of right decisions; 0 where a denominator is 0.

    answered bool (Q,), real bool (Q,) True for a query with a window
    """
    right, left, empty = (~answered & ~real).sum(), (~answered).sum(), (~real).sum()
    precision, share = right / max(left, 1), right / max(empty, 1)
    both = precision + share
    return {"Rej-F1": 2 * precision * share / both if both else 0.0, "Acc": (answered == real).mean()}


def matched(iou: np.ndarray, least: float) -> np.ndarray:
    """IoU (Q, K) of every moment with the window it takes, in turn the free one of the highest IoU; -1: none.

    iou    (Q, K, W)  -1 for pairs that do not count, NaN counts as such
    least  a moment below it takes no window; -1: it takes the best one, whatever its IoU
    """
    queries, result = np.arange(len(iou)), np.full(iou.shape[:2], -1.0)
    free = np.where(np.isnan(iou), -1, iou)
    for k in range(iou.shape[1]):
        best = free[:, k].argmax(1)
        value = free[queries, k, best]
        takes = (value > -1) & (value >= least)
        result[takes, k] = value[takes]
        free[queries[takes], :, best[takes]] = -1
    return result


def recall(iou: np.ndarray, windows: np.ndarray) -> dict[str, float]:
    """mR@k, the share of the windows that the first k moments reach; mR+@k, beyond the first that they reach.  [GMR]"""
    taken, real, several = np.stack([matched(iou, t) >= 0 for t in IOUS]), windows > 0, windows > 1
    matches = {k: taken[:, :, :k].sum(2) for k in FIRST}  # int (10, Q)
    shares = {f"mR@{k}": _mean_of_means(matches[k][:, real] / windows[real]) for k in FIRST}
    for k in FIRST:
        further = np.maximum(matches[k][:, several] - 1, 0) / (windows[several] - 1)
        shares[f"mR+@{k}"] = _mean_of_means(further) if several.any() else 0.0
    return shares


def _mean_of_means(shares: np.ndarray) -> float:
    """The mean of the means of the rows (10, Q); a row at a time, since numpy adds columns in another order."""
    return np.mean([row.mean() for row in shares])


def overlap(iou: np.ndarray, windows: np.ndarray) -> dict[str, float]:
    """mIoU@k, of the first k moments with a window each; mIoU+@k, without the best of these pairs.  [GMR]"""
    taken, several, means = matched(iou, -1.0), windows > 1, {}
    for k in FIRST:
        first = taken[:, :k]
        pairs, total = (first >= 0).sum(1), first.clip(min=0).sum(1)
        means[f"mIoU@{k}"] = (total / pairs.clip(min=1))[windows > 0].mean()
    for k in FIRST:
        first = taken[several, :k]
        pairs = (first >= 0).sum(1)
        others = np.sort(first.clip(min=0), axis=1)[:, -2::-1].sum(1) / (pairs - 1).clip(min=1)
        means[f"mIoU+@{k}"] = others.mean() if several.any() else 0.0
    return means


def set_iou(iou: np.ndarray, answers: np.ndarray, windows: np.ndarray) -> dict[str, float]:
    """G-mIoU@k: IoU of the set of answers with the set of windows, 1 if both are empty.  [GMR]

    answers  int (Q,)  how many of the moments of `iou` are given as answers
    """
    taken, shares = matched(iou, 0.0), {}
    for k in FIRST:
        given = np.minimum(answers, k)
        pairs = np.where(np.arange(taken.shape[1]) < given[:, None], taken, -1)
        union = given + windows - (pairs >= 0).sum(1)
        share = pairs.clip(min=0).sum(1) / union.clip(min=1)
        shares[f"G-mIoU@{k}"] = sum(np.where((given == 0) & (windows == 0), 1, share).tolist()) / len(share)
    return shares


# ---- from lines ----


def percentages(lines: list[Mapping], truth: list[Mapping]) -> dict[str, float]:
    """The scores of this module as percentages, with the mAP of the queries with windows, under `NAMES`.  [GMR]"""
    read_rows(truth, "relevant_windows", 2)  # only to name a malformed line
    timed = [line for line in truth if line.get("duration") is not None]
    checked_rows(timed, "duration", [[line["duration"]] for line in timed], 1)
    windows_s = [tidy_windows(line["relevant_windows"], line.get("duration")) for line in truth]
    truth = [{"qid": line["qid"], "relevant_windows": w} for line, w in zip(truth, windows_s, strict=True)]
    iou, _ = _pair_iou(lines, truth)
    moments = [line["pred_relevant_windows"] for line in lines]
    checked_rows(lines, "pred_relevant_windows", moments, 3)
    rated = [line for line in lines if "pred_exist_score" in line]
    checked_rows(rated, "pred_exist_score", [[line["pred_exist_score"]] for line in rated], 1)
    answers = [
        {"qid": line["qid"], "pred_relevant_windows": [m for m in rows if m[0] < m[1]]}
        for line, rows in zip(lines, moments, strict=True)
    ]
    exists, windows = np.array([existence(line) for line in lines]), np.array([len(w) for w in windows_s])
    shares = scores(iou, *_pair_iou(answers, truth), windows, exists)
    if windows.any():
        retrieval = read_retrieval(*with_windows(lines, truth))
        shares["mAP"] = average_precision(ranked_iou(retrieval), retrieval.real).mean(0).mean()
    return {name: percent(shares[name]) for name in NAMES if name in shares}


def _pair_iou(lines: list[Mapping], truth: list[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """IoU (Q, K, W) of the first moments, in the order of the file, with the windows, and how many moments, int (Q,).

    -1 where there is no moment or no window
    """
    moments, counts = read_rows(lines, "pred_relevant_windows", 3, most=max(FIRST))
    windows_s, windows = read_rows(truth, "relevant_windows", 2)
    iou = length_iou(moments[:, :, None, :2], windows_s[:, None])
    no_moment = np.arange(iou.shape[1]) >= counts[:, None]  # (Q, K)
    no_window = np.arange(iou.shape[2]) >= windows[:, None]  # (Q, W)
    return np.where(no_moment[:, :, None] | no_window[:, None], -1, iou), counts
