"""Mining: halves of the videos, what is confusing by hand-worked cases, the file that it leaves."""

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


def test_halves_are_of_videos_and_every_sample_is_in_one_of_them():
    """[AMR, mining] Thirty samples of eleven videos; both queries of a video are together."""
    videos = [i * 7 % 11 for i in range(30)]
    data = world([9] * 11, [(v, [(0, 2)], [], None) for v in videos])
    first, second = mining.halves(data, DRAW)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(30))
    of_first, of_second = ({videos[i] for i in half.tolist()} for half in (first, second))
    assert not of_first & of_second and len(of_first) == 5 and len(of_second) == 6
    assert first.tolist() == sorted(first.tolist()) and second.tolist() == sorted(second.tolist())


def test_halves_are_a_function_of_the_seed():
    data = world([9] * 12, [(v, [(0, 2)], [], None) for v in range(12)])
    first, again = mining.halves(data, DRAW), mining.halves(data, DRAW)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = {tuple(mining.halves(data, Draw(seed, "mining"))[0].tolist()) for seed in range(20)}
    assert len(others) > 15
    in_first = torch.zeros(12)
    for half in others:
        in_first[list(half)] += 1
    assert (in_first > 0).all(), "a video can be in either half"


def test_a_set_that_cannot_be_halved_or_has_no_windows_is_refused_before_anything_is_written(tmp_path):
    data = world([9], [(0, [(0, 2)], [], None)] * 3)
    with pytest.raises(ValueError, match="worlds train has one video; mining needs two"):
        mining.halves(data, DRAW)
    bare = world([9, 9], [(v, [(0, 2)], [], None) for v in range(2)])
    bare = replace(bare, samples=[replace(s, relevant_windows=None) for s in bare.samples], _annotations=None)
    with pytest.raises(ValueError, match="worlds train has samples without annotated windows"):
        mining.halves(bare, DRAW)
    paper = papers.get("amr", "small", **SMALL, augment="identity")
    for each in (data, bare):
        retriever = papers.build(paper, each)
        with pytest.raises(ValueError, match="one video|without annotated"):
            fit(retriever, each, None, paper, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


# a video of ten clips of 2 s that lasts 24 s, with windows from 4 to 8 s and from 12 to 14 s
CASES = {
    "apart from both": ([[0, 2, 0.9]], [[0, 2]]),
    "touching one, and both": ([[2, 4, 0.9], [8, 12, 0.8]], [[2, 4], [8, 12]]),
    "overlapping by a clip": ([[2, 6, 0.9], [12, 18, 0.9], [0, 20, 0.9], [12, 14, 0.9]], []),
    "overlapping before its ends go to the nearest clip's": ([[7.2, 9.1, 0.9]], [[8, 10]]),
    "apart until they do": ([[8.0, 11.3, 0.9], [2.4, 3.2, 0.9]], [[8, 12], [2, 4]]),
    "the better of two that overlap": ([[14, 18, 0.7], [16, 20, 0.8]], [[16, 20]]),
    "neither blocks what the true window does": ([[4, 10, 0.9], [8, 10, 0.8]], [[8, 10]]),
    "one that is kept blocks, one that is not does not": (
        [[14, 16, 0.9], [15, 19, 0.8], [16, 20, 0.7]],
        [[14, 16], [16, 20]],
    ),
    "the same twice": ([[16, 18, 0.7], [16, 18, 0.8]], [[16, 18]]),
    "as sure as the threshold": ([[0, 2, 0.5], [8, 10, 0.5000001], [16, 18, 0.1]], [[8, 10]]),
    "more than three": ([[14, 16, 0.6], [0, 2, 0.7], [8, 10, 0.9], [18, 20, 0.8]], [[0, 2], [8, 10], [18, 20]]),
    "after the last clip": ([[18, 24, 0.9], [20, 24, 0.8], [16.9, 18.9, 0.7]], [[18, 20], [16, 18]]),
    "of no width": ([[16, 16, 0.9], [16.2, 16.8, 0.9], [9, 8, 0.9]], []),
    "none": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_confusing_is_what_is_sure_and_apart(case):
    """[AMR, mining] An overlap of exactly 0 with every window, clips whole, no overlap, three at most, sorted."""
    predicted, expected = CASES[case]
    data = world([10], [(0, [(2, 4), (6, 7)], [], None)], late=2)
    (found,) = mining.confusing([{"pred_relevant_windows": predicted}], data, 0.5)
    assert found == sorted(expected)
    assert all(type(t) is int for window in found for t in window)


def test_confusing_keeps_to_the_duration_the_clip_length_and_the_sample():
    """Clips of 1 s; a video that ends within its last clip; two samples of one video, each with its own windows."""
    data = world([10, 4], [(0, [(2, 4)], [], None), (0, [(6, 9)], [], None), (1, [(0, 1)], [], None)], clip_s=1.0)
    short = [replace(s, duration=9.5 if i < 2 else 4.0) for i, s in enumerate(data.samples)]
    data = replace(data, samples=short, _annotations=None)
    sure = [[2.0, 4.0, 0.9], [9.0, 9.5, 0.8], [1.0, 2.0, 0.7]]
    lines = [{"pred_relevant_windows": sure}, {"pred_relevant_windows": sure}, {"pred_relevant_windows": sure}]
    found = mining.confusing(lines, data, 0.5)
    assert found == [[[1, 2], [9, 9.5]], [[1, 2], [2, 4], [9, 9.5]], [[1, 2], [2, 4]]]
    with pytest.raises(ValueError, match="zip"):
        mining.confusing(lines[:2], data, 0.5)


def test_mined_windows_become_labels_and_are_in_the_lines_of_the_set():
    """[AMR, mining] What is relevant is never confusing."""
    data = world([10, 6], [(0, [(2, 4)], [], None), (1, [(1, 3)], [], None)])
    assert not data.mined and not mining.done(data) and data.batch([0]).labels.wrong is None
    mined = mining.with_wrong(data, [[[8, 12]], []])
    wrong = mined.batch([0, 1]).labels.wrong
    assert wrong.nonzero().tolist() == [[0, 4], [0, 5]]
    assert [s.as_line()["wrong_spans"] for s in mined.samples] == [[[8, 12]], []]
    assert mined.mined and mining.done(mined) and not data.mined
    nothing = mining.with_wrong(data, [[], []])
    assert not nothing.mined and mining.done(nothing) and nothing.batch([0]).labels.wrong is None


def test_what_was_mined_is_written_with_its_settings_and_read_back(tmp_path):
    """[AMR, mining] As a training file that any reader of annotations takes."""
    wrong = [[[8, 12], [14, 16]], [], [[3, 5.5]]]
    data = mining.with_wrong(
        world([10, 6, 9], [(v, [(0, 2)], [], {0: [4, 3, 2], 1: [1, 1, 1]}) for v in range(3)]), wrong
    )
    stage, file = papers.get("amr").stages[0], tmp_path / "wrong_spans.jsonl"
    mining.write(file, data, asdict(stage))
    assert mining.read(file) == wrong
    assert load_annotations(file) == data.samples
    settings = json.loads(file.with_suffix(".json").read_text())
    assert (settings["mine"], settings["most"], settings["epochs"]) == (0.5, 3, 100)


@pytest.mark.parametrize("threshold", [0.0, 1.0], ids=["some", "none"])
def test_a_run_on_the_file_that_a_run_left_mines_nothing_anew_and_ends_the_same(threshold, tmp_path):
    """[AMR, mining] Also where nothing was found."""
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
    (rows, weights), (again, same) = ends
    assert rows == again and all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ["mining"]}, "stages must be more than stages that mine"),
        ({"mining.mine": "sure"}, "mine must be a number"),
        ({"mining.prepare": "active_queries"}, "prepare must be None where a stage mines"),
        ({"mining.start": ["coldstart", "last"]}, "start must be None where a stage mines"),
        ({"mining.teacher": ["coldstart", "last"]}, "teacher must be None where a stage mines"),
        ({"distill.teacher": ["mining", "last"]}, "distill.teacher must be None or an earlier stage that trains all"),
        ({"coldstart.start": ["mining", "best"]}, "coldstart.start must be None or an earlier stage that trains all"),
        ({"coldstart.teacher": ["distill", "last"]}, "coldstart.teacher must be None or an earlier stage"),
        ({"distill.teacher": ["coldstart", "first"]}, 'teacher must be None, or the name of a stage and "last"'),
    ],
)
def test_stages_that_cannot_follow_one_another_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        papers.get("amr", **settings)
