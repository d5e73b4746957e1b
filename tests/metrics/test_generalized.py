"""Scores of queries with nothing to find, against the published ones, cases worked out by hand and a slow reference."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mrlib.metrics import evaluate, main, moment_scores, read_jsonl, report, spurious
from mrlib.metrics.generalized import auroc, existence, matched, tidy_windows
from tests.reference import reference_generalized as reference


def line(qid, moments, **fields):
    return {"qid": qid, "pred_relevant_windows": [list(moment) for moment in moments]} | fields


def truth(qid, windows, **fields):
    return {"qid": qid, "duration": 100, "relevant_windows": [list(window) for window in windows]} | fields


@pytest.fixture(scope="module")
def soccer():
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA, the folder of the real annotations, is not set")
    return Path(os.environ["MRLIB_DATA"]) / "soccer_gmr"


def test_the_example_of_soccer_gmr_scores_as_published(soccer):
    lines = read_jsonl(soccer / "example_test_submission.jsonl.gz")
    labels = read_jsonl(soccer / "test.jsonl.gz")
    expected = json.loads((soccer / "expected.json").read_text())["brief"]
    brief = evaluate(lines, labels)["brief"]
    assert {name: brief[name] for name in expected} == expected
    assert [name for name in brief if not name.startswith("MR-")] == list(expected)  # in their order
    assert brief | reference.scores(lines, labels) == brief
    # the other scores are those of the queries with windows
    kept = [each["qid"] for each in labels if each["relevant_windows"]]
    others = ([each for each in rows if each["qid"] in set(kept)] for rows in (lines, labels))
    assert evaluate(*others)["brief"] == {name: brief[name] for name in brief if name.startswith("MR-")}


def test_the_command_prints_the_scores_and_where_they_come_from(soccer, capsys):
    main([str(soccer / "example_test_submission.jsonl.gz"), str(soccer / "test.jsonl.gz")])
    printed = capsys.readouterr().out
    assert printed.split().count("72.09") == 1 and "\nmIoU+@5" in printed
    assert "492 of 1036 queries have nothing to find; 1036 prediction lines give pred_exist_score." in printed
    assert "largest window score, whose scale differs from model to model." in printed


def test_three_queries_by_hand():
    """Two windows, one found exactly and one at IoU 0.6; nothing to find and nothing answered; nothing to find."""
    lines = [
        line(1, [(0, 10, 0.9), (20, 26, 0.3), (50, 60, 0.2)]),
        line(2, []),
        line(3, [(0, 10, 0.5)]),
    ]
    brief = evaluate(lines, [truth(1, [(0, 10), (20, 30)]), truth(2, []), truth(3, [])])["brief"]
    assert brief["AUROC"] == 100.0
    # existence 0.9, 0, 0.5: above 0.4 one of two null queries is answered, above 0.6 none
    assert (brief["Rej-F1@0.4"], brief["Acc@0.4"], brief["Rej-F1@0.6"], brief["Acc@0.6"]) == (66.67, 66.67, 100, 100)
    assert (brief["G-mIoU@1"], brief["G-mIoU@3"]) == (50.0, 51.11)  # (1/2 + 1 + 0) / 3, (1.6 / 3 + 1 + 0) / 3
    # 0.6 reaches three of ten thresholds
    assert (brief["mR@1"], brief["mR@3"], brief["mR+@1"], brief["mR+@3"]) == (50, 65, 0, 30)
    assert (brief["mIoU@1"], brief["mIoU@3"], brief["mIoU+@1"], brief["mIoU+@3"]) == (100, 80, 0, 60)
    assert brief["mAP"] == brief["MR-full-mAP"]


def test_a_given_existence_score_counts_instead_of_the_scores_of_windows():
    lines = [line(1, [(0, 10, 0.1)], pred_exist_score=0.9), line(2, [(0, 10, 0.8)], pred_exist_score=0.1)]
    brief = evaluate(lines, [truth(1, [(0, 10)]), truth(2, [])])["brief"]
    assert (brief["AUROC"], brief["Acc@0.4"], brief["Acc@0.6"], brief["G-mIoU@1"]) == (100, 100, 100, 100)
    without = [{k: v for k, v in each.items() if k != "pred_exist_score"} for each in lines]
    assert evaluate(without, [truth(1, [(0, 10)]), truth(2, [])])["brief"]["AUROC"] == 0
    assert (existence(line(1, [])), existence(line(1, [(0, 1, -3.0), (0, 1, 0.2)]))) == (0, 0.2)


def test_equal_scores_count_half_and_one_kind_alone_gives_a_half():
    assert auroc(np.array([0.5, 0.5, 0.2]), np.array([True, False, False])) == 0.75
    assert auroc(np.array([0.5, 0.2]), np.array([True, True])) == 0.5


def test_windows_are_cut_to_the_video_sorted_and_taken_once():
    assert tidy_windows([[5, 12], [-1, 3], [5, 10], [8, 8]], 10) == [[0, 3], [5, 10]]
    assert tidy_windows([[5, 12]], None) == [[5, 12]]


def test_a_moment_takes_the_first_of_two_equal_windows_and_none_for_an_iou_that_is_no_number():
    iou = np.array([[[0.5, 0.5, np.nan], [0.6, 0.4, np.nan], [-1, -1, np.nan]]])
    assert matched(iou, -1.0).tolist() == [[0.5, 0.4, -1]]
    assert matched(iou, 0.45).tolist() == [[0.5, -1, -1]]


def test_moments_of_no_length_are_left_out_of_the_answers():
    lines = [line(1, [(5, 5, 0.9), (0, 10, 0.8)])]
    brief = evaluate([*lines, line(2, [])], [truth(1, [(0, 10)]), truth(2, [])])["brief"]
    assert (brief["G-mIoU@1"], brief["mIoU@1"]) == (100, 0)


@pytest.mark.parametrize("seed", range(60))
def test_random_files_score_exactly_as_one_query_at_a_time(seed):
    rng = np.random.default_rng(seed)
    lines, labels = [], []
    for qid in range(rng.integers(2, 30)):
        windows = rng.integers(0, 50, (rng.choice([0, 0, 1, 2, 3]), 1)) * 2 + np.array([0, 20]) * rng.choice(
            [1.0, 0.3, 0.0]
        )
        moments = rng.integers(0, 50, (rng.integers(0, 8), 1)) * 2 + [0, rng.choice([0, 10, 20])]
        rows = np.column_stack([moments, rng.integers(0, 6, len(moments)) / 5]).tolist()
        lines.append(line(qid, rows, **({"pred_exist_score": rng.integers(0, 6) / 5} if rng.random() < 0.5 else {})))
        labels.append(truth(qid, windows.tolist(), duration=int(rng.choice([90, 120]))))
    labels.append(truth("none", []))
    lines.append(line("none", []))
    brief = evaluate(lines, [labels[i] for i in rng.permutation(len(labels))])["brief"]
    expected = reference.scores(lines, labels)
    assert {name: brief[name] for name in expected} == expected
    assert json.loads(json.dumps(brief, allow_nan=False)) == brief


def test_a_truth_without_null_queries_has_none_of_these_scores():
    brief = evaluate([line(1, [(0, 10, 0.9)], pred_exist_score="unread")], [truth(1, [(0, 10)])])["brief"]
    assert all(name.startswith("MR-") for name in brief)


def test_a_truth_of_null_queries_alone_has_the_scores_of_all_queries():
    lines, labels = [line(1, []), line(2, [(0, 10, 0.5)])], [truth(1, []), truth(2, [])]
    scores = evaluate(lines, labels)
    assert scores.keys() == {"brief"}
    assert list(scores["brief"]) == [
        *("AUROC", "Rej-F1@0.4", "Acc@0.4", "Rej-F1@0.6", "Acc@0.6", "G-mIoU@1", "G-mIoU@3", "G-mIoU@5")
    ]
    assert (scores["brief"]["AUROC"], scores["brief"]["G-mIoU@1"]) == (50, 50)
    assert moment_scores(lines, labels) == {}
    assert "nothing to find" in report(lines, labels)
    with pytest.raises(ValueError, match="no query has a window, so nothing can be masked"):
        spurious(lines, labels)


def test_null_queries_leave_the_other_scores_alone():
    lines, labels = [line(1, [(0, 9, 0.9)]), line(2, [(0, 10, 0.8)])], [truth(1, [(0, 10)]), truth(2, [])]
    assert moment_scores(lines, labels) == moment_scores(lines[:1], labels[:1])
    assert moment_scores(lines, labels)["all"]["queries"] == 1
    assert spurious(lines, labels, lines) == spurious(lines[:1], labels[:1], lines[:1])
    both, alone = evaluate(lines, labels), evaluate(lines[:1], labels[:1])
    assert {name: both[name] for name in both if name != "brief"} == {n: alone[n] for n in alone if n != "brief"}


def test_null_queries_have_no_highlights():
    saliency = {"relevant_clip_ids": [0], "saliency_scores": [[4, 4, 4]]}
    lines = [line(i, [(0, 2, 0.9)], pred_saliency_scores=[0.5, 0.1]) for i in (1, 2)]
    both = evaluate(lines, [truth(1, [(0, 2)], **saliency), truth(2, [])])
    alone = evaluate(lines[:1], [truth(1, [(0, 2)], **saliency)])
    assert both["HL-min-Fair"] == alone["HL-min-Fair"] == {"HL-mAP": 100, "HL-Hit1": 100}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_an_existence_score_that_is_no_number_is_named(bad):
    lines = [line(1, [(0, 10, 0.9)]), line(2, [], pred_exist_score=bad)]
    with pytest.raises(ValueError, match="qid 2: pred_exist_score has .* where a finite number should stand"):
        evaluate(lines, [truth(1, [(0, 10)]), truth(2, [])])


def test_malformed_lines_of_null_queries_are_named():
    labels = [truth(1, [(0, 10)]), truth(2, [])]
    with pytest.raises(ValueError, match=r"qid 2: pred_relevant_windows has \[0, 10, 'x'\]"):
        evaluate([line(1, []), line(2, [(0, 10, "x")])], labels)
    with pytest.raises(ValueError, match="qid 2: pred_relevant_windows is missing"):
        evaluate([line(1, []), {"qid": 2}], labels)
    with pytest.raises(ValueError, match="qid 2: duration has 'long'"):
        evaluate([line(1, []), line(2, [])], [labels[0], truth(2, [], duration="long")])
    with pytest.raises(ValueError, match="qid 3: relevant_windows is None, not a list"):
        evaluate([line(1, []), line(2, []), line(3, [])], [*labels, {"qid": 3, "relevant_windows": None}])
