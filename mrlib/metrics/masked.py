"""Scores of predictions for videos whose moments were removed, see `mrlib.probes.mask_moments`.  [TD-DETR, spurious]"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mrlib.metrics.moments import Retrieval, read_retrieval, retrieval_scores
from mrlib.metrics.reading import checked_rows, checked_truth, matched_lines, ranked_lines, with_windows


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
    predictions = ranked_lines(predictions) if unscored else predictions
    lines, truth = with_windows(*checked_truth(*matched_lines(predictions, ground_truth), clip_s))
    if not truth:
        raise ValueError("no query has a window, so nothing can be masked")
    retrieval = read_retrieval(lines, truth)
    durations_s = checked_rows(truth, "duration", [[line.get("duration")] for line in truth], 1)[:, 0]
    part = durations_s - _covered_s(retrieval) >= clip_s
    scores: dict[str, float | int | None] = {}
    for name, group in (("spurious", np.ones_like(part)), ("spurious-part", part)):
        if group.any():
            full = retrieval_scores(Retrieval(*(field[group] for field in retrieval)))["full"]
            scores |= {f"{name}-R1@{iou}": full["MR-R1"][iou] for iou in ("0.5", "0.7")}
            scores[f"{name}-mAP"] = full["MR-mAP"]["average"]
    scores |= {"queries": len(part), "whole": int((~part).sum())}
    if standard is not None:
        lines, truth = with_windows(*matched_lines(ranked_lines(standard) if unscored else standard, ground_truth))
        full = retrieval_scores(read_retrieval(lines, truth))["full"]
        scores["mAP"] = full["MR-mAP"]["average"]
        spurious_map = scores["spurious-mAP"]
        scores["ratio"] = round(scores["mAP"] / spurious_map, 2) if spurious_map else None
    return scores


def _covered_s(retrieval: Retrieval) -> np.ndarray:
    """Seconds (Q,) of the union of a query's windows."""
    start, end = retrieval.windows_s.swapaxes(0, 2)  # each (W, Q); padding is from 0 to 0
    order = start.argsort(0)
    start, end = np.take_along_axis(start, order, 0), np.take_along_axis(end, order, 0)
    reached = np.maximum.accumulate(np.concatenate([np.zeros_like(end[:1]), end[:-1]]), 0)
    return (end - np.minimum(np.maximum(start, reached), end)).sum(0)
