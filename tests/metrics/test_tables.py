"""What `python -m mrlib.metrics` prints."""

import gzip
import json
import subprocess
import sys

from mrlib.metrics import report
from tests.support.scored import GOOD, TRUTH, highlights, labelled, youtube


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


def test_the_command_scores_the_lines_that_a_lenient_training_run_has_read(tmp_path):
    lines, truth = highlights([0] * 4 + [1], [4], [[4, 4, 4]])
    lines[0]["pred_relevant_windows"] = [[8, 10, 1]]
    sound = truth[0] | {"query": "a dog", "vid": "a", "relevant_windows": [[8, 10]]}
    odd = sound | {"qid": 7, "duration": -1}
    files = write(tmp_path / "p.jsonl", lines), write(tmp_path / "t.jsonl", [sound, odd])
    assert run(*files).returncode == 1
    command = [sys.executable, "-m", "mrlib.metrics", *files, "--bad", "skip"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "MR-full-mAP            100.00" in done.stdout
    assert done.stderr.count("\n") == 1 and 'bad="skip" leaves out 1 of 2 lines' in done.stderr


def test_a_domain_that_no_encoding_has_is_printed_escaped(tmp_path):
    lines, truth = youtube(([0, 1], [0, 1], "dog"), ([0, 1], [0, 1], "\ud800"))
    done = run(write(tmp_path / "p.jsonl", lines), write(tmp_path / "t.jsonl", truth))
    assert (done.returncode, done.stderr) == (0, "") and "HL-mAP-\\ud800" in done.stdout


def test_captions_say_which_benchmark_the_scores_of_one_name_are_of():
    """Only where both tables are printed: where a query has nothing to find, and another has."""
    null = {"qid": 2, "duration": 10, "relevant_windows": []}
    lines = [{"qid": qid, "pred_relevant_windows": [[0, 10, 0.5]]} for qid in (1, 2)]
    brief, *_, by_windows = report(lines, [TRUTH, null]).split("\n\n")
    assert brief.startswith("brief\n(mR@k and mIoU@k are those of Soccer-GMR)\n") and "\nmIoU@1 " in brief
    head, caption, *rows = by_windows.splitlines()
    assert head.startswith("by number of annotated windows") and caption == "(mR@k and mIoU@k are those of QV-M2)"
    assert any(row.startswith("mIoU@1 ") for row in rows)
    for truth in ([TRUTH], [null | {"qid": 1}]):
        assert "are those of" not in report(lines[:1], truth)
