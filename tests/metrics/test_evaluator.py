"""The evaluator against a slow reference and, with MRLIB_DATA, the scores that the official one published."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlib.metrics import evaluate, moment_scores, report, spurious
from tests.reference import reference_metrics as reference
from tests.support.hostile import CLIPS, NUMBERS, SCORES, UNHURRIED, WINDOWS, changed
from tests.support.scored import GOOD, TRUTH, labelled, official_sample


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


def test_lines_of_labels_have_no_scores_of_retrieval():
    """[TVSum] Also where moments are predicted, and where the windows stand there as none."""
    lines, truth = labelled([1, 2], [[1, 5]], relevant_windows=None, relevant_clip_ids=None, domain="BK")
    both = [line | {"pred_relevant_windows": [[0, 2, 0.5]]} for line in lines]
    assert evaluate(both, truth) == evaluate(lines, truth) == {"brief": {"HL-top5-mAP": 100}}
    assert moment_scores(both, truth) == {}
    with pytest.raises(ValueError, match="qid 1: the truth has no windows; what it can score is pred_saliency_scores"):
        evaluate([{"qid": 1, "pred_relevant_windows": [[0, 2, 0.5]]}], truth)


def test_the_official_sample_scores_as_published():
    qvhighlights = official_sample()
    scores = evaluate(qvhighlights.predictions, qvhighlights.truth)
    assert json.dumps(scores) == json.dumps(qvhighlights.scores)


def test_the_truth_as_its_own_prediction_stays_below_100():
    """Some queries have more than ten windows, in the file's order; annotators disagree about clips."""
    qvhighlights = official_sample()
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


def test_what_the_first_prediction_has_no_other_line_may_lack():
    lines = [GOOD, {"qid": 2, "pred_relevant_windows": [[0, 10, 0.5]]}]
    with pytest.raises(ValueError, match="qid 2: pred_saliency_scores is missing"):
        evaluate(lines, [TRUTH, TRUTH | {"qid": 2}])
    with pytest.raises(ValueError, match="qid 1: the first prediction holds nothing"):
        evaluate([{"qid": 1}], [TRUTH])


FOUND = changed(GOOD, pred_relevant_windows=WINDOWS, pred_saliency_scores=st.lists(NUMBERS, max_size=6))


TRUE = changed(
    TRUTH, duration=NUMBERS, relevant_windows=WINDOWS, relevant_clip_ids=CLIPS, saliency_scores=SCORES, label=SCORES
)


@UNHURRIED
@given(st.lists(FOUND, min_size=1, max_size=2), st.lists(TRUE, min_size=1, max_size=2), st.booleans())
def test_whatever_lines_hold_they_are_scored_or_refused(predictions, truth, unscored):
    for score in (evaluate, moment_scores, spurious, report):
        try:
            scores = score(predictions, truth, unscored=unscored)
        except ValueError as error:
            assert str(error)
        else:
            values = scores.get("brief", {}).values() if isinstance(scores, dict) else []
            assert all(isinstance(value, str) or 0 <= value <= 100 for value in values)


def test_the_evaluator_needs_neither_torch_nor_pandas():
    code = "import sys, mrlib.metrics; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
