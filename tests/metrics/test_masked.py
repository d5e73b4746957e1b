"""Scores of predictions for videos whose moments were removed; those of the official sample need MRLIB_DATA."""

import json

import pytest

from mrlib.metrics import evaluate, spurious
from tests.support.scored import official_sample

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


def test_of_the_real_queries_fifty_two_ask_for_the_whole_video():
    qvhighlights = official_sample()
    scores = spurious(qvhighlights.predictions, qvhighlights.truth, qvhighlights.predictions)
    assert (scores["queries"], scores["whole"], scores["ratio"]) == (1550, 52, 1.0)
    assert scores["mAP"] == qvhighlights.scores["brief"]["MR-full-mAP"]
