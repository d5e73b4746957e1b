"""TD-DETR: its numbers, settings, predictions and training, and its dynamics in the other models."""

from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.align.dynamics import Dynamics
from mrlib.data import Widths
from mrlib.train import fit, predict_all
from tests.support.batches import alone, make_batch

WIDTHS = Widths(24, 12, 16)
QUICK = {"width": 16, "hidden": 16, "heads": 2}
LENGTHS = [9, 4, 12, 1]


def small(name="td_detr", **settings):
    return papers.get(name, "small", **QUICK | settings)


def options_of(paper):
    (stage,) = paper.stages
    return {**paper.aligner.options, **paper.detector.options, **vars(stage.optimiser), **vars(stage.schedule)}


def test_td_detr_has_the_papers_numbers():
    """[TD-DETR Eq. 6] QD-DETR with four layers per stack, dynamics, other costs; the rate drops at 80 and 160."""
    paper, base = papers.get("td_detr"), papers.get("qd_detr")
    ours, theirs = options_of(paper), options_of(base)
    assert {k: ours[k] for k in ours if k not in theirs or ours[k] != theirs[k]} == {
        "beta": 0.7, "layers": 4, "decoder_layers": 4, "cost_l1": 1.0, "cost_giou": 10.0, "curve": "step", "drop": 0.4,
    }  # fmt: skip
    stage = paper.stages[0]
    assert (stage.epochs, stage.batch_size, stage.augment) == (200, 16, "synthesize")
    assert stage.weights == {"l1": 1.0, "giou": 10.0, "class": 4.0}
    factors = [stage.schedule.factor(epoch, 200) for epoch in (79, 80, 159, 160, 199)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert (paper.round_s, paper.max_windows, paper.query, paper.streams) == (2.0, 10, "text", None)


@pytest.mark.parametrize(("dataset", "round_s"), [("charades_sta", 1.0), ("tacos", 2.0)])
def test_datasets_without_saliency_have_their_own_numbers(dataset, round_s):
    """Three layers per stack, QD-DETR's weights and 4 for saliency, a constant rate twice as high, half the epochs."""
    settings = papers.usual("td_detr", dataset)
    assert settings == {"size": "paper", "preset": dataset}
    paper = papers.get("td_detr", **settings)
    options, (stage,) = options_of(paper), paper.stages
    names = ("layers", "decoder_layers", "cost_l1", "cost_giou", "cost_class", "lr", "curve", "beta")
    assert [options[k] for k in names] == [3, 3, 10.0, 1.0, 4.0, 2e-4, "constant", 0.7]
    weights = {"l1": 10, "giou": 1, "class": 4, "margin": 4, "contrast": 4, "negative": 4}
    assert (stage.epochs, stage.weights, stage.keep) == (100, weights, "MR-full-R1@0.7")
    assert paper.round_s == round_s
    assert papers.usual("td_detr", "qvhighlights") == {"size": "paper", "preset": None}


def test_the_released_network_and_its_training_are_a_preset():
    """It differs in the masks, the length of decoded spans and the augmenter, and in no number."""
    ours, theirs = (papers.get("td_detr", preset=preset) for preset in (None, "official"))
    assert theirs.aligner.options == {**ours.aligner.options, "masks": "released"}
    assert theirs.detector.options == {**ours.detector.options, "length": "duration"}
    assert theirs.stages == (replace(ours.stages[0], augment="synthesize_official"),)


def test_beta_is_an_option_of_every_aligner_with_dynamics_and_of_no_other():
    for name in ("moment_detr", "qd_detr", "univtg", "amr", "matr", "td_detr"):
        for beta in (0.3, None, 0, 1):
            paper = papers.get(name, "small", beta=beta)
            assert paper.aligner.options["beta"] == beta and papers.get(**paper.given) == paper
    assert "beta" not in papers.get("qd_detr").aligner.options
    assert papers.get("f2sgd", aligner="trilinear", beta=0.5).aligner.options["beta"] == 0.5
    with pytest.raises(ValueError, match="unknown setting 'beta'; a paper has aligner, detector"):
        papers.get("f2sgd", beta=0.5)
    with pytest.raises(ValueError, match="beta must be a number, not 'much'"):
        papers.get("td_detr", beta="much")


def test_text_to_video_in_another_paper_has_no_dynamics():
    """Its options are QD-DETR's, the first paper that has this aligner."""
    paper = papers.get("f2sgd", "small", aligner="text_to_video")
    assert paper.aligner == papers.get("qd_detr", "small").aligner


def dynamics_of(retriever):
    return [module for module in retriever.modules() if isinstance(module, Dynamics)]


@pytest.mark.parametrize("beta", [0.7, None])
@torch.no_grad()
def test_predictions_do_not_depend_on_labels_batch_mates_or_padding(beta):
    """Windows are sorted by time: in a video of one clip all moment queries score alike, so any may come first."""
    retriever = papers.build(small(beta=beta, round_s=None), WIDTHS)
    batch = make_batch(LENGTHS, motion=8, words=6, pad_to=15)
    together = retriever.predict(batch)
    assert retriever.predict(batch.unlabelled()) == together
    for b in range(len(LENGTHS)):
        (line,) = retriever.predict(alone(batch, b))
        for name, order in (("pred_relevant_windows", sorted), ("pred_saliency_scores", list)):
            one, many = (torch.tensor(order(x[name])) for x in (line, together[b]))
            torch.testing.assert_close(one, many, rtol=1e-4, atol=2e-3)  # times are in thousandths


def test_the_loss_falls_and_the_saved_model_predicts_the_same(tmp_path):
    """After six epochs on 33 samples; the retriever ends with the weights of the best epoch."""
    paper = small(epochs=6, lr=5e-3)
    data = papers.open_split(paper, "sim", split="train", n=33)
    retriever = papers.build(paper, data)
    history = fit(retriever, data, data, paper, tmp_path, device="cpu", progress=False)
    losses = [row["loss"] for row in history.rows]
    assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    terms = {k for k in history.rows[0] if k.startswith("loss/")}
    assert terms == {f"loss/{k}" for k in ("l1", "giou", "class", "margin", "contrast", "negative")}
    loaded = checkpoint.load(tmp_path / "train" / "best")
    assert predict_all(loaded, data) == predict_all(retriever, data)


ONE_STAGE = {"amr": {"stages": ["coldstart"], "augment": "identity", "data": "pairs"}, "matr": {"stages": ["finetune"]}}


@pytest.mark.parametrize("name", ["moment_detr", "qd_detr", "univtg", "amr", "matr"])
def test_every_text_model_trains_with_dynamics(name):
    """One step changes all their parameters, except the bias of the keys, which does not change the attention."""
    paper = small(name, beta=0.7, epochs=1, batch_size=8, weight_decay=0.0, **ONE_STAGE.get(name, {}))
    data = papers.open_split(paper, "sim", split="train", n=8)
    retriever = papers.build(paper, data)
    before = [{k: p.detach().clone() for k, p in part.named_parameters()} for part in dynamics_of(retriever)]
    fit(retriever, data, None, paper, device="cpu", progress=False)
    assert len(before) == (paper.aligner.options["layers"] if name in ("qd_detr", "amr") else 1)
    for initial, part in zip(before, dynamics_of(retriever), strict=True):
        for key, p in part.named_parameters():
            change = (p - initial[key]).abs()
            if key == "attend.in_proj_bias":
                change = torch.stack([x.max() for x in change.chunk(3)])[[0, 2]]  # of queries and values
                assert change.min() > 1e-6
            assert change.max() > 1e-6, key
