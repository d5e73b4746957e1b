"""Training a toy model with dropout: random numbers, modes, settings of a stage, the kept epoch, two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mrlib import metrics, papers
from mrlib.data import open_dataset
from mrlib.train import fit
from mrlib.training import stages
from tests.support import toy

SIZE = {"size": "small", "streams": "joint"}
STEPS = 3  # per epoch: 48 samples in batches of 16


@pytest.fixture(scope="module")
def world():
    return open_dataset("sim", split="train", n=48, **SIZE), open_dataset("sim", split="val", n=20, **SIZE)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy.register(monkeypatch.setitem)


@pytest.fixture
def steps():
    """At every step the class of the optimiser, the learning rate and the norm of the gradient."""
    records = []

    def record(optimiser, *_):
        (group,) = optimiser.param_groups
        norm = torch.cat([p.grad.flatten() for p in group["params"] if p.grad is not None]).norm()
        records.append({"method": type(optimiser), "lr": group["lr"], "norm": float(norm)})

    hook = register_optimizer_step_pre_hook(record)
    yield records
    hook.remove()


def run(world, out_dir=None, precision="fp32", **settings):
    paper = papers.get("toy", "small", **settings)
    retriever = papers.build(paper, world[0])
    history = fit(retriever, *world, paper, out_dir, device="cpu", precision=precision, progress=False)
    return history, retriever


def weights(world, *args, **settings):
    return run(world, *args, **settings)[1].state_dict()


def same(a, b):
    """Whether two dicts of tensors are equal."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def scores_follow(monkeypatch, sequence):
    """The n-th validation gives the n-th score of `sequence`, or raises it if it is an exception."""
    evaluate, remaining = metrics.evaluate, list(sequence)

    def scripted(*args):
        score = remaining.pop(0) if remaining else 0.0
        if isinstance(score, BaseException):
            raise score
        result = evaluate(*args)
        return {**result, "brief": {**result["brief"], "MR-full-mAP": score}}

    monkeypatch.setattr(metrics, "evaluate", scripted)
    monkeypatch.setattr(stages, "score_names", lambda dataset: ["MR-full-mAP"])  # it scores a prediction of its own


# ---- random numbers


def test_dropout_does_not_depend_on_the_global_generator_before_the_run(world):
    ends = []
    for state in (1, 2):
        paper = papers.get("toy", "small")
        retriever = papers.build(paper, world[0])
        torch.manual_seed(state)
        fit(retriever, *world, paper, device="cpu", progress=False)
        ends.append(retriever.state_dict())
    assert same(*ends)


def test_dropout_differs_between_steps_and_seeds(world):
    masks = []
    for seed in (0, 1):
        paper = papers.get("toy", "small")
        retriever = papers.build(paper, world[0])
        fit(retriever, world[0], None, paper, seed=seed, device="cpu", progress=False)
        masks += [tuple(call["dropped"].tolist()) for call in retriever.aligner.calls]
    assert len(set(masks)) == len(masks) == 2 * 3 * STEPS


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_run_with_dropout_stopped_in_a_validation_ends_with_the_same_weights(stopped, world, tmp_path, monkeypatch):
    whole, expected = run(world)
    with monkeypatch.context() as patch:
        scores_follow(patch, [*whole.frame()["MR-full-mAP"][:stopped], KeyboardInterrupt()])
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path)
    torch.manual_seed(99)
    history, retriever = run(world, tmp_path)
    assert len(retriever.aligner.calls) < len(expected.aligner.calls), "the run was not resumed"
    assert history.rows == whole.rows and history.result == whole.result
    assert same(retriever.state_dict(), expected.state_dict())


# ---- modes


def test_dropout_is_on_in_training_and_off_in_validation_and_after_the_run(world):
    _, retriever = run(world, epochs=2)
    calls = retriever.aligner.calls
    validation = 2  # batches: 20 samples in batches of 16
    assert [c["training"] for c in calls] == 2 * ([True] * STEPS + [False] * validation) + [False] * validation
    for call in calls:
        assert (call["dropped"] == 1).all() != call["training"]
    assert not retriever.training and not retriever.aligner.dropout.training


def test_a_retriever_in_evaluation_mode_is_trained_with_dropout(world):
    paper = papers.get("toy", "small", epochs=1)
    retriever = papers.build(paper, world[0]).eval()
    fit(retriever, *world, paper, device="cpu", progress=False)
    assert [c["training"] for c in retriever.aligner.calls][: STEPS + 1] == [True] * STEPS + [False]


def test_without_validation_the_retriever_ends_in_evaluation_mode(world):
    paper = papers.get("toy", "small", epochs=1)
    retriever = papers.build(paper, world[0])
    fit(retriever, world[0], None, paper, device="cpu", progress=False)
    assert not retriever.training and [c["training"] for c in retriever.aligner.calls] == [True] * STEPS


def test_mixed_precision_is_on_in_training_only_and_only_for_bf16(world):
    for precision, dtype in (("fp32", False), ("bf16", torch.bfloat16)):
        _, retriever = run(world, precision=precision, epochs=1)
        assert [c["autocast"] for c in retriever.aligner.calls if c["training"]] == [dtype] * STEPS
        assert {c["autocast"] for c in retriever.aligner.calls if not c["training"]} == {False}
        assert all(p.dtype == torch.float32 for p in retriever.parameters())


# ---- the settings of a stage


def test_the_gradient_is_clipped_to_the_norm_of_the_stage(world, steps):
    run(world)
    unclipped = [step["norm"] for step in steps]
    limit = min(unclipped) / 2
    steps.clear()
    run(world, clip=limit)
    assert [step["norm"] for step in steps] == pytest.approx([limit] * 3 * STEPS, rel=1e-3)
    steps.clear()
    run(world, clip=2 * max(unclipped))
    assert [step["norm"] for step in steps] == unclipped


def test_the_optimiser_and_its_weight_decay_are_those_of_the_stage(world, steps):
    """With a gradient clipped to almost 0, AdamW multiplies every weight in use by 1 - lr * weight_decay a step."""
    initial = papers.build(papers.get("toy", "small"), world[0]).state_dict()
    training_set = (world[0], None)
    constant = weights(training_set, method="adamw", clip=1e-14)
    assert {step["method"] for step in steps} == {torch.optim.AdamW}
    shrunk = weights(training_set, method="adamw", clip=1e-14, weight_decay=5.0)
    for name in initial.keys() - {"aligner.unused"}:
        torch.testing.assert_close(constant[name], initial[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(shrunk[name], initial[name] * 0.95 ** (3 * STEPS), rtol=0, atol=1e-6)
    assert torch.equal(shrunk["aligner.unused"], initial["aligner.unused"])
    steps.clear()
    run(world, method="adam", epochs=1)
    assert {step["method"] for step in steps} == {torch.optim.Adam}


@pytest.mark.parametrize(
    "schedule",
    [{}, {"curve": "cosine"}, {"curve": "cosine", "warmup": 0.4}, {"curve": "step", "drop": 0.6}],
)
def test_every_step_has_the_learning_rate_of_the_schedule(schedule, world, steps):
    history, _ = run(world, **schedule)
    expected = [1e-2 * papers.Schedule(**schedule).factor(step, 3 * STEPS) for step in range(3 * STEPS)]
    assert [step["lr"] for step in steps] == expected
    assert [row["lr"] for row in history.rows] == expected[STEPS - 1 :: STEPS]


def test_a_resumed_run_follows_the_schedule(world, steps, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        scores_follow(patch, [1.0, KeyboardInterrupt()])
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path, curve="cosine")
    steps.clear()
    run(world, tmp_path, curve="cosine")
    expected = [1e-2 * papers.Schedule("cosine").factor(step, 3 * STEPS) for step in range(STEPS, 3 * STEPS)]
    assert [step["lr"] for step in steps] == expected


def test_the_loss_is_the_sum_of_the_terms_of_aligner_and_detector(world):
    row = run(world, epochs=1, weights={"size": 10.0})[0].rows[0]
    assert row["loss/size"] > 0 and row["loss/clips"] > 0
    assert row["loss"] == pytest.approx(10 * row["loss/size"] + row["loss/clips"])


# ---- the kept epoch


@pytest.mark.parametrize(("scores", "best"), [([3, 2, 1], 1), ([1, 3, 2], 2), ([1, 2, 3], 3), ([1, 2, 2], 2)])
def test_the_first_of_the_best_epochs_is_kept(scores, best, world, tmp_path, monkeypatch):
    """The learning rate is constant, so a run of n epochs ends with the weights of epoch n of a longer run."""
    after = [weights((world[0], None), epochs=epochs) for epochs in (1, 2, 3)]
    assert not same(after[0], after[1]) and not same(after[1], after[2])
    scores_follow(monkeypatch, scores)
    assert same(weights(world), after[best - 1])
    with monkeypatch.context() as patch:
        scores_follow(patch, [*scores[:2], KeyboardInterrupt()])
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path)
    scores_follow(monkeypatch, scores[2:])
    assert same(weights(world, tmp_path), after[best - 1])


# ---- several processes

SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mrlib import papers, parallel
from mrlib.data import open_dataset
from mrlib.train import fit
from mrlib.training import stages
from tests.support import toy

toy.register()
parallel.start("cpu", 0)
rank = dist.get_rank()
size = {"size": "small", "streams": "joint"}
train, val = (open_dataset("sim", split=split, n=n, **size) for split, n in (("train", 48), ("val", 20)))
paper = papers.get("toy", "small", epochs=6, method="adamw", weight_decay=0.1)

one_rank, none = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
if rank == 0:
    (one_rank * torch.tensor([1.0, 3.0])).sum().backward()
parallel.average_gradients(nn.ParameterList([one_rank, none]))

shared = papers.build(paper, train, seed=rank)
parallel.broadcast_weights(shared)

retriever = papers.build(paper, train, seed=rank)
started = {k: v.clone() for k, v in retriever.state_dict().items()}
history = fit(retriever, train, val, paper, device="cpu", progress=False)
result = {
    "gradients": [one_rank.grad.tolist(), none.grad],
    "shared": shared.state_dict(),
    "started": started,
    "ended": retriever.state_dict(),
    "unused": retriever.aligner.unused.grad,
    "dropped": torch.stack([c["dropped"] for c in retriever.aligner.calls if c["training"]]),
    "rows": history.rows,
    "result": history.result,
}
torch.save(result, Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The results of two processes that trained the toy together and were built with different weights."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(paths)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, folder / "script.py", folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_ranks_with_different_initial_weights_end_with_the_same_weights(two_ranks):
    first, second = two_ranks
    assert not same(first["started"], second["started"])
    assert same(first["shared"], first["started"]) and same(second["shared"], first["started"])
    assert same(first["ended"], second["ended"]) and not same(first["ended"], first["started"])


def test_the_loss_of_two_ranks_falls_and_they_report_the_same_scores(two_ranks):
    first, second = two_ranks
    assert first["rows"] == second["rows"] and first["result"] == second["result"]
    assert first["rows"][-1]["loss"] < 0.8 * first["rows"][0]["loss"]
    assert first["result"]["brief"]["MR-full-mAP"] == max(row["MR-full-mAP"] for row in first["rows"])


def test_ranks_draw_different_dropout(two_ranks):
    first, second = (rank["dropped"] for rank in two_ranks)
    assert len(first) == len(second) == 6 * STEPS
    assert not (first == second).all(1).any()


def test_a_gradient_of_one_rank_is_averaged_and_a_missing_gradient_stays_none(two_ranks):
    """With a gradient of zeros, AdamW would shrink an unused parameter."""
    for rank in two_ranks:
        assert rank["gradients"] == [[0.5, 1.5], None]
        assert rank["unused"] is None and torch.equal(rank["ended"]["aligner.unused"], torch.ones(3))
