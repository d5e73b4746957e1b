"""The assignment of least cost against an enumeration of all assignments."""

from itertools import permutations

import pytest
import torch

from mrlib.ops.matching import match


def by_enumeration(cost, mask):
    """The best of all ways to assign predictions to windows, with as many assigned as possible."""
    K, windows = len(cost), mask.nonzero()[:, 0].tolist()
    best, assignment = float("inf"), [-1] * cost.shape[1]
    for predictions in permutations([*range(K), *[-1] * max(0, len(windows) - K)], len(windows)):
        if predictions.count(-1) > max(0, len(windows) - K):
            continue
        total = sum(cost[k, w].item() for k, w in zip(predictions, windows, strict=True) if k >= 0)
        if total < best:
            best, assignment = total, [-1] * cost.shape[1]
            for k, w in zip(predictions, windows, strict=True):
                assignment[w] = k
    return assignment


@pytest.mark.parametrize(("predictions", "windows"), [(4, 1), (4, 3), (3, 3), (2, 4), (1, 3), (5, 2)])
def test_no_assignment_costs_less(predictions, windows):
    """[QD-DETR], [Moment-DETR] Padded windows anywhere, more windows than predictions, no windows."""
    g = torch.Generator().manual_seed(predictions * 10 + windows)
    cost = torch.randn(6, predictions, windows, generator=g)
    mask = torch.rand(6, windows, generator=g) < 0.7
    mask[0], mask[1] = False, True
    assigned = match(cost, mask)
    assert assigned.dtype == torch.long
    assert assigned.tolist() == [by_enumeration(c, m) for c, m in zip(cost, mask, strict=True)]


def test_each_layer_is_matched_on_its_own():
    g = torch.Generator().manual_seed(0)
    cost, mask = torch.randn(3, 4, 5, 2, generator=g), torch.tensor([[True, True]] * 3 + [[True, False]])
    together = match(cost, mask)
    assert together.shape == (3, 4, 2)
    for layer in range(3):
        assert torch.equal(together[layer], match(cost[layer], mask))


@pytest.mark.parametrize("windows", [1, 2])
def test_nan_costs_still_give_an_assignment(windows):
    """The loss is then not finite, and can be reported with the assignment."""
    cost = torch.full((2, 3, windows), torch.nan)
    assigned = match(cost, torch.ones(2, windows, dtype=torch.bool))
    assert all(len(set(row)) == windows and min(row) >= 0 for row in assigned.tolist())


def test_without_windows_or_predictions_nothing_is_assigned():
    assert match(torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert match(torch.zeros(2, 0, 3), torch.ones(2, 3, dtype=torch.bool)).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    ("cost", "assigned"),
    [
        ([[torch.nan, 2.5], [1.0, 3.0]], [0, 1]),  # 0 + 3 is less than 1 + 2.5
        ([[torch.nan, 2.5], [1.0, 4.0]], [1, 0]),  # 0 + 4 is more
        ([[torch.inf, 9.0], [9.0, 0.0]], [1, 0]),
        ([[-torch.inf, 0.0], [0.0, 9.0]], [0, 1]),
    ],
)
def test_nan_counts_as_0_and_infinite_costs_outweigh_all_others(cost, assigned):
    assert match(torch.tensor([cost]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [assigned]
