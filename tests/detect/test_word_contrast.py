"""The contrast of moment queries and words against its equation, in float64, and as an option of Moment-DETR."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.detect.detr import Truth
from mrlib.detect.word_contrast import WordContrast
from tests.support.batches import drawn, make_batch
from tests.support.detr import aligned_of, make

WORDS = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False, False, False]])
# two layers, four samples: one window, two, none (a null query), and one
MATCHED = torch.tensor([[[1, -1], [0, 2], [-1, -1], [3, -1]], [[2, -1], [3, 1], [-1, -1], [0, -1]]])


def contrast(padding="hidden", temperature=0.3):
    torch.manual_seed(0)
    return WordContrast(6, 5, temperature=temperature, padding=padding).double()


def loss(module, states, words, mask=WORDS):
    outputs = module(states, words, mask)
    truth = Truth(torch.zeros(4, 2, 2), MATCHED[0] >= 0, torch.ones(4, dtype=torch.bool), WORDS)
    return module.losses(outputs, truth, MATCHED)["contrastive_align"]


@pytest.mark.parametrize("padding", ["hidden", "seen"])
@torch.no_grad()
def test_the_loss_equals_its_equation(padding):
    """[Moment-DETR] Number by number: layer by layer, sample by sample; the null query adds nothing."""
    module, states, words = contrast(padding), drawn(2, 4, 4, 6), drawn(4, 3, 6, seed=1)
    for layer in range(2):
        total = 0.0
        for b in range(4):
            z = []
            for m in range(4):
                q = module.queries.weight @ states[layer, b, m] + module.queries.bias
                z.append(0.0)
                for n in range(3):
                    if padding == "seen" or WORDS[b, n]:
                        t = module.words.weight @ words[b, n] + module.words.bias
                        z[m] += float(q @ t / q.norm() / t.norm()) / 0.3
            positive = [m for m in MATCHED[layer, b].tolist() if m >= 0]
            if positive:
                total += math.log(sum(map(math.exp, z))) - sum(z[m] for m in positive) / len(positive)
        assert loss(module, states, words)[layer].item() == pytest.approx(total / 3, abs=1e-12)


def test_gradients_are_those_of_the_equation():
    """[Moment-DETR]"""
    module, states, words = contrast(), drawn(2, 4, 4, 6).requires_grad_(), drawn(4, 3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: loss(module, *x), (states, words))
    loss(module, states, words).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    assert not words.grad[~WORDS].any() and not words.grad[2].any() and not states.grad[:, 2].any()


@torch.no_grad()
def test_padded_words_have_no_effect_unless_they_are_seen():
    states, words = drawn(2, 4, 4, 6), drawn(4, 3, 6, seed=1)
    other = torch.where(WORDS[..., None], words, torch.nan)
    assert torch.equal(loss(contrast(), states, other), loss(contrast(), states, words))
    assert loss(contrast("seen"), states, other).isnan().all()


@torch.no_grad()
def test_a_batch_of_null_queries_has_a_loss_of_zero():
    module, truth = contrast(), Truth(torch.zeros(4, 0, 2), torch.zeros(4, 0).bool(), torch.ones(4).bool(), WORDS)
    outputs = module(drawn(2, 4, 4, 6), drawn(4, 3, 6), WORDS)
    assert module.losses(outputs, truth, torch.zeros(2, 4, 0, dtype=torch.long))["contrastive_align"].tolist() == [0, 0]


@torch.no_grad()
def test_it_is_off_by_default_and_changes_no_other_number():
    """[Moment-DETR] Weights, outputs and losses of the same seed."""
    batch = make_batch([9, 4, 12], windows=[[(2, 6), (7, 9)], [], [(0, 12)]])
    batch = replace(batch, query=drawn(3, 5, 16).float(), query_mask=torch.ones(3, 5, dtype=torch.bool))
    plain, other = make(), make(contrast_width=8)
    own = {name for name in other.state_dict() if name.startswith("contrast.")}
    assert plain.contrast is None and len(own) == 4 and other.state_dict().keys() - plain.state_dict().keys() == own
    other.load_state_dict(plain.state_dict() | {name: other.state_dict()[name] for name in own})
    aligned = aligned_of(batch)
    one, two = plain(aligned, batch), other(aligned, batch)
    assert two.keys() - one.keys() == {"word_logits"} and all(torch.equal(two[name], x) for name, x in one.items())
    one, two = plain.losses(one, aligned, batch), other.losses(two, aligned, batch)
    assert two.keys() - one.keys() == {"contrastive_align"} and all(
        torch.equal(two[name], x) for name, x in one.items()
    )


@torch.no_grad()
def test_the_preset_has_the_numbers_of_the_release_and_the_weights_of_the_seed():
    """[Moment-DETR] 64 channels, a temperature of 0.07, a weight of 0.02; the other weights are drawn as without it."""
    paper = papers.get("moment_detr", preset="contrastive")
    assert paper.stages[0].weights == {"l1": 10.0, "giou": 1.0, "class": 4.0, "contrastive_align": 0.02}
    assert papers.get("moment_detr").stages[0].weights == {"l1": 10.0, "giou": 1.0, "class": 4.0}
    sizes = {"width": 16, "hidden": 24, "heads": 4}
    model, plain = (
        papers.build(papers.get("moment_detr", preset=preset, **sizes), Widths(24, 12, 16), seed=3)
        for preset in ("contrastive", None)
    )
    assert model.detector.contrast.queries.weight.shape == (64, 16) and model.detector.contrast.temperature == 0.07
    assert all(torch.equal(model.state_dict()[name], x) for name, x in plain.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast_width": 0}, "contrast_width must be 1 or more, not 0"),
        ({"contrast_width": 2.5}, "contrast_width must be 1 or more, not 2.5"),
        ({"contrast_width": 8, "contrast_temperature": 0.0}, "contrast_temperature must be a number above 0, not 0.0"),
        ({"contrast_width": 8, "contrast_padding": "no"}, "contrast_padding must be hidden or seen, not 'no'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
