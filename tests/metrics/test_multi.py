"""Scores by the number of annotated windows."""

from mrlib.metrics import moment_scores
from tests.reference import reference_metrics as reference
from tests.support.scored import official_sample, retrieval


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


def test_scores_beside_the_evaluator_agree_with_the_reference_on_the_official_sample():
    qvhighlights = official_sample()
    scores = moment_scores(qvhighlights.predictions, qvhighlights.truth)
    assert scores == reference.moment_scores(qvhighlights.predictions, qvhighlights.truth)
    assert scores["all"]["mAP"] == qvhighlights.scores["brief"]["MR-full-mAP"]
    assert scores["all"]["R1@0.7"] == qvhighlights.scores["brief"]["MR-full-R1@0.7"]
