"""AP and R1 of moments, worked out by hand and against a slow reference."""

import numpy as np

from mrlib.metrics import evaluate
from mrlib.metrics.moments import average_precision, ranked_iou, read_retrieval
from tests.reference import reference_metrics as reference
from tests.support.scored import retrieval


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


def test_precision_of_many_windows_is_the_reference_to_the_last_bit():
    """Here up to ten moments find a window, and numpy's sum changes its order at eight terms."""
    rng = np.random.default_rng(0)
    predictions, truth = [], []
    for qid in range(200):
        windows = [(20 * w, 20 * w + 9) for w in range(rng.integers(7, 15))]
        moments = [(*window + rng.integers(0, 2, 2), rng.random()) for window in windows]
        for lines, part in zip((predictions, truth), retrieval(moments, windows, qid), strict=True):
            lines.extend(part)
    data = read_retrieval(predictions, truth)
    precision = average_precision(ranked_iou(data), data.real)
    for row, line, answer in zip(precision.tolist(), predictions, truth, strict=True):
        moments, windows = line["pred_relevant_windows"], answer["relevant_windows"]
        assert row == [reference.average_precision(moments, windows, iou) for iou in reference.IOUS]
