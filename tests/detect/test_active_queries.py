"""Two sets of moment queries: their initial values, the parameters they share, and the detectors that refuse them."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.data import Widths
from mrlib.detect.active_queries import SplitFeedForward, TwoSetDecoder, active_queries, released_queries
from mrlib.detect.dab import DabDecoder
from mrlib.layers import FeedForward
from tests.support.batches import make_batch
from tests.support.detr import run_decoder

K, WIDTHS = 4, Widths(24, 12, 16)
SMALL = {"width": 16, "hidden": 24, "heads": 4, "moment_queries": K, "decoder_layers": 2, "layers": 1}


def trained_retriever(name="amr", **options):
    """A small model in evaluation mode, with no parameter at its initial value."""
    retriever = papers.build(papers.get(name, **SMALL | options), WIDTHS, seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in retriever.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return retriever.eval()


def prepared(retriever, name="active_queries", seed=0, teacher=False):
    """A prepared copy."""
    copied = copy.deepcopy(retriever)
    papers.prepare(copied, name, seed, teacher)
    return copied


def outputs_of(retriever, batch):
    """The heads' outputs for every moment query, and the states that they read."""
    outputs = retriever(batch)[1]
    return {name: x for name, x in outputs.items() if x.ndim > 2}


def with_other_active_set(retriever, scale=0.5):
    """The same retriever, after noise is added to every parameter of the active set."""
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
def test_at_first_both_sets_predict_what_the_first_stage_predicts(joint, batch):
    """[AMR stage 2] Attention to two copies of every key equals attention to one."""
    first = trained_retriever(joint_self_attention=joint)
    before, after = outputs_of(first, batch), outputs_of(prepared(first), batch)
    for name, x in before.items():
        assert after[name].shape[2] == 2 * K
        for half in after[name].split(K, 2):
            torch.testing.assert_close(half, x, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    lines = prepared(first).predict(batch)
    for line, first_line in zip(lines, first.predict(batch), strict=True):
        doubled, single = line["pred_relevant_windows"], first_line["pred_relevant_windows"]
        assert [w[:2] for w in doubled[::2]] == [w[:2] for w in single] == [w[:2] for w in doubled[1::2]]


@torch.no_grad()
def test_one_pass_with_separate_sets_equals_a_pass_for_each_set(batch):
    """[AMR stage 2] The active set has linear layers and initial spans of its own; everything else is shared."""
    first = trained_retriever(joint_self_attention=False)
    both = with_other_active_set(prepared(first))
    second, decoder = copy.deepcopy(first), both.detector.decoder
    second.detector.decoder.moment_queries.load_state_dict(decoder.active_queries.state_dict())
    for layer, split in zip(second.detector.decoder.layers, decoder.layers, strict=True):
        layer.feed_forward.linear1.load_state_dict(split.feed_forward.active1.state_dict())
        layer.feed_forward.linear2.load_state_dict(split.feed_forward.active2.state_dict())
    together, passes = outputs_of(both, batch), [outputs_of(retriever, batch) for retriever in (first, second)]
    for name, x in together.items():
        torch.testing.assert_close(x, torch.cat([outputs[name] for outputs in passes], 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(passes[0]["states"], passes[1]["states"], atol=0.1)


@torch.no_grad()
def test_the_active_set_changes_the_original_states_only_with_joint_self_attention(batch):
    """[AMR stage 2] In the paper's figure the two sets attend to one another."""
    for joint in (True, False):
        first = trained_retriever(joint_self_attention=joint)
        states = outputs_of(with_other_active_set(prepared(first)), batch)["states"][:, :, :K]
        assert torch.allclose(states, outputs_of(first, batch)["states"], atol=1e-4) != joint


def test_only_the_active_linear_layers_and_spans_are_new_parameters():
    """[AMR stage 2] Counted at the paper's size."""
    with torch.device("meta"):
        retriever = papers.build(papers.get("amr"), Widths(5376, 2048, None))
        old = {name: p.numel() for name, p in retriever.named_parameters()}
        active_queries(retriever)
    new = {name: p.numel() for name, p in retriever.named_parameters()}
    kept = {name.replace(".original.", "."): n for name, n in new.items() if "active" not in name}
    assert kept == old
    added = {name: n for name, n in new.items() if "active" in name}
    assert sum(added.values()) == 4 * 525_568 + 20
    assert {name.split(".")[-2] for name in added} == {"active1", "active2", "active_queries"}


def test_linear_layers_are_copied_and_the_activation_is_shared():
    """[AMR stage 2] A change of the active layers leaves the original set alone; a change of the slope affects both."""
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


def test_dropout_acts_on_both_halves_in_training_only():
    """[AMR stage 2] The original half draws first, so that its numbers are those of the first stage."""
    torch.manual_seed(0)
    plain, x = FeedForward(6, 64, 0.5, "relu"), torch.ones(2, 4, 6)
    split = SplitFeedForward(copy.deepcopy(plain)).train()
    assert ((split(x) - split(x)).abs().amax(2) > 1e-3).all()
    torch.manual_seed(1)
    original = split(x)[:, :2]
    torch.manual_seed(1)
    torch.testing.assert_close(original, plain.train()(x[:, :2]))
    assert torch.equal(split.eval()(x), split(x))


def test_both_sets_and_the_shared_parameters_get_gradients():
    """[AMR stage 2] Six windows, more than a set has moment queries, are matched with both sets together."""
    batch = make_batch([9, 7, 12], motion=8, windows=[[(i, i + 1) for i in range(6)], [(0, 2)], []])
    retriever = with_other_active_set(prepared(trained_retriever())).train()
    aligned, outputs = retriever(batch)
    teacher = {"states": outputs["states"].detach()[:, :, :K] + 0.1}
    terms = retriever.losses(aligned, outputs, batch, teacher)
    sum(terms.values()).backward()
    for name, p in retriever.detector.named_parameters():
        if "active" in name or "original" in name or "moment_queries" in name:
            assert p.grad.abs().max() > 0, name
    matched = retriever.detector.match(outputs, retriever.detector.truth(batch))
    assert all(len(set(row)) == 6 and min(row) >= 0 for row in matched[:, 0].tolist())


def test_distillation_pulls_the_original_set_only(batch):
    """[AMR stage 2] One minus the mean cosine of moment query i with the teacher's moment query i, over all layers."""
    first = trained_retriever(joint_self_attention=False)
    student = with_other_active_set(prepared(first))
    aligned, outputs = student(batch)
    teacher = first(batch)[1]
    distill = student.losses(aligned, outputs, batch, teacher)["distill"]
    assert distill.item() == pytest.approx(0, abs=1e-6)
    states = outputs["states"].detach().requires_grad_()
    random = {"states": torch.randn(2, 3, K, 16, generator=torch.Generator().manual_seed(0))}
    loss = student.detector.losses(outputs | {"states": states}, aligned, batch, random)["distill"]
    pairs = itertools.product(range(2), range(3), range(K))
    cosines = [torch.cosine_similarity(states[i], random["states"][i], dim=0).item() for i in pairs]
    assert loss.item() == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, states)
    assert gradient[:, :, :K].any() and not gradient[:, :, K:].any()
    assert "distill" not in student.losses(aligned, outputs, batch)


def test_a_sample_without_clips_has_no_distillation_loss(batch):
    student = with_other_active_set(prepared(trained_retriever()))
    mask = batch.target_mask.clone()
    mask[1] = False
    batch = replace(batch, target_mask=mask)
    outputs = student(batch)[1]
    teacher = {"states": torch.randn(2, 3, K, 16)}
    loss = student.detector.losses(outputs, None, batch, teacher)["distill"]
    rows = torch.tensor([0, 2])
    cosine = torch.cosine_similarity(outputs["states"][:, rows, :K], teacher["states"][:, rows], dim=-1)
    torch.testing.assert_close(loss, 1 - cosine.mean())


@pytest.mark.parametrize("name", ["active_queries", "released_queries"])
def test_no_third_set_can_be_added(name):
    for second in ("active_queries", "released_queries"):
        with pytest.raises(ValueError, match="a DabDecoder with one set"):
            prepared(prepared(trained_retriever(), name), second)


@pytest.mark.parametrize("prepare", [active_queries, released_queries])
@pytest.mark.parametrize("name", ["moment_detr", "matr", "f2sgd"])
def test_a_detector_without_a_dab_decoder_is_refused_and_stays_unchanged(name, prepare):
    retriever = papers.build(papers.get(name, "small"), WIDTHS)
    before = list(retriever.state_dict())
    with pytest.raises(ValueError, match="a DabDecoder with one set"):
        prepare(retriever)
    assert list(retriever.state_dict()) == before and retriever.recipe.get("prepared") is None


@torch.no_grad()
def test_qd_detr_can_have_two_sets(batch):
    """[QD-DETR] Its decoder is the same as AMR's."""
    first = trained_retriever("qd_detr")
    before, after = outputs_of(first, batch), outputs_of(prepared(first), batch)
    for half in after["states"].split(K, 2):
        torch.testing.assert_close(half, before["states"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_released_queries_are_one_new_set_that_a_student_reads_twice_and_a_teacher_once(batch):
    """[AMR stage 2] The seed draws them from a normal distribution; the learned ones are lost."""
    first = trained_retriever(moment_queries=400)
    logits, aligned = {}, first.aligner(batch)
    for role, seed in (("student", 7), ("repeated", 7), ("other seed", 8), ("teacher", 7)):
        decoder = prepared(first, "released_queries", seed, teacher=role == "teacher").detector.decoder
        logits[role] = decoder.moment_queries.weight
        assert type(decoder) is (DabDecoder if role == "teacher" else TwoSetDecoder)
        assert getattr(decoder, "active_queries", None) is None
        spans, sets = logits[role].sigmoid(), 1 if role == "teacher" else 2
        assert torch.equal(run_decoder(decoder, aligned).references[0], spans.repeat(sets, 1).expand(3, -1, -1))
    assert torch.equal(logits["student"], logits["repeated"])
    learned = first.detector.decoder.moment_queries.weight
    for a, b in itertools.combinations([logits["student"], logits["other seed"], learned], 2):
        assert (a - b).abs().mean() > 0.5
    assert logits["student"].std().item() == pytest.approx(1, abs=0.1)
    teacher = prepared(first, "released_queries", 7, teacher=True)
    kept = {n: p for n, p in teacher.named_parameters() if "moment_queries" not in n}
    assert all(torch.equal(p, first.get_parameter(n)) for n, p in kept.items())
    halves = outputs_of(prepared(first, "released_queries", 7), batch)["states"].split(400, 2)
    torch.testing.assert_close(*halves, rtol=1e-4, atol=1e-5)


def test_the_teacher_of_active_queries_stays_unchanged():
    """[AMR stage 2] It keeps its learned moment queries."""
    first = trained_retriever()
    teacher = prepared(first, teacher=True)
    assert teacher.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), first.parameters(), strict=True))
    assert teacher.recipe == first.recipe


@pytest.mark.parametrize("name", ["active_queries", "released_queries"])
def test_a_model_with_two_sets_is_saved_and_loaded(name, batch, tmp_path):
    retriever = with_other_active_set(prepared(trained_retriever(), name))
    checkpoint.save(retriever, tmp_path / "second")
    loaded = checkpoint.load(tmp_path / "second")
    assert loaded.recipe["prepared"] == [name]
    assert loaded.predict(batch) == retriever.predict(batch)
    assert len(loaded.predict(batch)[0]["pred_relevant_windows"]) == 2 * K


def test_preparing_does_not_touch_the_global_random_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    prepared(trained_retriever(), "released_queries", 3)
    assert torch.equal(torch.random.get_rng_state(), before)
