"""MATR's aligner: the costs, the two alignments, and the part of the target that the decoder reads."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib.align.dual_stage import (
    METHODS,
    aligned_part,
    build_dual_stage,
    contrastive_cost,
    cosine_cost,
    drop_cost,
    masked_cosine_cost,
    whole_target,
    with_reversed_queries,
)
from mrlib.data import Widths
from mrlib.ops import alignment
from tests.support.batches import alone, make_batch
from tests.support.modules import shaken, watched

LENGTHS = [9, 6, 1, 12]
SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 24, "dropout": 0.0, "input_dropout": 0.0}
SMALL |= {"tef": False, "activation": "relu", "pre_norm": False, "query_positions": "sine", "places": 75}
SMALL |= {"decoder_layers": 2, "moment_queries": 3, "gamma": 0.1, "align": "subsequence", "pre": True, "post": True}
SMALL |= {"cost": "cosine", "typed": False, "memory": "part"}


def aligner(**options):
    torch.manual_seed(0)
    return build_dual_stage(Widths(16, 12, None), **SMALL | options)


def fused(model, batch):
    return model.fuse(batch.target, batch.target_mask, batch.query, batch.query_mask)


@pytest.fixture
def batch():
    return make_batch(LENGTHS, words=7)


def test_cosine_cost_equals_its_definition():
    """[MATR §3.2], clip by clip; a clip of zeros costs 1 and its gradient is finite."""
    g = torch.Generator().manual_seed(0)
    target, query = torch.randn(2, 4, 5, generator=g), torch.randn(2, 3, 5, generator=g)
    for b in range(2):
        for i in range(4):
            for j in range(3):
                t, q = target[b, i], query[b, j]
                expected = 1 - (t @ q) / (t.norm() * q.norm())
                torch.testing.assert_close(cosine_cost(target, query)[b, i, j], expected)
    zero = torch.zeros(1, 1, 5, requires_grad=True)
    cost = cosine_cost(zero, query[:1])
    assert (cost == 1).all()
    cost.sum().backward()
    assert zero.grad.isfinite().all()


def test_cosine_cost_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 3, 5).bfloat16()
        assert cosine_cost(x, x).dtype == torch.float32


def test_contrastive_cost_equals_its_definition():
    """The released cost, query clip by query clip, over the real clips and "none of them"; 0 on padding."""
    batch = make_batch(LENGTHS, words=7, query=16)
    # the cosine of padded target clips with the first query clip is -1, the smallest there is
    target = torch.where(batch.target_mask[..., None], batch.target, -batch.query[:, :1])
    cost = contrastive_cost(target, batch.query, batch.target_mask, batch.query_mask)
    for b, n in enumerate(LENGTHS):
        m = int(batch.query_mask[b].sum())
        cosine = 1 - cosine_cost(batch.target[b : b + 1, :n], batch.query[b : b + 1, :m])[0]
        for j in range(m):
            logits = torch.cat([cosine[:, j], cosine.min()[None]]) / 0.1
            expected = -(logits.softmax(0)[:-1] + 1e-5).log()
            torch.testing.assert_close(cost[b, :n, j], expected, rtol=1e-5, atol=1e-5)
        assert not cost[b, n:].any() and not cost[b, :, m:].any()


def test_contrastive_cost_of_two_target_clips_by_hand():
    """Cosines 1 and 0 with the query clip; "none" has the smallest cosine of the pair, 0."""
    target, query = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]), torch.tensor([[[1.0, 0.0]]])
    cost = contrastive_cost(target, query, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    total = math.exp(10) + 1 + 1
    expected = [-math.log(math.exp(10) / total + 1e-5), -math.log(1 / total + 1e-5)]
    torch.testing.assert_close(cost[0, :, 0], torch.tensor(expected))


def test_masked_cosine_cost_is_the_cosine_cost(batch):
    query = batch.query[..., :12]
    cost = masked_cosine_cost(batch.target[..., :12], query, batch.target_mask, batch.query_mask)
    assert torch.equal(cost, cosine_cost(batch.target[..., :12], query))


def test_decoder_memory_is_the_part_from_the_first_matched_clip_to_the_last():
    """By hand: paths over clips 1 to 2, over clip 3 only, and without a cell; without a path, all real clips."""
    mask = torch.tensor([[True, True, True, True], [True, True, True, True], [True, True, False, False]])
    path = torch.zeros(3, 4, 2, dtype=torch.bool)
    path[0, 1, 0] = path[0, 2, 1] = path[1, 3] = True
    part = [[False, True, True, False], [False, False, False, True], [False] * 4]
    assert aligned_part(mask, path).tolist() == part
    assert torch.equal(aligned_part(mask, None), mask)
    assert torch.equal(whole_target(mask, path), mask) and torch.equal(whole_target(mask, None), mask)


def test_no_gradient_flows_into_the_drop_cost():
    cost = torch.rand(1, 3, 2, requires_grad=True)
    assert not drop_cost(cost, torch.tensor([3]), torch.tensor([2])).requires_grad


def test_drop_cost_is_a_quantile_of_the_real_costs_of_a_pair():
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(3, 5, 4, generator=g)
    n, m = torch.tensor([5, 3, 0]), torch.tensor([4, 2, 4])
    expected = [cost[0].flatten().quantile(0.3), cost[1, :3, :2].flatten().quantile(0.3), 0.0]
    torch.testing.assert_close(drop_cost(cost, n, m), torch.tensor(expected))


@pytest.mark.parametrize("align", METHODS)
def test_losses_are_the_costs_of_the_alignments_per_query_clip(batch, align):
    model = aligner(align=align).eval()
    aligned = model(batch)
    losses = model.losses(aligned, batch)
    assert list(losses) == ["align_pre", "align_post"]
    n, m = batch.lengths, batch.query_mask.sum(1)
    joint = fused(model, batch)
    compared = {"pre": (joint.target_projected, joint.query_projected), "post": (joint.target, joint.query)}
    for name, (target, query) in compared.items():
        cost = cosine_cost(target, query)
        if align == "tcc":
            values = alignment.tcc(target, query, n, m)
        elif align == "drop":
            values = alignment.drop_dtw(cost, drop_cost(cost, n, m), 0.1, n, m) / m
        elif align == "mean":
            values = alignment.mean_dtw(cost, 0.1, n, m) / m
        else:
            values = alignment.soft_dtw(cost, 0.1, n, m, topology=align) / m
        torch.testing.assert_close(losses[f"align_{name}"], values.mean())


@pytest.mark.parametrize("align", METHODS)
def test_paths_are_the_hard_alignments(batch, align):
    """Sample by sample without padding; False on padding."""
    model = aligner(align=align).eval()
    aligned, joint = model(batch), fused(model, batch)
    compared = {"pre": (joint.target_projected, joint.query_projected), "post": (joint.target, joint.query)}
    assert aligned.paths.keys() == compared.keys()
    for name, (target, query) in compared.items():
        for b, n in enumerate(LENGTHS):
            m = int(batch.query_mask[b].sum())
            t, q, lengths = target[b : b + 1, :n], query[b : b + 1, :m], (torch.tensor([n]), torch.tensor([m]))
            cost = cosine_cost(t, q)
            if align == "tcc":
                path = alignment.tcc_alignment(t, q, *lengths)
            elif align == "drop":
                path = alignment.drop_alignment(cost, drop_cost(cost, *lengths), *lengths)
            else:
                topology = "global" if align == "mean" else align
                path = alignment.hard_alignment(cost, *lengths, topology=topology)
            assert torch.equal(aligned.paths[name][b, :n, :m], path[0])
            assert not aligned.paths[name][b, n:].any() and not aligned.paths[name][b, :, m:].any()


@torch.no_grad()
def test_context_is_the_output_of_the_decoder(batch):
    """[MATR §3.2] Zeros with the moment queries as positions, layer by layer, then a norm; sample by sample."""
    model = shaken(aligner())
    aligned, joint = model(batch), fused(model, batch)
    start, end = alignment.span_of(aligned.paths["post"])
    for b in range(4):
        part = slice(int(start[b]), int(end[b]))
        places = model.moment_queries.weight[None]
        memory, positions = joint.target[b : b + 1, part], joint.target_positions[b : b + 1, part]
        x, mask = torch.zeros(1, 3, 16), torch.ones(memory.shape[:2], dtype=torch.bool)
        for layer in model.decoder:
            x = layer(x, places, memory, positions, mask)
        torch.testing.assert_close(aligned.context[b], model.norm(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pre", "post", "align", "names"),
    [(True, False, "subsequence", ["align_pre"]), (False, True, "otam", ["align_post"]), (True, True, "none", [])],
)
def test_only_the_chosen_alignments_have_losses_and_paths(batch, pre, post, align, names):
    model = aligner(pre=pre, post=post, align=align)
    aligned = model(batch)
    assert [name for name, value in model.losses(aligned, batch).items() if value] == names
    assert [f"align_{name}" for name in aligned.paths] == names


def test_decoder_reads_the_aligned_part_only(batch):
    """[MATR §3.2] Clips outside [s, e) after the encoder do not change the context."""
    model = aligner().eval()
    aligned = model(batch)
    start, end = alignment.span_of(aligned.paths["post"])
    assert (end - start)[0] < 9, "some clips are outside"
    joint = fused(model, batch)
    t = torch.arange(12)
    part = (t >= start[:, None]) & (t < end[:, None])
    outside = torch.where(part[..., None], joint.target, joint.target + 7)
    inside = torch.where(part[..., None], joint.target + 7, joint.target)
    describe = lambda x: model._decode_context(x, joint.target_positions, batch.target_mask, aligned.paths["post"])  # noqa: E731
    torch.testing.assert_close(describe(outside), aligned.context, rtol=0, atol=0)
    assert not torch.allclose(describe(inside), aligned.context)
    whole = aligner(memory="whole").eval()
    calls = watched(whole.decoder)
    assert not torch.allclose(whole(batch).context, aligned.context)
    assert all(torch.equal(call.given[4], batch.target_mask) for (call,) in calls)


def test_padding_and_batch_mates_change_nothing(batch):
    model = aligner().eval()
    together = model(batch)
    single_losses = []
    for b, n in enumerate(LENGTHS):
        m = int(batch.query_mask[b].sum())
        one = replace(alone(batch, b), labels=batch.labels[b : b + 1])
        single = model(one)
        torch.testing.assert_close(together.target[b, :n], single.target[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.query_global[b], single.query_global[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.context[b], single.context[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.paths["post"][b, :n, :m], single.paths["post"][0])
        single_losses.append(torch.stack(list(model.losses(single, one).values())))
    losses = torch.stack(list(model.losses(together, batch).values()))
    torch.testing.assert_close(torch.stack(single_losses).mean(0), losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align", ["subsequence", "tcc"])
def test_query_that_runs_backwards_is_aligned_in_reverse_order(batch, align):
    """Its cost is that of the clips in the order in which they happened."""
    model = aligner(align=align).eval()
    backwards = torch.tensor([True, False, True, False])
    aligned = model(batch)
    losses = model.losses(aligned, replace(batch, labels=replace(batch.labels, backwards=backwards)))
    n, m = batch.lengths, batch.query_mask.sum(1)
    for name, comparison in aligned.cache.items():
        cost, query = comparison.cost.clone(), comparison.query.clone()
        for b in (0, 2):
            cost[b, :, : m[b]] = cost[b, :, : m[b]].flip(1)
            query[b, : m[b]] = query[b, : m[b]].flip(0)
        if align == "tcc":
            expected = alignment.tcc(comparison.target, query, n, m).mean()
        else:
            expected = (alignment.soft_dtw(cost, 0.1, n, m, topology="subsequence") / m).mean()
        torch.testing.assert_close(losses[f"align_{name}"], expected)
        reverse = with_reversed_queries(comparison, backwards, m)
        assert torch.equal(reverse.cost, cost) and torch.equal(reverse.query, query)
        assert torch.equal(reverse.target, comparison.target)
    forwards = model.losses(aligned, batch)["align_post"]
    if align == "tcc":  # a cycle returns to its start in either order: only the inputs above show the reversal
        torch.testing.assert_close(losses["align_post"], forwards)
    else:
        assert (losses["align_post"] - forwards).abs() > 1e-4


def test_released_alignment_before_fusion_includes_the_token_types(batch):
    plain, typed = (aligner(typed=t).eval()(batch).cache["pre"] for t in (False, True))
    torch.testing.assert_close(typed.target, plain.target + aligner().fuse.token_type.weight[1])
    torch.testing.assert_close(typed.query, plain.query + aligner().fuse.token_type.weight[0])


@pytest.mark.parametrize("align", [*METHODS, "none"])
def test_degenerate_batches_give_finite_output_and_gradients(align):
    """One sample; a query of one clip; a query longer than the target; samples of padding only."""
    batch = make_batch([2, 1, 5], words=9)
    empty = torch.tensor([[True], [True], [False]])
    cases = [batch[0:1], replace(batch, query=batch.query[:, :1], query_mask=batch.query_mask[:, :1])]
    cases += [batch, replace(batch, target_mask=batch.target_mask & empty)]
    cases += [replace(batch, query_mask=batch.query_mask & empty)]
    cases += [replace(batch, target_mask=batch.target_mask & empty, query_mask=batch.query_mask & empty)]
    for case in cases:
        model = aligner(align=align)
        aligned = model(case)
        total = aligned.target[case.target_mask].sum() + aligned.context.sum() + aligned.query_global.sum()
        (total + sum(model.losses(aligned, case).values())).backward()
        assert total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_gets_a_gradient_from_losses_and_context(batch):
    """Except for the input projection of the decoder's first self-attention, whose values are zero."""
    model = shaken(aligner())
    aligned, g = model(batch), torch.Generator().manual_seed(0)
    total = sum(model.losses(aligned, batch).values())
    for x in (aligned.context, aligned.target[aligned.mask]):
        total = total + (x * torch.randn(x.shape, generator=g)).sum()
    total.backward()
    for name, p in model.named_parameters():
        if name == "decoder.0.self_attn.in_proj_weight":
            assert p.grad.abs().max() < 1e-5
        else:
            assert p.grad.abs().max() > 1e-6, name


def test_query_may_be_words():
    """Queries are sequences of vectors of any width."""
    batch = make_batch([5, 4], joint=None, motion=16, words=4, query=12)
    assert aligner()(batch).context.shape == (2, 3, 16)


def test_without_moment_queries_there_is_no_decoder(batch):
    model = aligner(moment_queries=0)
    assert model(batch).context is None and not [n for n, _ in model.named_parameters() if "decoder" in n]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "dtw"}, "align must be one of subsequence, global, otam, mean, drop, tcc, none"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"cost": "l2"}, "cost must be cosine or contrastive"),
        ({"memory": "all"}, "memory must be part or whole"),
        ({"moment_queries": -1}, "moment_queries must be 0 or more"),
        ({"gamma": float("inf")}, "gamma must be above 0"),
        ({"decoder_layers": 0}, "decoder_layers must be 1 or more"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)


def test_gradient_of_the_contrastive_cost_reaches_both_projections(batch):
    batch = make_batch(LENGTHS, words=7)
    model = aligner(cost="contrastive", align="mean")
    aligned = model(batch)
    sum(model.losses(aligned, batch).values()).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "project" in n)
