"""The runners of stages, and what a resumed run takes from its folder."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers, train
from mrlib.augment import mining
from mrlib.data import open_dataset
from mrlib.files import read_jsonl
from mrlib.train import fit
from mrlib.training.run_state import History, RunState
from mrlib.training.stages import MiningRunner, TrainingRunner
from mrlib.training.trainer import Setup, Trainer
from tests.support import toy

SIZE = {"size": "small", "streams": "joint"}


@pytest.fixture(scope="module")
def world():
    return open_dataset("sim", split="train", n=48, **SIZE), open_dataset("sim", split="val", n=20, **SIZE)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy.register(monkeypatch.setitem)


def mined_first(**settings):
    """The toy after a stage that mines."""
    paper = papers.get("toy", "small", epochs=2, **settings)
    stages = replace(paper.stages[0], name="mining", epochs=1, mine=-1e9), *paper.stages
    return papers.replace(paper, stages=stages)


def setup_of(world, paper):
    return Setup(papers.build(paper, world[0]), *world, {}, paper, 0, torch.device("cpu"), "fp32", False)


def test_a_stage_that_mines_has_a_runner_of_its_own_and_takes_no_steps(world):
    paper = mined_first()
    mine, learn = (train._runner(setup_of(world, paper), stage, False) for stage in paper.stages)
    assert isinstance(mine, MiningRunner) and mine.steps == 0
    assert isinstance(learn, TrainingRunner) and learn.steps == 2 * 3  # epochs of 48 samples, 16 a batch


def test_mining_needs_only_something_that_trains_a_model(world, tmp_path):
    """A trainer that leaves its models alone: each half is predicted by the model that was given the other half."""
    paper = mined_first()
    setup, calls = setup_of(world, paper), []

    def train_model(model, data, stage, folder):
        calls.append((len(data), {s.vid for s in data.samples}, stage.name, stage.mine, folder))
        return History(rows=[{"stage": stage.name, "epoch": 1}], times=[{"stage": stage.name, "epoch": 1}])

    state = RunState(tmp_path)
    mined = MiningRunner(setup, paper.stages[0], train_model).run(world[0], state, None)
    (first, seen, *one), (second, others, *two) = calls
    assert first + second == 48 and not seen & others
    assert one == ["mining_1", None, tmp_path / "mining" / "1"] and two == ["mining_2", None, tmp_path / "mining" / "2"]
    assert mining.done(mined) and not mining.done(world[0])
    assert [row["stage"] for row in state.history.rows] == ["mining_1", "mining_2", "mining"]
    assert (state.stage, state.epoch) == (1, 0)
    assert mining.read(tmp_path / "mining" / "wrong_spans.jsonl") == [s.extra["wrong_spans"] for s in mined.samples]


def stop_in_epoch(monkeypatch, stage):
    """Let the run stop when `stage` begins its second epoch."""
    train_epoch = Trainer.train_epoch

    def stopped(trainer, epoch, *rest):
        if (trainer.stage.name, epoch) == (stage, 1):
            raise KeyboardInterrupt
        return train_epoch(trainer, epoch, *rest)

    monkeypatch.setattr(Trainer, "train_epoch", stopped)


@pytest.mark.parametrize("labelled", [0, 24, 48])
def test_a_run_that_is_resumed_has_the_mined_windows_of_the_first(labelled, world, tmp_path, monkeypatch):
    """Also if only some samples of the training set came with `wrong_spans`; nothing is mined then."""
    given = [replace(s, extra={"wrong_spans": [[0, 2]]}) if i < labelled else s for i, s in enumerate(world[0].samples)]
    data, paper = replace(world[0], samples=given, _annotations=None), mined_first()

    def run(folder):
        retriever = papers.build(paper, data)
        history = fit(retriever, data, None, paper, folder, device="cpu", progress=False)
        return history, retriever.state_dict()

    whole, weights = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, "train")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    resumed, same = run(tmp_path / "stopped")
    assert resumed.rows == whole.rows and all(torch.equal(weights[k], same[k]) for k in weights)
    assert ("mining_1" in {row["stage"] for row in whole.rows}) == (labelled == 0)
    files = [tmp_path / name / "mining" / "wrong_spans.jsonl" for name in ("whole", "stopped")]
    assert read_jsonl(files[0]) == read_jsonl(files[1])


def test_without_a_folder_a_later_stage_still_starts_from_an_earlier_one(world):
    """The weights of finished stages are kept in memory then."""
    base = papers.get("toy", "small", epochs=1)
    first, rest = base.stages[0], {"optimiser": papers.Optimiser("adam", 0.0)}
    stages = (
        replace(first, name="first"),
        replace(first, name="second"),
        replace(first, name="third", start=("first", "last"), **rest),
    )
    ends = []
    for chosen in (stages[:1], stages):
        paper = papers.replace(base, stages=chosen)
        retriever = papers.build(paper, world[0])
        fit(retriever, world[0], None, paper, device="cpu", progress=False)
        ends.append(retriever.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
