"""Moment-DETR's aligner: what goes in, what comes out, and what must not show."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths, open_dataset
from mrlib.layers import endpoints, sine_positions
from tests.support.batches import batch_of

WIDTHS = Widths(24, 12, 16)
SETTINGS = {"as printed": {}, "pre-norm": {"pre_norm": True}, "learned": {"query_positions": "learned"}}


def aligner(widths=WIDTHS, **options):
    paper = papers.get("moment_detr", width=16, hidden=24, heads=4, dropout=0.0, input_dropout=0.0, **options)
    return papers.build(paper, widths, seed=3).aligner.eval()


@torch.no_grad()
def test_clips_and_words_are_encoded_together_and_the_words_go_on_as_context():
    """[Moment-DETR] Layer by layer from the projections; positions on the clips only."""
    module, batch = aligner(), batch_of()
    target = module.project_target(torch.cat([batch.target, endpoints(batch.target_mask)], -1))
    x = torch.cat([target, module.project_query(batch.query)], 1)
    positions = torch.cat([sine_positions(batch.target_mask, 16), torch.zeros(4, 6, 16)], 1)
    for layer in module.layers:
        x = layer(x, positions, torch.cat([batch.target_mask, batch.query_mask], 1))
    aligned = module(batch)
    torch.testing.assert_close(aligned.target, x[:, :12])
    torch.testing.assert_close(aligned.context, x[:, 12:])
    assert torch.equal(aligned.context_mask, batch.query_mask) and aligned.context is aligned.query
    torch.testing.assert_close(aligned.saliency, module.saliency(x[:, :12])[..., 0])


@torch.no_grad()
def test_a_film_is_asked_with_as_a_set_of_clips_unless_their_places_are_learned():
    """[Moment-DETR] Words have no places, so that a query video says the same backwards."""
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


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="query_positions must be none or learned"):
        aligner(query_positions="sine")
