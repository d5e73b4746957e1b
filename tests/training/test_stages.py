"""The runners of stages, and what a resumed run takes from its folder."""

import itertools
import signal
from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers, train
from mrlib.align.anchor import AnchorAligner
from mrlib.augment import mining
from mrlib.files import read_jsonl
from mrlib.memory import OutOfMemory
from mrlib.train import fit
from mrlib.training.run_state import History, RunState
from mrlib.training.stages import MiningRunner, TrainingRunner
from mrlib.training.trainer import Trainer
from tests.support import runs, toy


@pytest.fixture(scope="module")
def world():
    return runs.open_world()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy.register(monkeypatch.setitem)


def mined_first(**settings):
    """The toy after a stage that mines."""
    paper = papers.get("toy", "small", epochs=2, **settings)
    stages = replace(paper.stages[0], name="mining", epochs=1, mine=-1e9), *paper.stages
    return replace(paper, stages=stages)


def test_a_stage_that_mines_has_a_runner_of_its_own_and_takes_no_steps(world):
    paper = mined_first()
    mining_runner, runner = (train._runner(runs.setup_of(world, paper), stage, False) for stage in paper.stages)
    assert isinstance(mining_runner, MiningRunner) and mining_runner.steps == 0
    assert isinstance(runner, TrainingRunner) and runner.steps == 2 * 3  # epochs of 48 samples, 16 a batch


def test_mining_predicts_each_half_with_the_model_that_was_given_the_other_half(world, tmp_path):
    """The function that trains the two models is replaced by one that does not train them."""
    paper = mined_first()
    setup, calls = runs.setup_of(world, paper), []

    def train_model(model, data, stage, folder):
        calls.append((len(data), {s.vid for s in data.samples}, stage.name, stage.mine, folder))
        return History(rows=[{"stage": stage.name, "epoch": 1}], times=[{"stage": stage.name, "epoch": 1}])

    state = RunState(tmp_path)
    mined = MiningRunner(setup, paper.stages[0], train_model).run(world[0], state, None)
    (first_size, first_videos, *first_call), (second_size, second_videos, *second_call) = calls
    assert first_size + second_size == 48 and not first_videos & second_videos
    assert first_call == ["mining_1", None, tmp_path / "mining" / "1"]
    assert second_call == ["mining_2", None, tmp_path / "mining" / "2"]
    assert mining.has_wrong_spans(mined) and not mining.has_wrong_spans(world[0])
    assert [row["stage"] for row in state.history.rows] == ["mining_1", "mining_2", "mining"]
    assert (state.stage, state.epoch) == (1, 0)
    assert mining.read(tmp_path / "mining" / "wrong_spans.jsonl") == [s.extra["wrong_spans"] for s in mined.samples]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 lines for 48 samples"),
        (b"\xff", "cannot be read"),
        (b'{"qid": 1}\n' * 48, "line 1: wrong_spans must be"),
        (b'{"wrong_spans": [[0, 2]]}\n{"wrong_spans": [[0]]}\n', "line 2: wrong_spans must be"),
        (b'{"wrong_spans": [[0, NaN]]}\n', "line 1: wrong_spans must be"),
    ],
)
def test_damaged_mined_windows_are_refused_with_their_file(content, message, world, tmp_path):
    file = tmp_path / "mining" / "wrong_spans.jsonl"
    file.parent.mkdir()
    file.write_bytes(content)
    paper = mined_first()
    runner = MiningRunner(runs.setup_of(world, paper), paper.stages[0], None)
    with pytest.raises(ValueError, match=f"wrong_spans.jsonl.*{message}"):
        runner.replay(world[0], RunState(tmp_path))


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_a_signal_stops_while_it_mines_goes_on_to_the_same_bytes(step, world, tmp_path, monkeypatch, capsys):
    """In the first and in the second of the two models; the message names the folder of the run."""
    paper = mined_first()

    def run(folder):
        fit(papers.build(paper, world[0]), world[0], None, paper, folder, device="cpu", progress=False)
        return runs.contents(folder)

    whole, steps, train_step = run(tmp_path / "whole"), itertools.count(1), Trainer._train_step

    def interrupted(self, *given):
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return train_step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"{tmp_path}/stopped holds this state"):
            run(tmp_path / "stopped")
    assert "of stage 'mining_" in capsys.readouterr().err
    assert run(tmp_path / "stopped") == whole


def no_memory(monkeypatch, number, *, training):
    """Let the device run out of memory in the forward pass of that number, of those in training or of the others."""
    passes, forward = itertools.count(1), AnchorAligner.forward

    def fail(self, batch):
        if self.training == training and next(passes) == number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch)

    monkeypatch.setattr(AnchorAligner, "forward", fail)


@pytest.mark.parametrize(
    ("training", "number", "place"),
    [
        (True, 1, "in stage 'train', epoch 1, step 0"),
        (True, 5, "in stage 'train', epoch 2, step 4"),
        (False, 2, "in the predictions for sim val"),  # the second of two batches after the first epoch
    ],
)
def test_a_run_without_memory_names_a_batch_size_and_goes_on_to_the_same_bytes(
    training, number, place, world, tmp_path, monkeypatch
):
    runs.run(world, runs.small(epochs=2), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as error:
        no_memory(patch, number, training=training)
        runs.run(world, runs.small(epochs=2), tmp_path / "run")
    assert str(error.value) == (
        f"out of memory {place}: batch size 16, videos of up to 32 clips; try train.batch_size 8; {tmp_path / 'run'} "
        "holds the run, and the same command goes on with it where more memory is free"
    )
    steps, train_step = [], Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", lambda *given: steps.append(1) or train_step(*given))
    runs.run(world, runs.small(epochs=2), tmp_path / "run")
    assert len(steps) == (7 - number if training else 3), "no step that was done is done again"
    assert runs.contents(tmp_path / "run") == runs.contents(tmp_path / "whole")


def test_a_step_of_the_optimiser_without_memory_saves_no_half_changed_weights(world, tmp_path, monkeypatch):
    paper = runs.small(epochs=2, method="adamw")
    runs.run(world, paper, tmp_path / "whole")
    steps, step = itertools.count(1), torch.optim.AdamW.step

    def fail(optimiser, *given):
        if next(steps) == 5:
            optimiser.param_groups[0]["params"][0].data.zero_()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(optimiser, *given)

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match="epoch 2, step 4: batch size 16"):
        patch.setattr(torch.optim.AdamW, "step", fail)
        runs.run(world, paper, tmp_path / "run")
    runs.run(world, paper, tmp_path / "run")
    assert runs.contents(tmp_path / "run") == runs.contents(tmp_path / "whole")


def test_without_a_folder_or_with_one_sample_the_message_says_what_can_be_done(world, monkeypatch):
    no_memory(monkeypatch, 1, training=True)
    with pytest.raises(
        OutOfMemory, match="step 0: batch size 1, and the video has 32 clips, too .* features of fewer clips$"
    ):
        runs.run(world, runs.small(epochs=1, batch_size=1))


def stop_in_second_epoch(monkeypatch, stage):
    """Let the run stop when this stage begins its second epoch."""
    train_epoch = Trainer.train_epoch

    def stopped(trainer, epoch, *rest):
        if (trainer.stage.name, epoch) == (stage, 1):
            raise KeyboardInterrupt
        return train_epoch(trainer, epoch, *rest)

    monkeypatch.setattr(Trainer, "train_epoch", stopped)


@pytest.mark.parametrize("labelled", [0, 24, 48])
def test_a_resumed_run_has_the_windows_that_were_mined_before_it_stopped(labelled, world, tmp_path, monkeypatch):
    """If some samples of the training set already have `wrong_spans`, nothing is mined."""
    samples = [
        replace(s, extra={"wrong_spans": [[0, 2]]}) if i < labelled else s for i, s in enumerate(world[0].samples)
    ]
    data, paper = replace(world[0], samples=samples, _annotations=None), mined_first()

    def run(folder):
        retriever = papers.build(paper, data)
        history = fit(retriever, data, None, paper, folder, device="cpu", progress=False)
        return history, retriever.state_dict()

    whole, weights = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in_second_epoch(patch, "train")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    resumed, resumed_weights = run(tmp_path / "stopped")
    assert resumed.rows == whole.rows
    assert all(torch.equal(weights[k], resumed_weights[k]) for k in weights)
    assert ("mining_1" in {row["stage"] for row in whole.rows}) == (labelled == 0)
    files = [tmp_path / name / "mining" / "wrong_spans.jsonl" for name in ("whole", "stopped")]
    assert read_jsonl(files[0]) == read_jsonl(files[1])


def test_without_a_folder_a_later_stage_starts_from_an_earlier_one(world):
    """The weights of finished stages are kept in memory."""
    base = papers.get("toy", "small", epochs=1)
    first, rest = base.stages[0], {"optimiser": papers.Optimiser("adam", 0.0)}
    stages = (
        replace(first, name="first"),
        replace(first, name="second"),
        replace(first, name="third", start=("first", "last"), **rest),
    )
    ends = []
    for chosen in (stages[:1], stages):
        paper = replace(base, stages=chosen)
        retriever = papers.build(paper, world[0])
        fit(retriever, world[0], None, paper, device="cpu", progress=False)
        ends.append(retriever.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_a_later_stage_starts_from_the_weights_it_names(world, tmp_path):
    """A second stage of learning rate 0 ends with the weights that it started from."""
    base = runs.small()
    for which in ("last", "best"):
        first = replace(base.stages[0], name="first", epochs=3)
        second = replace(first, name="second", epochs=1, start=("first", which))
        second = replace(second, optimiser=papers.Optimiser("adam", 0.0))
        paper = replace(base, stages=(first, second))
        _, weights = runs.run(world, paper, tmp_path / which)
        started = checkpoint.load(tmp_path / which / "first" / which).state_dict()
        assert all(torch.equal(started[k], weights[k]) for k in weights)
