"""Mining: the two halves of the videos, hand-worked cases of confusing windows, the file of mined windows."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from mrlib import papers
from mrlib.augment import mining
from mrlib.data import load_annotations, open_dataset
from mrlib.ops.draw import Draw
from mrlib.sim import export
from mrlib.train import fit
from tests.support.worlds import world

DRAW = Draw(3, "mining")
SMALL = {"width": 16, "hidden": 16, "heads": 2, "layers": 1, "encoder_layers": 1, "decoder_layers": 1}
SMALL |= {"moment_queries": 3, "batch_size": 16, "epochs": 1}


def test_every_sample_is_in_one_half_and_no_video_is_in_both():
    """[AMR, mining] Thirty samples of eleven videos."""
    videos = [i * 7 % 11 for i in range(30)]
    data = world([9] * 11, [(v, [(0, 2)], [], None) for v in videos])
    first, second = mining.halves(data, DRAW)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(30))
    first_videos, second_videos = ({videos[i] for i in half.tolist()} for half in (first, second))
    assert not first_videos & second_videos and len(first_videos) == 5 and len(second_videos) == 6
    assert first.tolist() == sorted(first.tolist()) and second.tolist() == sorted(second.tolist())


def test_a_null_query_is_mined_like_any_other():
    """No window of its own is in the way of a confident prediction."""
    data = world([9, 9], [(v, [(0, 2)], [], None) for v in range(2)])
    nulls = replace(data, samples=[replace(s, relevant_windows=[]) for s in data.samples], _annotations=None)
    assert sum(map(len, mining.halves(nulls, DRAW))) == 2
    lines = [{"pred_relevant_windows": [[0, 4, 0.9], [8, 10, 0.2]]}] * 2
    assert mining.confusing(lines, nulls, 0.5) == [[[0, 4]], [[0, 4]]]
    assert mining.with_wrong_spans(nulls, [[[0, 4]], []]).mined


def test_the_halves_depend_on_the_seed_alone():
    data = world([9] * 12, [(v, [(0, 2)], [], None) for v in range(12)])
    first, again = mining.halves(data, DRAW), mining.halves(data, DRAW)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    first_halves = {tuple(mining.halves(data, Draw(seed, "mining"))[0].tolist()) for seed in range(20)}
    assert len(first_halves) > 15
    times_in_first = torch.zeros(12)
    for half in first_halves:
        times_in_first[list(half)] += 1
    assert (times_in_first > 0).all(), "a video can be in either half"


def test_a_training_set_without_halves_or_windows_is_refused_before_a_file_is_written(tmp_path):
    data = world([9], [(0, [(0, 2)], [], None)] * 3)
    with pytest.raises(ValueError, match="worlds train has one video; mining needs two"):
        mining.halves(data, DRAW)
    bare = world([9, 9], [(v, [(0, 2)], [], None) for v in range(2)])
    bare = replace(bare, samples=[replace(s, relevant_windows=None) for s in bare.samples], _annotations=None)
    with pytest.raises(ValueError, match="worlds train has samples without annotated windows"):
        mining.halves(bare, DRAW)
    paper = papers.get("amr", "small", **SMALL, augment="identity")
    for train in (data, bare):
        retriever = papers.build(paper, train)
        with pytest.raises(ValueError, match="one video|without annotated"):
            fit(retriever, train, None, paper, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


# a video of ten clips of 2 s that lasts 24 s, with windows from 4 to 8 s and from 12 to 14 s
CASES = {
    "no overlap": ([[0, 2, 0.9]], [[0, 2]]),
    "touches one window, touches both": ([[2, 4, 0.9], [8, 12, 0.8]], [[2, 4], [8, 12]]),
    "overlaps by a clip": ([[2, 6, 0.9], [12, 18, 0.9], [0, 20, 0.9], [12, 14, 0.9]], []),
    "overlaps until its ends are rounded to clips": ([[7.2, 9.1, 0.9]], [[8, 10]]),
    "rounded to clips without overlap": ([[8.0, 11.3, 0.9], [2.4, 3.2, 0.9]], [[8, 12], [2, 4]]),
    "of two that overlap, the better one": ([[14, 18, 0.7], [16, 20, 0.8]], [[16, 20]]),
    "a rejected prediction blocks no other": ([[4, 10, 0.9], [8, 10, 0.8]], [[8, 10]]),
    "only kept predictions block others": (
        [[14, 16, 0.9], [15, 19, 0.8], [16, 20, 0.7]],
        [[14, 16], [16, 20]],
    ),
    "the same twice": ([[16, 18, 0.7], [16, 18, 0.8]], [[16, 18]]),
    "a score equal to the threshold": ([[0, 2, 0.5], [8, 10, 0.5000001], [16, 18, 0.1]], [[8, 10]]),
    "the best three": ([[14, 16, 0.6], [0, 2, 0.7], [8, 10, 0.9], [18, 20, 0.8]], [[0, 2], [8, 10], [18, 20]]),
    "before the first clip": ([[-4, 1.2, 0.9], [-3, -1, 0.8]], [[0, 2]]),
    "beyond the last clip": ([[18, 24, 0.9], [20, 24, 0.8], [16.9, 18.9, 0.7]], [[18, 20], [16, 18]]),
    "empty": ([[16, 16, 0.9], [16.2, 16.8, 0.9], [9, 8, 0.9]], []),
    "no predictions": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_confident_predictions_without_overlap_are_confusing(case):
    """[AMR, mining] Rounded to clips, no overlap with annotated windows or each other, three at most, sorted."""
    predicted, expected = CASES[case]
    data = world([10], [(0, [(2, 4), (6, 7)], [], None)], late=2)
    (mined,) = mining.confusing([{"pred_relevant_windows": predicted}], data, 0.5)
    assert mined == sorted(expected)
    assert all(type(t) is int for window in mined for t in window)


def test_confusing_windows_depend_on_duration_clip_length_and_the_samples_own_windows():
    """Clips of 1 s; a video that ends within its last clip; two samples of one video with different windows."""
    data = world([10, 4], [(0, [(2, 4)], [], None), (0, [(6, 9)], [], None), (1, [(0, 1)], [], None)], clip_s=1.0)
    short = [replace(s, duration=9.5 if i < 2 else 4.0) for i, s in enumerate(data.samples)]
    data = replace(data, samples=short, _annotations=None)
    predicted = [[2.0, 4.0, 0.9], [9.0, 9.5, 0.8], [1.0, 2.0, 0.7]]
    lines = [{"pred_relevant_windows": predicted} for _ in range(3)]
    assert mining.confusing(lines, data, 0.5) == [[[1, 2], [9, 9.5]], [[1, 2], [2, 4], [9, 9.5]], [[1, 2], [2, 4]]]
    with pytest.raises(ValueError, match="zip"):
        mining.confusing(lines[:2], data, 0.5)


def test_mined_windows_become_labels_and_fields_of_the_annotation():
    """[AMR, mining] A relevant clip is never confusing."""
    data = world([10, 6], [(0, [(2, 4)], [], None), (1, [(1, 3)], [], None)])
    assert not data.mined and not mining.has_wrong_spans(data) and data.batch([0]).labels.wrong is None
    mined = mining.with_wrong_spans(data, [[[8, 12]], []])
    wrong = mined.batch([0, 1]).labels.wrong
    assert wrong.nonzero().tolist() == [[0, 4], [0, 5]]
    assert [s.as_line()["wrong_spans"] for s in mined.samples] == [[[8, 12]], []]
    assert mined.mined and mining.has_wrong_spans(mined) and not data.mined
    empty = mining.with_wrong_spans(data, [[], []])
    assert not empty.mined and mining.has_wrong_spans(empty) and empty.batch([0]).labels.wrong is None


def test_mined_windows_are_written_with_their_settings_and_read_back(tmp_path):
    """[AMR, mining] The file is a training file that `load_annotations` reads."""
    wrong = [[[8, 12], [14, 16]], [], [[3, 5.5]]]
    data = mining.with_wrong_spans(
        world([10, 6, 9], [(v, [(0, 2)], [], {0: [4, 3, 2], 1: [1, 1, 1]}) for v in range(3)]), wrong
    )
    stage, file = papers.get("amr").stages[0], tmp_path / "wrong_spans.jsonl"
    mining.write(file, data, asdict(stage))
    assert mining.read(file) == wrong
    assert load_annotations(file) == data.samples
    settings = json.loads(file.with_suffix(".json").read_text())
    assert (settings["mine"], settings["most"], settings["epochs"]) == (0.5, 3, 100)


@pytest.mark.parametrize("threshold", [0.0, 1.0], ids=["some", "none"])
def test_a_run_on_the_mined_file_of_an_earlier_run_skips_mining_and_ends_the_same(threshold, tmp_path):
    """[AMR, mining] Also if no window was mined."""
    paper = papers.get("amr", "small", **SMALL, stages=["mining", "distill"], **{"mining.mine": threshold})
    train = papers.open_split(paper, "sim", split="train", n=24)
    export(train, tmp_path / "first")
    first = open_dataset("qvhighlights", tmp_path / "first", "train")
    ends = []
    for folder, data in (("first", first), ("second", None)):
        if data is None:
            export(train, tmp_path / folder)
            (tmp_path / folder / "highlight_train_release.jsonl").unlink()
            written = (tmp_path / "first-run" / "mining" / "wrong_spans.jsonl").read_bytes()
            (tmp_path / folder / "highlight_train_with_neg_spans.jsonl").write_bytes(written)
            data = open_dataset("qvhighlights", tmp_path / folder, "train")
        retriever = papers.build(paper, data)
        history = fit(retriever, data, None, paper, tmp_path / f"{folder}-run", device="cpu", progress=False)
        stages = [row["stage"] for row in history.rows]
        assert stages == [*(["mining_1", "mining_2"] if folder == "first" else []), "mining", "distill"]
        ends.append((history.rows[-2:], list(retriever.parameters())))
        mined = [len(windows) for windows in mining.read(tmp_path / f"{folder}-run" / "mining" / "wrong_spans.jsonl")]
        row = history.rows[-2]
        assert (row["mined/windows"], row["mined/queries"]) == (sum(mined), sum(map(bool, mined)) / 24)
        assert (sum(mined) > 0) == (threshold == 0.0)
    (rows, weights), (second_rows, second_weights) = ends
    assert rows == second_rows and all(torch.equal(a, b) for a, b in zip(weights, second_weights, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ["mining"]}, "stages must be more than stages that mine"),
        ({"mining.mine": "sure"}, "mine must be a number"),
        ({"mining.prepare": "active_queries"}, "prepare must be None where a stage mines"),
        ({"mining.start": ["coldstart", "last"]}, "start must be None where a stage mines"),
        ({"mining.teacher": ["coldstart", "last"]}, "teacher must be None where a stage mines"),
        (
            {"distill.teacher": ["mining", "last"]},
            "distill.teacher must be None or an earlier stage that does not mine",
        ),
        (
            {"coldstart.start": ["mining", "best"]},
            "coldstart.start must be None or an earlier stage that does not mine",
        ),
        ({"coldstart.teacher": ["distill", "last"]}, "coldstart.teacher must be None or an earlier stage"),
        ({"distill.teacher": ["coldstart", "first"]}, 'teacher must be None, or the name of a stage and "last"'),
    ],
)
def test_stages_that_cannot_follow_one_another_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        papers.get("amr", **settings)
