"""Arithmetic of spans against hand-worked cases and plain loops."""

import math

import pytest
import torch

from mrlib.ops.spans import diou, giou, inside, iou, nms, soft_nms, vote


def spans_of(n, generator):
    return torch.rand(n, 2, generator=generator, dtype=torch.float64).sort(-1).values


def test_iou_and_giou_of_hand_worked_spans():
    a = torch.tensor([[0.0, 0.4], [0.0, 0.4], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    b = torch.tensor([[0.2, 0.6], [0.6, 1.0], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 0, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(giou(a, b), torch.tensor([1 / 3, -0.2, 1, 0], dtype=torch.float64))


def test_giou_is_iou_where_the_spans_share_a_point_and_negative_where_they_do_not():
    g = torch.Generator().manual_seed(0)
    a, b = spans_of(500, g), spans_of(500, g)
    apart = torch.minimum(a[:, 1], b[:, 1]) < torch.maximum(a[:, 0], b[:, 0])
    assert apart.any() and (giou(a, b)[apart] < 0).all()
    torch.testing.assert_close(giou(a, b)[~apart], iou(a, b)[~apart])


def test_the_clips_inside_a_span_are_those_of_its_middles_and_of_its_own_middle():
    """Middles of 4 clips: 1/8, 3/8, 5/8, 7/8; of 2 clips: 1/4, 3/4. A start on a middle counts, an end does not."""
    spans = [[[0.2, 0.7], [0.375, 0.875], [0.45, 0.49], [0.0, 1.0]], [[0.0, 0.6], [0.25, 0.75], [0.6, 0.7], [0.8, 1.0]]]
    expected = [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]], [[1, 0], [1, 1], [0, 1], [0, 1]]]
    clips = inside(torch.tensor(spans, dtype=torch.float64), torch.tensor([4, 2]), 5)
    for row, n, wanted in zip(clips, (4, 2), expected, strict=True):
        assert row[:, :n].int().tolist() == wanted and not row[:, n:].any()


def greedy(spans, mask, threshold, most):
    """As it is told: take the best that is left, drop what overlaps it too much."""
    left, kept = [k for k in range(len(spans)) if mask[k]], []
    while left and len(kept) < most:
        best, *left = left
        kept.append(best)
        left = [k for k in left if iou(spans[best], spans[k]) <= threshold]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_the_greedy_loop(threshold):
    g = torch.Generator().manual_seed(1)
    for most in (1, 4, 30):
        spans = spans_of(6 * 20, g).reshape(6, 20, 2)
        mask = torch.rand(6, 20, generator=g) < 0.8
        mask[0] = False
        kept, there = nms(spans, mask, threshold, most)
        for b in range(6):
            assert kept[b][there[b]].tolist() == greedy(spans[b], mask[b], threshold, most)


def test_an_iou_on_the_threshold_is_kept():
    spans = torch.tensor([[[0.0, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert nms(spans, mask, 0.5, 2)[1].tolist() == [[True, True]]
    assert nms(spans, mask, 0.49, 2)[1].tolist() == [[True, False]]


def test_diou_takes_from_the_iou_how_far_apart_the_middles_are():
    """By hand: middles 0.2 apart in a hull of 0.6; 0.6 in 1; none; an empty span in the middle of another."""
    a = torch.tensor([[0.0, 0.4], [0.0, 0.4], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    b = torch.tensor([[0.2, 0.6], [0.6, 1.0], [0.0, 0.4], [0.0, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(diou(a, b), torch.tensor([1 / 3 - 1 / 9, -0.36, 1, 0], dtype=torch.float64))
    assert diou(a[3], a[3]) == 0


def greedy_and_soft(spans, scores, mask, sigma, least, most):
    """As it is told: take the best, let the others fall, drop those that fell too far."""
    left, taken = {k: scores[k].item() for k in range(len(spans)) if mask[k]}, []
    while len(taken) < most and (left := {k: s for k, s in left.items() if s > least}):
        best = max(left, key=left.get)
        taken.append((best, left.pop(best)))
        left = {k: s * math.exp(-(iou(spans[best], spans[k]).item() ** 2) / sigma) for k, s in left.items()}
    return taken


@pytest.mark.parametrize(("sigma", "least"), [(0.9, 0.001), (0.1, 0.001), (0.5, 0.4), (1e6, 0.0)])
def test_soft_nms_is_the_greedy_loop(sigma, least):
    g = torch.Generator().manual_seed(2)
    for most in (1, 10, 30):
        spans, scores = spans_of(6 * 20, g).reshape(6, 20, 2), torch.rand(6, 20, generator=g, dtype=torch.float64)
        mask = torch.rand(6, 20, generator=g) < 0.8
        mask[0] = False
        kept, fallen, there = soft_nms(spans, scores, mask, sigma=sigma, least=least, most=most)
        assert kept.shape == (6, min(most, 20))
        for b in range(6):
            expected = greedy_and_soft(spans[b], scores[b], mask[b], sigma, least, most)
            assert kept[b][there[b]].tolist() == [k for k, _ in expected]
            assert fallen[b][there[b]].tolist() == pytest.approx([s for _, s in expected])
            assert not (~there[b][:-1] & there[b][1:]).any()


def test_an_equal_span_falls_by_the_most_and_one_apart_not_at_all():
    spans = torch.tensor([[[0.0, 0.5], [0.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    scores, mask = torch.tensor([[0.9, 0.8, 0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    kept, fallen, _ = soft_nms(spans, scores, mask, sigma=0.9, least=0.0, most=3)
    assert kept.tolist() == [[0, 2, 1]]
    assert fallen[0].tolist() == pytest.approx([0.9, 0.5, 0.8 * math.exp(-1 / 0.9)])


@pytest.mark.parametrize("threshold", [0.3, 0.95])
def test_votes_are_counted_by_score_from_the_threshold_on(threshold):
    g = torch.Generator().manual_seed(3)
    spans, scores = spans_of(4 * 30, g).reshape(4, 30, 2), torch.rand(4, 30, generator=g, dtype=torch.float64)
    spans[:, 1::2] = (spans[:, ::2] + 0.004 * torch.randn(4, 15, 2, generator=g, dtype=torch.float64)).sort(-1).values
    scores[1, 5:] = scores[2] = 0
    voted, others = vote(spans[:, :6], spans, scores, threshold), 0
    for b in range(4):
        for m in range(6):
            votes = [k for k in range(30) if iou(spans[b, m], spans[b, k]) >= threshold and scores[b, k] > 0]
            total, others = scores[b, votes].sum(), others + (len(votes) > 1)
            mean = sum(scores[b, k] * spans[b, k] for k in votes) / total if votes else spans[b, m]
            torch.testing.assert_close(voted[b, m], mean)
    assert others >= 6
