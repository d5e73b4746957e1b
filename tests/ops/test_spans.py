"""Arithmetic of spans against cases worked out by hand and plain loops."""

import math

import pytest
import torch

from mrlib.ops.spans import diou, giou, inside, iou, nms, soft_nms, vote


def spans_of(n, generator):
    return torch.rand(n, 2, generator=generator, dtype=torch.float64).sort(-1).values


def test_iou_and_giou_by_hand():
    a = torch.tensor([[0.0, 0.4], [0.0, 0.4], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    b = torch.tensor([[0.2, 0.6], [0.6, 1.0], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 0, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(giou(a, b), torch.tensor([1 / 3, -0.2, 1, 0], dtype=torch.float64))


def test_giou_is_iou_for_spans_that_meet_and_negative_for_disjoint_ones():
    g = torch.Generator().manual_seed(0)
    a, b = spans_of(500, g), spans_of(500, g)
    disjoint = torch.minimum(a[:, 1], b[:, 1]) < torch.maximum(a[:, 0], b[:, 0])
    assert disjoint.any() and (giou(a, b)[disjoint] < 0).all()
    torch.testing.assert_close(giou(a, b)[~disjoint], iou(a, b)[~disjoint])


def test_the_clips_inside_a_span_are_those_of_its_middles_and_of_its_own_middle():
    """Middles of 4 clips: 1/8, 3/8, 5/8, 7/8; of 2 clips: 1/4, 3/4. A start on a middle counts, an end does not."""
    spans = [[[0.2, 0.7], [0.375, 0.875], [0.45, 0.49], [0.0, 1.0]], [[0.0, 0.6], [0.25, 0.75], [0.6, 0.7], [0.8, 1.0]]]
    expected = [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]], [[1, 0], [1, 1], [0, 1], [0, 1]]]
    clips = inside(torch.tensor(spans, dtype=torch.float64), torch.tensor([4, 2]), 5)
    for row, n, wanted in zip(clips, (4, 2), expected, strict=True):
        assert row[:, :n].int().tolist() == wanted and not row[:, n:].any()


def greedy(spans, mask, threshold, most):
    """Take the best remaining span and drop those that overlap it too much, in a plain loop."""
    remaining, kept = [k for k in range(len(spans)) if mask[k]], []
    while remaining and len(kept) < most:
        best, *remaining = remaining
        kept.append(best)
        remaining = [k for k in remaining if iou(spans[best], spans[k]) <= threshold]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_equals_the_greedy_loop(threshold):
    g = torch.Generator().manual_seed(1)
    for most in (1, 4, 30):
        spans = spans_of(6 * 20, g).reshape(6, 20, 2)
        mask = torch.rand(6, 20, generator=g) < 0.8
        mask[0] = False
        positions, kept = nms(spans, mask, threshold, most)
        for b in range(6):
            assert positions[b][kept[b]].tolist() == greedy(spans[b], mask[b], threshold, most)


def test_an_iou_equal_to_the_threshold_is_kept():
    spans = torch.tensor([[[0.0, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert nms(spans, mask, 0.5, 2)[1].tolist() == [[True, True]]
    assert nms(spans, mask, 0.49, 2)[1].tolist() == [[True, False]]


def test_diou_is_the_iou_less_the_squared_distance_of_the_centres():
    """By hand: centres 0.2 apart in a hull of 0.6; 0.6 in 1; equal spans; an empty span at the centre of another."""
    a = torch.tensor([[0.0, 0.4], [0.0, 0.4], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
    b = torch.tensor([[0.2, 0.6], [0.6, 1.0], [0.0, 0.4], [0.0, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(diou(a, b), torch.tensor([1 / 3 - 1 / 9, -0.36, 1, 0], dtype=torch.float64))
    assert diou(a[3], a[3]) == 0


def greedy_and_soft(spans, scores, mask, sigma, least, most):
    """Take the best remaining span, lower the scores of the others, drop those that are too low, in a plain loop."""
    remaining, kept = {k: scores[k].item() for k in range(len(spans)) if mask[k]}, []
    while len(kept) < most and (remaining := {k: s for k, s in remaining.items() if s > least}):
        best = max(remaining, key=remaining.get)
        kept.append((best, remaining.pop(best)))
        remaining = {k: s * math.exp(-(iou(spans[best], spans[k]).item() ** 2) / sigma) for k, s in remaining.items()}
    return kept


@pytest.mark.parametrize(("sigma", "least"), [(0.9, 0.001), (0.1, 0.001), (0.5, 0.4), (1e6, 0.0)])
def test_soft_nms_equals_the_greedy_loop(sigma, least):
    g = torch.Generator().manual_seed(2)
    for most in (1, 10, 30):
        spans, scores = spans_of(6 * 20, g).reshape(6, 20, 2), torch.rand(6, 20, generator=g, dtype=torch.float64)
        mask = torch.rand(6, 20, generator=g) < 0.8
        mask[0] = False
        positions, lowered, kept = soft_nms(spans, scores, mask, sigma=sigma, least=least, most=most)
        assert positions.shape == (6, min(most, 20))
        for b in range(6):
            expected = greedy_and_soft(spans[b], scores[b], mask[b], sigma, least, most)
            assert positions[b][kept[b]].tolist() == [k for k, _ in expected]
            assert lowered[b][kept[b]].tolist() == pytest.approx([s for _, s in expected])
            assert not (~kept[b][:-1] & kept[b][1:]).any()


def test_an_equal_span_loses_most_and_a_disjoint_one_nothing():
    spans = torch.tensor([[[0.0, 0.5], [0.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    scores, mask = torch.tensor([[0.9, 0.8, 0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    positions, lowered, _ = soft_nms(spans, scores, mask, sigma=0.9, least=0.0, most=3)
    assert positions.tolist() == [[0, 2, 1]]
    assert lowered[0].tolist() == pytest.approx([0.9, 0.5, 0.8 * math.exp(-1 / 0.9)])


@pytest.mark.parametrize("threshold", [0.3, 0.95])
def test_a_vote_is_the_mean_weighted_by_score_of_the_spans_that_reach_the_threshold(threshold):
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


def test_a_clip_is_inside_a_span_that_holds_its_middle():
    """Four clips with middles at 1/8, 3/8, 5/8 and 7/8; a middle at the start counts, a middle at the end does not."""
    spans = torch.tensor([[[0.25, 0.75], [0.125, 0.375], [0.5, 1.0], [0.0, 1.0], [0.2, 0.4]]], dtype=torch.float64)
    clips = inside(spans, torch.tensor([4]), 4)
    assert clips.shape == (1, 5, 4) and clips.dtype == torch.bool
    # the second span holds the middle of clip 0, and its centre, 1/4, is in clip 1
    assert clips[0].int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]


def test_a_short_span_has_the_clip_that_holds_its_centre():
    """No middle of a clip is in these short spans."""
    spans = torch.tensor([[[0.49, 0.52], [0.01, 0.03], [0.97, 0.99]]], dtype=torch.float64)
    assert inside(spans, torch.tensor([4]), 4)[0].int().tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_padding_clips_are_inside_no_span():
    """Spans are fractions of the real clips, two of four and three of four."""
    spans = torch.tensor([[[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]], dtype=torch.float64).expand(2, 3, 2)
    clips = inside(spans, torch.tensor([2, 3]), 4).int().tolist()
    assert clips[0] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert clips[1] == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
