"""Saliency losses against loops over their definitions; ranking pairs and negative queries case by case."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib.align import Aligned, saliency
from tests.support.batches import make_batch


@pytest.fixture
def batch():
    """Scores of 0..12 on the relevant clips; the last sample is padding."""
    batch = make_batch([9, 6, 12, 5], windows=[[(2, 6), (7, 9)], [(0, 6)], [(3, 4)], [(1, 3)]])
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 13, batch.target_mask.shape, generator=g).float() * batch.labels.relevant
    labels = replace(batch.labels, saliency=scores)
    mask = batch.target_mask.clone()
    mask[3] = False
    return replace(batch, target_mask=mask, labels=labels)


def logits_of(batch, seed=1):
    return torch.randn(batch.target_mask.shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_margin_of_hand_worked_pairs():
    """[Moment-DETR] 0.2 - 0.5 costs nothing, 0.2 + 0.3 costs 0.5; a pair of -1 does not count."""
    s = torch.tensor([[1.0, 0.5, 0.8]])
    assert saliency.margin(s, torch.tensor([[[0, 1], [1, 2]]])).item() == pytest.approx(2 * 0.5 / 2)
    assert saliency.margin(s, torch.tensor([[[1, 2], [-1, -1]]])).item() == pytest.approx(2 * 0.5)
    assert saliency.margin(s, torch.tensor([[[-1, -1]]])).item() == 0


def contrast_by_loops(s, y, mask):
    total, rows = 0.0, sum(bool(m.any()) for m in mask)
    for rank in range(1, 12):
        for b in range(len(s)):
            real = [t for t in range(s.shape[1]) if mask[b, t]]
            high = [t for t in real if y[b, t] >= rank]
            if not high:
                continue
            log_sum = math.log(sum(math.exp(s[b, t].item() / 0.5) for t in real))
            total -= sum(s[b, t].item() / 0.5 - log_sum for t in high) / len(high)
    return total / 12 / rows


def test_rank_contrast_equals_its_definition(batch):
    """[QD-DETR] A loop over ranks, samples and clips; a sample of padding adds nothing and its gradient is finite."""
    s = logits_of(batch)
    value = saliency.rank_contrast(s, batch.labels.saliency, batch.target_mask)
    expected = contrast_by_loops(s.double(), batch.labels.saliency, batch.target_mask)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert s.grad.isfinite().all() and s.grad[~batch.target_mask].abs().sum() == 0


def test_negative_loss_equals_its_definition(batch):
    """[QD-DETR] Also if 1 - sigma underflows."""
    s, mask = logits_of(batch), batch.target_mask
    value = saliency.negative(s, mask, 3)
    expected = -(1 - s.double().sigmoid()).log()[mask].sum() / 3
    torch.testing.assert_close(value.double(), expected)
    value.backward()
    assert s.grad.isfinite().all() and s.grad[~mask].abs().sum() == 0
    big = torch.full_like(s, 500.0)
    assert saliency.negative(big, mask, 1).item() == pytest.approx(500 * mask.sum().item())


def test_losses_of_a_saliency_of_half_precision_are_computed_in_full_precision(batch):
    s, pairs = logits_of(batch).detach().bfloat16(), torch.tensor([[[0, 1]], [[1, 0]], [[2, 3]], [[-1, -1]]])
    for loss in (
        lambda s: saliency.margin(s, pairs),
        lambda s: saliency.rank_contrast(s, batch.labels.saliency, batch.target_mask),
        lambda s: saliency.negative(s, batch.target_mask, 3),
    ):
        assert loss(s).dtype == torch.float32
        assert torch.equal(loss(s), loss(s.float()))


def test_pairs_are_best_and_worst_relevant_clip_and_a_relevant_and_an_irrelevant_clip(batch):
    """[Moment-DETR] If all clips are relevant the first pair comes twice; a sample of padding has no pairs."""
    labels, drawn_pairs = batch.labels, {0: set(), 2: set()}
    for seed in range(300):
        torch.manual_seed(seed)
        pairs = saliency.ranking_pairs(batch)
        assert pairs.shape == (4, 2, 2)
        for b in range(3):
            score, inside = labels.saliency[b], labels.relevant[b] & batch.target_mask[b]
            best, worst = pairs[b, 0].tolist()
            assert inside[best] and inside[worst]
            assert score[best] == score[inside].max() and score[worst] == score[inside].min()
        assert torch.equal(pairs[1, 1], pairs[1, 0])
        for b in (0, 2):
            high, low = pairs[b, 1].tolist()
            assert labels.relevant[b, high] and batch.target_mask[b, low] and not labels.relevant[b, low]
            drawn_pairs[b].add((high, low))
        assert (pairs[3] == -1).all()
    assert len(drawn_pairs[0]) == 6 * 3 and len(drawn_pairs[2]) == 1 * 11  # every pair is drawn


def best_and_worst(scores, relevant, lengths):
    """The first pair of every sample, with these scores and relevant clips."""
    batch = make_batch(lengths, joint=4, windows=[[(0, 1)]] * len(lengths))
    labels = replace(batch.labels, saliency=scores, relevant=relevant)
    return saliency.ranking_pairs(replace(batch, labels=labels))[:, 0].tolist()


def test_best_and_worst_clip_are_relevant_even_if_other_clips_score_higher_or_lower():
    """[Moment-DETR] By hand: annotators may score a clip outside the windows, and scores may stand on padding."""
    scores = torch.tensor([[9.0, 3.0, 5.0, 4.0, 1.0], [2.0, 6.0, 4.0, 12.0, 0.0]])
    relevant = torch.tensor([[False, True, True, True, False], [True, True, True, True, True]])
    # clips 0 and 4 of the first sample are irrelevant, clips 3 and 4 of the second are padding
    assert best_and_worst(scores, relevant, [5, 3]) == [[2, 1], [1, 0]]


def test_best_and_worst_clip_are_relevant_even_if_all_relevant_scores_are_zero():
    """[Moment-DETR] Neither pair of a sample takes its zeros from irrelevant clips, which come first here."""
    relevant = torch.tensor([[False, False, True, True, False]])
    assert best_and_worst(torch.zeros(1, 5), relevant, [5]) == [[2, 2]]


def test_pairs_without_scores_are_clips_inside_and_outside_the_windows_drawn_twice(batch):
    """[QD-DETR] As in Charades-STA; if all clips are inside there is no pair."""
    batch = replace(batch, labels=replace(batch.labels, saliency_mask=torch.zeros(4, dtype=torch.bool)))
    differ = 0
    for seed in range(50):
        torch.manual_seed(seed)
        pairs = saliency.ranking_pairs(batch)
        assert (pairs[[1, 3]] == -1).all()
        for high, low in pairs[0].tolist():
            assert batch.labels.relevant[0, high] and not batch.labels.relevant[0, low] and low < 9
        differ += not torch.equal(pairs[0, 0], pairs[0, 1])
    assert differ > 25


def test_pairs_without_windows_are_the_best_and_the_worst_of_all_clips(batch):
    """[TVSum] No pair is random, so the loss is that of one pair per sample; a sample of padding has no pair.

    In the second sample no clip is relevant, since no score is above the median.
    """
    scores, relevant = batch.labels.saliency + torch.arange(12).flip(0) / 100, batch.labels.relevant.clone()
    scores[1], relevant[1] = torch.tensor([4.0, 7, 7, 7, 3, 7] + [0] * 6), False
    bare = torch.zeros_like(batch.labels.span_mask)
    labels = replace(batch.labels, saliency=scores, relevant=relevant, span_mask=bare)
    batch = replace(batch, labels=labels)
    pairs = saliency.ranking_pairs(batch)
    expected = [[row[:n].argmax().item(), row[:n].argmin().item()] for row, n in zip(scores, (9, 6, 12), strict=False)]
    assert pairs.tolist() == [[pair, pair] for pair in [*expected, [-1, -1]]]
    assert not labels.relevant[0, expected[0][1]]  # the worst clip is not relevant
    s = logits_of(batch)
    torch.testing.assert_close(saliency.margin(s, pairs), saliency.margin(s, pairs[:, :1]))


def test_a_sample_without_a_relevant_clip_has_no_pairs(batch):
    none = replace(batch, labels=replace(batch.labels, relevant=torch.zeros_like(batch.labels.relevant)))
    assert (saliency.ranking_pairs(none) == -1).all()


def test_pairs_of_a_zero_score_without_windows_do_not_count_as_scored(batch):
    """Scores of 0 on every clip, no window and no relevant clip: nothing ranks above anything."""
    labels = replace(
        batch.labels,
        saliency=torch.zeros_like(batch.labels.saliency),
        relevant=torch.zeros_like(batch.labels.relevant),
        span_mask=torch.zeros_like(batch.labels.span_mask),
    )
    assert (saliency.ranking_pairs(replace(batch, labels=labels)) == -1).all()


def test_pairs_depend_on_the_seed_alone_and_pairs_of_the_batch_are_returned(batch):
    torch.manual_seed(4)
    first = saliency.ranking_pairs(batch)
    torch.manual_seed(4)
    assert torch.equal(saliency.ranking_pairs(batch), first)
    given = torch.tensor([[[1, 0]]] * 4)
    assert saliency.ranking_pairs(replace(batch, labels=replace(batch.labels, pairs=given))) is given


def test_scores_are_those_of_the_annotators_or_else_of_the_windows(batch):
    some = replace(batch, labels=replace(batch.labels, saliency_mask=torch.tensor([True, False, True, False])))
    scores = saliency.saliency_labels(some)
    assert torch.equal(scores[[0, 2]], batch.labels.saliency[[0, 2]])
    assert torch.equal(scores[[1, 3]], batch.labels.relevant[[1, 3]].float())


def test_the_negative_query_is_that_of_the_next_sample_unless_the_batch_says(batch):
    """[QD-DETR] None if that sample has the same video, so a batch of one has none."""
    assert saliency.negative_rows(batch).tolist() == [1, 2, 3, 0]
    twins = replace(batch, video=torch.tensor([5, 5, 7, 8]))
    assert saliency.negative_rows(twins).tolist() == [-1, 2, 3, 0]
    assert saliency.negative_rows(make_batch([4])).tolist() == [-1]
    labelled = replace(batch, labels=replace(batch.labels, negative=torch.tensor([2, -1, 0, 1])))
    assert saliency.negative_rows(labelled).tolist() == [2, -1, 0, 1]


@pytest.mark.parametrize("probabilities", [False, True])
def test_terms_are_margin_contrast_with_scores_for_the_negative_query_and_negative(batch, probabilities):
    """[QD-DETR] Sample 1 has no negative query, so its scores for one do not count."""
    scores, negative_saliency = (logits_of(batch, seed).sigmoid().detach() for seed in (1, 2))
    pairs = torch.tensor([[[2, 0]], [[1, 0]], [[3, 5]], [[-1, -1]]])
    batch = replace(batch, labels=replace(batch.labels, pairs=pairs, negative=torch.tensor([2, -1, 0, 0])))
    calls, query = [], torch.randn(4, 5, 3)
    aligned = Aligned(query, batch.target_mask, query, batch.query_mask, query[:, 0], scores)

    def score(query, query_mask):
        calls.append((query, query_mask))
        return negative_saliency

    terms = saliency.terms(aligned, batch, score, probabilities=probabilities)
    (call,) = calls
    for b, row in ((0, 2), (2, 0), (3, 0)):
        assert torch.equal(call[0][b], query[row]) and torch.equal(call[1][b], batch.query_mask[row])
    assert list(terms) == ["margin", "contrast", "negative"]
    torch.testing.assert_close(terms["margin"], saliency.margin(scores, pairs))
    negative_mask = batch.target_mask & torch.tensor([True, False, True, True])[:, None]
    contrast = contrast_by_loops(
        torch.cat([scores, negative_saliency], 1).double(),
        torch.cat([batch.labels.saliency, torch.zeros(4, 12)], 1),
        torch.cat([batch.target_mask, negative_mask], 1),
    )
    assert terms["contrast"].item() == pytest.approx(contrast, rel=1e-5)
    share = negative_saliency.double() if probabilities else negative_saliency.double().sigmoid()
    # samples 0 and 2 have a negative query; sample 3 is padding
    torch.testing.assert_close(
        terms["negative"].double(), -(1 - share).log()[negative_mask].sum() / 2, rtol=1e-5, atol=1e-6
    )


def test_probabilities_of_zero_and_one_give_finite_terms(batch):
    """They stay 1e-6 away from 0 and 1, so a probability of 1 for the negative query costs log(1e6) per clip."""
    negative_saliency = torch.ones_like(batch.labels.saliency).requires_grad_()
    query = torch.zeros(4, 5, 3)
    aligned = Aligned(
        query, batch.target_mask, query, batch.query_mask, query[:, 0], torch.zeros_like(negative_saliency)
    )
    terms = saliency.terms(aligned, batch, lambda *_: negative_saliency, probabilities=True)
    assert terms["negative"].item() == pytest.approx(math.log(1e6) * 27 / 3, rel=1e-2)
    terms["negative"].backward()
    assert negative_saliency.grad.isfinite().all()
