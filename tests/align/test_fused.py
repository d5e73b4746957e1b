"""What the aligners have in common that fuse clips with words: projections, the query as one vector, what is kept."""

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.align.fused import FusedAligner
from mrlib.data import Widths
from mrlib.layers import Projected, Sizes
from tests.support.batches import LENGTHS, batch_of

WIDTHS = Widths(24, 12, 16)
NAMES = ["text_to_video", "taskweave", "uvcom", "cg_detr"]
QUICK = {"width": 16, "hidden": 16, "heads": 2, "dropout": 0.0, "input_dropout": 0.0}


def aligner(name, **options):
    return papers.build(papers.get("qd_detr", aligner=name, **QUICK | options), WIDTHS, seed=1).aligner.eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_one_of_them_is_a_fused_aligner(name):
    assert isinstance(aligner(name), FusedAligner)


@pytest.mark.parametrize("tef", [True, False])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_clips_and_words_are_projected_and_handed_on(name, tef):
    """With the ends of every clip appended to it, as fractions of its video; words by their own projection."""
    module, batch = aligner(name, tef=tef), batch_of()
    assert module.project_target[0].normalized_shape == (26 if tef else 24,)
    aligned = module(batch)
    for b, n in enumerate(LENGTHS):
        clips = batch.target[b, :n]
        if tef:
            ends = torch.tensor([[t / n, (t + 1) / n] for t in range(n)])
            clips = torch.cat([clips, ends], 1)
        words = module.project_query(batch.query[b, batch.query_mask[b]])
        torch.testing.assert_close(aligned.cache["target"][b, :n], module.project_target(clips))
        torch.testing.assert_close(aligned.query[b, batch.query_mask[b]], words)
        torch.testing.assert_close(aligned.query_global[b], words.mean(0))
    assert torch.equal(aligned.mask, batch.target_mask) and torch.equal(aligned.query_mask, batch.query_mask)
    assert aligned.target.shape == (4, 12, 16) and aligned.saliency.shape == (4, 12)


def test_a_projection_has_as_many_layers_as_asked_for():
    for projections in (1, 3):
        module = aligner("text_to_video", projections=projections)
        for layers in (module.project_target, module.project_query):
            assert sum(isinstance(layer, nn.Linear) for layer in layers.modules()) == projections


def test_what_lacks_fuse_cannot_be_built():
    class Lacking(FusedAligner):
        pass

    with pytest.raises(TypeError, match="fuse"):
        Lacking(WIDTHS, Sizes(width=16))
    assert Projected(24, 12, Sizes(width=16)).width == 16


def test_sizes_are_those_of_qd_detr_where_nothing_is_said():
    """[QD-DETR] And what a layer takes, in its order."""
    assert Sizes() == Sizes(width=256, layers=2, heads=8, hidden=1024, projections=2, dropout=0.1, input_dropout=0.5)
    assert Sizes(width=6, heads=2, hidden=7, dropout=0.3).layer == (6, 2, 7, 0.3, "prelu")
