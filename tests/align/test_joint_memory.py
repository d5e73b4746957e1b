"""Moment-DETR's aligner: its encoder layer by layer, its context and the order of the query vectors."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mrlib import papers
from mrlib.data import Widths, open_dataset
from mrlib.layers import endpoints, sine_positions
from tests.support.batches import batch_of
from tests.support.modules import shaken, watched

WIDTHS = Widths(24, 12, 16)
SETTINGS = {"default": {}, "pre-norm": {"pre_norm": True}, "learned": {"query_positions": "learned"}}


def aligner(widths=WIDTHS, **options):
    paper = papers.get("moment_detr", width=16, hidden=24, heads=4, dropout=0.0, input_dropout=0.0, **options)
    return papers.build(paper, widths, seed=3).aligner.eval()


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_clips_and_words_are_encoded_together_and_the_words_become_the_context(name):
    """[Moment-DETR] Layer by layer from the projections; words have no positions unless those are learned."""
    module, batch = shaken(aligner(**SETTINGS[name])), batch_of()
    target = module.project_target(torch.cat([batch.target, endpoints(batch.target_mask)], -1))
    query = module.project_query(batch.query)
    places = module.places(query) if name == "learned" else torch.zeros(4, 6, 16)
    x = torch.cat([target, query], 1)
    positions = torch.cat([sine_positions(batch.target_mask, 16), places], 1)
    for layer in module.layers:
        x = layer(x, positions, torch.cat([batch.target_mask, batch.query_mask], 1))
    if name == "pre-norm":
        x = F.layer_norm(x, (16,), module.norm.weight, module.norm.bias)
    aligned = module(batch)
    torch.testing.assert_close(aligned.target, x[:, :12])
    torch.testing.assert_close(aligned.context, x[:, 12:])
    assert torch.equal(aligned.context_mask, batch.query_mask) and aligned.context is aligned.query
    torch.testing.assert_close(aligned.saliency, module.saliency(x[:, :12])[..., 0])
    torch.testing.assert_close(aligned.context_positions, places)
    assert torch.equal(aligned.mask, batch.target_mask) and torch.equal(aligned.query_mask, batch.query_mask)
    for b, mask in enumerate(batch.query_mask):
        torch.testing.assert_close(aligned.query_global[b], x[b, 12:][mask].mean(0))


class FirstWord(nn.Module):
    """A `mix` whose output is the clips plus the first word, and which records its arguments."""

    def forward(self, x, positions, words):
        self.given = x, positions, words
        return x + words.values[:, :1]


@torch.no_grad()
def test_clips_are_mixed_before_the_first_layer():
    """Words are keys with their learned positions and values without; `context_positions` are those positions."""
    module, batch = aligner(query_positions="learned"), batch_of()
    module.mix, calls = FirstWord(), watched(module.layers)[0]
    aligned = module(batch)
    target, query = module.project(batch.target, batch.target_mask, batch.query)
    x, positions, words = module.mix.given
    assert torch.equal(x, target) and torch.equal(positions, sine_positions(batch.target_mask, 16))
    assert torch.equal(words.values, query) and torch.equal(words.mask, batch.query_mask)
    torch.testing.assert_close(words.keys, query + aligned.context_positions)
    torch.testing.assert_close(calls[0].given[0], torch.cat([target + query[:, :1], query], 1))


def test_loss_is_the_margin_of_the_saliency():
    """[Moment-DETR] Pairs that the batch brings; the second sample has none."""
    module, batch = aligner(), batch_of([9, 4])
    pairs = torch.tensor([[[1, 0], [8, 3]], [[-1, -1], [-1, -1]]])
    aligned = module(batch)
    losses = module.losses(aligned, replace(batch, labels=replace(batch.labels, pairs=pairs)))
    expected = sum(max(0.0, 0.2 + (aligned.saliency[0, j] - aligned.saliency[0, i]).item()) for i, j in pairs[0])
    assert losses.keys() == {"margin"}
    assert losses["margin"].item() == pytest.approx(2 * expected / 2, rel=1e-5)


@torch.no_grad()
def test_order_of_the_query_clips_matters_only_with_learned_positions():
    """[Moment-DETR] The query has no positions otherwise, so a query video means the same backwards."""
    data = open_dataset("sim", split="val", query="video", streams="joint", n=8)
    batch = data.batch(range(8))
    j, m = torch.arange(batch.query.shape[1]), batch.query_mask.sum(1, keepdim=True)
    order = torch.where(j < m, m - 1 - j, j)[..., None].expand_as(batch.query)
    backwards = replace(batch, query=batch.query.gather(1, order))
    assert not torch.equal(backwards.query, batch.query)
    for positions, same in (("none", True), ("learned", False)):
        module = aligner(data.widths, query_positions=positions)
        change = (module(backwards).saliency - module(batch).saliency).abs().amax(1)
        assert (change < 1e-5).all() if same else (change > 1e-4).all()


def test_unknown_query_positions_are_refused():
    with pytest.raises(ValueError, match="query_positions must be none or learned"):
        aligner(query_positions="sine")
