"""QD-DETR's aligner against its formulas, and what must not show in it."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.layers import sine_positions
from tests.support.batches import LENGTHS, batch_of, make_batch


def aligner(**options):
    paper = papers.get("qd_detr", width=16, hidden=24, heads=4, dropout=0.0, input_dropout=0.0, **options)
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


@torch.no_grad()
def test_positions_reach_the_keys_and_not_the_values():
    """[QD-DETR] One word has all the attention wherever it stands."""
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
def test_saliency_is_the_scaled_product_of_every_clip_with_the_global_token():
    """[QD-DETR] The last encoder layer's output, caught on its way out."""
    module, batch, caught = aligner().eval(), batch_of(), []
    module.encoder[-1].register_forward_hook(lambda _, inputs, output: caught.append((inputs, output)))
    aligned = module(batch)
    (x, positions, mask), output = caught[0]
    assert x.shape == (4, 13, 16) and mask[:, 0].all()
    torch.testing.assert_close(positions[:, 1:], sine_positions(batch.target_mask, 16))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            s = module.clip_side(output[b, t + 1]) @ module.global_side(output[b, 0]) / 4
            torch.testing.assert_close(aligned.saliency[b, t], s)
            torch.testing.assert_close(aligned.target[b, t], output[b, t + 1])


def test_losses_of_foreign_queries_are_those_of_the_same_clips_asked_anew():
    """[QD-DETR] Sample 0 has no foreign query here: its own clips are contrasted among themselves."""
    module, batch = aligner().eval(), batch_of([9, 4, 12])
    batch = replace(batch, labels=replace(batch.labels, negative=torch.tensor([-1, 0, 0])))
    aligned = module(batch)
    asked = module(replace(batch, query=batch.query[[0, 0, 0]], query_mask=batch.query_mask[[0, 0, 0]]))
    terms = module.losses(aligned, batch)
    expected = sum(-(1 - asked.saliency[b, :n].double().sigmoid()).log().sum() for b, n in ((1, 4), (2, 12))) / 2
    torch.testing.assert_close(terms["negative"].double(), expected, rtol=1e-5, atol=1e-6)
    total = 0.0
    for b, n in enumerate([9, 4, 12]):
        rows = [aligned.saliency[b, :n]] + ([asked.saliency[b, :n]] if b else [])
        likely = (torch.cat(rows) / 0.5).log_softmax(0)[:n][batch.labels.relevant[b, :n]]
        total -= likely.mean() * 6 / 12 / 3  # 6 points on each relevant clip: ranks 1 to 6
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
