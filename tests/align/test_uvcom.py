"""UVCOM's aligner against its formulas, its similarity against loops, and what must not show in it."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.align.uvcom import Local, nearest, prototypes, walk
from mrlib.data import Widths
from mrlib.layers import sine_positions
from tests.support.batches import LENGTHS, batch_of, drawn
from tests.support.modules import watched

SIZES = {"width": 16, "hidden": 24, "heads": 4, "layers": 2, "dropout": 0.0, "input_dropout": 0.0}
TERMS = {"margin", "contrast", "negative", "similarity"}


def aligner(**options):
    paper = papers.get("f2sgd", aligner="uvcom", **{**SIZES, **options})
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


def test_alone_it_has_the_released_numbers():
    """[UVCOM] Three layers of each kind, 5 prototypes of the words and 30 of the clips, inside width 1,024."""
    module = papers.build(papers.get("f2sgd", aligner="uvcom"), Widths(512, 512, 512)).aligner
    assert [len(stack) for stack in (module.layers, module.back, module.encoder)] == [3, 3, 3]
    assert module.text_tokens.shape == (5, 256) and module.global_token.shape == (30, 256)
    assert module.clip_sense.layers[1].weight.shape == module.text_sense.layers[1].weight.shape == (1024, 1024)
    attention = module.layers[0].cross_attn
    assert (attention.heads, attention.dropout, module.project_target[0].normalized_shape) == (8, 0.1, (514,))


def test_prototypes_are_their_formula_on_every_sample_whatever_stands_on_padding():
    """[UVCOM] Number by number."""
    n, x, start = [5, 2, 1], drawn(3, 5, 4), drawn(3, 4, seed=1)
    mask = torch.arange(5) < torch.tensor(n)[:, None]
    found = prototypes(start, x, mask)
    for b in range(3):
        mu = start
        for _ in range(5):
            gamma = torch.zeros(3, n[b], dtype=torch.float64)
            for t in range(n[b]):
                near = [(-((m / m.norm() - x[b, t] / x[b, t].norm()) ** 2).sum() / (2 * 1.2**2)).exp() for m in mu]
                for k in range(3):
                    gamma[k, t] = near[k] / sum(near)
            mu = torch.stack([sum(gamma[k, t] * x[b, t] for t in range(n[b])) / gamma[k].sum() for k in range(3)])
        torch.testing.assert_close(found[b], mu)


def test_the_walk_is_the_inverse_of_all_clips_times_what_starts():
    """[UVCOM] With the matrix as large as the video written out, for each sample without its padding."""
    n, x, text = [6, 3, 1], drawn(3, 6, 4), drawn(3, 2, 4, seed=1)
    mask = torch.arange(6) < torch.tensor(n)[:, None]
    found = walk(x, text, mask)
    for b in range(3):
        clips, e = x[b, : n[b]], text[b]
        zeta = torch.zeros(2, n[b], dtype=torch.float64)
        for t in range(n[b]):
            likes = [math.exp(5 * torch.cosine_similarity(e[k], clips[t], dim=0)) for k in range(2)]
            for k in range(2):
                zeta[k, t] = likes[k] / sum(likes)
        transition = zeta.T @ (zeta / zeta.sum(1, keepdim=True))
        torch.testing.assert_close(transition.sum(1), torch.ones(n[b], dtype=torch.float64))
        inverse = torch.linalg.inv(torch.eye(n[b], dtype=torch.float64) - 0.25 * transition)
        torch.testing.assert_close(found[b, : n[b]], 0.5 * inverse @ (0.5 * zeta.T @ e + clips))


def test_prototypes_and_walk_have_the_gradients_of_their_formulas():
    x, start = drawn(2, 4, 3).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(lambda x, start: prototypes(start, x, mask), (x, start))
    assert torch.autograd.gradcheck(lambda x, text: walk(x, text, mask)[mask], (x, drawn(2, 2, 3).requires_grad_()))


@torch.no_grad()
def test_neighbours_are_seen_by_three_convolutions_without_what_stands_on_padding():
    """[UVCOM] A clip outside is 0 to the middle one."""
    torch.manual_seed(0)
    local, n, x = Local(4).double(), [5, 2], drawn(2, 5, 4)
    found = local(x, torch.arange(5) < torch.tensor(n)[:, None])
    for b in range(2):
        before = [local.before(x[b, t]) for t in range(n[b])]
        for t in range(n[b]):
            total = local.neighbours.bias.clone()
            for shift in (-1, 0, 1):
                if 0 <= t + shift < n[b]:
                    total += local.neighbours.weight[:, :, 1 + shift] @ before[t + shift]
            torch.testing.assert_close(found[b, t], local.after(total))


def test_the_prototype_that_is_most_like_the_words_on_average_is_chosen():
    """[UVCOM] Not the one that is most like one of them, and not the longest."""
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, -1, -1)
    gathered = torch.tensor([[[2.0, 0.0], [0.1, 0.1], [0.0, 9.0]], [[0.0, 3.0], [3.0, -1.0], [-1.0, -1.0]]])
    assert nearest(gathered, text).tolist() == [[[pytest.approx(0.1), pytest.approx(0.1)]], [[0.0, 3.0]]]


@torch.no_grad()
def test_both_stacks_start_from_the_input_and_the_encoder_from_what_comes_back():
    """[UVCOM] Words are asked without positions, clips with theirs; the rest is put together from its parts."""
    module, batch = aligner().eval(), batch_of()
    layers, back, encoder = watched(module.layers), watched(module.back), watched(module.encoder)
    aligned = module(batch)
    target, words, mask = aligned.cache["target"], aligned.query, batch.target_mask
    positions = sine_positions(mask, 16)
    for layer, x, keys in ((layers[0], target, words), (back[0], words, target)):
        given = layer[0].given
        assert torch.equal(given[0], x) and torch.equal(given[2].values, keys)
    torch.testing.assert_close(back[1][0].given[2].keys, target + positions)
    assert torch.equal(back[1][0].given[2].mask, mask) and not back[1][0].given[1].any()
    torch.testing.assert_close(layers[1][0].given[1], positions)
    x, y = layers[-1][0].gave, back[-1][0].gave
    text = prototypes(module.text_tokens, y, batch.query_mask)
    token = nearest(prototypes(module.global_token, x, mask), text)
    given = encoder[0][0].given
    torch.testing.assert_close(given[0][:, :1], token)
    torch.testing.assert_close(given[0][:, 1:], x + walk(x + module.local(x, mask), text, mask))
    torch.testing.assert_close(given[1][:, 1:], positions)
    whole, clips = encoder[-1][0].gave.split([1, 12], dim=1)
    torch.testing.assert_close(aligned.target, clips)
    s = (module.clip_side(clips) * module.global_side(whole)).sum(-1) / 4
    torch.testing.assert_close(aligned.saliency, s)


@torch.no_grad()
def test_similarity_is_half_of_what_tells_videos_apart_and_half_of_what_finds_the_first_window():
    """[UVCOM] Sample by sample, clip by clip; a second window does not count, nor does a sample without any."""
    batch = batch_of(windows=[[(2, 5), (7, 8)], [(0, 4)], [], [(0, 1)]])
    module = aligner().double().eval()
    batch = replace(batch, target=batch.target.double(), query=batch.query.double())
    aligned = module(batch)
    whole, clips, words = aligned.cache["more"]
    texts, videos, within = [], [], 0.0
    for b, n in enumerate(LENGTHS):
        real = words[b, : int(batch.query_mask[b].sum())]
        texts.append(module.text_sense(torch.stack([module.project_words(w) for w in real]).mean(0)))
        videos.append(module.clip_sense(whole[b]))
        near = [torch.cosine_similarity(module.clip_sense(clips[b, t]), texts[b], dim=0).exp() for t in range(n)]
        for t in range(*([(2, 5), (0, 4), (0, 0), (0, 1)][b])):
            within -= (near[t] / sum(near)).log().item()
    between = 0.0
    for own, others in ((texts, videos), (videos, texts)):
        for b in range(4):
            near = [torch.cosine_similarity(own[b], o, dim=0).exp() for o in others]
            between -= (near[b] / sum(near)).log().item() / 8
    found = module.losses(aligned, batch)
    assert set(found) == TERMS
    assert found["similarity"].item() == pytest.approx(0.5 * between + 0.5 * within / sum(LENGTHS), rel=1e-5)
