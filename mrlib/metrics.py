"""Metrics of moment retrieval and highlight detection, equal to the official evaluators digit for digit.

    python -m mrlib.metrics predictions.jsonl ground_truth.jsonl

Paper    Lei et al., "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
         NeurIPS 2021 (arXiv 2107.09609); its evaluator is `jayleicn/moment_detr`, standalone_eval
Here     `evaluate` gives what that evaluator prints, to the last digit, for all queries at once;
         `moment_scores` gives what other papers report beside it, with the multi-moment scores of [QV-M2], the
         benchmark of `Zhuo-Cao/QV-M2`; `spurious` scores predictions for videos whose moments were removed
         [TD-DETR, spurious]; if clips are labelled and queries have no windows, `evaluate` gives the top-5 mAP of
         [TVSum] as `wjun0830/QD-DETR`, inference.py, computes it, or the mAP of YouTube Highlights as
         `showlab/UniVTG`, main/dataset.py, does; if a query has nothing to find, `evaluate` adds the
         scores of [GMR], see `mrlib.generalized`
Departs  the evaluator raises an error for a query with no or few predictions, an empty length range and a truth without
         saliency; here they are scored or left out. The evaluator mixes two lines of one id; here they are an error,
         unless each is for another video (a query video searches several): pairs of query and video are scored then.
         The truth passes the check of the readers, `mrlib.data.lines`, except that empty windows, and those that end
         after their video, are scored as they are. The evaluator ranks the clips of full length, and raises an error
         where a shorter last clip has saliency scores; here it is ranked there

Letters  Q queries, K predicted moments (ten at most), W annotated windows, T clips, A annotators
Order    rows of arrays are queries in the order of the predictions, because the last bit of a sum depends on its order
"""

from __future__ import annotations

import argparse
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from mrlib import generalized
from mrlib.arguments import escape_output
from mrlib.data.clips import require_clip_s, scored_clips
from mrlib.data.lines import (
    EMPTY,
    Defect,
    clip_labels,
    duration_defects,
    label_defects,
    label_scale,
    saliency_defects,
    window_defects,
)
from mrlib.files import read_jsonl as read_jsonl

IOUS = generalized.IOUS  # 0.5, 0.55, ... 0.95
RANGES_S = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (-np.inf, np.inf)}  # a < length <= b
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # lowest saliency score of a positive clip
MAX_MOMENTS = 10  # predictions that count, the first in the file
TOP_CLIPS = 5  # clips that count on TVSum, those of highest score


def evaluate(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], clip_s: float = 2.0, *, unscored: bool = False
) -> dict[str, Any]:
    """The scores of the QVHighlights evaluator: same keys, same order, same rounding.  [QVHighlights]

    predictions   lines {"qid", "pred_relevant_windows": [[start, end, score], ...], "pred_saliency_scores": [...]};
                  times in seconds, one saliency score per clip; the fields of the first line decide what is evaluated;
                  arrays and tensors are as good as lists
    ground_truth  lines in the QVHighlights schema, as dicts or as `mrlib.data.Sample`, in any order. A "qid" may occur
                  several times, each time with another "vid"; its predictions then need a "vid" too. Or lines of TVSum
                  or YouTube Highlights: no windows, and "label" holds for each clip a list of the annotators' labels
    clip_s        seconds per clip of the truth's relevant_clip_ids and of the predicted saliency scores
    unscored      predicted windows are [start, end], and their order is their ranking. False: they have scores
    returns       percentages with two decimals: "brief", then for every length range ("full", "long", "middle",
                  "short") "MR-mAP" and "MR-R1" by IoU, and for every "HL-min-..." "HL-mAP" and "HL-Hit1", over the
                  lines with saliency_scores; for lines with labels only "brief", and in it only "HL-top5-mAP" [TVSum],
                  or "HL-mAP", the mean over the domains, with "HL-mAP-..." of each if there are several. If the truth
                  has null queries, whose relevant_windows is [], "brief" also holds the scores of `mrlib.generalized`:
                  "AUROC", "Rej-F1", "Acc" and "G-mIoU" of all queries, "mAP", "mR", "mR+", "mIoU" and "mIoU+" of
                  those with windows [GMR]

    Null queries count in the scores of [GMR] and nowhere else. A prediction line may hold "pred_exist_score", how sure
    the model is that the query has a window; without it, its largest window score is taken, or 0.

    The first ten predictions of a query count; a query without any has AP 0 and R1 0. Two empty windows have the
    IoU 0/0: a hit for AP, a miss for R1. A length range without annotated windows is left out, and so are highlights
    if no truth line has saliency_scores. The scores may be those of any number of annotators, the same in all lines.

    raises  ValueError for ids, or pairs of ids, that differ or occur twice, and for a malformed line, naming its id and
            the field
    """
    predictions = _ranked(predictions) if unscored else predictions
    lines, truth = _checked_truth(*_matched(predictions, ground_truth), clip_s)
    scores, brief = {}, {}
    if _highlights_only(truth):
        if "pred_saliency_scores" not in lines[0]:
            raise ValueError(
                f"qid {lines[0]['qid']!r}: the truth has no windows; what it can score is pred_saliency_scores"
            )
        return {"brief": {name: _percent(score) for name, score in _label_scores(lines, truth).items()}}
    first, queries, (lines, truth) = lines[0], len(truth), _with_windows(lines, truth)
    with_windows = len(truth)
    if "pred_relevant_windows" in first and truth:
        scores = _retrieval_scores(_read_retrieval(lines, truth))
        for name, range_scores in scores.items():
            brief[f"MR-{name}-mAP"] = range_scores["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{iou}": scores["full"]["MR-mAP"][iou] for iou in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{iou}": scores["full"]["MR-R1"][iou] for iou in ("0.5", "0.7")}
        brief = dict(sorted(brief.items()))
    lines, truth = _with_saliency(lines, truth)
    if "pred_saliency_scores" in first and truth:
        for name, level in _highlight_scores(lines, truth, clip_s).items():
            scores[name] = level
            brief |= {f"{name}-{key.removeprefix('HL-')}": value for key, value in level.items()}
    if "pred_relevant_windows" in first and with_windows < queries:
        brief |= _generalized_scores(*reversed(_matched(ground_truth, predictions)))  # in the order of the truth
    if not brief:
        raise ValueError(f"qid {first['qid']!r}: the first prediction holds nothing that the truth can score")
    return {"brief": brief} | dict(sorted(scores.items()))


def moment_scores(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], clip_s: float = 2.0, *, unscored: bool = False
) -> dict[str, dict[str, float]]:
    """Scores that papers report beside the evaluator's, grouped by the number of annotated windows.

    predictions, ground_truth, clip_s, unscored, errors   as in `evaluate`
    returns  {"all": row, "1": row, "2": row, "3+": row}, without groups that have no query; a row holds percentages
      "queries"          number of queries with windows (not a percentage); null queries do not count
      "mAP"              mean over the ten IoUs of `evaluate`
      "mIoU"             of the first moment with the window it overlaps most
      "R1@t", "R5@t"     the first moment, one of the first five, has IoU >= t; t = 0.3, 0.5, 0.7, 0.9
      "mR@k", "mIoU@k"   k = 1, 2, 3: over queries with k windows or more, left out where there are none [QV-M2];
                         each of the first k moments takes the free window it overlaps most: the share of the k that
                         reach an IoU, mean over 0.3, 0.35, ... 0.95; the mean IoU of the k

    Moments count in the order of the file. A missing moment is a miss; the script of [QV-M2] skips its query instead,
    and there a moment below the IoU takes no window. `R1@t` is the evaluator's; IoU 0/0 is a miss. Lines of TVSum have
    no windows, so the result is empty, as it is if every query is a null query.
    """
    predictions = _ranked(predictions) if unscored else predictions
    lines, truth = _checked_truth(*_matched(predictions, ground_truth), clip_s)
    lines, truth = ([], []) if _highlights_only(truth) else _with_windows(lines, truth)
    if not truth:
        return {}
    retrieval = _read_retrieval(lines, truth)
    windows = retrieval.real.sum(1)
    precision = _average_precision(_ranked_iou(retrieval), retrieval.real)
    iou = _hull_iou(
        retrieval.moments_s[:, :5, None], retrieval.windows_s[:, None]
    )  # (Q, 5, W); padding, (0, 0), overlaps nothing
    first, five = _first_iou(retrieval, retrieval.real), iou.max((1, 2))
    taken = _taken_iou(iou, retrieval.real, 3)

    def row(group: np.ndarray) -> dict[str, float]:
        scores = {"mAP": precision[group].mean(0).mean(), "mIoU": first[group].mean()}
        for name, best in (("R1", first), ("R5", five)):
            scores |= {f"{name}@{t}": (best[group] >= t).mean() for t in (0.3, 0.5, 0.7, 0.9)}
        for k in (1, 2, 3):
            matched = taken[group & (windows >= k), :k]
            if len(matched):
                scores[f"mR@{k}"] = np.mean([(matched >= t).mean() for t in np.arange(30, 100, 5) / 100])
                scores[f"mIoU@{k}"] = matched.mean()
        return {"queries": int(group.sum())} | {name: _percent(value) for name, value in scores.items()}

    groups = {"all": windows > 0, "1": windows == 1, "2": windows == 2, "3+": windows >= 3}
    return {name: row(group) for name, group in groups.items() if group.any()}


def spurious(
    predictions: Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    standard: Sequence[Mapping] | None = None,
    clip_s: float = 2.0,
    *,
    unscored: bool = False,
) -> dict[str, float | int | None]:
    """Scores on videos whose moments are masked; a high score means reliance on context.  [TD-DETR, spurious]

    predictions, ground_truth, clip_s, unscored, errors   as in `evaluate`; the predictions are for videos in which the
              windows of each query are masked, see `mrlib.probes.mask_moments`, the truth is that of the videos before
    standard  predictions of the same model for the unmasked videos
    returns   percentages as in `evaluate`
      "spurious-R1@0.5", "spurious-R1@0.7", "spurious-mAP"   of all queries
      "spurious-part-..."   the same three, of queries whose windows leave at least one clip of the video; left out
                            if there are none
      "queries", "whole"    number of queries, and of queries whose windows leave less than a clip; null queries, of
                            which nothing can be masked, do not count
      "mAP", "ratio"        if `standard` is given: its mAP, and that mAP divided by the spurious mAP, both as rounded
                            here; None if the spurious mAP is 0

    If the windows cover the whole video, there is no context to rely on, but the length of the video gives the answer.
    """
    predictions = _ranked(predictions) if unscored else predictions
    lines, truth = _with_windows(*_checked_truth(*_matched(predictions, ground_truth), clip_s))
    if not truth:
        raise ValueError("no query has a window, so nothing can be masked")
    retrieval = _read_retrieval(lines, truth)
    durations_s = _checked(truth, "duration", [[line.get("duration")] for line in truth], 1)[:, 0]
    part = durations_s - _covered_s(retrieval) >= clip_s
    scores: dict[str, float | int | None] = {}
    for name, group in (("spurious", np.ones_like(part)), ("spurious-part", part)):
        if group.any():
            full = _retrieval_scores(_Retrieval(*(field[group] for field in retrieval)))["full"]
            scores |= {f"{name}-R1@{iou}": full["MR-R1"][iou] for iou in ("0.5", "0.7")}
            scores[f"{name}-mAP"] = full["MR-mAP"]["average"]
    scores |= {"queries": len(part), "whole": int((~part).sum())}
    if standard is not None:
        lines, truth = _with_windows(*_matched(_ranked(standard) if unscored else standard, ground_truth))
        full = _retrieval_scores(_read_retrieval(lines, truth))["full"]
        scores["mAP"] = full["MR-mAP"]["average"]
        spurious_map = scores["spurious-mAP"]
        scores["ratio"] = round(scores["mAP"] / spurious_map, 2) if spurious_map else None
    return scores


# ---- moment retrieval ----


class _Retrieval(NamedTuple):
    moments_s: np.ndarray  # (Q, K, 2) predicted start and end, seconds, in the order of the file
    counts: np.ndarray  # int (Q,) number of moments of each query; the rest of the K is padding
    ranks: np.ndarray  # int (Q, K) the moments by score, best first; equal scores keep their order
    windows_s: np.ndarray  # (Q, W, 2) annotated start and end, seconds
    real: np.ndarray  # bool (Q, W) False on padding


def _read_retrieval(lines: list[Mapping], truth: list[Mapping]) -> _Retrieval:
    moments, counts = _read(lines, "pred_relevant_windows", 3, most=MAX_MOMENTS)
    windows_s, windows = _read(truth, "relevant_windows", 2)
    scores = np.where(np.arange(moments.shape[1]) < counts[:, None], moments[..., 2], -np.inf)
    ranks = np.argsort(-scores, axis=1, kind="stable")
    return _Retrieval(moments[..., :2], counts, ranks, windows_s, np.arange(windows.max()) < windows[:, None])


def _retrieval_scores(retrieval: _Retrieval) -> dict[str, dict[str, dict[str, float]]]:
    """mAP and R1 of every length range, on the windows of that length and the queries that have one."""
    iou, length = _ranked_iou(retrieval), retrieval.windows_s[..., 1] - retrieval.windows_s[..., 0]
    names, scores = [str(t) for t in IOUS.tolist()], {}
    for name, (above, most) in RANGES_S.items():
        inside = retrieval.real & (above < length) & (length <= most)  # (Q, W)
        kept = inside.any(1)
        if not kept.any():
            continue
        precision = _average_precision(iou[kept], inside[kept]).mean(0)
        recall = (_first_iou(retrieval, inside)[kept, None] >= IOUS).mean(0)
        scores[name] = {
            "MR-mAP": dict(zip([*names, "average"], map(_percent, [*precision, precision.mean()]), strict=True)),
            "MR-R1": dict(zip(names, map(_percent, recall), strict=True)),
        }
    return scores


def _covered_s(retrieval: _Retrieval) -> np.ndarray:
    """Seconds (Q,) of the union of a query's windows."""
    start, end = retrieval.windows_s.swapaxes(0, 2)  # each (W, Q); padding is from 0 to 0
    order = start.argsort(0)
    start, end = np.take_along_axis(start, order, 0), np.take_along_axis(end, order, 0)
    reached = np.maximum.accumulate(np.concatenate([np.zeros_like(end[:1]), end[:-1]]), 0)
    return (end - np.minimum(np.maximum(start, reached), end)).sum(0)


def _length_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (...) of a and b (..., 2), the union computed from the two lengths; NaN if the union is 0."""
    both = _intersection(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return both / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - both)


def _hull_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (...), the union computed as last end - first start: equal but for the last bit, and 0 for 0/0."""
    both = _intersection(a, b)
    hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    return np.divide(both, hull, out=np.zeros_like(both), where=hull != 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))


def _ranked_iou(retrieval: _Retrieval) -> np.ndarray:
    """IoU (Q, K, W) of every moment, best score first, with every window; -1 for a moment that is padding."""
    moments_s = np.take_along_axis(retrieval.moments_s, retrieval.ranks[..., None], axis=1)
    iou = _length_iou(moments_s[:, :, None], retrieval.windows_s[:, None])
    iou[np.arange(iou.shape[1]) >= retrieval.counts[:, None]] = -1  # padding has no score and ranks last
    return iou


def _first_iou(retrieval: _Retrieval, inside: np.ndarray) -> np.ndarray:
    """IoU (Q,) of the first moment in the file with its best window among those in `inside` (Q, W); 0 without one.

    As in the evaluator, `_length_iou` chooses the window, NaN counting as the highest, and `_hull_iou` is the result.
    """
    first_s = retrieval.moments_s[:, 0]
    best = np.where(inside, _length_iou(first_s[:, None], retrieval.windows_s), -1).argmax(1)
    iou = _hull_iou(first_s, retrieval.windows_s[np.arange(len(best)), best])
    return np.where((retrieval.counts > 0) & inside.any(1), iou, 0)


def _taken_iou(iou: np.ndarray, real: np.ndarray, most: int) -> np.ndarray:
    """IoU (Q, most) of the first moments, matched greedily: each takes the free window that it overlaps most.

    iou (Q, K, W) in the order in which the moments choose; real bool (Q, W); 0 without a moment or a free window
    """
    queries, free, taken = np.arange(len(iou)), real.copy(), np.zeros((len(iou), most))
    for k in range(min(most, iou.shape[1])):
        best = np.where(free, iou[:, k], -1).argmax(1)
        taken[:, k] = np.where(free.any(1), iou[queries, k, best], 0)
        free[queries, best] = False
    return taken


def _average_precision(iou: np.ndarray, inside: np.ndarray) -> np.ndarray:
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
    return _row_sums(np.concatenate([area, np.zeros_like(area[..., :1])], axis=2), steps)


def _hits(iou: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Which moments match a window, bool (Q, 10, K); in turn, each takes the best free window of sufficient IoU.

    iou, inside   as in `_average_precision`; NaN counts as the highest IoU
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


# ---- queries with nothing to find ----


def _with_windows(lines: list[Mapping], truth: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both without those of null queries, whose relevant_windows is an empty list."""
    windows = [line.get("relevant_windows") for line in truth]
    kept = [not isinstance(each, list | tuple) or len(each) > 0 for each in windows]
    return list(compress(lines, kept)), list(compress(truth, kept))


def _generalized_scores(lines: list[Mapping], truth: list[Mapping]) -> dict[str, float]:
    """The scores of `mrlib.generalized` as percentages, and the mAP of the queries with windows.  [GMR]"""
    _read(truth, "relevant_windows", 2)  # only to name a malformed line
    timed = [line for line in truth if line.get("duration") is not None]
    _checked(timed, "duration", [[line["duration"]] for line in timed], 1)
    windows_s = [generalized.tidy_windows(line["relevant_windows"], line.get("duration")) for line in truth]
    truth = [{"qid": line["qid"], "relevant_windows": w} for line, w in zip(truth, windows_s, strict=True)]
    iou, _ = _pair_iou(lines, truth)
    moments = [line["pred_relevant_windows"] for line in lines]
    _checked(lines, "pred_relevant_windows", moments, 3)
    rated = [line for line in lines if "pred_exist_score" in line]
    _checked(rated, "pred_exist_score", [[line["pred_exist_score"]] for line in rated], 1)
    answers = [
        {"qid": line["qid"], "pred_relevant_windows": [m for m in rows if m[0] < m[1]]}
        for line, rows in zip(lines, moments, strict=True)
    ]
    exists, windows = np.array([generalized.existence(line) for line in lines]), np.array([len(w) for w in windows_s])
    shares = generalized.scores(iou, *_pair_iou(answers, truth), windows, exists)
    if windows.any():
        retrieval = _read_retrieval(*_with_windows(lines, truth))
        shares["mAP"] = _average_precision(_ranked_iou(retrieval), retrieval.real).mean(0).mean()
    return {name: _percent(shares[name]) for name in generalized.NAMES if name in shares}


def _pair_iou(lines: list[Mapping], truth: list[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """IoU (Q, K, W) of the first moments, in the order of the file, with the windows, and how many moments, int (Q,).

    -1 where there is no moment or no window
    """
    moments, counts = _read(lines, "pred_relevant_windows", 3, most=max(generalized.FIRST))
    windows_s, windows = _read(truth, "relevant_windows", 2)
    iou = _length_iou(moments[:, :, None, :2], windows_s[:, None])
    no_moment = np.arange(iou.shape[1]) >= counts[:, None]  # (Q, K)
    no_window = np.arange(iou.shape[2]) >= windows[:, None]  # (Q, W)
    return np.where(no_moment[:, :, None] | no_window[:, None], -1, iou), counts


# ---- highlights ----


def _with_saliency(lines: list[Mapping], truth: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both whose truth has saliency scores."""
    kept = [line.get("saliency_scores") is not None for line in truth]
    return list(compress(lines, kept)), list(compress(truth, kept))


def _highlight_scores(lines: list[Mapping], truth: list[Mapping], clip_s: float) -> dict[str, dict[str, float]]:
    """mAP and Hit1 of every level; at a level, each annotator labels every clip positive or negative."""
    clips, saliency = _read_saliency(truth, clip_s)  # (Q,), (Q, T, A)
    listed, counts = _read(lines, "pred_saliency_scores", 1, fill=-np.inf)
    listed = listed[..., 0]
    top = listed.argmax(1)
    at_top = saliency[np.arange(len(top)), np.minimum(top, saliency.shape[1] - 1)].max(1)
    at_top[(top >= clips) | (counts == 0)] = -1  # a miss

    clip = np.arange(saliency.shape[1])
    scores = np.zeros(saliency.shape[:2])  # lists that are too short are filled up with zeros
    n = min(scores.shape[1], listed.shape[1])
    scores[:, :n] = np.where(clip[:n] < counts[:, None], listed[:, :n], 0)
    scores[clip >= clips[:, None]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    last = np.ones(scores.shape, bool)  # last clip of its score: clips of equal score share a threshold
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    truths = np.take_along_axis(saliency.swapaxes(1, 2), order[:, None], axis=2)  # (Q, A, T)
    return {
        f"HL-min-{name}": {
            "HL-mAP": _percent(np.mean(_highlight_precision(truths >= level, last))),
            "HL-Hit1": _percent(np.mean(at_top >= level)),
        }
        for name, level in LEVELS.items()
    }


def _highlight_precision(positive: np.ndarray, last: np.ndarray) -> np.ndarray:
    """AP (Q, A): the best precision at a threshold or a lower one, mean over the thresholds where recall rises.

    positive  bool (Q, A, T)  clips, best score first; padding, negative, comes last
    last      bool (Q, T)  the last clip of its score

    The evaluator computes recall in float32, which is exact enough to tell its steps apart below 2^23 clips; here the
    positives are counted instead.
    """
    recalled = np.maximum.accumulate(np.where(last[:, None], positive.cumsum(2, dtype=np.int32), 0), axis=2)
    precision = np.maximum.accumulate((recalled / np.arange(1, recalled.shape[2] + 1))[..., ::-1], axis=2)
    rises = np.diff(recalled, axis=2, prepend=0) > 0
    return _row_sums(precision, rises[..., ::-1]) / np.maximum(rises.sum(2), 1)  # lowest first, as in the evaluator


def _read_saliency(truth: list[Mapping], clip_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of ranked clips, int (Q,), and the scores of the annotators (Q, T, A), 0 where there are none."""
    ids, counts = _read(truth, "relevant_clip_ids", 1)
    widths = [len(line["saliency_scores"][0]) if line["saliency_scores"] else None for line in truth]
    annotators = next((width for width in widths if width is not None), 1)
    for line, width in zip(truth, widths, strict=True):
        if width not in (None, annotators):
            problem = f"has {width} scores for each clip, that of other lines {annotators}"
            raise ValueError(f"qid {line['qid']!r}: saliency_scores {problem}")
    scores = np.array([row for line in truth for row in line["saliency_scores"]], np.float64).reshape(-1, annotators)
    clips = np.array([scored_clips(line["duration"], clip_s, line["relevant_clip_ids"]) for line in truth])
    listed = np.arange(ids.shape[1]) < counts[:, None]
    saliency = np.zeros((len(truth), max(clips.max(), 1), annotators))
    saliency[np.nonzero(listed)[0], ids[..., 0][listed].astype(int)] = scores
    return clips, saliency


def _highlights_only(truth: list[Mapping]) -> bool:
    """Whether no line has windows and some have the annotators' labels of every clip."""
    return all(line.get("relevant_windows") is None for line in truth) and any(
        isinstance(line.get("label"), list | tuple) for line in truth
    )


def _label_scores(lines: list[Mapping], truth: list[Mapping]) -> dict[str, float]:
    """The scores of lines with labels of clips, as shares: one on TVSum, one and those of the domains on YouTube."""
    labels = [_read_labels(line) for line in truth]
    scales = [label_scale(each) for each in labels]
    if {"0/1", "1 to 5"} <= set(scales):
        i = scales.index("1 to 5")
        raise ValueError(f"qid {truth[i]['qid']!r}: label has labels from 1 to 5, those of other lines are 0 and 1")
    listed, counts = _read(lines, "pred_saliency_scores", 1)
    zero_one = "1 to 5" not in scales
    averages = [
        _label_precision(np.array(rows, np.float64), scores[: min(n, len(rows))], zero_one)
        for rows, scores, n in zip(labels, listed[..., 0], counts, strict=True)
    ]
    if not zero_one:
        return {"HL-top5-mAP": np.array(averages).mean()}
    domains: dict[str, list[float]] = {}
    for line, average in zip(truth, averages, strict=True):
        domains.setdefault(str(line.get("domain", "")), []).append(average)
    means = {f"HL-mAP-{domain}": np.mean(each) for domain, each in domains.items()}
    return {"HL-mAP": np.mean(list(means.values()))} | (means if len(means) > 1 else {})


def _label_precision(labels: np.ndarray, scores: np.ndarray, zero_one: bool) -> float:
    """The AP of the ranking of a video's clips, averaged over the annotators.  [TVSum] [YouTube Highlights]

    labels    (T, A)  1 to 5; or 0 and 1, if `zero_one`
    scores    (n,)    of the first n clips; clips without a score are not ranked

    Labels of 1 are positive. Where labels are 1 to 5, those above the lower median of the annotator's labels of the
    video are, the five clips of highest score are ranked, and recall counts only the positives among the five. The AP
    is 0 without a positive; the area is summed by trapezia, starting at precision 1.
    """
    positive = labels > (0 if zero_one else np.sort(labels, axis=0)[(len(labels) - 1) // 2])
    best = np.argsort(-scores, kind="stable")[: None if zero_one else TOP_CLIPS]
    hits = positive[best]  # (n, A)
    total = np.maximum((positive if zero_one else hits).sum(0), 1)
    recalled, start = hits.cumsum(0), np.zeros((1, hits.shape[1]))
    recall = np.concatenate([start, recalled / total])
    precision = np.concatenate([start + 1, recalled / np.arange(1, len(hits) + 1)[:, None]])
    return (np.diff(recall, axis=0) * (precision[:-1] + precision[1:]) / 2).sum(0).mean()


def _read_labels(line: Mapping) -> list[list[float]]:
    """The labels of every clip by every annotator, T rows of A."""
    labels = clip_labels(line)
    if labels is None:
        raise ValueError(f"qid {line['qid']!r}: label is missing")
    _refuse(line, label_defects(labels))
    return labels


# ---- lines and arrays ----


def _checked_truth(lines: list[Mapping], truth: list[Mapping], clip_s: float) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both; ValueError, naming id and field, if the check of the readers finds a defect in the truth.

    A truth line may lack all that is not scored. Empty windows, and those that end after their video, are let through.
    """
    require_clip_s(clip_s)
    for line in truth:
        _refuse(line, window_defects("relevant_windows", line.get("relevant_windows"), np.inf, clip_s))
        if line.get("saliency_scores") is not None:
            _refuse(line, duration_defects(line.get("duration")) or saliency_defects(line, clip_s))
    return lines, truth


def _refuse(line: Mapping, defects: list[Defect]) -> None:
    """ValueError for the first defect of a truth line that is not an empty window."""
    for defect in defects:
        if defect.place != EMPTY:
            raise ValueError(f"qid {line['qid']!r}: {defect.field} {defect.message}")


def _ranked(predictions: Iterable) -> list[Mapping]:
    """Prediction lines of [start, end] as lines of [start, end, score], the scores falling from 1 in their order."""
    ranked = []
    for line in _lines(predictions, "predictions"):
        if line.get("pred_relevant_windows") is not None:
            _read([line], "pred_relevant_windows", 2)
            windows = line["pred_relevant_windows"]
            scored = [[start, end, 1 - k / len(windows)] for k, (start, end) in enumerate(windows)]
            line = {**line, "pred_relevant_windows": scored}
        ranked.append(line)
    return ranked


def _matched(predictions: Iterable, ground_truth: Iterable) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both, matched by id, in the order of the predictions."""
    lines, truth = _lines(predictions, "predictions"), _lines(ground_truth, "ground truth")
    repeated = _repeated(lines) | _repeated(truth)
    lines, truth = _by_id(lines, repeated, "predictions"), _by_id(truth, repeated, "ground truth")
    for name, by_id in (("predictions", lines), ("ground truth", truth)):
        if without_vid := [key for key in by_id if isinstance(key, tuple) and key[1] is None]:
            raise ValueError(
                f"{name}: vid is missing, which tells the lines of one query apart: qid {_few(without_vid)}"
            )
    if lines.keys() != truth.keys():
        unmatched = [_few([key for key in a if key not in b]) for a, b in ((lines, truth), (truth, lines))]
        hint = "; in one of the two, numbers are written as text" if {*map(str, lines)} == {*map(str, truth)} else ""
        raise ValueError(
            f"query ids differ: only in the predictions {unmatched[0]}; only in the ground truth {unmatched[1]}{hint}"
        )
    return list(lines.values()), [truth[key] for key in lines]


def _lines(lines: Iterable, name: str) -> list[Mapping]:
    """The lines as dicts; ValueError if there are none or one has no valid qid."""
    dicts = []
    for number, line in enumerate(lines, 1):
        line = line.as_line() if hasattr(line, "as_line") else line
        if not isinstance(line.get("qid") if isinstance(line, Mapping) else None, int | str | np.integer):
            raise ValueError(f"{name}, line {number}: qid is missing, or neither a whole number nor text")
        lists = {field: _as_lists(value) for field, value in line.items()}
        dicts.append(line if all(lists[field] is line[field] for field in line) else lists)
    if not dicts:
        raise ValueError(f"{name}: no lines")
    return dicts


def _as_lists(value: Any) -> Any:
    """Arrays and tensors, and lists of them, as lists of numbers; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_as_lists(row) for row in value] if value and hasattr(value[0], "tolist") else value
    return value.tolist() if hasattr(value, "tolist") else value


def _repeated(lines: list[Mapping]) -> set[int | str]:
    """The ids of queries with more than one line."""
    return {qid for qid, n in Counter(line["qid"] for line in lines).items() if n > 1}


def _by_id(lines: list[Mapping], repeated: set[int | str], name: str) -> dict[int | str | tuple, Mapping]:
    """Lines by qid, or by (qid, vid) if the qid is in `repeated`."""
    by_id, twice = {}, []
    for line in lines:
        key = (line["qid"], line.get("vid")) if line["qid"] in repeated else line["qid"]
        if isinstance(key, tuple) and not isinstance(key[1], int | str | np.integer | None):
            raise ValueError(f"{name}: qid {key[0]!r}: vid is neither a whole number nor text")
        if key in by_id:
            twice.append(key)
        by_id[key] = line
    if twice:
        raise ValueError(f"{name}: query ids given more than once: {_few(list(dict.fromkeys(twice)))}")
    return by_id


def _few(keys: list) -> str:
    """At most five keys as text."""
    pairs = [key if isinstance(key, tuple) else (key, None) for key in keys[:5]]
    names = [repr(qid) if vid is None else f"{qid!r} on {vid!r}" for qid, vid in pairs]
    return (", ".join(names) or "none") + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _read(
    lines: list[Mapping], field: str, width: int, *, most: int | None = None, fill: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Read a field that lists rows of `width` numbers (plain numbers if 1).

    most     only the first `most` rows of a line are read
    fill     value of the padding
    returns  float64 (Q, longest, width), and the number of rows of each line, int (Q,)
    """
    lists = []
    for line in lines:
        rows = line.get(field)
        if not isinstance(rows, list | tuple):
            problem = f"is {reprlib.repr(rows)}, not a list" if field in line else "is missing"
            raise ValueError(f"qid {line['qid']!r}: {field} {problem}")
        lists.append(rows[:most])
    counts = np.array([len(rows) for rows in lists])
    padded = np.full((len(lines), max(counts.max(), 1), width), fill)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = _checked(lines, field, lists, width)
    return padded, counts


def _checked(lines: list[Mapping], field: str, lists: list[list], width: int) -> np.ndarray:
    """The rows of all lists as one array (rows, width); ValueError names the first that is malformed."""
    array = _array(list(chain.from_iterable(lists)), width)
    if array is not None:
        return array
    kind = "a finite number" if width == 1 else f"{width} finite numbers"
    line, row = next(
        (line, row) for line, rows in zip(lines, lists, strict=True) for row in rows if _array([row], width) is None
    )
    no_score = field == "pred_relevant_windows" and width == 3 and _array([row], 2) is not None
    hint = "; unscored=True, or --unscored, takes windows without scores in their order" if no_score else ""
    raise ValueError(f"qid {line['qid']!r}: {field} has {reprlib.repr(row)} where {kind} should stand{hint}")


def _array(rows: list, width: int) -> np.ndarray | None:
    """Rows of `width` finite numbers as float64 (rows, width); None if a row is anything else."""
    if width > 1:
        if not all(issubclass(kind, list | tuple) for kind in set(map(type, rows))) or set(map(len, rows)) - {width}:
            return None
        rows = list(chain.from_iterable(rows))
    if not all(issubclass(kind, Real) and kind is not bool for kind in set(map(type, rows))):
        return None
    try:
        array = np.array(rows, np.float64).reshape(-1, width)
    except OverflowError:  # an integer beyond float64
        return None
    return array if np.isfinite(array).all() else None


def _places(counts: np.ndarray) -> np.ndarray:
    """Concatenate 0, 1, ... n - 1 for every n of counts."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)


def _row_sums(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The sum (...) of values (..., n) where keep (..., n) is True, equal to `np.sum(row[keep])` to the last bit.

    The order in which numpy adds depends on how many numbers it adds, so rows of equal number are summed together.
    """
    counts, kept = keep.sum(-1), values[keep]
    sums, starts = np.zeros(counts.shape), (counts.cumsum() - counts.ravel()).reshape(counts.shape)
    for n in np.unique(counts):
        rows = counts == n
        sums[rows] = kept[starts[rows][:, None] + np.arange(n)].sum(1)
    return sums


def _percent(share: float) -> float:
    """A share as a percentage with two decimals."""
    return float(f"{100 * share:.2f}")


# ---- command line ----


def report(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], clip_s: float = 2.0, *, unscored: bool = False
) -> str:
    """All scores as a text of tables, "brief" first; arguments as in `evaluate`."""
    predictions = _ranked(predictions) if unscored else predictions
    scores = evaluate(predictions, ground_truth, clip_s)
    tables = [_table("brief", {name: {"": value} for name, value in scores["brief"].items()})]
    if "AUROC" in scores["brief"]:
        lines, truth = _matched(predictions, ground_truth)
        tables.append(generalized.note(lines, len(truth) - len(_with_windows(lines, truth)[1])))
    ranges = [name for name in RANGES_S if name in scores]
    for metric in ("MR-mAP", "MR-R1") if ranges else ():
        tables.append(_table(f"{metric} by IoU", {name: scores[name][metric] for name in ranges}))
    if levels := {name: scores[name] for name in scores if name.startswith("HL-min")}:
        tables.append(_table("highlights", levels))
    if ranges:
        groups = moment_scores(predictions, ground_truth, clip_s)
        rows = {metric: {name: row.get(metric, "-") for name, row in groups.items()} for metric in groups["all"]}
        tables.append(_table("by number of annotated windows", rows))
    return "\n\n".join(tables)


def _table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    cells = {title: list(next(iter(rows.values())))}  # the names of the columns, then their values
    for name, row in rows.items():
        cells[name] = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
    left = max(map(len, cells))
    return "\n".join((n.ljust(left) + "".join(f"{cell:>9}" for cell in row)).rstrip() for n, row in cells.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of two files; a line on stderr and exit code 1 if they cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m mrlib.metrics", description="Score predicted moments and highlights."
    )
    parser.add_argument(
        "predictions", help=".jsonl or .jsonl.gz, lines with qid, pred_relevant_windows, pred_saliency_scores"
    )
    parser.add_argument("ground_truth", help=".jsonl or .jsonl.gz, lines in the QVHighlights schema")
    parser.add_argument("--clip-s", type=float, default=2.0, help="seconds per clip; default 2, Charades-STA has 1")
    parser.add_argument("--unscored", action="store_true", help="windows are [start, end], best first")
    given = parser.parse_args(arguments)
    escape_output()
    try:
        files = read_jsonl(given.predictions), read_jsonl(given.ground_truth)
    except (OSError, ValueError) as error:
        sys.exit(f"mrlib.metrics: {error}")
    try:
        print(report(*files, given.clip_s, unscored=given.unscored))
    except ValueError as error:
        sys.exit(f"mrlib.metrics: {given.predictions} with the ground truth {given.ground_truth}: {error}")


if __name__ == "__main__":
    main()
