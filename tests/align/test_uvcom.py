"""UVCOM's aligner against its equations, and its similarity loss against loops."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.align.uvcom import LocalConvolution, nearest, prototypes, random_walk
from mrlib.data import Widths
from mrlib.layers import sine_positions
from tests.support.batches import LENGTHS, batch_of, drawn
from tests.support.modules import watched

SIZES = {"width": 16, "hidden": 24, "heads": 4, "layers": 2, "dropout": 0.0, "input_dropout": 0.0}
TERMS = {"margin", "contrast", "negative", "similarity"}


def aligner(**options):
    paper = papers.get("f2sgd", aligner="uvcom", **{**SIZES, **options})
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


def test_default_sizes_are_the_released_ones():
    """[UVCOM] Three layers of each kind, 5 prototypes of the words and 30 of the clips, inner width 1,024."""
    module = papers.build(papers.get("f2sgd", aligner="uvcom"), Widths(512, 512, 512)).aligner
    assert [len(stack) for stack in (module.layers, module.back, module.encoder)] == [3, 3, 3]
    assert module.text_tokens.shape == (5, 256) and module.global_token.shape == (30, 256)
    assert module.clip_sense.layers[1].weight.shape == module.text_sense.layers[1].weight.shape == (1024, 1024)
    attention = module.layers[0].cross_attn
    assert (attention.heads, attention.dropout, module.project_target[0].normalized_shape) == (8, 0.1, (514,))


def test_prototypes_equal_their_equation_and_ignore_padding():
    """[UVCOM] Number by number."""
    n, x, start = [5, 2, 1], drawn(3, 5, 4), drawn(3, 4, seed=1)
    mask = torch.arange(5) < torch.tensor(n)[:, None]
    result = prototypes(start, x, mask)
    for b in range(3):
        mu = start
        for _ in range(5):
            gamma = torch.zeros(3, n[b], dtype=torch.float64)
            for t in range(n[b]):
                weight = [(-((m / m.norm() - x[b, t] / x[b, t].norm()) ** 2).sum() / (2 * 1.2**2)).exp() for m in mu]
                for k in range(3):
                    gamma[k, t] = weight[k] / sum(weight)
            mu = torch.stack([sum(gamma[k, t] * x[b, t] for t in range(n[b])) / gamma[k].sum() for k in range(3)])
        torch.testing.assert_close(result[b], mu)


def test_walk_equals_the_inverse_of_the_transition_matrix_between_clips():
    """[UVCOM] With the whole n x n system solved, for each sample without its padding."""
    n, x, text = [6, 3, 1], drawn(3, 6, 4), drawn(3, 2, 4, seed=1)
    mask = torch.arange(6) < torch.tensor(n)[:, None]
    result = random_walk(x, text, mask)
    for b in range(3):
        clips, e = x[b, : n[b]], text[b]
        zeta = torch.zeros(2, n[b], dtype=torch.float64)
        for t in range(n[b]):
            weight = [math.exp(5 * torch.cosine_similarity(e[k], clips[t], dim=0)) for k in range(2)]
            for k in range(2):
                zeta[k, t] = weight[k] / sum(weight)
        transition = zeta.T @ (zeta / zeta.sum(1, keepdim=True))
        torch.testing.assert_close(transition.sum(1), torch.ones(n[b], dtype=torch.float64))
        inverse = torch.linalg.inv(torch.eye(n[b], dtype=torch.float64) - 0.25 * transition)
        torch.testing.assert_close(result[b, : n[b]], 0.5 * inverse @ (0.5 * zeta.T @ e + clips))


def test_prototypes_and_walk_have_the_gradients_of_their_equations():
    x, start = drawn(2, 4, 3).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(lambda x, start: prototypes(start, x, mask), (x, start))
    assert torch.autograd.gradcheck(
        lambda x, text: random_walk(x, text, mask)[mask], (x, drawn(2, 2, 3).requires_grad_())
    )


def test_prototypes_and_walk_run_in_full_precision():
    """Also of half precision features, and under autocast: results are those of the features in float32."""
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    x, start, text = (drawn(*shape).bfloat16() for shape in ((2, 4, 3), (2, 3), (2, 2, 3)))
    expected = prototypes(start.float(), x.float(), mask), random_walk(x.float(), text.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        results = [prototypes(start, x, mask), random_walk(x, text, mask)]
        results += [prototypes(start.float(), x.float(), mask), random_walk(x.float(), text.float(), mask)]
    for result, value in zip(
        [prototypes(start, x, mask), random_walk(x, text, mask), *results], [*expected] * 3, strict=True
    ):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, value)


@torch.no_grad()
def test_local_is_three_convolutions_and_ignores_padding():
    """[UVCOM] To the middle one, padding and clips beyond the ends are 0."""
    torch.manual_seed(0)
    local, n, x = LocalConvolution(4).double(), [5, 2], drawn(2, 5, 4)
    output = local(x, torch.arange(5) < torch.tensor(n)[:, None])
    for b in range(2):
        before = [local.before(x[b, t]) for t in range(n[b])]
        for t in range(n[b]):
            total = local.neighbours.bias.clone()
            for shift in (-1, 0, 1):
                if 0 <= t + shift < n[b]:
                    total += local.neighbours.weight[:, :, 1 + shift] @ before[t + shift]
            torch.testing.assert_close(output[b, t], local.after(total))


def test_nearest_candidate_has_the_highest_mean_cosine_to_the_words():
    """[UVCOM] Not the highest cosine to one of them, nor the largest norm."""
    text = torch.tensor([[[9.0, 0.0], [0.0, 0.2]]]).expand(2, -1, -1)
    candidates = torch.tensor([[[2.0, 0.0], [0.1, 0.1], [0.0, 9.0]], [[0.0, 3.0], [3.0, -1.0], [-1.0, -1.0]]])
    assert nearest(candidates, text).tolist() == [[[pytest.approx(0.1), pytest.approx(0.1)]], [[0.0, 3.0]]]


@torch.no_grad()
def test_clips_take_up_words_and_words_take_up_clips_before_the_encoder():
    """[UVCOM] Both stacks attend to the projections; words have no positions; then prototypes, walk and encoder."""
    module, batch = aligner().eval(), batch_of()
    layers, back, encoder = watched(module.layers), watched(module.back), watched(module.encoder)
    aligned = module(batch)
    target, words, mask = aligned.cache["target"], aligned.query, batch.target_mask
    positions = sine_positions(mask, 16)
    for calls, x, keys in ((layers[0], target, words), (back[0], words, target)):
        given = calls[0].given
        assert torch.equal(given[0], x) and torch.equal(given[2].values, keys)
    torch.testing.assert_close(back[1][0].given[2].keys, target + positions)
    assert torch.equal(back[1][0].given[2].mask, mask) and not back[1][0].given[1].any()
    torch.testing.assert_close(layers[1][0].given[1], positions)
    assert torch.equal(layers[1][0].given[0], layers[0][0].gave) and torch.equal(back[1][0].given[0], back[0][0].gave)
    assert torch.equal(layers[1][0].given[2].keys, words) and torch.equal(layers[1][0].given[2].mask, batch.query_mask)
    x, y = layers[-1][0].gave, back[-1][0].gave
    text = prototypes(module.text_tokens, y, batch.query_mask)
    token = nearest(prototypes(module.global_token, x, mask), text)
    given = encoder[0][0].given
    torch.testing.assert_close(given[0][:, :1], token)
    torch.testing.assert_close(given[0][:, 1:], x + random_walk(x + module.local(x, mask), text, mask))
    torch.testing.assert_close(given[1][:, 1:], positions)
    token, clips = encoder[-1][0].gave.split([1, 12], dim=1)
    torch.testing.assert_close(aligned.target, clips)
    s = (module.clip_side(clips) * module.global_side(token)).sum(-1) / 4
    torch.testing.assert_close(aligned.saliency, s)
    assert torch.equal(aligned.cache["token"], token[:, 0]) and torch.equal(aligned.cache["words"], y)
    assert torch.equal(aligned.cache["clips"], encoder[0][0].given[0][:, 1:])


@torch.no_grad()
def test_similarity_is_the_mean_of_its_terms_between_and_within_videos():
    """[UVCOM] Clip by clip; a second window does not count; nor does a null query, but for its clips in the mean."""
    batch = batch_of(windows=[[(2, 5), (7, 8)], [(0, 4)], [], [(0, 1)]])
    module = aligner().double().eval()
    batch = replace(batch, target=batch.target.double(), query=batch.query.double())
    aligned = module(batch)
    token, clips, query = (aligned.cache[name] for name in ("token", "clips", "words"))
    texts, videos, within = [], [], 0.0
    for b, n in enumerate(LENGTHS):
        words = query[b, : int(batch.query_mask[b].sum())]
        texts.append(module.text_sense(torch.stack([module.project_words(w) for w in words]).mean(0)))
        videos.append(module.clip_sense(token[b]))
        weight = [torch.cosine_similarity(module.clip_sense(clips[b, t]), texts[b], dim=0).exp() for t in range(n)]
        for t in range(*([(2, 5), (0, 4), (0, 0), (0, 1)][b])):
            within -= (weight[t] / sum(weight)).log().item()
    between, answered = 0.0, (0, 1, 3)
    for anchors, others in ((texts, videos), (videos, texts)):
        for b in answered:
            weight = {o: torch.cosine_similarity(anchors[b], others[o], dim=0).exp() for o in answered}
            between -= (weight[b] / sum(weight.values())).log().item() / 6
    losses = module.losses(aligned, batch)
    assert set(losses) == TERMS
    assert losses["similarity"].item() == pytest.approx(0.5 * between + 0.5 * within / sum(LENGTHS), rel=1e-5)
