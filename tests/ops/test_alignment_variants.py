"""Drop-DTW and DTW with the mean: every value is the minimum over all choices, or the recursion in plain loops."""

import math
from itertools import product

import pytest
import torch

import mrlib.ops
from tests.support.alignments import GOLDEN, random_costs, soft_minimum


def drops_and_matches(T, N):
    """Every choice of dropped target clips with an alignment of the others, as (cells, dropped target clips).

    Each target clip that is not dropped is matched with one query clip: the next one, or, after a matched target clip,
    possibly the same one.
    """

    def extend(i, last, reached, cells, dropped):  # last matched target clip, last matched query clip
        if i == T:
            if reached == N - 1:
                yield cells, dropped
            return
        yield from extend(i + 1, last, reached, cells, [*dropped, i])
        for a in {reached, reached + 1} if last == i - 1 and cells else {reached + 1}:
            if a < N:
                yield from extend(i + 1, i, a, [*cells, (i, a)], dropped)

    return list(extend(0, -2, -1, [], []))


def drop_by_enumeration(cost, drop, gamma):
    """The soft minimum over every choice of the costs (T, N) of the cells and (T,) of the dropped clips."""
    choices = drops_and_matches(*cost.shape)
    totals = [sum(cost[cell] for cell in cells) + sum(drop[i] for i in dropped) for cells, dropped in choices]
    return soft_minimum(totals, gamma)


@pytest.mark.parametrize("T, N", [(5, 3), (4, 4), (3, 1), (2, 3), (1, 1)])
def test_drop_dtw_is_the_minimum_over_every_choice_of_drops(T, N):
    """[Drop-DTW], its gradients with respect to cost and drop, and its path."""
    cost, drop = random_costs(2, T, N), random_costs(2, T, seed=1) / 2
    for gamma in (1e-2, 0.1, 1.0):
        inputs = [x.clone().requires_grad_() for x in (cost, drop)]
        reference = [x.clone().requires_grad_() for x in (cost, drop)]
        value = mrlib.ops.drop_dtw(*inputs, gamma)
        if T < N:
            assert value.isinf().all() and not torch.autograd.grad(value.sum(), inputs[0])[0].any()
            continue
        defined = torch.stack([drop_by_enumeration(c, d, gamma) for c, d in zip(*reference, strict=True)])
        torch.testing.assert_close(value, defined, rtol=1e-11, atol=1e-11)
        gradients = torch.autograd.grad(defined.sum(), reference, materialize_grads=True)
        torch.testing.assert_close(torch.autograd.grad(value.sum(), inputs), gradients)
    for c, d, path in zip(cost, drop, mrlib.ops.drop_alignment(cost, drop), strict=True):
        if T < N:
            assert not path.any()
        else:
            total = c[path].sum() + d[~path.any(1)].sum()
            torch.testing.assert_close(total, drop_by_enumeration(c, d, 0))


def test_each_sample_and_clip_has_its_own_cost_of_dropping():
    """Costs (B,) and (B, T) against samples computed alone, with NaN on padding."""
    cost, lengths = random_costs(3, 6, 3), torch.tensor([6, 4, 5])
    for drop in (random_costs(3, seed=1), random_costs(3, 6, seed=1)):
        if drop.ndim == 2:
            drop = drop.masked_fill(torch.arange(6) >= lengths[:, None], torch.nan)
        value = mrlib.ops.drop_dtw(cost, drop, 0.1, lengths)
        path = mrlib.ops.drop_alignment(cost, drop, lengths)
        for b, T in enumerate(lengths):
            clips = drop[b, :T] if drop.ndim == 2 else drop[b].expand(T)
            torch.testing.assert_close(value[b], drop_by_enumeration(cost[b, :T], clips, 0.1))
            total = cost[b][path[b]].sum() + clips[~path[b, :T].any(1)].sum()
            torch.testing.assert_close(total, drop_by_enumeration(cost[b, :T], clips, 0))


def test_an_infinite_cost_of_dropping_keeps_every_target_clip():
    """Drop-DTW is then the global alignment in which each target clip is matched once."""
    cost = random_costs(2, 6, 4)
    drop = torch.full((2, 6), torch.inf, dtype=torch.float64)
    complete = [cells for cells, dropped in drops_and_matches(6, 4) if not dropped]
    defined = torch.stack([soft_minimum([sum(c[cell] for cell in cells) for cells in complete], 0.1) for c in cost])
    torch.testing.assert_close(mrlib.ops.drop_dtw(cost, drop, 0.1), defined, rtol=1e-9, atol=1e-9)
    assert mrlib.ops.drop_alignment(cost, drop).any(2).all()


@pytest.mark.parametrize("drop, hard, soft", [(0.4, 1.2, 1.185758), (0.3, 1.0, 0.9941)])
def test_drop_dtw_of_the_worked_matrix(drop, hard, soft):
    assert mrlib.ops.drop_dtw(GOLDEN, drop, 0.1).item() == pytest.approx(soft, abs=1e-6)
    path = mrlib.ops.drop_alignment(GOLDEN, drop)[0]
    assert (GOLDEN[0][path].sum() + drop * (~path.any(1)).sum()).item() == pytest.approx(hard)
    for form in (torch.tensor([drop]), torch.full((1, 5), drop)):
        value = mrlib.ops.drop_dtw(GOLDEN, form.double(), 0.1)
        torch.testing.assert_close(value, mrlib.ops.drop_dtw(GOLDEN, drop, 0.1))


def test_mean_dtw_takes_the_weighted_mean_of_the_predecessors():
    """The soft minimum of (1, 1.2, 1.5) at 0.1 is 0.986715, the mean 1.026650; then a 2 x 2 table by hand."""
    a = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64)
    assert -0.1 * torch.logsumexp(-a / 0.1, 0).item() == pytest.approx(0.986715, abs=1e-6)
    mean = (a * (-a / 0.1).softmax(0)).sum().item()
    assert mean == pytest.approx(1.026650, abs=1e-6)
    cost = torch.tensor([[[1.0, 0.5], [0.2, 7.0]]], dtype=torch.float64)  # R = 1, 1.5, 1.2, and 7 + mean(1, 1.2, 1.5)
    assert mrlib.ops.mean_dtw(cost, 0.1).item() == pytest.approx(7 + mean)


def test_mean_dtw_is_the_recursion_with_the_weighted_mean():
    """Cell by cell, in plain loops."""
    cost, gamma, T, N = random_costs(1, 6, 4), 0.2, 6, 4
    R = {(-1, -1): torch.zeros(())}
    for i, j in product(range(T), range(N)):
        a = torch.stack([R[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in R])
        R[i, j] = cost[0, i, j] + (a * (-a / gamma).softmax(0)).sum()
    torch.testing.assert_close(mrlib.ops.mean_dtw(cost, gamma)[0], R[T - 1, N - 1])


def test_ties_prefer_matching_a_target_clip_to_dropping_it():
    """Dropping costs as much as matching, so every choice costs 2; traced backwards, diagonal steps come first."""
    path = mrlib.ops.drop_alignment(torch.full((1, 4, 2), 0.5), 0.5)[0]
    assert path.nonzero().tolist() == [[2, 0], [3, 1]]
    path = mrlib.ops.drop_alignment(torch.tensor([[[0.5], [0.25], [0.5]]]), 0.5)[0]
    assert path.nonzero().tolist() == [[1, 0], [2, 0]]


def test_an_infinite_cost_forbids_a_cell_in_the_variants():
    cost = random_costs(2, 6, 4)
    cost[0, 2, 1], cost[1, :, 2] = torch.inf, torch.inf
    for variant in (mrlib.ops.mean_dtw, lambda c: mrlib.ops.drop_dtw(c, 0.3)):
        forbidden = cost.clone().requires_grad_()
        value = variant(forbidden)
        gradient = torch.autograd.grad(value.sum(), forbidden)[0]
        assert value[0].isfinite() and value[1] == torch.inf
        assert gradient.isfinite().all() and not gradient[1].any() and not gradient[forbidden.isinf()].any()


@pytest.mark.parametrize("band", [0, 1, 2, 7])
@pytest.mark.parametrize("T, N", [(5, 3), (4, 4), (3, 1)])
def test_drop_dtw_with_a_band_matches_only_inside_of_it(T, N, band):
    """[Drop-DTW] By enumeration of the choices whose matches have |i - j| <= band."""
    cost, drop = random_costs(2, T, N), random_costs(2, T, seed=1) / 2
    inside = [(m, d) for m, d in drops_and_matches(T, N) if all(abs(i - j) <= band for i, j in m)]
    inputs, reference = ([x.clone().requires_grad_() for x in (cost, drop)] for _ in range(2))
    value = mrlib.ops.drop_dtw(*inputs, 0.3, band=band)
    path = mrlib.ops.drop_alignment(cost, drop, band=band)

    def totals(c, d):
        return [sum(c[cell] for cell in m) + sum(d[i] for i in dropped) for m, dropped in inside]

    defined = torch.stack([soft_minimum(totals(c, d), 0.3) for c, d in zip(*reference, strict=True)])
    torch.testing.assert_close(value, defined, rtol=1e-11, atol=1e-11)
    gradients = torch.autograd.grad(defined.sum(), reference, materialize_grads=True)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), inputs), gradients)
    for c, d, p in zip(cost, drop, path, strict=True):
        torch.testing.assert_close(c[p].sum() + d[~p.any(1)].sum(), soft_minimum(totals(c, d), 0))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_cost_that_is_no_number_is_refused_and_named(value):
    cost, drop = random_costs(3, 5, 4), random_costs(3, 5)
    wrong = cost.clone()
    wrong[2, 4, 0] = value
    functions = {
        "mean": lambda c, d: mrlib.ops.mean_dtw(c),
        "drop": mrlib.ops.drop_dtw,
        "path": mrlib.ops.drop_alignment,
    }
    for function in functions.values():
        with pytest.raises(ValueError, match=f"the cost is {value} at batch element 2, target clip 4, query clip 0"):
            function(wrong, drop)
    for cost_of_drop, where in (
        (drop.index_fill(1, torch.tensor(3), value), "batch element 0, target clip 3"),
        (torch.tensor([0.0, value, 0.0]), "batch element 1, target clip 0"),
        (value, "batch element 0, target clip 0"),
    ):
        for name in ("drop", "path"):
            with pytest.raises(ValueError, match=f"drop is {value} at {where}"):
                functions[name](cost, cost_of_drop)


@pytest.mark.parametrize("drop", [None, "0.3", [0.3], True, torch.tensor([True, False]), torch.tensor(1j)])
def test_a_drop_that_is_no_number_is_refused(drop):
    for function in (mrlib.ops.drop_dtw, mrlib.ops.drop_alignment):
        with pytest.raises(ValueError, match="drop must be a number or a tensor of numbers, not"):
            function(random_costs(2, 5, 4), drop)


@pytest.mark.parametrize("scale", [1e30, 1e60, 1e120])
def test_huge_costs_are_not_taken_for_forbidden_cells(scale):
    cost, drop = random_costs(2, 5, 3) * scale, random_costs(2, 5, seed=1) * scale
    defined = torch.stack([drop_by_enumeration(c, d, 0) for c, d in zip(cost, drop, strict=True)])
    torch.testing.assert_close(mrlib.ops.drop_dtw(cost, drop, 0.1), defined, rtol=1e-9, atol=0)
    assert mrlib.ops.drop_alignment(cost, drop).any((1, 2)).all() and mrlib.ops.mean_dtw(cost).isfinite().all()


@pytest.mark.parametrize("gamma", [1e-100, 1e-20, 1e20, 1e100])
def test_values_and_gradients_are_numbers_for_every_gamma(gamma):
    cost, drop = random_costs(2, 5, 3).requires_grad_(), random_costs(2, 5, seed=1).requires_grad_()
    for value in (mrlib.ops.mean_dtw(cost, gamma), mrlib.ops.drop_dtw(cost, drop, gamma)):
        (gradient,) = torch.autograd.grad(value.sum(), cost)
        assert value.isfinite().all() and gradient.isfinite().all()
