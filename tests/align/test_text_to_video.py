"""QD-DETR's aligner against its equations."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.align.words import Words, released_masks
from mrlib.data import Widths
from mrlib.layers import sine_positions
from tests.support.batches import LENGTHS, batch_of, make_batch
from tests.support.modules import shaken, watched


def aligner(**options):
    paper = papers.get("qd_detr", width=16, hidden=24, heads=4, dropout=0.0, input_dropout=0.0, **options)
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


@torch.no_grad()
def test_learned_positions_are_added_to_keys_and_not_to_values():
    """[QD-DETR] A single word gets all the attention, whatever its position."""
    module = aligner(query_positions="learned").eval()
    batch = make_batch(LENGTHS, motion=8, words=1)
    before = module(batch).target
    module.places.position_embeddings.weight.add_(1.0)
    torch.testing.assert_close(module(batch).target, before)
    batch = batch_of()
    before = module(batch).target
    module.places.position_embeddings.weight.normal_()
    assert not torch.allclose(module(batch).target, before)


@torch.no_grad()
def test_clips_take_up_words_layer_by_layer_and_are_encoded_with_the_global_token():
    """[QD-DETR] Sample by sample without padding, from the projections to clips and saliency."""
    module, batch = shaken(aligner(query_positions="learned")), batch_of()
    aligned = module(batch)
    for b, n in enumerate(LENGTHS):
        query = module.project_query(batch.query[b : b + 1, batch.query_mask[b]])
        words = Words(query + module.places(query), query, torch.ones(query.shape[:2], dtype=torch.bool))
        mask = torch.ones(1, n, dtype=torch.bool)
        x, positions = aligned.cache["target"][b : b + 1, :n], sine_positions(mask, 16)
        for layer in module.layers:
            x = layer(x, positions, words)
        x, positions = (
            torch.cat([first[None, None], rest], 1)
            for first, rest in ((module.global_token, x), (module.global_position, positions))
        )
        for layer in module.encoder:
            x = layer(x, positions, torch.ones(1, 1 + n, dtype=torch.bool))
        torch.testing.assert_close(aligned.target[b, :n], x[0, 1:], rtol=1e-4, atol=1e-5)
        saliency = (module.clip_side(x[0, 1:]) * module.global_side(x[0, 0])).sum(1) / 4
        torch.testing.assert_close(aligned.saliency[b, :n], saliency, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_saliency_is_the_scaled_product_of_every_clip_with_the_global_token():
    """[QD-DETR] From the output of the last encoder layer, which a hook reads."""
    module, batch = aligner().eval(), batch_of()
    calls = watched(module.encoder)[-1]
    aligned = module(batch)
    (x, positions, mask), output = calls[0]
    assert x.shape == (4, 13, 16) and mask[:, 0].all()
    torch.testing.assert_close(positions[:, 1:], sine_positions(batch.target_mask, 16))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            s = module.clip_side(output[b, t + 1]) @ module.global_side(output[b, 0]) / 4
            torch.testing.assert_close(aligned.saliency[b, t], s)
            torch.testing.assert_close(aligned.target[b, t], output[b, t + 1])


def test_only_learned_positions_are_built():
    assert aligner(places=7).places is None
    assert aligner(query_positions="learned", places=7).places.position_embeddings.weight.shape == (7, 16)


@pytest.mark.parametrize("masks", ["keys", "released"])
@torch.no_grad()
def test_layers_get_the_words_that_clips_may_attend_to(masks):
    """[QD-DETR] All words of the query, or the masks of the released code, which land on other samples."""
    module, batch = aligner(masks=masks).eval(), batch_of()
    calls = watched(module.layers)
    module(batch)
    for (((_, positions, words), _),) in calls:
        assert torch.equal(positions, sine_positions(batch.target_mask, 16))
        assert torch.equal(words.mask, batch.query_mask)
        if masks == "keys":
            assert words.visible is None
        else:
            assert torch.equal(words.visible, released_masks(batch.target_mask, batch.query_mask, 4))


def test_losses_of_negative_queries_equal_those_of_a_second_pass():
    """[QD-DETR] Sample 0 has no negative query here: its contrast is among its own clips."""
    module, batch = aligner().eval(), batch_of([9, 4, 12])
    batch = replace(batch, labels=replace(batch.labels, negative=torch.tensor([-1, 0, 0])))
    aligned = module(batch)
    negative_aligned = module(replace(batch, query=batch.query[[0, 0, 0]], query_mask=batch.query_mask[[0, 0, 0]]))
    terms = module.losses(aligned, batch)
    expected = (
        sum(-(1 - negative_aligned.saliency[b, :n].double().sigmoid()).log().sum() for b, n in ((1, 4), (2, 12))) / 2
    )
    torch.testing.assert_close(terms["negative"].double(), expected, rtol=1e-5, atol=1e-6)
    total = 0.0
    for b, n in enumerate([9, 4, 12]):
        rows = [aligned.saliency[b, :n]] + ([negative_aligned.saliency[b, :n]] if b else [])
        log_share = (torch.cat(rows) / 0.5).log_softmax(0)[:n][batch.labels.relevant[b, :n]]
        total -= log_share.mean() * 6 / 12 / 3  # 6 points on each relevant clip: ranks 1 to 6
    torch.testing.assert_close(terms["contrast"], total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "all"}, "masks must be keys or released"),
        ({"query_positions": "sine"}, "query_positions must be none or learned"),
        ({"activation": "swish"}, "unknown activation 'swish'; known: relu, gelu, prelu"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)
