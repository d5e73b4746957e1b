"""A second implementation of the scores of queries with nothing to find, query by query, close to their definitions.

`mrlib.metrics.evaluate` must give exactly the same numbers. Lines are well formed, and ids match.
"""

import numpy as np

from tests.reference.reference_metrics import IOUS, average_precision, length_iou, percent


def scores(predictions, ground_truth):
    by_id = {line["qid"]: line for line in predictions}
    queries = [(by_id[line["qid"]], windows_of(line)) for line in ground_truth]
    exists = [(existence(line), bool(windows)) for line, windows in queries]
    brief = {"AUROC": percent(auroc(exists))}
    for t in (0.4, 0.6):
        tp, tn, fp, fn = (sum(1 for s, real in exists if (s > t, real) == case) for case in CASES)
        p, r = ratio(tn, tn + fn), ratio(tn, tn + fp)
        brief[f"Rej-F1@{t}"] = percent(ratio(2 * p * r, p + r))
        brief[f"Acc@{t}"] = percent((tp + tn) / len(exists))
    for k in (1, 3, 5):
        brief[f"G-mIoU@{k}"] = percent(
            sum(set_iou(answers(line)[:k], windows) for line, windows in queries) / len(queries)
        )
    pairs = [(line["pred_relevant_windows"], windows) for line, windows in queries if windows]
    if pairs:
        precision = [[average_precision(moments, windows, t) for t in IOUS] for moments, windows in pairs]
        brief["mAP"] = percent(np.mean(np.mean(precision, axis=0)))
        several = [pair for pair in pairs if len(pair[1]) > 1]
        for name, group, beyond in (("mR", pairs, 0), ("mR+", several, 1)):
            for k in (1, 3, 5):
                brief[f"{name}@{k}"] = percent(np.mean([mean(recalls(group, k, t, beyond)) for t in IOUS]))
        for name, group, beyond in (("mIoU", pairs, 0), ("mIoU+", several, 1)):
            for k in (1, 3, 5):
                ious = [greedy(moments[:k], windows, -1) for moments, windows in group]
                ious = [sorted(each, reverse=True)[1:] if beyond else each for each in ious]
                brief[f"{name}@{k}"] = percent(mean([mean(each) for each in ious]))
    return brief


CASES = ((True, True), (False, False), (True, False), (False, True))  # (answered, real): TP, TN, FP, FN


def mean(values):
    return np.mean(values) if values else 0.0


def recalls(group, k, least, beyond):
    """The share of the windows of every query that its first k moments reach, but for the first `beyond` of them."""
    counts = [(len(greedy(moments[:k], windows, least)), len(windows)) for moments, windows in group]
    return [max(0, found - beyond) / (windows - beyond) for found, windows in counts]


def ratio(a, b):
    return a / b if b else 0.0


def windows_of(line):
    cut = [(max(0.0, s), min(line.get("duration", float("inf")), e)) for s, e in line["relevant_windows"]]
    return sorted({(s, e) for s, e in cut if s < e})


def existence(line):
    return line.get("pred_exist_score", max([score for _, _, score in line["pred_relevant_windows"]], default=0.0))


def answers(line):
    return [(s, e) for s, e, _ in line["pred_relevant_windows"] if s < e] if existence(line) > 0.4 else []


def auroc(exists):
    real, null = ([s for s, kind in exists if kind is wanted] for wanted in (True, False))
    if not real or not null:
        return 0.5
    return sum((a > b) + (a == b) / 2 for a in real for b in null) / (len(real) * len(null))


def greedy(moments, windows, least):
    """The IoUs of the moments that take a window: in turn, each takes the free one of the highest IoU."""
    free, ious = list(windows), []
    for moment in moments:
        best = max(free, key=lambda window: length_iou(moment, window), default=None)
        if best is not None and length_iou(moment, best) >= least:
            ious.append(length_iou(moment, best))
            free.remove(best)
    return ious


def set_iou(moments, windows):
    if not moments or not windows:
        return float(not moments and not windows)
    ious = greedy(moments, windows, 0)
    return sum(ious) / (len(moments) + len(windows) - len(ious))
