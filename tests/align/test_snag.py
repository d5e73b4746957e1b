"""Clips and words apart: what each is made of, by definition, and that neither sees the other."""

from dataclasses import replace

import torch

from mrlib.align.snag import SnagAligner
from mrlib.data import Widths
from mrlib.layers import masked_mean
from tests.support.batches import batch_of


def aligner_of(**options):
    torch.manual_seed(0)
    sizes = {"width": 8, "layers": 2, "heads": 2, "hidden": 16, "dropout": 0.1}
    return SnagAligner(Widths(24, 12, 16), **sizes | options).eval()


@torch.no_grad()
def test_clips_see_no_word_and_words_no_clip():
    """[SnAG] So the clips of a video are the same for all of its queries."""
    aligner, batch = aligner_of(), batch_of()
    as_it_was = aligner(batch)
    asked_other = aligner(replace(batch, query=batch.query.flip(0), query_mask=batch.query_mask.flip(0)))
    assert torch.equal(as_it_was.target, asked_other.target)
    assert torch.equal(as_it_was.query.flip(0), asked_other.query)
    shown_other = aligner(replace(batch, target=batch.target + 1))
    assert torch.equal(as_it_was.query, shown_other.query)
    assert not torch.allclose(as_it_was.target, shown_other.target)


@torch.no_grad()
def test_words_have_their_places_and_a_token_of_nothing_in_front():
    """[SnAG] Sample by sample without padding; a place is sines and cosines of its number, over the root of d."""
    aligner, batch = aligner_of(), batch_of()
    aligned = aligner(batch)
    assert aligned.query.shape == (4, 7, 8) and aligned.query_mask[:, 0].all()
    assert torch.equal(aligned.query_mask[:, 1:], batch.query_mask) and aligned.saliency is None
    for b in range(4):
        words = aligner.project_query(batch.query[b, batch.query_mask[b]])
        for i in range(len(words)):
            for m in range(4):
                angle = torch.tensor(i / 10000 ** (2 * m / 8))
                words[i, 2 * m] += angle.sin() / 8**0.5
                words[i, 2 * m + 1] += angle.cos() / 8**0.5
        x = torch.cat([aligner.nothing[None], words])[None]
        for layer in aligner.layers:
            y = layer.norm1(x)
            x = x + layer.self_attn(y, y, y)
            x = x + layer.feed_forward(layer.norm2(x))
        torch.testing.assert_close(aligned.query[b, aligned.query_mask[b]], x[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(aligned.query_global[b], x[0, 1:].mean(0), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_reached_and_there_is_no_loss_of_its_own():
    aligner, batch = aligner_of(), batch_of()
    aligned = aligner(batch)
    assert aligner.losses(aligned, batch) == {}
    real = masked_mean(aligned.target, aligned.mask).square().sum() + (aligned.query[aligned.query_mask] ** 3).sum()
    real.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aligner.parameters())
