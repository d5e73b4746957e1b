"""Scores of moments by the number of annotated windows, with the multi-moment scores of QV-M2.

Code     [QV-M2] is the benchmark of `Zhuo-Cao/QV-M2`
Names    mR@k and mIoU@k are not those of `mrlib.metrics.generalized`, which are of another benchmark, Soccer-GMR
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mrlib.metrics.highlights import highlights_only
from mrlib.metrics.moments import average_precision, first_iou, hull_iou, ranked_iou, read_retrieval
from mrlib.metrics.reading import checked_truth, matched_lines, ranked_lines, with_windows
from mrlib.metrics.sums import percent


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
    predictions = ranked_lines(predictions) if unscored else predictions
    lines, truth = checked_truth(*matched_lines(predictions, ground_truth), clip_s)
    lines, truth = ([], []) if highlights_only(truth) else with_windows(lines, truth)
    if not truth:
        return {}
    retrieval = read_retrieval(lines, truth)
    windows = retrieval.real.sum(1)
    precision = average_precision(ranked_iou(retrieval), retrieval.real)
    iou = hull_iou(
        retrieval.moments_s[:, :5, None], retrieval.windows_s[:, None]
    )  # (Q, 5, W); padding, (0, 0), overlaps nothing
    first, five = first_iou(retrieval, retrieval.real), iou.max((1, 2))
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
        return {"queries": int(group.sum())} | {name: percent(value) for name, value in scores.items()}

    groups = {"all": windows > 0, "1": windows == 1, "2": windows == 2, "3+": windows >= 3}
    return {name: row(group) for name, group in groups.items() if group.any()}


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
