"""The assignment of least cost against an enumeration of all assignments."""

from itertools import permutations

import pytest
import torch

from mrlib.ops.matching import checked_cost, match


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


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_a_cost_that_is_nan_is_chosen_last(windows):
    """Whatever the other costs are; if all are NaN, there is still an assignment."""
    generator = torch.Generator().manual_seed(windows)
    for scale in (1.0, -1.0, 1e30, 3e38):
        cost = (torch.rand(8, 6, windows, generator=generator) + 0.5) * scale
        cost[:, 3], cost[:4, 0] = torch.nan, torch.inf
        mask = torch.rand(8, windows, generator=generator) < 0.8
        assigned = match(cost, mask)
        assert ((assigned >= 0) == mask).all() and not (assigned == 3).any()
        alone = cost[:, [0, 1, 2, 4, 5]]  # and the others are assigned as if the prediction did not exist
        expected = match(alone, mask)
        assert torch.equal(assigned, torch.where(expected >= 3, expected + 1, expected))
    assigned = match(torch.full((2, 3, windows), torch.nan), torch.ones(2, windows, dtype=torch.bool))
    assert all(len(set(row)) == windows and min(row) >= 0 for row in assigned.tolist())


def test_nan_is_chosen_after_infinity_and_only_as_often_as_it_must():
    """Three windows, two predictions whose costs are numbers: one window gets NaN, and the others the least."""
    cost = torch.tensor([[torch.nan] * 3, [1.0, 2.0, 9.0], [torch.inf, torch.inf, 5.0]])
    assert match(cost[None], torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1, 0, 2]]
    cost = torch.tensor([[torch.nan, torch.nan], [torch.inf, torch.inf], [torch.inf, 1.0]])
    assert match(cost[None], torch.ones(1, 2, dtype=torch.bool)).tolist() == [[1, 2]]
    for column in ([torch.nan, torch.inf, 3e38], [torch.nan, torch.inf], [torch.inf, torch.nan]):
        chosen = match(torch.tensor(column)[None, :, None], torch.ones(1, 1, dtype=torch.bool)).item()
        assert chosen == {3: 2, 2: column.index(torch.inf) if len(column) == 2 else 0}[len(column)]


def test_a_loss_refuses_a_cost_that_is_nan_and_names_the_batch_element():
    cost, mask = torch.rand(2, 3, 4, 2), torch.tensor([[True, True], [True, False], [True, True]])
    assert checked_cost(cost, mask) is cost
    cost[:, 1, :, 1], cost[0, 0, 0, 0] = torch.nan, torch.inf  # on padding; and infinity is no error
    assert checked_cost(cost, mask) is cost
    cost[1, 2, 3, 0] = torch.nan
    with pytest.raises(
        FloatingPointError,
        match="the cost of matching is nan at decoder layer 1, batch element 2, moment query 3, window 0",
    ):
        checked_cost(cost, mask)


def test_without_windows_or_predictions_nothing_is_assigned():
    assert match(torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert match(torch.zeros(2, 0, 3), torch.ones(2, 3, dtype=torch.bool)).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    ("cost", "assigned"),
    [
        ([[torch.inf, 9.0], [9.0, 0.0]], [1, 0]),
        ([[-torch.inf, 0.0], [0.0, 9.0]], [0, 1]),
    ],
)
def test_infinite_costs_outweigh_all_others(cost, assigned):
    assert match(torch.tensor([cost]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [assigned]
