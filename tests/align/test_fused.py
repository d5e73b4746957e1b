"""Base classes of aligners that fuse clips with words: projections, global token, saliency and its losses."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.align import saliency
from mrlib.align.fused import Fused, FusedAligner, GlobalTokenAligner, from_sizes
from mrlib.arguments import keyword_defaults
from mrlib.data import Widths
from mrlib.layers import EncoderLayer, Projected, Sizes
from tests.support.batches import LENGTHS, batch_of, drawn
from tests.support.modules import shaken

WIDTHS = Widths(24, 12, 16)
NAMES = ["text_to_video", "taskweave", "uvcom", "cg_detr"]
QUICK = {"width": 16, "hidden": 16, "heads": 2, "dropout": 0.0, "input_dropout": 0.0}


def aligner(name, **options):
    return papers.build(papers.get("qd_detr", aligner=name, **QUICK | options), WIDTHS, seed=1).aligner.eval()


class MeanWord(GlobalTokenAligner):
    """The mean word is added to the clips; the global token is the parameter of the class."""

    def fuse(self, target, mask, query, query_mask):
        words = (query * query_mask[..., None]).sum(1, keepdim=True) / query_mask.sum(1)[:, None, None]
        x = target + words
        token, clips = self.encode(self.global_token.expand(len(x), 1, -1), x, torch.zeros_like(x), mask)
        return Fused(clips, self.relevance(token, clips), {"words": words})


def mean_word(layers=2, **options):
    torch.manual_seed(0)
    sizes = Sizes(**QUICK | options)
    return shaken(MeanWord(WIDTHS, sizes, [], [EncoderLayer(*sizes.layer) for _ in range(layers)]).double())


@pytest.mark.parametrize("name", NAMES)
def test_aligners_with_projections_and_saliency_are_fused_aligners(name):
    assert isinstance(aligner(name), FusedAligner)


@pytest.mark.parametrize("tef", [True, False])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_clips_and_words_are_projected(name, tef):
    """Clips with their endpoints appended, as fractions of the video; words by a projection of their own."""
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


@pytest.mark.parametrize("projections", [1, 3])
def test_projections_have_the_given_number_of_linear_layers(projections):
    module = aligner("text_to_video", projections=projections)
    for layers in (module.project_target, module.project_query):
        assert sum(isinstance(layer, nn.Linear) for layer in layers.modules()) == projections


def test_fused_aligner_is_abstract():
    class WithoutFuse(FusedAligner):
        pass

    with pytest.raises(TypeError, match="fuse"):
        WithoutFuse(WIDTHS, Sizes(width=16))
    assert Projected(24, 12, Sizes(width=16)).width == 16


@torch.no_grad()
def test_aligned_fields_are_those_that_fuse_returns():
    """What `fuse` caches is in the cache beside the projected clips."""
    module, batch = mean_word(), batch_of(dtype=torch.float64)
    aligned = module(batch)
    target, query = module.project(batch.target, batch.target_mask, batch.query)
    fused = module.fuse(target, batch.target_mask, query, batch.query_mask)
    assert torch.equal(aligned.target, fused.target) and torch.equal(aligned.saliency, fused.saliency)
    assert aligned.cache.keys() == {"target", "words"}
    assert torch.equal(aligned.cache["target"], target) and torch.equal(aligned.cache["words"], fused.cache["words"])


@torch.no_grad()
def test_token_and_clips_are_encoded_together():
    """[QD-DETR] Sample by sample without padding; the token comes first and has a learned position."""
    module, n = mean_word(layers=2), [5, 3, 1]
    token, x, positions = drawn(3, 1, 16), drawn(3, 5, 16, seed=1), drawn(3, 5, 16, seed=2)
    encoded_token, clips = module.encode(token, x, positions, torch.arange(5) < torch.tensor(n)[:, None])
    assert encoded_token.shape == (3, 1, 16) and clips.shape == (3, 5, 16)
    for b, length in enumerate(n):
        sequence = torch.cat([token[b], x[b, :length]])[None]  # (1, 1 + n, d)
        places = torch.cat([module.global_position[None], positions[b, :length]])[None]
        for layer in module.encoder:
            sequence = layer(sequence, places, torch.ones(1, 1 + length, dtype=torch.bool))
        torch.testing.assert_close(encoded_token[b], sequence[0, :1])
        torch.testing.assert_close(clips[b, :length], sequence[0, 1:])


@torch.no_grad()
def test_token_is_encoded_if_all_clips_are_padding():
    module, x = mean_word(), drawn(1, 3, 16)
    token, _ = module.encode(drawn(1, 1, 16, seed=1), x, x, torch.zeros(1, 3, dtype=torch.bool))
    without_clips, _ = module.encode(drawn(1, 1, 16, seed=1), x[:, :0], x[:, :0], torch.ones(1, 0, dtype=torch.bool))
    torch.testing.assert_close(token, without_clips)


def test_encoder_input_has_the_precision_of_the_clips():
    """A learned token is float32, clips may be of half precision; without layers, what is encoded is the input."""
    module, clips = MeanWord(WIDTHS, Sizes(**QUICK), [], []), torch.ones(2, 3, 16, dtype=torch.bfloat16)
    token, encoded = module.encode(torch.ones(2, 1, 16), clips, clips, torch.ones(2, 3, dtype=torch.bool))
    assert token.dtype == encoded.dtype == torch.bfloat16


@torch.no_grad()
def test_relevance_equals_its_equation():
    r"""[QD-DETR] $\langle W_a M_t + b_a, W_b g + b_b \rangle / \sqrt d$, number by number."""
    module, token, clips = mean_word(), drawn(2, 1, 16), drawn(2, 3, 16, seed=1)
    scores = module.relevance(token, clips)
    assert scores.shape == (2, 3)
    for b in range(2):
        token_side = module.global_side.weight @ token[b, 0] + module.global_side.bias
        for t in range(3):
            clip_side = module.clip_side.weight @ clips[b, t] + module.clip_side.bias
            expected = sum(float(a) * float(c) for a, c in zip(clip_side, token_side, strict=True)) / 16**0.5
            assert scores[b, t].item() == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_saliency_losses_score_the_projected_clips_for_the_negative_query():
    """[QD-DETR] As if the aligner ran again with the queries rolled by one sample."""
    module, batch = mean_word(), batch_of([9, 4, 12], dtype=torch.float64)
    pairs = torch.tensor([[[1, 0]], [[3, 2]], [[1, 0]]])
    batch = replace(batch, labels=replace(batch.labels, pairs=pairs))
    aligned = module(batch)
    negative_saliency = module(
        replace(batch, query=batch.query.roll(-1, 0), query_mask=batch.query_mask.roll(-1, 0))
    ).saliency
    terms, mask = module.saliency_losses(aligned, batch), batch.target_mask
    scores = torch.cat([batch.labels.saliency, torch.zeros(3, 12)], 1)
    assert terms.keys() == {"margin", "contrast", "negative"}
    torch.testing.assert_close(terms["margin"], saliency.margin(aligned.saliency, pairs))
    torch.testing.assert_close(terms["negative"], saliency.negative(negative_saliency, mask, 3))
    contrast = saliency.rank_contrast(
        torch.cat([aligned.saliency, negative_saliency], 1), scores, torch.cat([mask, mask], 1)
    )
    torch.testing.assert_close(terms["contrast"], contrast)


def test_learned_positions_are_built_for_a_number_of_places():
    sizes = Sizes(**QUICK)
    assert MeanWord(WIDTHS, sizes, [], []).places is None
    assert MeanWord(WIDTHS, sizes, [], [], places=7).places.position_embeddings.weight.shape == (7, 16)


def test_options_of_a_builder_from_sizes_are_the_fields_of_the_sizes():
    @dataclass(frozen=True, kw_only=True)
    class MoreSizes(Sizes):
        layers: int = 5
        tokens: int = 3

    build = from_sizes(lambda widths, sizes: (widths, sizes), MoreSizes)
    assert build(WIDTHS, tokens=4, width=8) == (WIDTHS, MoreSizes(tokens=4, width=8))
    defaults = keyword_defaults(build)
    assert defaults["layers"] == 5 and defaults["tokens"] == 3 and defaults["heads"] == 8
    with pytest.raises(TypeError, match="words"):
        build(WIDTHS, words=1)


def test_default_sizes_are_those_of_qd_detr():
    """[QD-DETR] And `layer` lists the arguments of a layer in their order."""
    assert Sizes() == Sizes(width=256, layers=2, heads=8, hidden=1024, projections=2, dropout=0.1, input_dropout=0.5)
    assert Sizes(width=6, heads=2, hidden=7, dropout=0.3).layer == (6, 2, 7, 0.3, "prelu")
