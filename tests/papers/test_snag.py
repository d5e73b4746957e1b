"""SnAG: its numbers and settings."""

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.train import fit

WIDTHS = Widths(24, 12, 16)
QUICK = {"width": 16, "hidden": 16, "heads": 2, "levels": 3}


def test_snag_has_the_released_numbers():
    """[SnAG] For Charades-STA, whose 16 epochs, 5 of them warm-up, have as many steps as our 48."""
    paper = papers.get("snag")
    (stage,) = paper.stages
    o = stage.optimiser
    assert (o.method, o.lr, o.weight_decay, o.clip) == ("adamw", 5e-4, 5e-4, 1.0)
    assert (stage.epochs, stage.batch_size, stage.augment, stage.weights) == (48, 32, "identity", {})
    assert [stage.schedule.factor(step, 48) for step in (0, 14, 15, 47)] == [1 / 15, 1, 1, 1]
    assert [paper.aligner.options[k] for k in ("width", "layers", "heads", "dropout")] == [256, 5, 4, 0.1]
    assert [paper.detector.options[k] for k in ("levels", "heads", "hidden", "dropout")] == [6, 4, 1024, 0.1]
    assert (paper.round_s, paper.max_windows, paper.query) == (None, 10, "text")
    with pytest.raises(ValueError, match="levels must be 1 or more, not 0"):
        papers.build(papers.get("snag", levels=0), WIDTHS)


def test_snag_with_td_is_two_settings():
    """[TD-DETR Eq. 6] Synthesis, and dynamics in the detector, because SnAG's aligner shows the clips no words."""
    paper = papers.get("snag", beta=0.7, augment="synthesize")
    assert paper.detector.options["beta"] == 0.7 and "beta" not in paper.aligner.options
    assert paper.stages[0].augment == "synthesize"
    both = papers.get("qd_detr", detector="pyramid", beta=0.5)
    assert both.aligner.options["beta"] == both.detector.options["beta"] == 0.5
    with pytest.raises(ValueError, match="beta must be None or a number from 0 to 1, not 7"):
        papers.build(papers.get("snag", beta=7), WIDTHS)


@pytest.mark.parametrize("augment", ["identity", "synthesize"])
def test_one_seed_gives_one_model(augment):
    """Two training runs with dynamics are equal; every weight changes, and the start token of every level."""
    paper = papers.get("snag", "small", **QUICK, beta=0.7, augment=augment, epochs=3, batch_size=16, dropout=0.1)
    data, final_weights = papers.open_split(paper, "sim", split="train", n=32), []
    for _ in range(2):
        retriever = papers.build(paper, data)
        initial = {k: v.clone() for k, v in retriever.state_dict().items()}
        history = fit(retriever, data, None, paper, device="cpu", progress=False)
        final_weights.append(retriever.state_dict())
    first, second = final_weights
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert all(torch.equal(first[k], second[k]) for k in initial)
    assert not [k for k in initial if torch.equal(initial[k], first[k])]
    assert (initial["detector.start.weight"] != first["detector.start.weight"]).any(1).all()
    assert not list(retriever.buffers())  # so a resumed run has no other state to restore
