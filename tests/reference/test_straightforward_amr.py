"""The straightforward AMR of the benchmark is the same network as ours."""

import pytest

from tests.benchmarks.bench_amr import STAGES, Step, apart, training_batch
from tests.reference.official_amr import make_opt


@pytest.mark.parametrize("stage", STAGES)
def test_losses_of_both_implementations_are_equal(stage):
    """[AMR, losses] Every term for a batch, with the same weights and without dropout."""
    step = Step(make_opt(stage=stage, num_queries=6), training_batch(12, 20, 5, 7, 6))
    assert apart(step) < 1e-4
    assert ("distill" in step.ours()) == (stage == "distill")


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_both_implementations_are_equal(stage):
    """[AMR, losses] At the projection of the clips, through which all terms pass."""
    step = Step(make_opt(stage=stage, dropout=0.0, input_dropout=0.0), training_batch(6, 20, 5, 7, 6))
    step.train(False)
    for way in step.ways.values():
        sum(way().values()).backward()
    theirs, ours = (
        step.network.input_vid_proj[0].net[1].weight.grad,
        step.retriever.aligner.project_target[2].weight.grad,
    )
    assert (theirs - ours).abs().max() < 1e-4 * theirs.abs().max()
