"""Properties of every aligner: padding, labels, gradients, precision, and that it trains."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from tests.support.batches import LENGTHS, alone, batch_of, spoilt

TERMS = {
    **dict.fromkeys(("anchor", "raw", "concat", "separate"), set()),
    "joint": {"inter", "intra"},
    "joint_memory": {"margin"},
    "text_to_video": {"margin", "contrast", "negative"},
    "trilinear": {"margin", "contrast", "vtc", "ctc", "discriminate"},
    "dual_stage": {"align_pre", "align_post"},
    "taskweave": {"margin", "contrast", "negative"},
    "uvcom": {"margin", "contrast", "negative", "similarity"},
    "cg_detr": {"margin", "contrast", "negative", "words_margin", "words_contrast", "words_negative", "words_match"},
}
CASES = [(name, {}) for name in papers.ALIGNERS]
CASES += [(name, {"query_positions": "learned"}) for name in ("joint", "joint_memory", "text_to_video")]
CASES += [(name, {"pre_norm": True}) for name in ("joint", "joint_memory", "dual_stage")]
TRAINED = [name for name in papers.ALIGNERS if TERMS[name]]
every_case = pytest.mark.parametrize(("name", "options"), CASES)


def aligner(name, **options):
    """Narrower than the small size; neither has dropout."""
    narrow = {} if name in ("anchor", "raw", "concat") else {"width": 16, "hidden": 24}
    paper = papers.get("f2sgd", "small", aligner=name, **narrow | options)
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


def batch_without_random_draws(**options):
    """Pairs of clips are given, and one clip of every sample is relevant."""
    batch = batch_of(windows=[[(1, 2)], [(3, 4)], [(4, 5)], [(0, 1)]], **options)
    pairs = torch.tensor([[[1, 0]], [[3, 2]], [[1, 0]], [[-1, -1]]])
    return replace(batch, labels=replace(batch.labels, pairs=pairs))


def visible_fields(aligned, b):
    """All that a detector may read of a sample, without padding."""
    words, context = aligned.query_mask, aligned.context_mask
    parts = [(aligned.target, aligned.mask), (aligned.saliency, aligned.mask), (aligned.query, words)]
    parts += [(aligned.context, context), (aligned.context_positions, context)]
    return [aligned.query_global[b], *(x[b] if m is None else x[b, m[b]] for x, m in parts if x is not None)]


@every_case
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(name, options):
    module = aligner(name, **options).eval()
    for given in (batch_of(), batch_of(pad_to=15), spoilt(batch_of(pad_to=15))):
        together = module(given)
        for b in range(len(LENGTHS)):
            for x, y in zip(visible_fields(together, b), visible_fields(module(alone(given, b)), 0), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_padding_does_not_change_the_losses(name):
    module, batch, wide = aligner(name).eval(), batch_without_random_draws(), batch_without_random_draws(pad_to=15)
    terms = [module.losses(module(x), x) for x in (batch, wide, spoilt(wide))]
    for others in terms[1:]:
        for term, value in terms[0].items():
            torch.testing.assert_close(others[term], value, rtol=1e-4, atol=1e-5, msg=lambda m, t=term: f"{t}: {m}")


@pytest.mark.parametrize("name", papers.ALIGNERS)
@torch.no_grad()
def test_only_losses_read_labels(name):
    module, batch = aligner(name).eval(), batch_of()
    with_labels, without = module(batch), module(batch.unlabelled())
    for b in range(len(LENGTHS)):
        fields = zip(visible_fields(with_labels, b), visible_fields(without, b), strict=True)
        assert all(torch.equal(x, y) for x, y in fields)
    assert set(module.losses(without, batch)) == TERMS[name]


# the lower bound of the largest gradient of a parameter, where it is not 1e-5; 0: no loss reaches the parameter
LEAST = {
    "cg_detr": {"": 1e-3},
    "uvcom": {"": 1e-4, "text_tokens": 1e-7},  # the initial prototypes matter little after five iterations
    # a constant added to the saliency of all clips changes no rank and no softmax
    **dict.fromkeys(("joint_memory", "trilinear"), {"saliency.bias": 0}),
}


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "dual_stage"])  # its decoder needs a detector
def test_every_parameter_gets_a_gradient(name):
    module, batch = aligner(name), batch_without_random_draws()
    aligned, least = module(batch), LEAST.get(name, {})
    g = torch.Generator().manual_seed(0)
    projection = (aligned.target * torch.randn(aligned.target.shape, generator=g))[aligned.mask].sum()
    (projection + sum(module.losses(aligned, batch).values())).backward()
    for key, p in module.named_parameters():
        bound = least.get(key, least.get("", 1e-5))
        assert (p.grad.abs().max() > (bound or 1e-5)) == (bound > 0), key


@pytest.mark.parametrize(("name", "options"), [*CASES, ("cg_detr", {"dropout": 0.1})])
def test_degenerate_batches_give_finite_losses_and_gradients(name, options):
    """Samples of padding, without words or without windows; batches and videos of one."""
    batch, nothing = batch_of([5, 6, 4], windows=[[(1, 3)], [(0, 6)], []]), torch.zeros_like
    mask, words = batch.target_mask.clone(), batch.query_mask.clone()
    mask[2], words[1] = False, False
    for given in (
        replace(batch, target_mask=mask, query_mask=words),
        replace(batch, target_mask=nothing(mask), query_mask=nothing(words)),
        batch_of([5, 6, 4], windows=[[], [], []]),
        batch_of([5]),
        batch_of([1, 1]),
        batch_of([1]),
    ):
        module = aligner(name, **options)
        aligned = module(given)
        loss = sum(module.losses(aligned, given).values()) + aligned.target[given.target_mask].square().sum()
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_changes_saliency_and_losses_little(name):
    module, batch = aligner(name).eval(), batch_without_random_draws()
    with torch.autocast("cpu", torch.bfloat16):
        half = module(batch)
        terms = module.losses(half, batch)
    sum(terms.values()).backward()
    full = module(batch)
    if full.saliency is not None:
        assert (half.saliency.float() - full.saliency)[batch.target_mask].abs().max() < 0.1
    for term, value in module.losses(full, batch).items():
        assert terms[term].item() == pytest.approx(value.item(), abs=0.03, rel=0.01), term


@pytest.mark.parametrize("detector", ["similarity_map", "boundary", "dab"])
@pytest.mark.parametrize("name", ["uvcom", "cg_detr"])
def test_eight_steps_lower_the_losses_with_every_detector(name, detector):
    """On the simulator: the sum of all losses, and that of the aligner's."""
    paper = papers.get("qd_detr", "small", aligner=name, detector=detector, width=16, hidden=24)
    data = papers.open_split(paper, "sim", split="train", n=64)
    retriever, batch = papers.build(paper, data), data.batch(range(32))
    pairs = torch.stack([batch.labels.saliency.argmax(1), batch.labels.saliency.argmin(1)], -1)[:, None]
    batch = replace(batch, labels=replace(batch.labels, pairs=pairs))
    optimiser, totals = torch.optim.Adam(retriever.parameters(), 2e-3), []
    for _ in range(8):
        terms = retriever.losses(*retriever(batch), batch)
        assert set(terms) > TERMS[name]
        totals.append([sum(terms.values()).item(), sum(terms[term] for term in TERMS[name]).item()])
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
    assert all(after < before for before, after in zip(totals[0], totals[-1], strict=True))
    assert all(line["pred_relevant_windows"] for line in retriever.predict(batch))


@pytest.mark.parametrize("name", ["joint_memory", "text_to_video", "trilinear", "taskweave", "uvcom", "cg_detr"])
def test_gradient_of_the_saliency_reaches_the_projection_of_the_clips(name):
    network = aligner(name)
    network(batch_of()).saliency.sum().backward()
    gradients = [p.grad for p in network.project_target.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", ["joint_memory", "text_to_video", "taskweave", "uvcom", "cg_detr"])
def test_query_global_is_the_mean_of_the_real_words(name):
    """The 2D-TAN detector compares moments with it."""
    batch = batch_of()
    aligned = aligner(name).eval()(batch)
    assert batch.query_mask.sum(1).unique().numel() > 1
    for query_global, query, mask in zip(aligned.query_global, aligned.query, batch.query_mask, strict=True):
        words = [word for word, is_real in zip(query, mask, strict=True) if is_real]
        torch.testing.assert_close(query_global, sum(words) / len(words))
