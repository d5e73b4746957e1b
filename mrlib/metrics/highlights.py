"""Scores of clips: highlights of QVHighlights, TVSum and YouTube Highlights, each as its own evaluator has it.

Code     [QVHighlights]: AP and Hit1 of the clips, for each annotator and level, as in `jayleicn/moment_detr`; [TVSum]:
         AP of the five best clips, as in `wjun0830/QD-DETR`, inference.py; [YouTube Highlights]: AP of all clips, as in
         `showlab/UniVTG`, main/dataset.py
Departs  the evaluator of QVHighlights ranks the clips of full length, and raises an error where a shorter last clip has
         saliency scores; here it is ranked there

Letters  Q queries, T clips, A annotators
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

import numpy as np

from mrlib.data.clips import scored_clips
from mrlib.data.lines import clip_labels, label_defects, label_scale
from mrlib.metrics.reading import read_rows, refuse
from mrlib.metrics.sums import percent, row_sums

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # lowest saliency score of a positive clip
TOP_CLIPS = 5  # clips that count on TVSum, those of highest score


def with_saliency(lines: list[Mapping], truth: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both whose truth has saliency scores."""
    kept = [line.get("saliency_scores") is not None for line in truth]
    return list(compress(lines, kept)), list(compress(truth, kept))


def highlight_scores(lines: list[Mapping], truth: list[Mapping], clip_s: float) -> dict[str, dict[str, float]]:
    """mAP and Hit1 of every level; at a level, each annotator labels every clip positive or negative."""
    clips, saliency = _read_saliency(truth, clip_s)  # (Q,), (Q, T, A)
    listed, counts = read_rows(lines, "pred_saliency_scores", 1, fill=-np.inf)
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
            "HL-mAP": percent(np.mean(_highlight_precision(truths >= level, last))),
            "HL-Hit1": percent(np.mean(at_top >= level)),
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
    return row_sums(precision, rises[..., ::-1]) / np.maximum(rises.sum(2), 1)  # lowest first, as in the evaluator


def _read_saliency(truth: list[Mapping], clip_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of ranked clips, int (Q,), and the scores of the annotators (Q, T, A), 0 where there are none."""
    ids, counts = read_rows(truth, "relevant_clip_ids", 1)
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


# ---- labels of every clip ----


def highlights_only(truth: list[Mapping]) -> bool:
    """Whether no line has windows and some have the annotators' labels of every clip."""
    return all(line.get("relevant_windows") is None for line in truth) and any(
        isinstance(line.get("label"), list | tuple) for line in truth
    )


def label_scores(lines: list[Mapping], truth: list[Mapping]) -> dict[str, float]:
    """The scores of lines with labels of clips, as shares: one on TVSum, one and those of the domains on YouTube."""
    labels = [_read_labels(line) for line in truth]
    scales = [label_scale(each) for each in labels]
    if {"0/1", "1 to 5"} <= set(scales):
        i = scales.index("1 to 5")
        raise ValueError(f"qid {truth[i]['qid']!r}: label has labels from 1 to 5, those of other lines are 0 and 1")
    listed, counts = read_rows(lines, "pred_saliency_scores", 1)
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
    refuse(line, label_defects(labels))
    return labels
