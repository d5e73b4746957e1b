"""Ranks that share a batch take the training steps of one process, for every paper without dropout.

Also for presets, aligners and augmenters whose losses, or whose released masks, compare the samples of a batch. All in
float64, where rounding decides no matching and no maximum, and where a wrong gradient is not taken for rounding.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrlib import fit, papers, parallel
from mrlib.data import Batch, MomentDataset
from mrlib.ops.draw import Draw
from tests.support.batches import in_float64
from tests.support.processes import in_processes
from tests.support.trainers import make_trainer

CPU = torch.device("cpu")
VARIANTS = [
    ("qd_detr", {"masks": "released"}),
    ("td_detr", {"masks": "released", "augment": "synthesize_official"}),
    ("td_detr", {"augment_options": {"partners": "random"}}),
    ("amr", {"padding": "seen", "against": "video", "stages": ["coldstart"], "augment": "splice_official"}),
    ("moment_detr", {"contrast_width": 8, "most_windows": 1}),
    ("qd_detr", {"aligner": "uvcom"}),
    ("qd_detr", {"aligner": "cg_detr", "masks": "released"}),
    ("qd_detr", {"aligner": "taskweave", "detector": "boundary"}),
    ("f2sgd", {"aligner": "joint", "detector": "tan"}),
]
CASES = [
    (name, settings, stage.name)
    for name, settings in [(name, {}) for name in papers.PAPERS] + VARIANTS
    for stage in papers.get(name, "small", **settings).stages
    if stage.mine is None
]
IN_THREE = [case for case in CASES if case[0] in ("univtg", "td_detr", "qd_detr")]
# A batch of seven, in which rank 1 of two has null queries only; of two samples, fewer than three ranks; and of one
BATCHES = [range(7), range(7, 9), range(9, 10)]
NULL = (1, 3, 5)
Step = tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]  # losses, gradients, weights after the step


@functools.cache
def world(query: str) -> MomentDataset:
    """Ten simulated samples; those of `NULL` are null queries."""
    data = papers.open_split(papers.get("matr" if query == "video" else "amr", "small"), "sim", split="train", n=10)
    nothing = {"relevant_windows": [], "relevant_clip_ids": [], "saliency_scores": []}
    samples = [replace(sample, **nothing) if i in NULL else sample for i, sample in enumerate(data.samples)]
    return replace(data, samples=samples, _annotations=None)


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Every batch of a dataset is in float64."""
    use_float64(monkeypatch)


def use_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = MomentDataset.gather

    def in_double(*args: Any, **options: Any) -> Batch:
        return in_float64(gather(*args, **options))

    monkeypatch.setattr(MomentDataset, "gather", in_double)


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether a part of a model has dropout."""
    rates = [getattr(part, name, 0.0) for part in model.modules() for name in ("p", "dropout")]
    return any(rate for rate in rates if isinstance(rate, float))


def steps(name: str, settings: dict[str, Any], stage: str) -> list[Step]:
    """One training step for each of `BATCHES`; gradients and weights by name."""
    paper = papers.get(name, "small", **settings)
    trainer, taken = make_trainer(paper, world(paper.query), stage=stage), []
    assert not has_dropout(trainer.retriever.double())
    if trainer.teacher is not None:
        trainer.teacher.double()
    for i, indices in enumerate(BATCHES):
        torch.manual_seed(i)
        augment = papers.AUGMENTERS[trainer.stage.augment]
        batch = augment(torch.tensor(indices), trainer.data, Draw(0), **trainer.stage.augment_options)
        losses = parallel.average(trainer._train_step(batch, f"step {i}"), CPU)
        parameters = dict(trainer.retriever.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        taken.append((losses, gradients, {name: p.detach().clone() for name, p in parameters.items()}))
    return taken


def trained(name: str, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]:
    """A whole run of a paper, two epochs of its last stage: its history, the weights at its end, its scores."""
    paper = papers.get(name, "small", epochs=2, batch_size=7, **settings)
    data = world(paper.query)
    retriever = papers.build(paper, data).double()
    history = fit(retriever, data, data.subset([0, 2, 4]), paper, device="cpu", progress=False)
    return history.rows, retriever.state_dict(), history.result


def with_dropout() -> dict[str, Tensor]:
    """The weights after a run with dropout."""
    return trained("qd_detr", dropout=0.1, input_dropout=0.5)[1]


def on_two_ranks(rank: int) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        return {
            "steps": [steps(*case) for case in CASES],
            "runs": {name: trained(name) for name in papers.PAPERS},
            "dropout": [with_dropout() for _ in range(2)],
        }


def on_three_ranks(rank: int) -> list[list[Step]]:
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        return [steps(*case) for case in IN_THREE]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of the second of two ranks."""
    return in_processes(on_two_ranks, tmp_path_factory.mktemp("two"))[1]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The results of the last of three ranks."""
    return in_processes(on_three_ranks, tmp_path_factory.mktemp("three"), 3)[2]


@functools.cache
def on_one_process(case: int) -> list[Step]:
    return steps(*CASES[case])


def check_steps(found: list[Step], case: int) -> None:
    """Losses, which are summed in float32, to 1e-5, gradients to 1e-6 of their norm, weights to 1e-5."""
    for (losses, gradients, weights), expected in zip(found, on_one_process(case), strict=True):
        assert losses == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
        norm = torch.cat([gradient.flatten() for gradient in expected[1].values()]).norm().item()
        torch.testing.assert_close(gradients, expected[1], rtol=0, atol=1e-6 * norm)
        torch.testing.assert_close(weights, expected[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{stage}" for name, _, stage in CASES])
def test_two_ranks_take_the_steps_of_one_process(case, two):
    check_steps(two["steps"][case], case)


@pytest.mark.parametrize("case", range(len(IN_THREE)), ids=[name for name, *_ in IN_THREE])
def test_three_ranks_take_the_steps_of_one_process(case, three):
    check_steps(three[case], CASES.index(IN_THREE[case]))


@pytest.mark.parametrize("name", papers.PAPERS)
def test_a_whole_run_of_two_ranks_ends_as_that_of_one_process(name, two):
    """With its stages, its mined windows, its history and its scores."""
    (found, weights, result), expected = two["runs"][name], trained(name)
    for row, other in zip(found, expected[0], strict=True):
        assert row.pop("stage") == other.pop("stage")
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(weights, expected[1], rtol=0, atol=1e-5)
    assert result == expected[2]


def test_two_runs_with_dropout_on_two_ranks_end_with_the_same_bytes(two):
    first, second = two["dropout"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    one = with_dropout()
    assert not all(torch.equal(first[name], one[name]) for name in first)
