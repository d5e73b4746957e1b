"""Arithmetic of spans against hand-worked cases and plain loops."""

import pytest
import torch

from mrlib.ops.spans import giou, iou, nms


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
