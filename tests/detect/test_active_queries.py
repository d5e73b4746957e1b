"""Two sets of queries: how they begin, what they share, and where there can be none."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.data import Widths
from mrlib.detect.active_queries import SplitFeedForward, active_queries, released_queries
from mrlib.layers import FeedForward
from tests.support.batches import make_batch

K, WIDTHS = 4, Widths(24, 12, 16)
SMALL = {"width": 16, "hidden": 24, "heads": 4, "moment_queries": K, "decoder_layers": 2, "layers": 1}


def retriever_of(name="amr", **options):
    """One that has learned: nothing is as it was initialised."""
    retriever = papers.build(papers.get(name, **SMALL | options), WIDTHS, seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in retriever.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return retriever.eval()


def prepared(retriever, name="active_queries", seed=0, teacher=False):
    other = copy.deepcopy(retriever)
    papers.prepare(other, name, seed, teacher)
    return other


def said(retriever, batch):
    """What the heads say of every query, and the states that they read."""
    outputs = retriever(batch)[1]
    return {name: x for name, x in outputs.items() if x.ndim > 2}


def set_apart(retriever, scale=0.5):
    """Every parameter of the active queries moved."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in retriever.named_parameters():
            if "active" in name:
                p.add_(scale * torch.randn(p.shape, generator=g))
    return retriever


@pytest.fixture
def batch():
    return make_batch([9, 4, 12], motion=8)


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_both_sets_begin_by_saying_what_the_first_stage_says(joint, batch):
    """[AMR stage 2] Of two of everything attention takes as much as of one."""
    first = retriever_of(joint_self_attention=joint)
    before, after = said(first, batch), said(prepared(first), batch)
    for name, x in before.items():
        assert after[name].shape[2] == 2 * K
        for half in after[name].split(K, 2):
            torch.testing.assert_close(half, x, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    lines = prepared(first).predict(batch)
    for line, alone in zip(lines, first.predict(batch), strict=True):
        windows, once = line["pred_relevant_windows"], alone["pred_relevant_windows"]
        assert [w[:2] for w in windows[::2]] == [w[:2] for w in once] == [w[:2] for w in windows[1::2]]


@torch.no_grad()
def test_one_call_with_both_sets_apart_is_two_passes(batch):
    """[AMR stage 2] The second has its own linear layers and its own spans to begin with; all else is shared."""
    first = retriever_of(joint_self_attention=False)
    both = set_apart(prepared(first))
    second, decoder = copy.deepcopy(first), both.detector.decoder
    second.detector.decoder.moment_queries.load_state_dict(decoder.active_queries.state_dict())
    for layer, split in zip(second.detector.decoder.layers, decoder.layers, strict=True):
        layer.feed_forward.linear1.load_state_dict(split.feed_forward.active1.state_dict())
        layer.feed_forward.linear2.load_state_dict(split.feed_forward.active2.state_dict())
    together, passes = said(both, batch), [said(each, batch) for each in (first, second)]
    for name, x in together.items():
        torch.testing.assert_close(x, torch.cat([one[name] for one in passes], 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(passes[0]["states"], passes[1]["states"], atol=0.1)


@torch.no_grad()
def test_sets_that_attend_to_one_another_hear_what_the_other_says(batch):
    """[AMR stage 2] In the figure they do; the first layer's original queries are moved by the active ones."""
    for joint in (True, False):
        first = retriever_of(joint_self_attention=joint)
        states = said(set_apart(prepared(first)), batch)["states"][:, :, :K]
        assert torch.allclose(states, said(first, batch)["states"], atol=1e-4) != joint


def test_new_are_the_linear_layers_and_the_spans_of_the_active_queries_and_nothing_else():
    """[AMR stage 2] Counted at the paper's size."""
    with torch.device("meta"):
        retriever = papers.build(papers.get("amr"), Widths(5376, 2048, None))
        old = {name: p.numel() for name, p in retriever.named_parameters()}
        active_queries(retriever)
    new = {name: p.numel() for name, p in retriever.named_parameters()}
    moved = {name.replace(".original.", "."): n for name, n in new.items() if "active" not in name}
    assert moved == old
    added = {name: n for name, n in new.items() if "active" in name}
    assert sum(added.values()) == 4 * 525_568 + 20
    assert {name.split(".")[-2] for name in added} == {"active1", "active2", "active_queries"}


def test_what_is_copied_is_a_copy_and_what_is_shared_is_shared():
    """[AMR stage 2] Activation, its slope and its place, serve both."""
    torch.manual_seed(0)
    plain = FeedForward(6, 8, 0.0, "prelu")
    split, x = SplitFeedForward(copy.deepcopy(plain)), torch.randn(2, 4, 6)
    torch.testing.assert_close(split(x), plain(x))
    split.active2.bias.data += 1.0
    torch.testing.assert_close(split(x)[:, 2:], plain(x)[:, 2:] + 1)
    torch.testing.assert_close(split(x)[:, :2], plain(x)[:, :2])
    plain.activation.weight.data.fill_(-1.0)
    before = split(x)
    split.original.activation.weight.data.fill_(-1.0)
    assert (split(x) - before).abs().amax((0, 2)).gt(1e-3).all()


def test_both_sets_learn_and_what_is_shared_learns_from_both():
    """[AMR stage 2] Six windows, more than a set has queries, are matched with both sets together."""
    batch = make_batch([9, 7, 12], motion=8, windows=[[(i, i + 1) for i in range(6)], [(0, 2)], []])
    retriever = set_apart(prepared(retriever_of())).train()
    aligned, outputs = retriever(batch)
    taught = {"states": outputs["states"].detach()[:, :, :K] + 0.1}
    terms = retriever.losses(aligned, outputs, batch, taught)
    sum(terms.values()).backward()
    for name, p in retriever.detector.named_parameters():
        if "active" in name or "original" in name or "moment_queries" in name:
            assert p.grad.abs().max() > 0, name
    matched = retriever.detector.match(outputs, retriever.detector.truth(batch))
    assert all(len(set(row)) == 6 and min(row) >= 0 for row in matched[:, 0].tolist())


def test_the_teacher_holds_the_first_set_and_leaves_the_second_free(batch):
    """[AMR stage 2] One less the mean cosine of query i and the teacher's query i, of every layer."""
    first = retriever_of(joint_self_attention=False)
    student = set_apart(prepared(first))
    aligned, outputs = student(batch)
    taught = first(batch)[1]
    distill = student.losses(aligned, outputs, batch, taught)["distill"]
    assert distill.item() == pytest.approx(0, abs=1e-6)
    states = outputs["states"].detach().requires_grad_()
    other = {"states": torch.randn(2, 3, K, 16, generator=torch.Generator().manual_seed(0))}
    loss = student.detector.losses(outputs | {"states": states}, aligned, batch, other)["distill"]
    pairs = itertools.product(range(2), range(3), range(K))
    cosines = [torch.cosine_similarity(states[i], other["states"][i], dim=0).item() for i in pairs]
    assert loss.item() == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, states)
    assert gradient[:, :, :K].any() and not gradient[:, :, K:].any()
    assert "distill" not in student.losses(aligned, outputs, batch)


def test_a_row_of_padding_is_held_to_nothing(batch):
    student = set_apart(prepared(retriever_of()))
    mask = batch.target_mask.clone()
    mask[1] = False
    missing = replace(batch, target_mask=mask)
    outputs = student(missing)[1]
    taught = {"states": torch.randn(2, 3, K, 16)}
    ours = student.detector.losses(outputs, None, missing, taught)["distill"]
    rest = torch.tensor([0, 2])
    cosine = torch.cosine_similarity(outputs["states"][:, rest, :K], taught["states"][:, rest], dim=-1)
    torch.testing.assert_close(ours, 1 - cosine.mean())


@pytest.mark.parametrize("name", ["active_queries", "released_queries"])
def test_a_second_set_is_added_once(name):
    for again in ("active_queries", "released_queries"):
        with pytest.raises(ValueError, match="a DabDecoder with one set"):
            prepared(prepared(retriever_of(), name), again)


@pytest.mark.parametrize("prepare", [active_queries, released_queries])
@pytest.mark.parametrize("name", ["moment_detr", "matr", "f2sgd"])
def test_a_detector_without_such_a_decoder_is_refused_and_left_as_it_is(name, prepare):
    retriever = papers.build(papers.get(name, "small"), WIDTHS)
    before = list(retriever.state_dict())
    with pytest.raises(ValueError, match="a DabDecoder with one set"):
        prepare(retriever)
    assert list(retriever.state_dict()) == before and retriever.recipe.get("prepared") is None


@torch.no_grad()
def test_another_detector_with_that_decoder_can_have_two_sets(batch):
    """[QD-DETR] Its decoder is the same."""
    first = retriever_of("qd_detr")
    before, after = said(first, batch), said(prepared(first), batch)
    for half in after["states"].split(K, 2):
        torch.testing.assert_close(half, before["states"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_released_queries_are_one_new_set_asked_twice_and_by_a_teacher_once(batch):
    """[AMR stage 2] Drawn from a normal distribution by the seed; the learned ones are lost."""
    first = retriever_of(moment_queries=400)
    anchors = {}
    for role, seed in (("student", 7), ("again", 7), ("other", 8), ("teacher", 7)):
        changed = prepared(first, "released_queries", seed, teacher=role == "teacher")
        decoder = changed.detector.decoder
        anchors[role] = decoder.moment_queries.weight
        assert decoder.active_queries is None and decoder.sets == (1 if role == "teacher" else 2)
        assert decoder.anchors().shape == (400 * decoder.sets, 2)
        assert torch.equal(decoder.anchors()[-400:], decoder.moment_queries.weight)
    assert torch.equal(anchors["student"], anchors["again"])
    learned = first.detector.decoder.moment_queries.weight
    for one, other in itertools.combinations([anchors["student"], anchors["other"], learned], 2):
        assert (one - other).abs().mean() > 0.5
    assert anchors["student"].std().item() == pytest.approx(1, abs=0.1)
    teacher = prepared(first, "released_queries", 7, teacher=True)
    same = {n: p for n, p in teacher.named_parameters() if "moment_queries" not in n}
    assert all(torch.equal(p, first.get_parameter(n)) for n, p in same.items())
    halves = said(prepared(first, "released_queries", 7), batch)["states"].split(400, 2)
    torch.testing.assert_close(*halves, rtol=1e-4, atol=1e-5)


def test_the_teacher_of_the_paper_stays_as_it_was(batch):
    """[AMR stage 2] It keeps the queries it learned, and says what it said."""
    first = retriever_of()
    teacher = prepared(first, teacher=True)
    assert teacher.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), first.parameters(), strict=True))
    assert teacher.recipe == first.recipe


@pytest.mark.parametrize("name", ["active_queries", "released_queries"])
def test_a_second_set_is_saved_and_loaded(name, batch, tmp_path):
    retriever = set_apart(prepared(retriever_of(), name))
    checkpoint.save(retriever, tmp_path / "second")
    again = checkpoint.load(tmp_path / "second")
    assert again.recipe["prepared"] == [name]
    assert again.predict(batch) == retriever.predict(batch)
    assert len(again.predict(batch)[0]["pred_relevant_windows"]) == 2 * K


def test_preparing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    prepared(retriever_of(), "released_queries", 3)
    assert torch.equal(torch.random.get_rng_state(), before)
