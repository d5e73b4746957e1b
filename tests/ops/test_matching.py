"""The assignment of least cost against trying every assignment."""

from itertools import permutations

import pytest
import torch

from mrlib.ops.matching import match


def by_enumeration(cost, mask):
    """Every way to give the windows queries of their own, as many of them as there are queries for."""
    K, windows = len(cost), mask.nonzero()[:, 0].tolist()
    best, answer = float("inf"), [-1] * cost.shape[1]
    for queries in permutations([*range(K), *[-1] * max(0, len(windows) - K)], len(windows)):
        if queries.count(-1) > max(0, len(windows) - K):
            continue
        total = sum(cost[q, w].item() for q, w in zip(queries, windows, strict=True) if q >= 0)
        if total < best:
            best, answer = total, [-1] * cost.shape[1]
            for q, w in zip(queries, windows, strict=True):
                answer[w] = q
    return answer


@pytest.mark.parametrize(("queries", "windows"), [(4, 1), (4, 3), (3, 3), (2, 4), (1, 3), (5, 2)])
def test_no_assignment_costs_less(queries, windows):
    """[QD-DETR], [Moment-DETR] Windows that are missing in all places, more windows than queries, none at all."""
    g = torch.Generator().manual_seed(queries * 10 + windows)
    cost = torch.randn(6, queries, windows, generator=g)
    mask = torch.rand(6, windows, generator=g) < 0.7
    mask[0], mask[1] = False, True
    found = match(cost, mask)
    assert found.dtype == torch.long
    assert found.tolist() == [by_enumeration(c, m) for c, m in zip(cost, mask, strict=True)]


def test_layers_are_matched_each_for_itself():
    g = torch.Generator().manual_seed(0)
    cost, mask = torch.randn(3, 4, 5, 2, generator=g), torch.tensor([[True, True]] * 3 + [[True, False]])
    together = match(cost, mask)
    assert together.shape == (3, 4, 2)
    for layer in range(3):
        assert torch.equal(together[layer], match(cost[layer], mask))


@pytest.mark.parametrize("windows", [1, 2])
def test_a_cost_that_is_no_number_does_not_stop_the_matching(windows):
    """So that the loss, which is not finite then, is reported with its queries."""
    cost = torch.full((2, 3, windows), torch.nan)
    found = match(cost, torch.ones(2, windows, dtype=torch.bool))
    assert all(len(set(row)) == windows and min(row) >= 0 for row in found.tolist())


def test_without_windows_or_queries_there_is_nothing_to_match():
    assert match(torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert match(torch.zeros(2, 0, 3), torch.ones(2, 3, dtype=torch.bool)).tolist() == [[-1] * 3] * 2
