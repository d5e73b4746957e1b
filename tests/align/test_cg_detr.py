"""CG-DETR's aligner against its equations, and its losses against loops."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.align.cg_detr import AdaptiveAttention, AdaptiveLayer, DropPath
from mrlib.align.words import Words
from mrlib.data import Widths
from mrlib.layers import sine_positions
from tests.support.batches import batch_of, drawn
from tests.support.modules import watched

SIZES = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "input_dropout": 0.0, "dummies": 3, "prompts": 4}
TERMS = {"margin", "contrast", "negative", "words_margin", "words_contrast", "words_negative", "words_match"}


def aligner(**options):
    paper = papers.get("f2sgd", aligner="cg_detr", **{**SIZES, **options})
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


def test_default_sizes_are_the_released_ones():
    """[CG-DETR] Two layers from words to clips, three among clips, two for 45 dummies, ten prompts."""
    module = papers.build(papers.get("f2sgd", aligner="cg_detr"), Widths(512, 512, 512)).aligner
    assert [len(stack) for stack in (module.layers, module.encoder, module.dummy_encoder)] == [2, 3, 2]
    assert module.dummies.shape == (45, 256) and module.global_token.shape == (10, 256)
    for layer in (*module.layers, *module.encoder, *module.dummy_encoder):
        assert isinstance(layer.dropout, DropPath) and layer.dropout.p == 0.1
        assert layer.feed_forward.linear1.out_features == 1024


def test_token_types_are_initialised_small():
    """[CG-DETR] With a standard deviation of 0.02."""
    module = aligner(width=1024)
    for token_type in (module.clip_kind, module.word_kind):
        assert 0.017 < token_type.std() < 0.023


def test_drop_path_drops_whole_samples():
    """[CG-DETR] A tenth of them on average; the others are divided by 0.9."""
    torch.manual_seed(0)
    drop, x = DropPath(0.1), 1 + torch.rand(4000, 3, 2)
    rows = (drop(x) / x).flatten(1)
    assert torch.equal(rows.round(decimals=4), rows[:, :1].round(decimals=4).expand_as(rows))
    assert {round(v, 3) for v in rows[:, 0].tolist()} == {0.0, round(1 / 0.9, 3)}
    assert 0.08 < (rows[:, 0] == 0).float().mean() < 0.12
    assert torch.equal(drop.eval()(x), x)


@torch.no_grad()
def test_adaptive_attention_equals_its_equation():
    """[CG-DETR] Head by head and number by number; the output of a sample without words is the bias."""
    torch.manual_seed(0)
    attention, d, heads, dummies = AdaptiveAttention(6, 2, 0.0, 2).double(), 6, 2, 2
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    x, y, n = drawn(3, 4, d), drawn(3, 5, d, seed=1), [5, 4, 2]
    output, kappa = attention(x, y, y, torch.arange(5) < torch.tensor(n)[:, None])
    (w_q, w_k, w_v), (b_q, b_k, b_v) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    for b in range(3):
        for t in range(4):
            gathered, share = torch.zeros(d, dtype=torch.float64), 0.0
            for h in range(heads):
                of_head = slice(3 * h, 3 * h + 3)
                q = (w_q @ x[b, t] + b_q)[of_head]
                weights = [(q @ (w_k @ y[b, s] + b_k)[of_head] / math.sqrt(3)).exp() for s in range(n[b])]
                for s in range(dummies, n[b]):
                    a = weights[s] / sum(weights)
                    share = share + a / heads
                    gathered[of_head] += a * (w_v @ y[b, s] + b_v)[of_head]
            torch.testing.assert_close(output[b, t], attention.out_proj(gathered))
            assert kappa[b, t].item() == pytest.approx(float(share), abs=1e-12)
    torch.testing.assert_close(output[2], attention.out_proj.bias.expand(4, -1))


def test_adaptive_attention_has_the_gradients_of_its_equation():
    torch.manual_seed(0)
    attention = AdaptiveAttention(4, 2, 0.0, 1).double()
    x, y = drawn(2, 2, 4).requires_grad_(), drawn(2, 3, 4, seed=1).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda x, y: attention(x, y, y, mask), (x, y))


@torch.no_grad()
def test_layer_equals_that_of_qd_detr_with_and_without_words():
    """[CG-DETR] Without words, attention gives its bias, as torch's does without keys."""
    torch.manual_seed(0)
    layer = AdaptiveLayer(8, 2, 12, 0.0, "relu", dummies=2).eval().double()
    nn.init.normal_(layer.cross_attn.out_proj.bias)
    x, p, y = drawn(2, 3, 8), drawn(2, 3, 8, seed=1), drawn(2, 5, 8, seed=2)
    words, f = Words(y + 1, y, torch.ones(2, 5, dtype=torch.bool)), layer.feed_forward
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    attention.load_state_dict(layer.cross_attn.state_dict())
    attended, kappa = layer.cross_attn(x + p, words.keys, words.values, words.mask)
    output, output_kappa = layer(x, p, words)
    for result, a in ((output, attended), (layer.without_words(x), attention(x, y[:, :0], y[:, :0])[0])):
        z = x + a
        torch.testing.assert_close(result, layer.norm2(z + f.linear2(f.linear1(layer.norm1(z)).relu())))
    assert torch.equal(output_kappa, kappa)


@torch.no_grad()
def test_dummies_attend_to_the_words_and_precede_them():
    """[CG-DETR] Words are unchanged and have no position; positions of dummies are in the keys, not in the values."""
    module, batch = aligner().eval(), batch_of()
    query = module.project_query(batch.query)
    words = module.words(query, batch.query_mask)
    for b in range(4):
        n = int(batch.query_mask[b].sum())
        x = torch.cat([module.dummies, query[b, :n]])[None]
        places = torch.cat([module.dummy_positions, torch.zeros(n, 16)])[None]
        for layer in module.dummy_encoder:
            x = layer(x, places, torch.ones(1, 3 + n, dtype=torch.bool))
        torch.testing.assert_close(words.values[b, :3], x[0, :3])
        torch.testing.assert_close(words.values[b, 3:], query[b])
        torch.testing.assert_close(words.keys[b, : 3 + n], words.values[b, : 3 + n] + places[0])
        assert words.mask[b].tolist() == [True] * 3 + batch.query_mask[b].tolist()
    assert not torch.allclose(words.values[0, :3], words.values[1, :3])


@torch.no_grad()
def test_saliency_token_is_the_mean_clip_plus_the_best_prompt():
    """[CG-DETR] Number by number; clips are weighed by kappa."""
    module = aligner().double()
    x, kappa, n = drawn(3, 5, 16), drawn(3, 5, seed=1).sigmoid(), [5, 3, 1]
    token = module.saliency_token(x, torch.arange(5) < torch.tensor(n)[:, None], kappa)
    prompts, chosen = module.global_token, []
    for b in range(3):
        mean, weights = x[b, : n[b]].mean(0), torch.zeros(4, dtype=torch.float64)
        for t in range(n[b]):
            match = [torch.cosine_similarity(x[b, t] - mean, p, dim=0).exp() for p in prompts]
            for j in range(4):
                # kappa with a mean of 1 over the video, then the mean over the video
                weights[j] += kappa[b, t] / kappa[b, : n[b]].mean() * match[j] / sum(match) / n[b]
        chosen.append(int(weights.argmax()))
        torch.testing.assert_close(token[b, 0], mean + weights.max() * prompts[chosen[-1]], rtol=1e-5, atol=1e-6)
    assert chosen[0] != chosen[1]


@torch.no_grad()
def test_several_best_prompts_are_summed():
    """Lighthouse takes two; number by number."""
    module = aligner(best_prompts=2).double()
    x, kappa, mask = drawn(1, 5, 16), drawn(1, 5, seed=1).sigmoid(), torch.ones(1, 5, dtype=torch.bool)
    mean, weights = x[0].mean(0), torch.zeros(4, dtype=torch.float64)
    for t in range(5):
        match = torch.cosine_similarity((x[0, t] - mean)[None], module.global_token, dim=1).softmax(0)
        weights += kappa[0, t] / kappa.sum() * match
    first, second = weights.argsort(descending=True)[:2].tolist()
    expected = mean + weights[first] * module.global_token[first] + weights[second] * module.global_token[second]
    torch.testing.assert_close(module.saliency_token(x, mask, kappa)[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_prompts": 5}, "best_prompts must be from 1 to prompts, not 5"),
        ({"best_prompts": 0}, "best_prompts must be from 1 to prompts, not 0"),
        ({"masks": "none"}, "masks must be keys or released, not 'none'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)


@torch.no_grad()
def test_saliency_token_accepts_kappa_of_half_precision():
    module, x, mask = aligner(), drawn(2, 5, 16).float(), torch.ones(2, 5, dtype=torch.bool)
    kappa = drawn(2, 5, seed=1).sigmoid().bfloat16()
    token = module.saliency_token(x, mask, kappa)
    torch.testing.assert_close(token, module.saliency_token(x, mask, kappa.float()))


def test_no_gradient_of_the_saliency_token_flows_into_the_mean_or_kappa():
    """[CG-DETR] Nor into a video of one clip, which equals its mean."""
    module = aligner()
    x, kappa = torch.randn(2, 5, 16, requires_grad=True), torch.rand(2, 5, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    module.saliency_token(x, mask, kappa).square().sum().backward()
    assert kappa.grad is None and x.grad[0].any() and not x.grad[1].any()
    assert all(module.global_token.grad.any(1))
    assert x.grad[0].sum(0).abs().max() > 1e-6
    # the same with constants in the places of the mean and of kappa
    constant, clips = x[0].mean(0).detach(), x[0].detach().clone().requires_grad_()
    match = torch.stack([torch.cosine_similarity(clips - constant, p, dim=1) for p in module.global_token], 1).softmax(
        1
    )
    share = kappa[0].detach() / kappa[0].detach().sum()
    weight, best = (share @ match).max(0)
    (constant + weight * module.global_token[best]).square().sum().backward()
    torch.testing.assert_close(x.grad[0], clips.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_encoded_token_is_added_to_the_clips_and_gives_the_saliency():
    """[CG-DETR] The token passes the layers without words; κ is the mean over layers."""
    module, batch = aligner().eval(), batch_of()
    layers, encoder = watched(module.layers), watched(module.encoder)
    aligned = module(batch)
    mask, target = batch.target_mask, aligned.cache["target"] + module.clip_kind
    words = module.words(aligned.query + module.word_kind, batch.query_mask)
    given = layers[0][0].given
    torch.testing.assert_close(given[0], target)
    torch.testing.assert_close(given[1], sine_positions(mask, 16))
    torch.testing.assert_close(given[2].keys, words.keys)
    kappa = (layers[0][0].gave[1] + layers[1][0].gave[1]) / 2
    torch.testing.assert_close(aligned.cache["kappa"], kappa)
    token = module.saliency_token(target, mask, kappa)
    token = module.layers[1].without_words(module.layers[0].without_words(token))
    torch.testing.assert_close(encoder[0][0].given[0], torch.cat([token, layers[1][0].gave[0]], 1))
    token, clips = encoder[-1][0].gave.split([1, 12], dim=1)
    torch.testing.assert_close(aligned.target, clips + token)
    s = (module.clip_side(clips + token) * module.global_side(token)).sum(-1) / 4
    torch.testing.assert_close(aligned.saliency, s)


@torch.no_grad()
def test_losses_equal_their_definitions_for_the_saliency_and_for_kappa():
    """[CG-DETR] Sample by sample. Sample 0 has no negative query here: its contrast is among its own clips."""
    module, batch = aligner().eval(), batch_of([9, 4, 12])
    pairs = torch.tensor([[[1, 0], [8, 3]], [[3, 2], [-1, -1]], [[1, 0], [11, 5]]])
    batch = replace(batch, labels=replace(batch.labels, negative=torch.tensor([-1, 0, 0]), pairs=pairs))
    aligned = module(batch)
    negative_aligned = module(replace(batch, query=batch.query[[0, 0, 0]], query_mask=batch.query_mask[[0, 0, 0]]))
    losses = module.losses(aligned, batch)
    assert set(losses) == TERMS
    kappa, negative_kappa = aligned.cache["kappa"], negative_aligned.cache["kappa"]
    assert ((kappa > 0) & (kappa < 1))[batch.target_mask].all()
    cases = (("", aligned.saliency, negative_aligned.saliency), ("words_", kappa, negative_kappa))
    for prefix, score, negative_score in cases:
        margins, contrast, negative = 0.0, 0.0, 0.0
        for b, n in enumerate([9, 4, 12]):
            margins += sum(max(0.0, 0.2 + score[b, j] - score[b, i]) for i, j in pairs[b].tolist() if i >= 0)
            rows = [score[b, :n]] + ([negative_score[b, :n]] if b else [])
            log_share = (torch.cat(rows) / 0.5).log_softmax(0)[:n][batch.labels.relevant[b, :n]]
            contrast -= log_share.mean() * 6 / 12 / 3  # 6 points on each relevant clip: ranks 1 to 6
            if b:
                p = negative_score[b, :n].double() if prefix else negative_score[b, :n].double().sigmoid()
                negative -= (1 - p).log().sum() / 2
        assert losses[f"{prefix}margin"].item() == pytest.approx(2 * float(margins) / 5, rel=1e-5)
        assert losses[f"{prefix}contrast"].item() == pytest.approx(float(contrast), rel=1e-5)
        assert losses[f"{prefix}negative"].item() == pytest.approx(float(negative), rel=1e-5)
    relevant, real = batch.labels.relevant & batch.target_mask, batch.target_mask
    match = -(kappa[relevant].log().sum() + (1 - kappa)[real & ~relevant].log().sum()) / 25
    assert losses["words_match"].item() == pytest.approx(match.item(), rel=1e-5)


@torch.no_grad()
def test_losses_of_a_kappa_of_half_precision_are_finite():
    """[CG-DETR] Shares of 0 and 1, which half precision rounds to, cost at most log(1e6) per clip."""
    module, batch = aligner().eval(), batch_of()
    aligned = module(batch)
    kappa = (aligned.cache["kappa"] > 0.5).half()
    losses = module.losses(replace(aligned, cache=aligned.cache | {"kappa": kappa}), batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    relevant = batch.labels.relevant[batch.target_mask]
    wrong = ((kappa[batch.target_mask] > 0.5) != relevant).float().mean()
    assert losses["words_match"].item() == pytest.approx(wrong.item() * math.log(1e6), rel=1e-2)


@torch.no_grad()
def test_kappa_is_at_most_one_under_dropout():
    """[CG-DETR] Dropout scales the weights that it keeps, which may then sum to more than 1."""
    torch.manual_seed(0)
    module, batch, sums = aligner(dropout=0.5, layers=1, heads=1, dummies=1), batch_of(), []
    module.layers[0].cross_attn.register_forward_hook(lambda _, given, gave: sums.append(gave[1]))
    kappa = module(batch).cache["kappa"]
    assert sums[0].max() > 1 and kappa.max() == 1
    assert torch.equal(kappa, sums[0].clamp(max=1))


@torch.no_grad()
def test_both_margins_use_the_same_random_pairs():
    """[CG-DETR] With κ as the saliency, both margins are equal for every seed."""
    module, batch, margins = aligner().eval(), batch_of(), set()
    batch = replace(batch, labels=replace(batch.labels, saliency_mask=torch.zeros(4, dtype=torch.bool)))
    aligned = module(batch)
    kappa = aligned.cache["kappa"]
    for seed in range(4):
        torch.manual_seed(seed)
        losses = module.losses(replace(aligned, saliency=kappa), batch)
        assert torch.equal(losses["margin"], losses["words_margin"])
        margins.add(losses["margin"].item())
    assert len(margins) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dummies": 0}, "dummies must be 1 or more"),
        ({"prompts": 0}, "prompts must be 1 or more"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
        ({"activation": "swish"}, "unknown activation 'swish'; known: relu, gelu, prelu"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)
