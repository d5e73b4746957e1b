"""A second implementation of the metrics, query by query and clip by clip, close to their definitions.

`mrlib.metrics`, which scores all queries at once, must give exactly the same numbers. Times are in seconds; ids match
and lines are well formed. Sums use numpy in the order of the evaluator, so that the last bit agrees.
"""

import math

import numpy as np

IOUS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def percent(share):
    return float(f"{100 * share:.2f}")


def length_iou(a, b):
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - both
    return both / union if union else math.nan


def hull_iou(a, b):
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return both / hull if hull else 0.0


def evaluate(predictions, ground_truth):
    truth = {line["qid"]: line for line in ground_truth}
    scores, brief = {}, {}
    if "pred_relevant_windows" in predictions[0]:
        ranges = {"full": (-math.inf, math.inf), "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
        for name, (above, most) in ranges.items():
            pairs = []
            for line in predictions:
                windows = truth[line["qid"]]["relevant_windows"]
                windows = [w for w in windows if above < w[1] - w[0] <= most]
                if windows:
                    pairs.append((line["pred_relevant_windows"], windows))
            if pairs:
                scores[name] = {"MR-mAP": mean_precision(pairs), "MR-R1": recall_at_one(pairs)}
        brief["MR-full-R1@0.5"] = scores["full"]["MR-R1"]["0.5"]
        brief["MR-full-R1@0.7"] = scores["full"]["MR-R1"]["0.7"]
        brief["MR-full-mAP"] = scores["full"]["MR-mAP"]["average"]
        brief["MR-full-mAP@0.5"] = scores["full"]["MR-mAP"]["0.5"]
        brief["MR-full-mAP@0.75"] = scores["full"]["MR-mAP"]["0.75"]
        for name in ("long", "middle", "short"):
            if name in scores:
                brief[f"MR-{name}-mAP"] = scores[name]["MR-mAP"]["average"]
    levels = {}
    if "pred_saliency_scores" in predictions[0] and "saliency_scores" in ground_truth[0]:
        for name, level in (("HL-min-Fair", 2), ("HL-min-Good", 3), ("HL-min-VeryGood", 4)):
            pairs = [(line["pred_saliency_scores"], positive_clips(truth[line["qid"]], level)) for line in predictions]
            levels[name] = {"HL-mAP": highlight_precision(pairs), "HL-Hit1": hit_at_one(pairs)}
            brief[f"{name}-mAP"], brief[f"{name}-Hit1"] = levels[name]["HL-mAP"], levels[name]["HL-Hit1"]
    return {"brief": brief} | levels | scores


# ---- moment retrieval: pairs of (predicted [[start, end, score], ...], annotated [[start, end], ...]) ----


def mean_precision(pairs):
    by_query = np.array([[average_precision(moments, windows, iou) for iou in IOUS] for moments, windows in pairs])
    means = by_query.mean(0)
    return {str(iou): percent(mean) for iou, mean in zip(IOUS, means, strict=True)} | {"average": percent(means.mean())}


def average_precision(moments, windows, least):
    """The area under the curve of precision over recall, as in VOC 2011."""
    if not moments:
        return 0.0
    taken, hits, recall, precision = set(), 0, [0.0], [0.0]
    for place, moment in enumerate(sorted(moments[:10], key=lambda m: -m[2]), 1):
        ious = np.array([length_iou(moment, window) for window in windows])
        for w in np.argsort(ious)[::-1]:
            if ious[w] < least:
                break
            if w not in taken:
                taken.add(w)
                hits += 1
                break
        recall.append(hits / len(windows))
        precision.append(hits / place)
    return area_under_curve(precision + [0.0], recall + [1.0])


def area_under_curve(precision, recall):
    best = [max(precision[i:]) for i in range(len(precision))]
    steps = [(recall[i] - recall[i - 1]) * best[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return np.sum(steps)


def first_iou(moments, windows):
    if not moments:
        return 0.0
    best = np.argmax([length_iou(moments[0], window) for window in windows])
    return hull_iou(moments[0], windows[best])


def recall_at_one(pairs):
    ious = [first_iou(moments, windows) for moments, windows in pairs]
    return {str(least): percent(np.mean([iou >= least for iou in ious])) for least in IOUS}


# ---- highlights: pairs of (predicted scores, three annotators' truth [[0 or 1 per clip], ...]) ----


def positive_clips(line, level):
    clips = int(line["duration"] / 2)
    scores = dict(zip(line["relevant_clip_ids"], line["saliency_scores"], strict=True))
    return [[int(scores.get(clip, (0, 0, 0))[annotator] >= level) for clip in range(clips)] for annotator in range(3)]


def hit_at_one(pairs):
    hits = []
    for scores, truths in pairs:
        top = scores.index(max(scores)) if scores else None
        hits.append(max(truth[top] if top is not None and top < len(truth) else 0 for truth in truths))
    return percent(np.mean(hits))


def highlight_precision(pairs):
    table = []
    for scores, truths in pairs:
        clips = len(truths[0])
        scores = (scores + [0.0] * clips)[:clips]
        table.append([clip_precision(truth, scores) for truth in truths])
    return percent(np.mean(np.array(table)))


def clip_precision(truth, scores):
    if not any(truth):
        return 0.0
    if all(truth):
        return 1.0
    precision, recall = precision_recall_curve(truth, scores)
    recall = np.array(recall, dtype=np.float32)
    best = [max(precision[: i + 1]) for i in range(len(precision))]
    return np.mean([best[i] for i in range(len(best) - 1) if recall[i] != recall[i + 1]])


def precision_recall_curve(truth, scores):
    """Precision and recall at every distinct score, lowest first, then (1, 0), as scikit-learn gives them."""
    precision, recall = [], []
    for threshold in sorted(set(scores)):
        above = [positive for positive, score in zip(truth, scores, strict=True) if score >= threshold]
        precision.append(sum(above) / len(above))
        recall.append(sum(above) / sum(truth))
    return precision + [1.0], recall + [0.0]


# ---- TVSum ----


def top_scores(predictions, ground_truth):
    """HL-top5-mAP of every line, 0..1: the five best clips against the labels of each annotator."""
    truth = {line["qid"]: line["label"] for line in ground_truth}
    videos = []
    for line in predictions:
        labels, scores = truth[line["qid"]], line["pred_saliency_scores"]
        clips = range(min(len(labels), len(scores)))
        ranked = sorted(clips, key=lambda clip: -scores[clip])[:5]
        videos.append(np.mean([top_precision(ranked, column) for column in zip(*labels, strict=True)]))
    return videos


def top_precision(ranked, labels):
    median = sorted(labels)[(len(labels) - 1) // 2]
    hits = [labels[clip] > median for clip in ranked]
    total, recall, precision, area = 0, 0.0, 1.0, 0.0
    for place, hit in enumerate(hits, 1):
        total += hit
        before = recall, precision
        recall, precision = total / max(1, sum(hits)), total / place
        area += (recall - before[0]) * (before[1] + precision) / 2
    return area


# ---- metrics that the evaluator does not have ----


def moment_scores(predictions, ground_truth):
    truth = {line["qid"]: line["relevant_windows"] for line in ground_truth}
    pairs = [(line["pred_relevant_windows"], truth[line["qid"]]) for line in predictions]
    groups = {
        "all": pairs,
        "1": [pair for pair in pairs if len(pair[1]) == 1],
        "2": [pair for pair in pairs if len(pair[1]) == 2],
        "3+": [pair for pair in pairs if len(pair[1]) >= 3],
    }
    return {name: group_scores(group) for name, group in groups.items() if group}


def group_scores(pairs):
    first = [first_iou(moments, windows) for moments, windows in pairs]
    five = [max([0.0] + [hull_iou(m, w) for m in moments[:5] for w in windows]) for moments, windows in pairs]
    row = {"queries": len(pairs), "mAP": mean_precision(pairs)["average"], "mIoU": percent(np.mean(first))}
    for name, best in (("R1", first), ("R5", five)):
        for least in (0.3, 0.5, 0.7, 0.9):
            row[f"{name}@{least}"] = percent(np.mean([iou >= least for iou in best]))
    for k in (1, 2, 3):
        taken = np.array([taken_ious(moments, windows, k) for moments, windows in pairs if len(windows) >= k])
        if len(taken):
            levels = [0.3, 0.35, 0.4, 0.45, *IOUS]
            row[f"mR@{k}"] = percent(np.mean([np.sum(taken >= least) / taken.size for least in levels]))
            row[f"mIoU@{k}"] = percent(np.mean(taken))
    return row


def taken_ious(moments, windows, k):
    """The IoU of each of the first k moments with the best window not taken before; 0 if there is no moment."""
    free, ious = list(windows), [0.0] * k
    for place, moment in enumerate(moments[:k]):
        best = max(free, key=lambda window: hull_iou(moment, window))
        ious[place] = hull_iou(moment, best)
        free.remove(best)
    return ious
