"""Which lines are scored together, and what is said of malformed ones."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mrlib.data.lines import EMPTY, LATE, line_defects
from mrlib.metrics import evaluate, moment_scores, spurious
from tests.support.scored import GOOD, TRUTH


@pytest.mark.parametrize("clip_s", [0, -1, float("nan"), float("inf"), "2"])
def test_a_clip_has_a_positive_length(clip_s):
    for score in (evaluate, moment_scores, lambda *files, clip_s: spurious(*files, clip_s=clip_s)):
        with pytest.raises(ValueError, match="clip_s must be a positive number of seconds"):
            score([GOOD], [TRUTH], clip_s=clip_s)


def test_moments_without_scores_rank_in_their_order_if_they_are_said_to():
    lines = [{"qid": 1, "pred_relevant_windows": [[90, 99], [0, 10]]}]
    truth = [{"qid": 1, "duration": 100, "relevant_windows": [[0, 10]]}]
    scored = [{"qid": 1, "pred_relevant_windows": [[90, 99, 1.0], [0, 10, 0.5]]}]
    for score in (evaluate, moment_scores, spurious):
        assert score(lines, truth, unscored=True) == score(scored, truth)
        with pytest.raises(ValueError, match=r"qid 1: pred_relevant_windows has \[90, 99\] .*; unscored=True, or"):
            score(lines, truth)
        with pytest.raises(
            ValueError, match=r"qid 1: pred_relevant_windows has \[90, 99, 1.0\] .*; windows with scores are"
        ):
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
