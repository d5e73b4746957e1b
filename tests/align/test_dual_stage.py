"""MATR's aligner: the cost, what the two alignments do and what the decoder sees."""

from dataclasses import replace

import pytest
import torch

from mrlib.align.dual_stage import (
    METHODS,
    DualStageAligner,
    contrastive_cost,
    cosine_cost,
    drop_cost,
    turned,
)
from mrlib.align.joint import JointEncoder
from mrlib.data import Widths
from mrlib.layers import Sizes
from mrlib.ops import alignment
from tests.support.batches import alone, make_batch

LENGTHS = [9, 6, 1, 12]
SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 24, "dropout": 0.0, "input_dropout": 0.0}
SMALL |= {"tef": False, "activation": "relu"}


def aligner(**options):
    torch.manual_seed(0)
    fuse = JointEncoder(Widths(16, 12, None), Sizes(**SMALL))
    return DualStageAligner(
        fuse, **{"heads": 2, "hidden": 24, "layers": 2, "moment_queries": 3, "dropout": 0.0} | options
    )


@pytest.fixture
def batch():
    return make_batch(LENGTHS, words=7)


def test_the_cost_is_one_minus_the_cosine():
    """[MATR §3.2], clip by clip."""
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


def test_the_cost_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 3, 5).bfloat16()
        assert cosine_cost(x, x).dtype == torch.float32


def test_the_contrastive_cost_asks_which_clip_or_none():
    """The released cost from its description, loop by loop; padding is nowhere in it."""
    batch = make_batch(LENGTHS, words=7, query=16)
    cost = contrastive_cost(batch.target, batch.query, batch.target_mask, batch.query_mask)
    for b, n in enumerate(LENGTHS):
        m = int(batch.query_mask[b].sum())
        cosine = 1 - cosine_cost(batch.target[b : b + 1, :n], batch.query[b : b + 1, :m])[0]
        for j in range(m):
            logits = torch.cat([cosine[:, j], cosine.min()[None]]) / 0.1
            expected = -(logits.softmax(0)[:-1] + 1e-5).log()
            torch.testing.assert_close(cost[b, :n, j], expected, rtol=1e-5, atol=1e-5)
        assert not cost[b, n:].any() and not cost[b, :, m:].any()


def test_the_drop_cost_is_a_quantile_of_the_pairs_own_costs():
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(3, 5, 4, generator=g)
    n, m = torch.tensor([5, 3, 0]), torch.tensor([4, 2, 4])
    expected = [cost[0].flatten().quantile(0.3), cost[1, :3, :2].flatten().quantile(0.3), 0.0]
    torch.testing.assert_close(drop_cost(cost, n, m), torch.tensor(expected))


@pytest.mark.parametrize("align", METHODS)
def test_losses_are_the_alignments_values_per_query_clip(batch, align):
    model = aligner(align=align).eval()
    aligned = model(batch)
    losses = model.losses(aligned, batch)
    assert list(losses) == ["align_pre", "align_post"]
    n, m = batch.lengths, batch.query_mask.sum(1)
    joint = model.fuse(batch)
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


@pytest.mark.parametrize(
    ("pre", "post", "align", "names"),
    [(True, False, "subsequence", ["align_pre"]), (False, True, "otam", ["align_post"]), (True, True, "none", [])],
)
def test_only_the_alignments_that_are_asked_for_are_there(batch, pre, post, align, names):
    model = aligner(pre=pre, post=post, align=align)
    aligned = model(batch)
    assert [name for name, value in model.losses(aligned, batch).items() if value] == names
    assert [f"align_{name}" for name in aligned.paths] == names


def test_the_decoder_reads_the_aligned_part_and_nothing_else(batch):
    """[MATR §3.2] A clip outside [s, e) may change as it likes after the encoder."""
    model = aligner().eval()
    aligned = model(batch)
    start, end = alignment.span_of(aligned.paths["post"])
    assert (end - start)[0] < 9, "something is left out"
    joint = model.fuse(batch)
    t = torch.arange(12)
    part = (t >= start[:, None]) & (t < end[:, None])
    outside = torch.where(part[..., None], joint.target, joint.target + 7)
    inside = torch.where(part[..., None], joint.target + 7, joint.target)
    describe = lambda x: model._describe(x, joint.target_positions, batch.target_mask, aligned.paths["post"])  # noqa: E731
    torch.testing.assert_close(describe(outside), aligned.context, rtol=0, atol=0)
    assert not torch.allclose(describe(inside), aligned.context)
    whole = aligner(memory="whole").eval()
    assert not torch.allclose(whole(batch).context, aligned.context)


def test_padding_and_batch_mates_change_nothing(batch):
    model = aligner().eval()
    together = model(batch)
    losses = []
    for b, n in enumerate(LENGTHS):
        m = int(batch.query_mask[b].sum())
        one = replace(alone(batch, b), labels=batch.labels[b : b + 1])
        separate = model(one)
        torch.testing.assert_close(together.target[b, :n], separate.target[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.query_global[b], separate.query_global[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.context[b], separate.context[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.paths["post"][b, :n, :m], separate.paths["post"][0])
        losses.append(torch.stack(list(model.losses(separate, one).values())))
    whole = torch.stack(list(model.losses(together, batch).values()))
    torch.testing.assert_close(torch.stack(losses).mean(0), whole, rtol=1e-4, atol=1e-5)


def test_a_query_that_runs_backwards_is_aligned_turned_round(batch):
    """Its cost is that of the clips in the order in which they happened."""
    model = aligner().eval()
    backwards = torch.tensor([True, False, True, False])
    turned_batch = replace(batch, labels=replace(batch.labels, backwards=backwards))
    aligned = model(batch)
    got = model.losses(aligned, turned_batch)
    n, m = batch.lengths, batch.query_mask.sum(1)
    for name, stage in aligned.cache.items():
        cost = stage.cost.clone()
        for b in (0, 2):
            cost[b, :, : m[b]] = cost[b, :, : m[b]].flip(1)
        expected = (alignment.soft_dtw(cost, 0.1, n, m, topology="subsequence") / m).mean()
        torch.testing.assert_close(got[f"align_{name}"], expected)
        torch.testing.assert_close(turned(stage, backwards, m).cost, cost)
    assert got["align_post"] != model.losses(aligned, batch)["align_post"]


def test_a_released_stage_before_fusion_has_the_token_types(batch):
    plain, typed = (aligner(typed=t).eval()(batch).cache["pre"] for t in (False, True))
    torch.testing.assert_close(typed.target, plain.target + aligner().fuse.token_type.weight[1])
    torch.testing.assert_close(typed.query, plain.query + aligner().fuse.token_type.weight[0])


@pytest.mark.parametrize("align", [*METHODS, "none"])
def test_odd_batches_give_numbers_and_finite_gradients(align):
    """One sample; a query of one clip; a query longer than the target; rows of nothing but padding."""
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


def test_words_can_ask_too():
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
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aligner(**options)


def test_the_released_costs_gradient_reaches_both(batch):
    batch = make_batch(LENGTHS, words=7)
    model = aligner(cost="contrastive", align="mean")
    aligned = model(batch)
    sum(model.losses(aligned, batch).values()).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "project" in n)
