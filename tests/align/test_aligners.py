"""What holds of every aligner: nothing but real clips and words shows in it, and all of it learns."""

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
    """Smaller still than the small size, and like that without dropout."""
    narrow = {} if name in ("anchor", "raw", "concat") else {"width": 16, "hidden": 24}
    paper = papers.get("f2sgd", "small", aligner=name, **narrow | options)
    return papers.build(paper, Widths(24, 12, 16), seed=3).aligner


def paired(**options):
    """Nothing is left to draw: pairs of clips are given, and of every sample one clip is relevant."""
    batch = batch_of(windows=[[(1, 2)], [(3, 4)], [(4, 5)], [(0, 1)]], **options)
    pairs = torch.tensor([[[1, 0]], [[3, 2]], [[1, 0]], [[-1, -1]]])
    return replace(batch, labels=replace(batch.labels, pairs=pairs))


def shown(aligned, b):
    """All that a detector may read of a sample."""
    words, beside = aligned.query_mask, aligned.context_mask
    parts = [(aligned.target, aligned.mask), (aligned.saliency, aligned.mask), (aligned.query, words)]
    parts += [(aligned.context, beside), (aligned.context_positions, beside)]
    return [aligned.query_global[b], *(x[b] if m is None else x[b, m[b]] for x, m in parts if x is not None)]


@every_case
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(name, options):
    module = aligner(name, **options).eval()
    for given in (batch_of(), batch_of(pad_to=15), spoilt(batch_of(pad_to=15))):
        together = module(given)
        for b in range(len(LENGTHS)):
            for x, y in zip(shown(together, b), shown(module(alone(given, b)), 0), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_losses_see_no_padding(name):
    module = aligner(name).eval()
    terms = [module.losses(module(x), x) for x in (paired(), paired(pad_to=15), spoilt(paired(pad_to=15)))]
    for others in terms[1:]:
        for term, value in terms[0].items():
            torch.testing.assert_close(others[term], value, rtol=1e-4, atol=1e-5, msg=lambda m, t=term: f"{t}: {m}")


@pytest.mark.parametrize("name", papers.ALIGNERS)
@torch.no_grad()
def test_labels_are_read_by_losses_alone(name):
    module, batch = aligner(name).eval(), batch_of()
    with_labels, without = module(batch), module(batch.unlabelled())
    for b in range(len(LENGTHS)):
        assert all(torch.equal(x, y) for x, y in zip(shown(with_labels, b), shown(without, b), strict=True))
    assert set(module.losses(without, batch)) == TERMS[name]


# smallest largest number of a parameter's gradient, where it is not 1e-5; 0 for what no loss can reach
LEAST = {
    "cg_detr": {"": 1e-3},
    "uvcom": {"": 1e-4, "text_tokens": 1e-7},  # five rounds forget where prototypes began
    # a constant added to the saliency of all clips changes no rank and no softmax
    **dict.fromkeys(("joint_memory", "trilinear"), {"saliency.bias": 0}),
}


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "dual_stage"])  # whose tokens begin alike
def test_every_parameter_learns(name):
    module, batch = aligner(name), paired()
    aligned, least = module(batch), LEAST.get(name, {})
    g = torch.Generator().manual_seed(0)
    reads = (aligned.target * torch.randn(aligned.target.shape, generator=g))[aligned.mask].sum()
    (reads + sum(module.losses(aligned, batch).values())).backward()
    for key, p in module.named_parameters():
        bound = least.get(key, least.get("", 1e-5))
        assert (p.grad.abs().max() > (bound or 1e-5)) == (bound > 0), key


@pytest.mark.parametrize(("name", "options"), [*CASES, ("cg_detr", {"dropout": 0.1})])
def test_rows_of_padding_without_words_or_windows_give_finite_losses_and_gradients(name, options):
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
def test_half_precision_gives_nearly_the_same(name):
    module, batch = aligner(name).eval(), paired()
    with torch.autocast("cpu", torch.bfloat16):
        half = module(batch)
        terms = module.losses(half, batch)
    sum(terms.values()).backward()
    whole = module(batch)
    if whole.saliency is not None:
        assert (half.saliency.float() - whole.saliency)[batch.target_mask].abs().max() < 0.1
    for term, value in module.losses(whole, batch).items():
        assert terms[term].item() == pytest.approx(value.item(), abs=0.03, rel=0.01), term


@pytest.mark.parametrize("detector", ["similarity_map", "boundary", "dab"])
@pytest.mark.parametrize("name", ["uvcom", "cg_detr"])
def test_a_few_steps_lower_the_loss_before_any_detector(name, detector):
    """On the simulator: that of all, and that of the aligner."""
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
def test_what_a_saliency_learns_reaches_the_projection_of_the_clips(name):
    network = aligner(name)
    network(batch_of()).saliency.sum().backward()
    gradients = [p.grad for p in network.project_target.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", ["joint_memory", "text_to_video", "taskweave", "uvcom", "cg_detr"])
def test_the_query_as_one_vector_is_the_mean_of_its_real_words(name):
    """It is what a map of all moments is asked with."""
    batch = batch_of()
    aligned = aligner(name).eval()(batch)
    assert batch.query_mask.sum(1).unique().numel() > 1
    for whole, query, mask in zip(aligned.query_global, aligned.query, batch.query_mask, strict=True):
        words = [word for word, there in zip(query, mask, strict=True) if there]
        torch.testing.assert_close(whole, sum(words) / len(words))
