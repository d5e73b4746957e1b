"""Losses of the saliency against loops over their definitions; pairs and foreign queries against what they say."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib.align import saliency
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
    """[Moment-DETR] 0.2 - 0.5 costs nothing, 0.2 + 0.3 costs 0.5; the pair that is none does not count."""
    s = torch.tensor([[1.0, 0.5, 0.8]])
    assert saliency.margin(s, torch.tensor([[[0, 1], [1, 2]]])).item() == pytest.approx(2 * 0.5 / 2)
    assert saliency.margin(s, torch.tensor([[[1, 2], [-1, -1]]])).item() == pytest.approx(2 * 0.5)
    assert saliency.margin(s, torch.tensor([[[-1, -1]]])).item() == 0


def contrast_by_loops(s, y, mask):
    total, rows = 0.0, sum(bool(m.any()) for m in mask)
    for rank in range(1, 12):
        for b in range(len(s)):
            there = [t for t in range(s.shape[1]) if mask[b, t]]
            high = [t for t in there if y[b, t] >= rank]
            if not high:
                continue
            whole = math.log(sum(math.exp(s[b, t].item() / 0.5) for t in there))
            total -= sum(s[b, t].item() / 0.5 - whole for t in high) / len(high)
    return total / 12 / rows


def test_rank_contrast_is_the_sum_over_ranks_samples_and_clips(batch):
    """[QD-DETR] A row of padding gives nothing and no NaN."""
    s = logits_of(batch)
    value = saliency.rank_contrast(s, batch.labels.saliency, batch.target_mask)
    expected = contrast_by_loops(s.double(), batch.labels.saliency, batch.target_mask)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert s.grad.isfinite().all() and s.grad[~batch.target_mask].abs().sum() == 0


def test_the_negative_is_the_sum_of_log_one_minus_sigma(batch):
    """[QD-DETR] Also where 1 - sigma underflows."""
    s, mask = logits_of(batch), batch.target_mask
    value = saliency.negative(s, mask, 3)
    expected = -(1 - s.double().sigmoid()).log()[mask].sum() / 3
    torch.testing.assert_close(value.double(), expected)
    value.backward()
    assert s.grad.isfinite().all() and s.grad[~mask].abs().sum() == 0
    big = torch.full_like(s, 500.0)
    assert saliency.negative(big, mask, 1).item() == pytest.approx(500 * mask.sum().item())


def test_pairs_are_the_best_and_the_worst_relevant_clip_and_a_relevant_and_an_irrelevant_one(batch):
    """[Moment-DETR] Where all clips are relevant the first pair comes twice; padding has none."""
    labels, seen = batch.labels, {0: set(), 2: set()}
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
            seen[b].add((high, low))
        assert (pairs[3] == -1).all()
    assert len(seen[0]) == 6 * 3 and len(seen[2]) == 1 * 11  # every pair comes


def test_pairs_of_windows_alone_are_clips_in_and_out_drawn_twice(batch):
    """[QD-DETR] As in Charades-STA; all inside, there is no pair."""
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


def test_pairs_of_scores_without_windows_are_the_best_and_the_worst_of_all_clips(batch):
    """[TVSum] Drawn is none, so that the loss is that of one pair per sample; a row of padding has none.

    In the second sample no clip is relevant, for no score is above the median.
    """
    scores, relevant = batch.labels.saliency + torch.arange(12).flip(0) / 100, batch.labels.relevant.clone()
    scores[1], relevant[1] = torch.tensor([4.0, 7, 7, 7, 3, 7] + [0] * 6), False
    bare = torch.zeros_like(batch.labels.span_mask)
    labels = replace(batch.labels, saliency=scores, relevant=relevant, span_mask=bare)
    batch = replace(batch, labels=labels)
    pairs = saliency.ranking_pairs(batch)
    expected = [[row[:n].argmax().item(), row[:n].argmin().item()] for row, n in zip(scores, (9, 6, 12), strict=False)]
    assert pairs.tolist() == [[pair, pair] for pair in [*expected, [-1, -1]]]
    assert not labels.relevant[0, expected[0][1]]  # the worst clip is none of the relevant ones
    s = logits_of(batch)
    torch.testing.assert_close(saliency.margin(s, pairs), saliency.margin(s, pairs[:, :1]))


def test_a_sample_without_a_relevant_clip_has_no_pairs(batch):
    none = replace(batch, labels=replace(batch.labels, relevant=torch.zeros_like(batch.labels.relevant)))
    assert (saliency.ranking_pairs(none) == -1).all()


def test_drawn_pairs_are_a_function_of_the_seed_and_those_of_a_batch_are_taken(batch):
    torch.manual_seed(4)
    first = saliency.ranking_pairs(batch)
    torch.manual_seed(4)
    assert torch.equal(saliency.ranking_pairs(batch), first)
    given = torch.tensor([[[1, 0]]] * 4)
    assert saliency.ranking_pairs(replace(batch, labels=replace(batch.labels, pairs=given))) is given


def test_scores_are_the_annotators_or_where_there_are_none_the_windows(batch):
    some = replace(batch, labels=replace(batch.labels, saliency_mask=torch.tensor([True, False, True, False])))
    scores = saliency.scores_of(some)
    assert torch.equal(scores[[0, 2]], batch.labels.saliency[[0, 2]])
    assert torch.equal(scores[[1, 3]], batch.labels.relevant[[1, 3]].float())


def test_a_foreign_query_is_the_next_samples_unless_it_is_of_the_same_video_or_the_batch_says(batch):
    """[QD-DETR] A batch of one has none."""
    assert saliency.foreign_rows(batch).tolist() == [1, 2, 3, 0]
    twins = replace(batch, video=torch.tensor([5, 5, 7, 8]))
    assert saliency.foreign_rows(twins).tolist() == [-1, 2, 3, 0]
    assert saliency.foreign_rows(make_batch([4])).tolist() == [-1]
    told = replace(batch, labels=replace(batch.labels, negative=torch.tensor([2, -1, 0, 1])))
    assert saliency.foreign_rows(told).tolist() == [2, -1, 0, 1]
