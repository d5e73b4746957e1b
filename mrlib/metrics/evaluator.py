"""The scores of the official evaluators, for whatever predictions and truth hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrlib.metrics import generalized
from mrlib.metrics.highlights import highlight_scores, highlights_only, label_scores, with_saliency
from mrlib.metrics.moments import read_retrieval, retrieval_scores
from mrlib.metrics.reading import checked_truth, matched_lines, ranked_lines, with_windows
from mrlib.metrics.sums import percent


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
                  has null queries, whose relevant_windows is [], "brief" also holds the scores of
                  `mrlib.metrics.generalized`: "AUROC", "Rej-F1", "Acc" and "G-mIoU" of all queries, "mAP", "mR", "mR+",
                  "mIoU" and "mIoU+" of those with windows [GMR]

    Null queries count in the scores of [GMR] and nowhere else. A prediction line may hold "pred_exist_score", how sure
    the model is that the query has a window; without it, its largest window score is taken, or 0.

    The first ten predictions of a query count; a query without any has AP 0 and R1 0. Two empty windows have the
    IoU 0/0: a hit for AP, a miss for R1. A length range without annotated windows is left out, and so are highlights
    if no truth line has saliency_scores. The scores may be those of any number of annotators, the same in all lines.

    raises  ValueError for ids, or pairs of ids, that differ or occur twice, and for a malformed line, naming its id and
            the field
    """
    predictions = ranked_lines(predictions) if unscored else predictions
    lines, truth = checked_truth(*matched_lines(predictions, ground_truth), clip_s)
    scores, brief = {}, {}
    if highlights_only(truth):
        if "pred_saliency_scores" not in lines[0]:
            raise ValueError(
                f"qid {lines[0]['qid']!r}: the truth has no windows; what it can score is pred_saliency_scores"
            )
        return {"brief": {name: percent(score) for name, score in label_scores(lines, truth).items()}}
    first, queries, (lines, truth) = lines[0], len(truth), with_windows(lines, truth)
    null = queries - len(truth)
    if "pred_relevant_windows" in first and truth:
        scores = retrieval_scores(read_retrieval(lines, truth))
        for name, range_scores in scores.items():
            brief[f"MR-{name}-mAP"] = range_scores["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{iou}": scores["full"]["MR-mAP"][iou] for iou in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{iou}": scores["full"]["MR-R1"][iou] for iou in ("0.5", "0.7")}
        brief = dict(sorted(brief.items()))
    lines, truth = with_saliency(lines, truth)
    if "pred_saliency_scores" in first and truth:
        for name, level in highlight_scores(lines, truth, clip_s).items():
            scores[name] = level
            brief |= {f"{name}-{key.removeprefix('HL-')}": value for key, value in level.items()}
    if "pred_relevant_windows" in first and null:
        brief |= generalized.percentages(
            *reversed(matched_lines(ground_truth, predictions))
        )  # in the order of the truth
    if not brief:
        raise ValueError(f"qid {first['qid']!r}: the first prediction holds nothing that the truth can score")
    return {"brief": brief} | dict(sorted(scores.items()))
