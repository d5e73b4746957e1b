"""Scores of clips, worked out by hand and against a slow reference."""

import numpy as np
import pytest

from mrlib.metrics import evaluate
from mrlib.metrics.highlights import label_scores
from tests.reference import reference_metrics as reference
from tests.support.scored import GOOD, TRUTH, highlights, labelled, youtube


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
    np.testing.assert_allclose(label_scores(predictions, truth)["HL-top5-mAP"], np.mean(expected), rtol=1e-12)
    score = evaluate(predictions, truth[::-1])["brief"]["HL-top5-mAP"]
    assert score == pytest.approx(100 * np.mean(expected), abs=0.0051)


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


def test_clips_of_one_second_are_scored_to_the_end_of_the_video():
    """Ten clips of 1 s; only the last is relevant, and only the first is found."""
    lines, truth = highlights([1] + [0] * 9, [9], [[4, 4, 4]])
    scores = evaluate(lines, truth, clip_s=1.0)["brief"]
    assert scores["HL-min-VeryGood-mAP"] == 10 and scores["HL-min-VeryGood-Hit1"] == 0
    lines[0]["pred_saliency_scores"] = [0] * 9 + [1]
    assert evaluate(lines, truth, clip_s=1.0)["brief"]["HL-min-VeryGood-mAP"] == 100
    with pytest.raises(ValueError, match="qid 1: relevant_clip_ids clip 9 lies outside the video, 10 s in clips"):
        evaluate(lines, truth)


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
