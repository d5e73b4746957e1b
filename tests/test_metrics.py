"""The evaluator against hand-worked cases, a slow reference and the scores that the official one published."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrlib import metrics
from mrlib.data.lines import EMPTY, LATE, line_defects
from mrlib.metrics import evaluate, moment_scores, read_jsonl, spurious
from tests.reference import reference_metrics as reference
from tests.support.hostile import CLIPS, NUMBERS, SCORES, UNHURRIED, WINDOWS, changed


@pytest.fixture(scope="module")
def qvhighlights():
    """The sample predictions, their truth and their official scores."""
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA, the folder of the real annotations, is not set")
    root = Path(os.environ["MRLIB_DATA"]) / "qvhighlights"
    sample = root / "official_eval" / "sample_val_preds.jsonl"
    return SimpleNamespace(
        predictions_path=sample,
        truth_path=root / "highlight_val_release.jsonl",
        predictions=read_jsonl(sample),
        truth=read_jsonl(root / "highlight_val_release.jsonl"),
        scores=json.loads(sample.with_name("sample_val_preds_metrics_raw.json").read_text()),
    )


def retrieval(moments, windows, qid=1):
    """One query: [(start, end, score), ...] predicted, [(start, end), ...] annotated."""
    line = {"qid": qid, "pred_relevant_windows": [list(moment) for moment in moments]}
    return [line], [{"qid": qid, "relevant_windows": [list(window) for window in windows]}]


def highlights(scores, clips, saliency, duration=10):
    """One query: predicted scores; annotated clips with the three scores of each."""
    truth = {"qid": 1, "duration": duration, "relevant_clip_ids": clips, "saliency_scores": saliency}
    return [{"qid": 1, "pred_saliency_scores": scores}], [truth]


# ---- by hand ----


def test_two_annotated_windows_of_which_the_second_moment_finds_one():
    """Ranked by score: (50, 60) finds nothing, (0, 9) finds (0, 10) up to IoU 0.9, precision 1/2, recall 1/2."""
    scores = evaluate(*retrieval([(0, 9, 0.2), (50, 60, 0.7)], [(0, 10), (20, 28)]))
    assert scores["full"]["MR-mAP"] == dict.fromkeys(map(str, reference.IOUS[:9]), 25.0) | {"0.95": 0, "average": 22.5}
    assert scores["full"]["MR-R1"] == dict.fromkeys(map(str, reference.IOUS[:9]), 100.0) | {"0.95": 0}


def test_an_iou_exactly_on_the_threshold_is_a_hit():
    scores = evaluate(*retrieval([(0, 5, 1.0)], [(0, 10)]))["full"]
    assert (scores["MR-mAP"]["0.5"], scores["MR-mAP"]["0.55"], scores["MR-R1"]["0.5"]) == (100, 0, 100)


def test_a_window_is_found_once():
    """Two equal moments on the first of two windows: recall stays at 1/2, precision was 1 there."""
    assert evaluate(*retrieval([(0, 10, 0.9), (0, 10, 0.8)], [(0, 10), (20, 30)]))["brief"]["MR-full-mAP"] == 50


def test_only_the_first_ten_moments_of_the_file_count_whatever_their_score():
    misses = [(90, 99, 0.1)] * 10
    assert evaluate(*retrieval([*misses[:9], (0, 10, 0.9), (0, 10, 0.9)], [(0, 10)]))["brief"]["MR-full-mAP"] == 100
    assert evaluate(*retrieval([*misses, (0, 10, 0.9)], [(0, 10)]))["brief"]["MR-full-mAP"] == 0


def test_equal_scores_keep_the_order_of_the_file():
    assert evaluate(*retrieval([(90, 99, 0.5), (0, 10, 0.5)], [(0, 10)]))["brief"]["MR-full-mAP"] == 50
    assert evaluate(*retrieval([(0, 10, 0.5), (90, 99, 0.5)], [(0, 10)]))["brief"]["MR-full-mAP"] == 100


def test_two_empty_windows_are_a_hit_for_ap_and_a_miss_for_r1():
    scores = evaluate(*retrieval([(5, 5, 1.0)], [(5, 5)]))["full"]
    assert (scores["MR-mAP"]["average"], scores["MR-R1"]["0.5"]) == (100, 0)


def test_a_query_without_moments_counts_as_a_miss():
    lines = [retrieval([(0, 10, 1.0)], [(0, 10)], qid=1), retrieval([], [(0, 10)], qid=2)]
    scores = evaluate(*(sum(parts, []) for parts in zip(*lines, strict=True)))["brief"]
    assert (scores["MR-full-mAP"], scores["MR-full-R1@0.5"]) == (50, 50)


def test_a_length_range_keeps_the_windows_inside_it_and_is_left_out_when_empty():
    """The window of 10 s is short and found; the one of 40 s is long and missed; none is middle."""
    scores = evaluate(*retrieval([(0, 10, 1.0)], [(0, 10), (100, 140)]))
    assert scores["brief"] == {
        "MR-full-R1@0.5": 100,
        "MR-full-R1@0.7": 100,
        "MR-full-mAP": 50,
        "MR-full-mAP@0.5": 50,
        "MR-full-mAP@0.75": 50,
        "MR-long-mAP": 0,
        "MR-short-mAP": 100,
    }
    assert list(scores) == ["brief", "full", "long", "short"]


def test_highlight_precision_of_four_clips():
    """Scores 4 3 2 1 0, the first annotator's positives are the clips ranked 1 and 3, the second's the clip ranked 2.

    Precision where recall rises: 1 and 2/3, mean 5/6; 1/2; the third finds no clip good: 0.
    """
    scores = evaluate(*highlights([4, 3, 2, 1, 0], [0, 1, 2], [[2, 0, 0], [0, 3, 1], [4, 1, 0]]))
    assert scores["HL-min-Fair"] == {"HL-mAP": reference.percent((5 / 6 + 1 / 2) / 3), "HL-Hit1": 100}
    assert scores["HL-min-Good"] == {"HL-mAP": reference.percent((1 / 3 + 1 / 2) / 3), "HL-Hit1": 0}


def test_clips_of_equal_score_share_one_threshold():
    """Whether the positive is the first or the last of the tie, precision there is 1/5."""
    for clip in (0, 4):
        scores = evaluate(*highlights([0.5] * 5, [clip], [[4, 4, 4]]))
        assert scores["HL-min-Fair"]["HL-mAP"] == 20


def test_precision_at_a_recall_is_the_best_at_that_recall_or_beyond():
    """Ranks of the positives 2 and 3: precision 1/2, then 2/3, which also counts for the first."""
    scores = evaluate(*highlights([5, 4, 3, 2, 1], [1, 2], [[4, 4, 4], [4, 4, 4]]))
    assert scores["HL-min-Fair"]["HL-mAP"] == 66.67


def test_a_short_list_goes_on_with_zeros_which_beat_negative_scores():
    scores = evaluate(*highlights([-1.0], [1, 2, 3, 4], [[4, 4, 4]] * 4))["HL-min-Fair"]
    assert scores == {"HL-mAP": 100, "HL-Hit1": 0}


def test_a_long_list_is_cut_for_map_and_its_best_clip_beyond_the_video_is_a_miss():
    scores = evaluate(*highlights([1, 0, 0, 0, 0, 9], [0], [[4, 4, 4]]))["HL-min-Fair"]
    assert scores == {"HL-mAP": 100, "HL-Hit1": 0}


def test_a_best_clip_beyond_the_video_is_a_miss_though_the_last_clip_is_a_hit():
    """Beyond every video of the file, and beyond its own of 5 clips but not beyond the other of 8."""
    truth = [
        {"qid": 1, "duration": 10, "relevant_clip_ids": [4], "saliency_scores": [[4, 4, 4]]},
        {"qid": 2, "duration": 16, "relevant_clip_ids": [7], "saliency_scores": [[4, 4, 4]]},
    ]
    for tops, hits in (((4, 7), 100), ((5, 7), 50), ((7, 7), 50), ((9, 7), 50), ((4, 8), 50), ((9, 9), 0)):
        lines = [{"qid": i + 1, "pred_saliency_scores": [0] * top + [1]} for i, top in enumerate(tops)]
        assert evaluate(lines, truth)["HL-min-Fair"]["HL-Hit1"] == hits, tops


def test_r5_looks_at_five_moments_and_miou_at_the_first():
    moments = [(0, 3, 0), (0, 5, 0), (50, 60, 0), (50, 60, 0), (0, 8, 0), (0, 10, 0)]
    scores = moment_scores(*retrieval(moments, [(0, 10)]))["all"]
    assert scores["mIoU"] == scores["mIoU@1"] == 30
    assert [scores[f"R1@{t}"] for t in (0.3, 0.5, 0.7, 0.9)] == [100, 0, 0, 0]
    assert [scores[f"R5@{t}"] for t in (0.3, 0.5, 0.7, 0.9)] == [100, 100, 100, 0]


def test_moments_take_free_windows_in_turn_and_missing_ones_are_misses():
    """(0, 6) takes (0, 10), at 0.6, so (0, 10) overlaps nothing that is free and gets 0; a third moment is missing."""
    scores = moment_scores(*retrieval([(0, 6, 0), (0, 10, 0)], [(0, 10), (20, 30), (40, 50)]))
    assert [scores["all"][f"mIoU@{k}"] for k in (1, 2, 3)] == [60, 30, 20]
    assert [scores["all"][f"mR@{k}"] for k in (1, 2, 3)] == [50, 25, 16.67]  # 7 of the 14 IoUs are at most 0.6
    assert list(scores) == ["all", "3+"] and scores["3+"] == scores["all"]


def test_groups_are_by_number_of_annotated_windows():
    lines = [retrieval([(0, 10, 1.0)], [(20 * w, 20 * w + 10) for w in range(n)], qid=n) for n in (1, 2, 3, 4)]
    scores = moment_scores(*(sum(parts, []) for parts in zip(*lines, strict=True)))
    assert {name: row["queries"] for name, row in scores.items()} == {"all": 4, "1": 1, "2": 1, "3+": 2}
    assert {name: row["mAP"] for name, row in scores.items()} == {"all": 52.08, "1": 100, "2": 50, "3+": 29.17}
    assert "mR@2" not in scores["1"] and "mR@3" not in scores["2"]


# ---- against the slow reference ----


MASKED = [  # qid, duration, windows, moments found where the windows were masked, moments found otherwise
    (1, 20, [[4, 8]], [[4, 8, 0.9]], [[4, 8, 0.9]]),
    (2, 20, [[0, 20]], [[0, 10, 0.9], [0, 20, 0.5]], [[0, 20, 0.9]]),  # whole
    (3, 20, [[9.5, 19], [2, 10]], [[19, 20, 0.9]], [[2, 10, 0.9], [9.5, 19, 0.8]]),  # leaves 3 s
    (4, 20, [[0, 8], [9, 20]], [], [[9, 20, 0.9], [0, 8, 0.8]]),  # leaves 1 s: whole
]


def masked_files():
    """Predictions for masked videos, the truth, predictions for the videos as they are."""
    truth = [{"qid": qid, "duration": d, "relevant_windows": windows} for qid, d, windows, *_ in MASKED]
    masked, standard = (
        [{"qid": row[0], "pred_relevant_windows": row[k], "pred_saliency_scores": [0.0]} for row in MASKED]
        for k in (3, 4)
    )
    return masked, truth, standard


def test_what_is_found_of_masked_moments_by_hand():
    """The second query: IoU 0.5 at rank 1, 1 at rank 2, so AP 1 at IoU 0.5 and 1/2 at the nine others."""
    masked, truth, standard = masked_files()
    of = {"spurious-R1@0.5": 50.0, "spurious-R1@0.7": 25.0, "spurious-mAP": 38.75}  # (100 + 55 + 0 + 0) / 4
    part = {"spurious-part-R1@0.5": 50.0, "spurious-part-R1@0.7": 50.0, "spurious-part-mAP": 50.0}
    assert spurious(masked, truth) == of | part | {"queries": 4, "whole": 2}
    assert spurious(masked, truth[::-1], standard[::-1]) == spurious(masked, truth) | {"mAP": 100.0, "ratio": 2.58}


def test_nothing_found_of_masked_moments_has_no_ratio_and_is_still_json():
    masked, truth, standard = ([each[2]] for each in masked_files())
    scores = spurious(masked, truth, standard)
    assert (scores["spurious-mAP"], scores["ratio"]) == (0, None)
    assert json.loads(json.dumps(scores)) == scores


def test_where_every_window_is_the_whole_video_there_is_no_other_part():
    masked, truth, _ = ([each[1]] for each in masked_files())
    assert spurious(masked, truth).keys() == {"spurious-R1@0.5", "spurious-R1@0.7", "spurious-mAP", "queries", "whole"}


@pytest.mark.parametrize(
    ("windows", "whole"),
    [
        ([[0, 12], [6, 17]], 0),  # 17 s together, 23 s one by one
        ([[2, 14], [0, 6], [3, 5], [12, 17]], 0),  # one inside another
        ([[0, 17], [2, 4], [5, 17]], 0),
        ([[0, 6], [3, 14], [13, 19]], 1),
    ],
)
def test_what_overlapping_windows_cover_counts_once(windows, whole):
    """A video of 20 s is whole if the union of the windows leaves less than a clip of 2 s."""
    lines = [{"qid": 1, "pred_relevant_windows": [[0, 17, 0.9]]}]
    scores = spurious(lines, [{"qid": 1, "duration": 20, "relevant_windows": windows}])
    assert scores["whole"] == whole and ("spurious-part-mAP" in scores) == (not whole)


def test_masked_moments_are_scored_as_the_evaluator_scores_and_refused_where_it_refuses():
    masked, truth, standard = masked_files()
    brief = evaluate([{k: x[k] for k in ("qid", "pred_relevant_windows")} for x in masked], truth)["brief"]
    assert spurious(masked, truth)["spurious-mAP"] == brief["MR-full-mAP"]
    with pytest.raises(ValueError, match="only in the ground truth 4"):
        spurious(masked, truth, standard[:3])
    with pytest.raises(ValueError, match="qid 1: duration has None where a finite number should stand"):
        spurious(masked, [{k: x[k] for k in ("qid", "relevant_windows")} for x in truth])


def test_of_the_real_queries_fifty_two_ask_for_the_whole_video(qvhighlights):
    scores = spurious(qvhighlights.predictions, qvhighlights.truth, qvhighlights.predictions)
    assert (scores["queries"], scores["whole"], scores["ratio"]) == (1550, 52, 1.0)
    assert scores["mAP"] == qvhighlights.scores["brief"]["MR-full-mAP"]


def random_files(seed, full=False):
    """Predictions and truth with all that files may hold; `full` keeps to what the official evaluator can read."""
    rng = np.random.default_rng(seed)
    grid = rng.choice([1.0, 2.0, 7.3])  # a coarse one makes equal IoUs, and IoUs on the thresholds
    text_ids, saliency = rng.random() < 0.3, rng.random() < 0.7
    levels = rng.choice([2, 5, 1000])  # how many scores there are to choose from
    predictions, truth = [], []
    for i in rng.permutation(rng.integers(1, 13)).tolist():
        qid = f"q{i}" if text_ids else i
        duration = rng.choice([150, 126, 30.96, 401.36])
        n = rng.choice([1, 1, 1, 2, 3, 6, 25])
        starts = rng.integers(0, duration / grid, n) * grid
        windows = np.stack([starts, starts + rng.choice([0, 1, 4, 9, 20, 90], n) * grid], 1)
        around = windows[rng.integers(n, size=rng.integers(full, 15))]
        moments = around + rng.choice([0, 0, 0, 1, 2, -1, 5], around.shape) * grid / 2
        scores = rng.integers(-levels, levels, len(moments)) / levels
        clips = int(duration / 2)
        listed = clips if rng.random() < 0.5 else rng.integers(full, clips + 9)
        predictions.append({"qid": qid})
        predictions[-1]["pred_relevant_windows"] = np.column_stack([moments, scores]).tolist()
        predictions[-1]["pred_saliency_scores"] = (rng.integers(-levels, levels, listed) / levels).tolist()
        truth.append({"qid": qid, "duration": duration.tolist(), "relevant_windows": windows.tolist()})
        if saliency:
            relevant = rng.permutation(clips)[: rng.integers(full, clips + 1)].tolist()
            truth[-1]["relevant_clip_ids"] = relevant
            truth[-1]["saliency_scores"] = rng.integers(0, 5, (len(relevant), 3)).tolist()
    if not saliency and full or rng.random() < 0.1:
        predictions = [{k: v for k, v in line.items() if k != "pred_saliency_scores"} for line in predictions]
    elif rng.random() < 0.1 and saliency:
        predictions = [{k: v for k, v in line.items() if k != "pred_relevant_windows"} for line in predictions]
    return predictions, [truth[i] for i in rng.permutation(len(truth))]


@pytest.mark.parametrize("seed", range(250))
def test_random_files_score_exactly_as_one_query_at_a_time(seed):
    predictions, truth = random_files(seed)
    scores = evaluate(predictions, truth)
    assert json.dumps(scores) == json.dumps(reference.evaluate(predictions, truth))  # keys, order and digits
    if "full" in scores:
        assert moment_scores(predictions, truth) == reference.moment_scores(predictions, truth)


def test_sums_are_those_of_numpy_to_the_last_bit():
    rng = np.random.default_rng(0)
    values, keep = rng.random((60, 3, 200)), rng.random((60, 3, 200)) < rng.random((60, 3, 1))
    sums = [[np.sum(row[kept]) for row, kept in zip(*rows, strict=True)] for rows in zip(values, keep, strict=True)]
    assert (metrics._row_sums(values, keep) == sums).all()


def test_precision_of_many_windows_is_the_reference_to_the_last_bit():
    """Here up to ten moments find a window, and numpy's sum changes its order at eight terms."""
    rng = np.random.default_rng(0)
    predictions, truth = [], []
    for qid in range(200):
        windows = [(20 * w, 20 * w + 9) for w in range(rng.integers(7, 15))]
        moments = [(*window + rng.integers(0, 2, 2), rng.random()) for window in windows]
        for lines, part in zip((predictions, truth), retrieval(moments, windows, qid), strict=True):
            lines.extend(part)
    data = metrics._read_retrieval(predictions, truth)
    precision = metrics._average_precision(metrics._ranked_iou(data), data.real)
    for row, line, answer in zip(precision.tolist(), predictions, truth, strict=True):
        moments, windows = line["pred_relevant_windows"], answer["relevant_windows"]
        assert row == [reference.average_precision(moments, windows, iou) for iou in reference.IOUS]


# ---- TVSum ----


def labelled(scores, annotators, qid=1, **truth):
    """One video: predicted scores; of each annotator the labels of all clips."""
    line = {"qid": qid, "label": [list(clip) for clip in zip(*annotators, strict=True)]}
    return [{"qid": qid, "pred_saliency_scores": scores}], [line | truth]


def test_the_five_best_clips_against_the_labels_of_two_annotators():
    """[TVSum] Clips rank 4, 0, 3, 1, 2, 5.

    The first annotator's lower median is 3, so that clips 3, 4 and 5 are positive: hits at the first and third place of
    five, areas 1/2 (1 + 1) / 2 and 1/2 (1/2 + 2/3) / 2, together 0.79167. To the second all clips are alike, AP 0.
    """
    lines, truth = labelled([0.8, 0.4, 0.3, 0.7, 0.9, 0.1], [[1, 2, 3, 4, 5, 5], [2] * 6])
    assert evaluate(lines, truth) == {"brief": {"HL-top5-mAP": 39.58}}


def test_the_median_is_the_lower_one_and_of_all_labels_of_the_video():
    """[TVSum] Of 1 2 3 4 it is 2; were it 3, only the second place would be a hit, area (0 + 1/2) / 2.

    Of 1 2 3 5 5 it is 3, so that neither of the first two clips is positive; of these two alone it would be 1.
    """
    assert evaluate(*labelled([1, 2, 4, 3], [[1, 2, 3, 4]]))["brief"]["HL-top5-mAP"] == 100
    assert evaluate(*labelled([2, 1], [[1, 2, 3, 5, 5]]))["brief"]["HL-top5-mAP"] == 0
    assert evaluate(*labelled([1, 2], [[1, 4, 3, 5, 2]]))["brief"]["HL-top5-mAP"] == 100


def test_clips_beyond_the_labels_do_not_rank_and_a_list_without_clips_is_a_miss():
    assert evaluate(*labelled([1, 2, 9, 9], [[1, 5]])) == evaluate(*labelled([1, 2], [[1, 5]]))
    assert evaluate(*labelled([], [[1, 5]]))["brief"]["HL-top5-mAP"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_labels_score_as_one_annotator_at_a_time(seed):
    """[TVSum] Equal scores and labels are frequent, lists end before or after the labels."""
    rng = np.random.default_rng(seed)
    predictions, truth, annotators = [], [], rng.integers(1, 21)
    for qid in range(rng.integers(1, 8)):
        labels = rng.integers(1, 6, (annotators, rng.integers(1, 15))).tolist()
        scores = (rng.integers(0, 9, rng.integers(0, 17)) / 9).tolist()
        for lines, part in zip((predictions, truth), labelled(scores, labels, qid), strict=True):
            lines.extend(part)
    expected = reference.top_scores(predictions, truth)
    np.testing.assert_allclose(metrics._label_scores(predictions, truth)["HL-top5-mAP"], np.mean(expected), rtol=1e-12)
    score = evaluate(predictions, truth[::-1])["brief"]["HL-top5-mAP"]
    assert score == pytest.approx(100 * np.mean(expected), abs=0.0051)


def test_lines_of_labels_have_no_scores_of_retrieval():
    """[TVSum] Also where moments are predicted, and where the windows stand there as none."""
    lines, truth = labelled([1, 2], [[1, 5]], relevant_windows=None, relevant_clip_ids=None, domain="BK")
    both = [line | {"pred_relevant_windows": [[0, 2, 0.5]]} for line in lines]
    assert evaluate(both, truth) == evaluate(lines, truth) == {"brief": {"HL-top5-mAP": 100}}
    assert moment_scores(both, truth) == {}
    with pytest.raises(ValueError, match="qid 1: the truth has no windows; what it can score is pred_saliency_scores"):
        evaluate([{"qid": 1, "pred_relevant_windows": [[0, 2, 0.5]]}], truth)


def test_a_label_beside_windows_is_no_truth_about_clips():
    """ActivityNet-VRL calls so what its moments show."""
    assert evaluate([GOOD], [TRUTH | {"label": "Archery"}]) == evaluate([GOOD], [TRUTH])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "qid 2: label is missing"),
        ([], "qid 2: label is [], not a list per clip"),
        ([3, [4]], "qid 2: label clip 0 has 3, not numbers from 1 to 5"),
        ([[1, 2], [3]], "qid 2: label clip 1 has 1 labels, clip 0 has 2"),
        ([[1, 2], [3, "4"]], "qid 2: label clip 1 has [3, '4'], not numbers from 1 to 5"),
        ([[], []], "qid 2: label clip 0 has [], not numbers from 1 to 5"),
        ([[0, 2]], "qid 2: label clip 0 has [0, 2], not numbers from 1 to 5, or 0 and 1 in the whole video"),
        ([[0, 1]], "qid 1: label has labels from 1 to 5, those of other lines are 0 and 1"),
    ],
)
def test_malformed_labels_are_named(label, message):
    lines, truth = labelled([1, 2], [[1, 5]])
    with pytest.raises(ValueError) as error:
        evaluate([*lines, lines[0] | {"qid": 2}], [*truth, {"qid": 2, "label": label}])
    assert message in str(error.value)


# ---- clips of another length, other annotators, labels of zero and one ----


def test_clips_of_one_second_are_scored_to_the_end_of_the_video():
    """Ten clips of 1 s; only the last is relevant, and only the first is found."""
    lines, truth = highlights([1] + [0] * 9, [9], [[4, 4, 4]])
    scores = evaluate(lines, truth, clip_s=1.0)["brief"]
    assert scores["HL-min-VeryGood-mAP"] == 10 and scores["HL-min-VeryGood-Hit1"] == 0
    lines[0]["pred_saliency_scores"] = [0] * 9 + [1]
    assert evaluate(lines, truth, clip_s=1.0)["brief"]["HL-min-VeryGood-mAP"] == 100
    with pytest.raises(ValueError, match="qid 1: relevant_clip_ids clip 9 lies outside the video, 10 s in clips"):
        evaluate(lines, truth)


@pytest.mark.parametrize("clip_s", [0, -1, float("nan"), float("inf"), "2"])
def test_a_clip_has_a_positive_length(clip_s):
    for score in (evaluate, moment_scores, lambda *files, clip_s: spurious(*files, clip_s=clip_s)):
        with pytest.raises(ValueError, match="clip_s must be a positive number of seconds"):
            score([GOOD], [TRUTH], clip_s=clip_s)


def test_a_shorter_last_clip_is_ranked_if_it_is_annotated():
    """The eleventh clip of 21 s; a query that does not annotate it has ten, as in the official evaluator."""
    lines, truth = highlights([0.5] * 10 + [0.9], [10], [[4, 4, 4]], duration=21)
    assert evaluate(lines, truth)["HL-min-Good"] == {"HL-mAP": 100, "HL-Hit1": 100}
    lines, truth = highlights([0.5] * 10 + [0.9], [0], [[4, 4, 4]], duration=21)
    assert evaluate(lines, truth)["HL-min-Good"] == {"HL-mAP": 10, "HL-Hit1": 0}
    assert evaluate(*highlights([0.5] * 10, [0], [[4, 4, 4]], duration=21))["HL-min-Good"]["HL-mAP"] == 10


def test_highlights_are_those_of_the_lines_that_have_saliency_scores():
    """In either order; a prediction without saliency is missed only where the truth has some."""
    bare = {k: v for k, v in TRUTH.items() if k not in ("relevant_clip_ids", "saliency_scores")} | {"qid": 2}
    found = {k: v for k, v in GOOD.items() if k != "pred_saliency_scores"} | {"qid": 2}
    alone = evaluate([GOOD], [TRUTH])
    for truth in ([TRUTH, bare], [bare, TRUTH], [TRUTH, bare | {"saliency_scores": None}]):
        scores = evaluate([GOOD, found], truth)
        assert {k: v for k, v in scores.items() if k[:2] == "HL"} == {k: v for k, v in alone.items() if k[:2] == "HL"}
        assert scores["brief"]["MR-full-mAP"] == 100
    assert not any(key.startswith("HL") for key in evaluate([GOOD | {"qid": 2}], [bare])["brief"])


def test_saliency_of_one_annotator_is_scored_as_that_of_three_who_agree():
    rng = np.random.default_rng(0)
    scores, clips = rng.random(40).tolist(), rng.permutation(40)[:15].tolist()
    one = rng.integers(0, 5, (15, 1))
    expected = evaluate(*highlights(scores, clips, one.repeat(3, 1).tolist(), duration=80))
    assert evaluate(*highlights(scores, clips, one.tolist(), duration=80)) == expected
    lines, truth = highlights(scores, clips, one.tolist(), duration=80)
    other = truth[0] | {"qid": 2, "saliency_scores": one.repeat(2, 1).tolist()}
    with pytest.raises(ValueError, match="qid 2: saliency_scores has 2 scores for each clip, that of other lines 1"):
        evaluate([*lines, lines[0] | {"qid": 2}], [*truth, other])


def youtube(*videos):
    """Predictions and truth of videos, each as (scores, labels, domain)."""
    lines = [{"qid": i, "pred_saliency_scores": scores} for i, (scores, _, _) in enumerate(videos)]
    truth = [{"qid": i, "label": [[x] for x in row], "domain": domain} for i, (_, row, domain) in enumerate(videos)]
    return lines, truth


def test_labels_of_zero_and_one_are_scored_over_the_whole_ranking():
    """[YouTube Highlights] Ranked 1, 0, 1: recall rises to 1/2 at precision 1, stays, and to 1 at 2/3 after 1/2."""
    by_hand = 100 * (1 / 2 * (1 + 1) / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    lines, truth = youtube(([0.9, 0.8, 0.7], [1, 0, 1], "dog"))
    assert evaluate(lines, truth) == {"brief": {"HL-mAP": round(by_hand, 2)}}
    flat = [truth[0] | {"label": [1, 0, 1]}]
    assert evaluate(lines, flat) == evaluate(lines, truth)
    none, right = ([1, 0], [0, 0], "dog"), ([0, 1], [0, 1], "dog")
    assert evaluate(*youtube(none, right))["brief"] == {"HL-mAP": 50}


def test_the_score_of_several_domains_is_the_mean_of_theirs():
    """[YouTube Highlights] The releases train a model for each domain and average."""
    right, wrong = ([0, 1], [0, 1]), ([1, 0], [0, 0])
    scores = evaluate(*youtube((*right, "dog"), (*wrong, "skiing"), (*wrong, "skiing"), (*right, "skiing")))["brief"]
    assert scores == {"HL-mAP": 66.67, "HL-mAP-dog": 100, "HL-mAP-skiing": 33.33}


def test_moments_without_scores_rank_in_their_order_if_they_are_said_to():
    lines = [{"qid": 1, "pred_relevant_windows": [[90, 99], [0, 10]]}]
    truth = [{"qid": 1, "duration": 100, "relevant_windows": [[0, 10]]}]
    scored = [{"qid": 1, "pred_relevant_windows": [[90, 99, 1.0], [0, 10, 0.5]]}]
    for score in (evaluate, moment_scores, spurious):
        assert score(lines, truth, unscored=True) == score(scored, truth)
        with pytest.raises(ValueError, match=r"qid 1: pred_relevant_windows has \[90, 99\] .*; unscored=True, or"):
            score(lines, truth)
        with pytest.raises(ValueError, match=r"qid 1: pred_relevant_windows has \[90, 99, 1.0\] where 2 finite"):
            score(scored, truth, unscored=True)
    assert evaluate([{"qid": 1, "pred_relevant_windows": []}], truth, unscored=True)["brief"]["MR-full-mAP"] == 0
    with pytest.raises(ValueError, match="qid 1: pred_relevant_windows is None"):
        evaluate([{"qid": 1, "pred_relevant_windows": None}], truth, unscored=True)


def test_what_the_readers_accept_is_scored(tmp_path):
    """And what they refuse in a window or in saliency is refused, except empty windows and those after the video."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        duration, clip_s = rng.choice([10, 10.5, 9.99]), rng.choice([1.0, 2.0, 5 / 3])
        start, length = rng.integers(-1, 10), rng.choice([-2, 1, 3])
        ids = rng.integers(-1, 12, 2).tolist() if rng.random() < 0.5 else [0, 2]
        rows = [[[4], [0]], [[4, 1], [0, 2]], [[4], [0, 1]], [[5], [0]], [[]], [[4], ["1"]]][rng.choice(6)]
        line = {"qid": 1, "query": "a", "vid": "v", "duration": float(duration), "relevant_clip_ids": ids}
        line |= {"relevant_windows": [[int(start), int(start + length)]], "saliency_scores": rows}
        accepted = not any(d.fatal for d in line_defects(line, clip_s, True) if d.place not in (LATE, EMPTY))
        try:
            evaluate([GOOD], [line], clip_s)
            scored = True
        except ValueError as error:
            scored = False
            assert str(error).startswith("qid 1: ")
        assert scored == accepted, line


# ---- real data ----


def test_the_official_sample_scores_as_published(qvhighlights):
    scores = evaluate(qvhighlights.predictions, qvhighlights.truth)
    assert json.dumps(scores) == json.dumps(qvhighlights.scores)


def test_scores_beside_the_evaluator_agree_with_the_reference_on_the_official_sample(qvhighlights):
    scores = moment_scores(qvhighlights.predictions, qvhighlights.truth)
    assert scores == reference.moment_scores(qvhighlights.predictions, qvhighlights.truth)
    assert scores["all"]["mAP"] == qvhighlights.scores["brief"]["MR-full-mAP"]
    assert scores["all"]["R1@0.7"] == qvhighlights.scores["brief"]["MR-full-R1@0.7"]


def test_the_truth_as_its_own_prediction_stays_below_100(qvhighlights):
    """Some queries have more than ten windows, in the file's order; annotators disagree about clips."""
    predictions = []
    for line in qvhighlights.truth:
        moments = [[*window, 1.0] for window in line["relevant_windows"]]
        clip_scores = [0] * (line["duration"] // 2)
        for clip, scores in zip(line["relevant_clip_ids"], line["saliency_scores"], strict=True):
            clip_scores[clip] = sum(scores)
        predictions.append({"qid": line["qid"], "pred_relevant_windows": moments, "pred_saliency_scores": clip_scores})
    brief = evaluate(predictions, qvhighlights.truth)["brief"]
    assert (brief["MR-full-mAP"], brief["MR-short-mAP"], brief["MR-full-R1@0.7"]) == (99.76, 79.75, 100)
    assert brief["HL-min-VeryGood-mAP"] == 60.81


# ---- bad input ----


GOOD = {"qid": 1, "pred_relevant_windows": [[0, 10, 0.5]], "pred_saliency_scores": [0.5]}
TRUTH = {
    "qid": 1,
    "duration": 10,
    "relevant_windows": [[0, 10]],
    "relevant_clip_ids": [0],
    "saliency_scores": [[1, 2, 3]],
}


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ({"pred_relevant_windows": [[0, 10]]}, {}, "qid 1: pred_relevant_windows has [0, 10] where 3 finite numbers"),
        ({"pred_relevant_windows": [[0, 10, "0.5"]]}, {}, "pred_relevant_windows has [0, 10, '0.5'] where 3 finite"),
        ({"pred_relevant_windows": [[0, float("nan"), 1]]}, {}, "pred_relevant_windows has [0, nan, 1] where 3"),
        ({"pred_relevant_windows": [[0, 10**400, 1]]}, {}, "where 3 finite numbers should stand"),
        ({"pred_relevant_windows": [0, 10, 1]}, {}, "pred_relevant_windows has 0 where 3 finite numbers"),
        ({"pred_relevant_windows": None}, {}, "qid 1: pred_relevant_windows is None, not a list"),
        ({"pred_saliency_scores": 0.5}, {}, "qid 1: pred_saliency_scores is 0.5, not a list"),
        ({"pred_saliency_scores": [None]}, {}, "qid 1: pred_saliency_scores has None where a finite number"),
        ({"pred_saliency_scores": [True]}, {}, "qid 1: pred_saliency_scores has True where a finite number"),
        ({"qid": None}, {}, "predictions, line 1: qid is missing"),
        ({}, {"qid": [1]}, "ground truth, line 1: qid is missing, or neither a whole number nor text"),
        ({}, {"relevant_windows": [[0, 10, 1]]}, "qid 1: relevant_windows [0, 10, 1] is not [start, end] in seconds"),
        ({}, {"relevant_windows": [[9, 4]]}, "qid 1: relevant_windows [9, 4] ends before it starts"),
        ({}, {"relevant_windows": [[-2, 4]]}, "qid 1: relevant_windows [-2, 4] starts before the video"),
        ({}, {"duration": None}, "qid 1: duration is None, not a positive number of seconds"),
        (
            {},
            {"relevant_clip_ids": [5]},
            "qid 1: relevant_clip_ids clip 5 lies outside the video, 10 s in clips",
        ),
        ({}, {"relevant_clip_ids": [0.5]}, "qid 1: relevant_clip_ids is [0.5], not a list of integers"),
        ({}, {"relevant_clip_ids": [0, 1]}, "qid 1: saliency_scores 1 for 2 relevant_clip_ids"),
        ({}, {"relevant_clip_ids": None}, "qid 1: saliency_scores is given without relevant_clip_ids"),
        ({}, {"saliency_scores": [[1, 5]]}, "qid 1: saliency_scores clip 0 has [1, 5], not scores from 0 to 4"),
    ],
)
def test_a_malformed_line_is_named_with_its_field(prediction, truth, message):
    with pytest.raises(ValueError) as error:
        evaluate([GOOD | prediction], [TRUTH | truth])
    assert message in str(error.value)


def test_what_the_first_prediction_has_no_other_line_may_lack():
    lines = [GOOD, {"qid": 2, "pred_relevant_windows": [[0, 10, 0.5]]}]
    with pytest.raises(ValueError, match="qid 2: pred_saliency_scores is missing"):
        evaluate(lines, [TRUTH, TRUTH | {"qid": 2}])
    with pytest.raises(ValueError, match="qid 1: the first prediction holds nothing"):
        evaluate([{"qid": 1}], [TRUTH])


def test_ids_that_differ_are_named_up_to_five_on_each_side():
    lines, truth = [GOOD | {"qid": i} for i in range(8)], [TRUTH | {"qid": i} for i in (0, 1, "1")]
    with pytest.raises(ValueError) as error:
        evaluate(lines, truth)
    message = "query ids differ: only in the predictions 2, 3, 4, 5, 6 and 1 more; only in the ground truth '1'"
    assert str(error.value) == message


def test_ids_that_are_numbers_on_one_side_and_text_on_the_other_are_called_so():
    with pytest.raises(ValueError, match="ground truth '1'; in one of the two, numbers are written as text"):
        evaluate([GOOD], [TRUTH | {"qid": "1"}])


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
def test_arrays_and_tensors_are_as_good_as_lists(make):
    line, truth = GOOD | {"qid": np.int64(1)}, dict(TRUTH)
    line |= {name: make(line[name]) for name in ("pred_relevant_windows", "pred_saliency_scores")}
    truth |= {name: make(truth[name]) for name in ("relevant_windows", "relevant_clip_ids", "saliency_scores")}
    assert evaluate([line], [truth]) == evaluate([GOOD], [TRUTH])
    with pytest.raises(ValueError, match=r"qid 1: pred_relevant_windows has \[nan, 8.0, 1.0\] where 3 finite"):
        evaluate([GOOD | {"pred_relevant_windows": make([[math.nan, 8.0, 1.0]])}], [TRUTH])


def test_ids_given_twice_are_an_error_on_either_side():
    with pytest.raises(ValueError, match="predictions: query ids given more than once: 1"):
        evaluate([GOOD, GOOD], [TRUTH])
    with pytest.raises(ValueError, match="ground truth: query ids given more than once: 1"):
        evaluate([GOOD], [TRUTH, TRUTH])
    with pytest.raises(ValueError, match="predictions: no lines"):
        evaluate([], [TRUTH])


# ---- queries that are videos ----


def pair(qid, vid, moment, window):
    prediction = {"qid": qid, "vid": vid, "pred_relevant_windows": [[*moment, 1.0]]}
    return prediction, {"qid": qid, "vid": vid, "duration": 100, "relevant_windows": [list(window)]}


def scores_of(*pairs):
    """mIoU and R1@0.5 [MATR, metrics]; the truth comes in another order than the predictions."""
    lines, truth = zip(*pairs, strict=True)
    row = moment_scores(lines, truth[::-1])["all"]
    assert row["R1@0.5"] == evaluate(lines, truth[::-1])["brief"]["MR-full-R1@0.5"]
    assert row["queries"] == len(pairs)
    return row["mIoU"], row["R1@0.5"]


def test_perfect_moments_score_100_and_disjoint_ones_0():
    windows = [(i / 3, i / 3 + 7.7) for i in range(50)]
    assert scores_of(*(pair(f"q{i % 9}", f"v{i}", w, w) for i, w in enumerate(windows))) == (100, 100)
    assert scores_of(*(pair(f"q{i % 9}", f"v{i}", (80, 90), w) for i, w in enumerate(windows))) == (0, 0)


def test_one_query_is_scored_in_each_video_that_it_searches():
    """Found in one of the two videos, and not what was found in the other one."""
    found, missed = pair("q", "a", (0, 10), (0, 10)), pair("q", "b", (0, 10), (50, 60))
    assert scores_of(found, missed) == scores_of(missed, found) == (50, 50)
    lines, truth = zip(found, missed, strict=True)
    assert evaluate(lines, truth)["brief"]["MR-full-mAP"] == 50


def test_two_queries_for_one_video_are_both_counted():
    assert scores_of(pair("q", "a", (0, 10), (0, 10)), pair("r", "a", (90, 95), (0, 10))) == (50, 50)


def test_a_pair_with_an_iou_of_a_half_is_found():
    assert scores_of(pair("q", "a", (0, 5), (0, 10)), pair("q", "b", (0, 4.99), (0, 10))) == (49.95, 50)


def test_the_mean_iou_is_at_least_half_the_share_of_pairs_that_are_found():
    rng = np.random.default_rng(0)
    for _ in range(20):
        moments, windows = np.sort(rng.uniform(0, 100, (2, 40, 2)), axis=2).tolist()
        pairs = (pair(f"q{i % 5}", i, *mw) for i, mw in enumerate(zip(moments, windows, strict=True)))
        mean, found = scores_of(*pairs)
        assert 0 < found < 100 and mean >= 0.5 * found - 0.01


def test_scores_of_pairs_are_those_of_the_same_pairs_with_names_of_their_own():
    rng = np.random.default_rng(1)
    moments, windows = np.sort(rng.uniform(0, 100, (2, 30, 2)), axis=2).tolist()
    pairs = [pair(i % 4, f"v{i}", *mw) for i, mw in enumerate(zip(moments, windows, strict=True))]
    lines, truth = zip(*pairs, strict=True)
    names = [[each | {"qid": i} for i, each in enumerate(side)] for side in (lines, truth)]
    assert evaluate(lines, truth) == evaluate(*names)
    assert moment_scores(lines, truth) == moment_scores(*names)


def test_a_pair_given_twice_is_an_error_on_either_side():
    lines, truth = zip(pair("q", "a", (0, 1), (0, 1)), pair("q", "b", (0, 1), (0, 1)), strict=True)
    for sides, name in ((([*lines, lines[1]], truth), "predictions"), ((lines, [*truth, truth[1]]), "ground truth")):
        with pytest.raises(ValueError, match=f"{name}: query ids given more than once: 'q' on 'b'"):
            evaluate(*sides)


def test_pairs_that_differ_are_named():
    lines, truth = zip(pair("q", "a", (0, 1), (0, 1)), pair("q", "b", (0, 1), (0, 1)), strict=True)
    with pytest.raises(ValueError, match=r"only in the predictions 'q' on 'c'; only in the ground truth 'q' on 'b'"):
        evaluate([lines[0], lines[1] | {"vid": "c"}], truth)
    with pytest.raises(ValueError, match=r"only in the predictions none; only in the ground truth 'q' on 'b'"):
        evaluate(lines[:1], truth)


def test_predictions_for_several_videos_of_one_query_need_their_vid():
    lines, truth = zip(pair("q", "a", (0, 1), (0, 1)), pair("q", "b", (0, 1), (0, 1)), strict=True)
    without = [{k: v for k, v in each.items() if k != "vid"} for each in lines]
    message = "predictions: vid is missing, which tells the lines of one query apart: qid 'q'"
    for bad in (without[:1], [lines[0], without[1]]):
        with pytest.raises(ValueError, match=message):
            evaluate(bad, truth)
    with pytest.raises(ValueError, match="predictions: qid 'q': vid is neither a whole number nor text"):
        evaluate([lines[0], lines[1] | {"vid": ["b"]}], truth)


def test_the_vid_of_a_query_that_comes_once_does_not_matter():
    (line,), (true,) = zip(pair("q", "a", (0, 1), (0, 1)), strict=True)
    assert evaluate([line | {"vid": "other"}], [true]) == evaluate([line], [true])


def test_truth_may_be_samples():
    samples = [SimpleNamespace(as_line=lambda: TRUTH)]
    assert evaluate([GOOD], samples) == evaluate([GOOD], [TRUTH])


FOUND = changed(GOOD, pred_relevant_windows=WINDOWS, pred_saliency_scores=st.lists(NUMBERS, max_size=6))
TRUE = changed(
    TRUTH, duration=NUMBERS, relevant_windows=WINDOWS, relevant_clip_ids=CLIPS, saliency_scores=SCORES, label=SCORES
)


@UNHURRIED
@given(st.lists(FOUND, min_size=1, max_size=2), st.lists(TRUE, min_size=1, max_size=2), st.booleans())
def test_whatever_lines_hold_they_are_scored_or_refused(predictions, truth, unscored):
    for score in (evaluate, moment_scores, spurious, metrics.report):
        try:
            scores = score(predictions, truth, unscored=unscored)
        except ValueError as error:
            assert str(error)
        else:
            values = scores.get("brief", {}).values() if isinstance(scores, dict) else []
            assert all(isinstance(value, str) or 0 <= value <= 100 for value in values)


# ---- command line ----


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "mrlib.metrics", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def write(path, lines):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def test_the_command_prints_every_score(tmp_path):
    done = run(write(tmp_path / "p.jsonl", [GOOD]), write(tmp_path / "t.jsonl.gz", [TRUTH]))
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("brief") and "\nMR-short-mAP           100.00\n" in done.stdout
    for title in ("MR-mAP by IoU", "MR-R1 by IoU", "HL-min-VeryGood", "by number of annotated windows", "mIoU@1"):
        assert title in done.stdout


def test_the_command_prints_the_score_of_labels(tmp_path):
    lines, truth = labelled([1, 2], [[1, 5]])
    done = run(write(tmp_path / "p.jsonl", lines), write(tmp_path / "t.jsonl", truth))
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["brief", "HL-top5-mAP", "100.00"])


def test_the_command_ends_with_one_line_for_bad_input(tmp_path):
    good, truth = write(tmp_path / "p.jsonl", [GOOD]), write(tmp_path / "t.jsonl", [TRUTH])
    done = run(good, tmp_path / "none.jsonl")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "none.jsonl" in done.stderr
    done = run(write(tmp_path / "other.jsonl", [GOOD | {"qid": 2}]), truth)
    assert (
        done.returncode == 1
        and done.stderr.count("\n") == 1
        and done.stderr.startswith(
            f"mrlib.metrics: {tmp_path / 'other.jsonl'} with the ground truth {truth}: "
            "query ids differ: only in the predictions 2;"
        )
    )


def test_the_command_takes_the_length_of_a_clip_and_moments_without_scores(tmp_path):
    lines, truth = highlights([0] * 9 + [1], [9], [[4, 4, 4]])
    lines[0]["pred_relevant_windows"], truth[0]["relevant_windows"] = [[0, 10]], [[0, 10]]
    files = write(tmp_path / "p.jsonl", lines), write(tmp_path / "t.jsonl", truth)
    assert run(*files).returncode == 1
    done = run(*files, "--clip-s", "1", "--unscored")
    assert (done.returncode, done.stderr) == (0, "")
    assert "HL-min-Good-mAP        100.00" in done.stdout and "MR-full-mAP            100.00" in done.stdout


def test_a_domain_that_no_encoding_has_is_printed_escaped(tmp_path):
    lines, truth = youtube(([0, 1], [0, 1], "dog"), ([0, 1], [0, 1], "\ud800"))
    done = run(write(tmp_path / "p.jsonl", lines), write(tmp_path / "t.jsonl", truth))
    assert (done.returncode, done.stderr) == (0, "") and "HL-mAP-\\ud800" in done.stdout


def test_a_line_that_is_no_json_object_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"qid": 1}\n\n{"qid": 2\n')
    with pytest.raises(ValueError, match=r"lines.jsonl, line 3: Expecting ',' delimiter at column 10"):
        read_jsonl(path)
    path.write_text('{"qid": 1}\n[1]\n')
    with pytest.raises(ValueError, match=r"lines.jsonl, line 2: \[1\] is not a JSON object"):
        read_jsonl(path)
    path.with_suffix(".gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"lines.gz: cannot be read"):
        read_jsonl(path.with_suffix(".gz"))


def test_the_evaluator_needs_neither_torch_nor_pandas():
    code = "import sys, mrlib.metrics; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
