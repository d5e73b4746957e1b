"""One epoch of training: order of the samples, weights of the losses, precision, several processes."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm.auto import tqdm

from mrlib import checkpoint, papers, parallel
from mrlib.augment import identity
from mrlib.train import main
from mrlib.training.run_state import RunState
from mrlib.training.trainer import Trainer, seed_of
from tests.support.runs import COMMAND, ONE_THREAD, contents, open_world, run, setup_of, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world():
    return open_world()


def test_loss_terms_are_weighted_by_the_stage(world):
    plain, heavy = (run(world, small(epochs=1, weights=w))[0].rows[0] for w in ({}, {"map": 3.0}))
    assert plain["loss"] == pytest.approx(plain["loss/map"])
    assert heavy["loss"] == pytest.approx(3 * heavy["loss/map"])


def test_a_weight_of_an_unknown_term_is_refused(world):
    paper = small(weights={"other": 2.0})
    trainer = Trainer(setup_of(world, paper), paper.stages[0], world[0])
    with pytest.raises(
        ValueError, match=r"weights of stage 'train' name \['other'\], which are no loss terms; the terms are map"
    ):
        trainer._loss_terms(world[0].batch(range(4)))


def test_every_epoch_sees_each_sample_once_in_a_new_order(world, monkeypatch):
    seen = []

    def watching(indices, dataset, draw):
        seen.append(indices.tolist())
        return identity(indices, dataset, draw)

    monkeypatch.setitem(papers.AUGMENTERS, "watching", watching)
    run(world, small(epochs=2, augment="watching"))
    assert seen.pop(0) == [0], "before training, one sample shows whether there are labels"
    epochs = [sum(seen[:3], []), sum(seen[3:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48)) and epochs[0] != epochs[1]


def test_an_epoch_reports_the_mean_loss_of_its_steps_and_the_total_counts_of_the_augmenter(world, monkeypatch):
    def counting(indices, dataset, draw):
        return replace(identity(indices, dataset, draw), counts={"odd": indices % 2})

    monkeypatch.setitem(papers.AUGMENTERS, "counting", counting)
    losses = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(Trainer, "_train_step", lambda trainer, batch, where: {"loss": next(losses)})
    paper, state = small(augment="counting", lr=0.25), RunState(None)
    trainer = Trainer(setup_of(world, paper), paper.stages[0], world[0])
    means = trainer.train_epoch(0, state, tqdm(disable=True))
    lr = 0.25 * paper.stages[0].schedule.factor(2, 9)  # of the last step
    assert means == {"lr": lr, "loss": 3.0, "augment/odd": 24}
    assert state.steps == 3


@pytest.mark.parametrize(("samples", "share"), [(7, [1, 4]), (6, [1, 4]), (2, [0, 1])])
def test_a_rank_trains_on_its_share_of_a_batch_that_has_a_sample_for_every_rank(samples, share, world, monkeypatch):
    """The second of three ranks; of two samples, every rank trains on both. Negatives stay rows of the whole batch."""
    monkeypatch.setattr(parallel, "rank_and_world", lambda: (1, 3))
    monkeypatch.setattr(parallel, "average_gradients", lambda module: None)
    paper = small()
    trainer, batches = Trainer(setup_of(world, paper), paper.stages[0], world[0]), []

    def loss_terms(batch):
        batches.append(batch)
        return {"map": next(trainer.retriever.parameters()).sum()}

    monkeypatch.setattr(trainer, "_loss_terms", loss_terms)
    batch = world[0].batch(range(samples))
    batch = replace(batch, labels=replace(batch.labels, negative=torch.arange(samples).roll(-1)))
    trainer._train_step(batch, "a step")
    assert [s.qid for s in batches[0].samples] == [world[0].samples[i].qid for i in share]
    assert batches[0].labels.negative.tolist() == [(i + 1) % samples for i in share]


def test_seeds_differ_by_run_name_step_and_rank():
    arguments = [(0, "train"), (1, "train"), (0, "mining"), (0, "train", 1), (0, "train", 0, 1), (0, "train", 1, 1)]
    seeds = [seed_of(*each) for each in arguments]
    assert len(set(seeds)) == len(seeds) and seeds == [seed_of(*each) for each in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds), "torch.manual_seed takes 64 bits"


def test_frozen_parameters_get_no_optimiser(world):
    paper = small()
    setup = setup_of(world, paper)
    frozen = next(setup.retriever.parameters()).requires_grad_(False)
    (group,) = Trainer(setup, paper.stages[0], world[0]).optimiser.param_groups
    assert len(group["params"]) == sum(1 for _ in setup.retriever.parameters()) - 1
    assert all(p is not frozen for p in group["params"])


@pytest.mark.parametrize("method, plain", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_takes_torchs_plain_steps(method, plain, world):
    """Five steps with random gradients, up to rounding."""
    paper = small()
    setup = setup_of(world, paper)
    options = {"lr": 0.01, "weight_decay": 0.1}
    stage = replace(paper.stages[0], optimiser=replace(paper.stages[0].optimiser, method=method, **options))
    ours = list(setup.retriever.parameters())
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    optimisers = Trainer(setup, stage, world[0]).optimiser, plain(theirs, **options, foreach=False)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_queries(world, tmp_path, monkeypatch):
    def spoil(indices, dataset, draw):
        batch = identity(indices, dataset, draw)
        batch.target_joint[0, 0] = torch.nan
        return batch

    monkeypatch.setitem(papers.AUGMENTERS, "spoil", spoil)
    with pytest.raises(
        FloatingPointError, match=r"map is not finite in stage 'train', epoch 1, step 0.*queries.*\d.*lower lr"
    ):
        run(world, small(augment="spoil"), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "cost"), [("matr", "the cost is nan at batch element 0"), ("qd_detr", "the cost of matching is nan")]
)
def test_a_cost_that_is_no_number_stops_the_run_and_names_the_queries(world, monkeypatch, name, cost):
    """Before the alignment or the matching could turn it into a finite loss."""

    def spoil(indices, dataset, draw):
        batch = identity(indices, dataset, draw)
        batch.target[0, 0] = torch.nan
        return batch

    monkeypatch.setitem(papers.AUGMENTERS, "spoil", spoil)
    paper = papers.get(name, "small", epochs=1, batch_size=8, augment="spoil")
    with pytest.raises(FloatingPointError, match=rf"{cost}.* in stage '\w+', epoch 1, step 0.*queries.*\d.*lower lr"):
        run(world, paper)


def test_mixed_precision_lowers_the_loss(world):
    history, _ = run(world, small(epochs=4, lr=5e-3), precision="bf16")
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


def test_a_compiled_model_has_the_same_loss_as_a_plain_one(world, monkeypatch):
    """With the "eager" backend, which traces the model and generates no code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = (run(world, small(epochs=1), compile=flag)[0].rows for flag in (False, True))
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


# 20 steps of the same global batches; the last batch of an epoch is odd
IN_PROCESSES = [*COMMAND, "--set", "kernel=5", "channels=2", "batch_size=10", "--data", "n=47", "--epochs", "4"]
IN_PROCESSES += ["--probe", "masked_noise", "--device", "cpu"]


def in_two_processes(module: str, out: Path, *options: str) -> str:
    """What a training run of two processes prints, started by torchrun with these options."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    command = [*torchrun, "-m", module, *IN_PROCESSES, "--out", str(out)]
    process = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of a run of two processes, and what it prints."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, in_two_processes("mrlib.train", folder)


def test_two_processes_train_the_same_weights_as_one(two_processes, tmp_path, capsys):
    folder, printed = two_processes
    main([*IN_PROCESSES, "--out", str(tmp_path / "one")])
    folders = tmp_path / "one", folder
    single, double = (checkpoint.load(each / "train" / "last").state_dict() for each in folders)
    assert json.loads((folders[0] / "history.jsonl").read_text().splitlines()[-1])["step"] == 20
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=0, atol=1e-5)
    results = [json.loads((each / "metrics.json").read_text()) for each in folders]
    assert results[0] == results[1]
    assert json.loads(printed)["probes"] == json.loads(capsys.readouterr().out)["probes"]


def test_after_two_killed_workers_torchrun_ends_with_the_same_bytes(two_processes, tmp_path):
    """See `tests.support.killed_training`: one is killed in a step of epoch 2, one while it saves epoch 3."""
    in_two_processes("tests.support.killed_training", tmp_path / "run", "--max-restarts=3")
    assert contents(tmp_path / "run") == contents(two_processes[0])
