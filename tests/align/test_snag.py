"""Clips and words that are encoded apart: each against its definition, and neither depends on the other."""

from dataclasses import replace

import torch

from mrlib.align.snag import SnagAligner
from mrlib.data import Widths
from mrlib.layers import masked_mean
from tests.support.batches import batch_of
from tests.support.modules import shaken


def small_aligner(**options):
    torch.manual_seed(0)
    sizes = {"width": 8, "layers": 2, "heads": 2, "hidden": 16, "dropout": 0.1}
    return SnagAligner(Widths(24, 12, 16), **sizes | options).eval()


@torch.no_grad()
def test_clips_and_words_do_not_depend_on_each_other():
    """[SnAG] So the clips of a video are the same for all of its queries."""
    aligner, batch = small_aligner(), batch_of()
    aligned = aligner(batch)
    other_query = aligner(replace(batch, query=batch.query.flip(0), query_mask=batch.query_mask.flip(0)))
    assert torch.equal(aligned.target, other_query.target)
    assert torch.equal(aligned.query.flip(0), other_query.query)
    other_target = aligner(replace(batch, target=batch.target + 1))
    assert torch.equal(aligned.query, other_target.query)
    assert not torch.allclose(aligned.target, other_target.target)


@torch.no_grad()
def test_clips_are_projected_by_a_norm_and_a_linear_layer():
    """[SnAG] Nothing else happens to them, and they have no positions."""
    aligner, batch = shaken(small_aligner()), batch_of()
    norm, _, linear = aligner.project_target
    target = (batch.target - batch.target.mean(-1, keepdim=True)) / (
        batch.target.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    target = (target * norm.weight + norm.bias) @ linear.weight.mT + linear.bias
    aligned = aligner(batch)
    torch.testing.assert_close(aligned.target, target, rtol=1e-4, atol=1e-5)
    assert torch.equal(aligned.mask, batch.target_mask)


@torch.no_grad()
def test_words_have_sine_positions_and_follow_a_learned_token():
    """[SnAG] Sample by sample without padding; positions are sines and cosines of the index, over the root of d."""
    aligner, batch = small_aligner(), batch_of()
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


def test_learned_token_is_initialised_small():
    """[SnAG] With a standard deviation of 0.02."""
    assert 0.017 < small_aligner(width=1024).nothing.std() < 0.023


def test_every_parameter_gets_a_gradient_from_the_output_and_there_is_no_loss():
    aligner, batch = small_aligner(), batch_of()
    aligned = aligner(batch)
    assert aligner.losses(aligned, batch) == {}
    real = masked_mean(aligned.target, aligned.mask).square().sum() + (aligned.query[aligned.query_mask] ** 3).sum()
    real.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aligner.parameters())
