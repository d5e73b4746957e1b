"""UniVTG's aligner: its encoder layer by layer, its saliency and its contrasts by loops."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mrlib import papers
from mrlib.data import Widths
from mrlib.layers import endpoints, sine_positions
from tests.support.batches import LENGTHS, batch_of

SETTINGS = {
    "as printed": {},
    "pre-norm": {"pre_norm": True},
    "learned": {"query_positions": "learned"},
    "none": {"query_positions": "none"},
}


def aligner(**options):
    sizes = {"width": 16, "hidden": 24, "heads": 4, "layers": 2, "dropout": 0.0, "input_dropout": 0.0}
    return papers.build(papers.get("univtg", **sizes | options), Widths(24, 12, 16), seed=3).aligner.eval()


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_clips_and_words_have_a_type_each_and_are_encoded_together(name):
    """[UniVTG], [MATR §3.2] Layer by layer from the projections; type 1 on the clips, type 0 on the words."""
    module, batch = aligner(**SETTINGS[name]), batch_of()
    encoder = module.encoder
    target = encoder.project_target(torch.cat([batch.target, endpoints(batch.target_mask)], -1))
    target, query = target + encoder.token_type.weight[1], encoder.project_query(batch.query)
    query = query + encoder.token_type.weight[0]
    places = {
        "sine": lambda: sine_positions(batch.query_mask, 16),
        "learned": lambda: encoder.places(query),
        "none": lambda: torch.zeros_like(query),
    }[encoder.query_positions]()
    x, positions = torch.cat([target, query], 1), torch.cat([sine_positions(batch.target_mask, 16), places], 1)
    for layer in encoder.layers:
        x = layer(x, positions, torch.cat([batch.target_mask, batch.query_mask], 1))
    if name == "pre-norm":
        x = F.layer_norm(x, (16,), encoder.norm.weight, encoder.norm.bias)
    aligned = module(batch)
    torch.testing.assert_close(aligned.target, x[:, :12])
    torch.testing.assert_close(aligned.query, x[:, 12:])
    torch.testing.assert_close(aligned.cache["target"], target)
    assert torch.equal(aligned.mask, batch.target_mask) and torch.equal(aligned.query_mask, batch.query_mask)


@torch.no_grad()
def test_saliency_is_the_cosine_of_a_clip_with_the_words_weighed_by_a_learned_vector():
    """[UniVTG] Number by number, before the encoder; words on padding have no weight."""
    module, batch = aligner(), batch_of()
    aligned, encoder = module(batch), module.encoder
    query = encoder.project_query(batch.query) + encoder.token_type.weight[0]
    for b, n in enumerate(LENGTHS):
        words = query[b, batch.query_mask[b]]
        weight = [math.exp(float(word @ module.pool.weight[0])) for word in words]
        whole = sum(w * word for w, word in zip(weight, words, strict=True)) / sum(weight)
        torch.testing.assert_close(aligned.query_global[b], whole)
        for t in range(n):
            clip = aligned.cache["target"][b, t]
            cosine = clip @ whole / (clip.norm() * whole.norm())
            torch.testing.assert_close(aligned.saliency[b, t], cosine)


def one_relevant_clip(saliency):
    """A batch of which each sample has at most one relevant clip, so that nothing is drawn: 4, 0, 11 and none."""
    batch = batch_of()
    relevant = torch.zeros(4, 12, dtype=torch.bool)
    relevant[[0, 1, 2], [4, 0, 11]] = True
    labels = replace(batch.labels, relevant=relevant, saliency=saliency * batch.target_mask)
    return replace(batch, labels=labels)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@torch.no_grad()
def test_contrasts_are_those_of_the_clip_and_the_query_written_out(temperature):
    """[UniVTG] With the other queries and clips of the batch; with the clips of lower label in its video.

    As released, a clip is also set against what stands at the same time in the other videos, lower there or chosen.
    """
    module = aligner(temperature=temperature)
    scores = torch.randint(0, 6, (4, 12), generator=torch.Generator().manual_seed(3)).float()
    scores[[0, 1, 2], [4, 0, 11]] = torch.tensor([5.0, 3.0, 2.0])
    batch = one_relevant_clip(scores)
    aligned = module(batch)
    clips = aligned.cache["target"]
    rows, chosen = [0, 1, 2], [4, 0, 11]
    inter = intra = 0.0
    for b, t in zip(rows, chosen, strict=True):
        cosine = {
            (i, j): float(F.cosine_similarity(clips[i, chosen[i]], aligned.query_global[j], dim=0)) / temperature
            for i in rows
            for j in rows
        }
        inter -= math.log(math.exp(cosine[b, b]) / sum(math.exp(cosine[b, j]) for j in rows))
        inter -= math.log(math.exp(cosine[b, b]) / sum(math.exp(cosine[i, b]) for i in rows))

        def counted(i, s):
            """Whether clip s of sample i is set against: it is the chosen one, or lower than that."""
            return s == chosen[i] or (s < LENGTHS[i] and scores[i, s] < scores[i, chosen[i]])

        mine = math.exp(float(aligned.saliency[b, t]) / temperature)
        video = sum(math.exp(float(aligned.saliency[b, s]) / temperature) for s in range(LENGTHS[b]) if counted(b, s))
        time = sum(math.exp(float(aligned.saliency[i, t]) / temperature) for i in rows if counted(i, t))
        intra -= math.log(mine / video) + math.log(mine / time)
    losses = module.losses(aligned, batch)
    assert losses.keys() == {"inter", "intra"}
    assert losses["inter"].item() == pytest.approx(inter / 3, rel=1e-4)
    assert losses["intra"].item() == pytest.approx(intra / 3, rel=1e-4)


def test_the_clip_is_any_of_the_relevant_ones():
    """Of three relevant clips each is drawn; with the others lower, the loss takes three values."""
    module = aligner()
    batch = batch_of(windows=[[(1, 4)], [], [], []])
    saliency = torch.zeros(4, 12)
    saliency[0, 1:4] = torch.tensor([3.0, 4.0, 5.0])
    batch = replace(batch, labels=replace(batch.labels, saliency=saliency))
    torch.manual_seed(0)
    with torch.no_grad():
        aligned = module(batch)
        values = {round(module.losses(aligned, batch)["intra"].item(), 4) for _ in range(40)}
    assert len(values) == 3


def test_without_a_relevant_clip_there_is_no_loss_and_no_gradient():
    module, batch = aligner(), batch_of(windows=[[], [], [], []])
    losses = module.losses(module(batch), batch)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_positions": "cosine"}, "query_positions must be one of sine, learned, none, not 'cosine'"),
        ({"layers": -1}, "layers must be 0 or more, not -1"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)


@torch.no_grad()
def test_without_layers_the_clips_stay_as_they_were_projected():
    module, batch = aligner(layers=0), batch_of()
    aligned = module(batch)
    assert torch.equal(aligned.target, aligned.cache["target"])
