"""`mrlib.ops.alignment`: every value is the minimum, soft or hard, over all alignments, on every backend."""

import importlib.util
import math
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

import mrlib.ops
from mrlib.ops import alignment, alignment_plain
from tests.support.alignments import (
    GOLDEN,
    TOPOLOGIES,
    by_enumeration,
    paths,
    random_batches,
    random_costs,
    soft_minimum,
)

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@pytest.fixture(params=[pytest.param("cpu", marks=needs_numba), "plain"])
def backend(request, monkeypatch):
    """Each module that computes on the CPU."""
    if request.param == "plain":
        monkeypatch.setattr(alignment, "_kernels", lambda cost: alignment_plain)
    return request.param


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("T, N", [(5, 4), (4, 4), (3, 4), (1, 3), (5, 1), (1, 1), (2, 2)])
def test_soft_dtw_is_the_soft_minimum_over_every_alignment(T, N, topology, backend):
    """The definition itself [Cuturi & Blondel 2017], [MATR §3.2], and its gradient; [OTAM] has moves of its own."""
    cost = random_costs(2, T, N, seed=T).mul_(2)
    for gamma in (1e-3, 0.1, 1.0, 10.0):
        ours, reference = cost.clone().requires_grad_(), cost.clone().requires_grad_()
        value = mrlib.ops.soft_dtw(ours, gamma, topology=topology)
        defined = torch.stack([by_enumeration(c, gamma, topology) for c in reference])
        torch.testing.assert_close(value, defined, rtol=1e-11, atol=1e-11)
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
        gradients = torch.autograd.grad(value @ weight, ours)[0], torch.autograd.grad(defined @ weight, reference)[0]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("T, N", [(5, 4), (3, 4), (1, 3), (5, 1)])
def test_the_hard_alignment_is_the_cheapest_path(T, N, topology, backend):
    cost = random_costs(3, T, N, seed=N)
    for c, path in zip(cost, mrlib.ops.hard_alignment(cost, topology=topology), strict=True):
        assert path.nonzero().tolist() in [[list(cell) for cell in p] for p in paths(T, N, topology)]
        torch.testing.assert_close(c[path].sum(), by_enumeration(c, 0, topology))


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_soft_dtw_of_the_worked_matrix(topology, gamma, backend):
    values = {
        ("global", 0.1): 1.896862, ("global", 1.0): -0.535943,
        ("subsequence", 0.1): 0.397874, ("subsequence", 1.0): -2.791704,
        ("otam", 0.1): 0.399735, ("otam", 1.0): -1.003155,
    }  # fmt: skip
    assert mrlib.ops.soft_dtw(GOLDEN, gamma, topology=topology).item() == pytest.approx(
        values[topology, gamma], abs=1e-6
    )


def test_the_paths_of_the_worked_matrix(backend):
    path = {t: (mrlib.ops.hard_alignment(GOLDEN, topology=t)[0].nonzero() + 1).tolist() for t in TOPOLOGIES}
    assert path["global"] == [[1, 1], [2, 1], [3, 2], [4, 3], [5, 3]]
    assert path["subsequence"] == path["otam"] == [[2, 1], [3, 2], [4, 3]]
    assert [len(paths(5, 3, t)) for t in TOPOLOGIES] == [41, 155, 15]
    costs = [GOLDEN[mrlib.ops.hard_alignment(GOLDEN, topology=t)].sum().item() for t in TOPOLOGIES]
    assert costs == pytest.approx([1.9, 0.4, 0.4])


def test_the_expected_alignment_of_the_worked_matrix(backend):
    rows = {
        "global": [[1.0, 0.0946, 0.0036], [0.7243, 0.4263, 0.0385], [0.298, 0.7455, 0.2123],
                   [0.063, 0.5212, 0.6649], [0.0048, 0.1096, 1.0]],
        "subsequence": [[0.2987, 0.0451, 0.0076], [0.662, 0.2854, 0.0609], [0.4003, 0.6569, 0.2794],
                        [0.1111, 0.419, 0.6755], [0.0107, 0.0689, 0.4141]],
    }  # fmt: skip
    for topology, E in rows.items():
        ours = mrlib.ops.expected_alignment(GOLDEN, 1.0, topology=topology)[0]
        torch.testing.assert_close(ours, torch.tensor(E, dtype=torch.float64), rtol=0, atol=5.1e-5)


def test_soft_dtw_trims_a_moment_in_slow_motion_and_drop_dtw_keeps_it_whole(backend):
    target = [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    cost = torch.tensor([[[0.05 if t == q else 1.0 for q in (1, 2, 3)] for t in target]], dtype=torch.float64)
    path = mrlib.ops.hard_alignment(cost, topology="subsequence")
    assert cost[path].sum().item() == pytest.approx(0.2)
    assert [int(x) for x in mrlib.ops.span_of(path)] == [3, 7]
    path = mrlib.ops.drop_alignment(cost, 0.3)
    assert (cost[path].sum() + 0.3 * (~path.any(2)).sum()).item() == pytest.approx(1.5)
    assert [int(x) for x in mrlib.ops.span_of(path)] == [2, 8]
    path = mrlib.ops.hard_alignment(cost - 0.3, topology="otam")
    assert (cost - 0.3)[path].sum().item() == pytest.approx(-1.5)
    assert [int(x) for x in mrlib.ops.span_of(path)] == [2, 8]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradients_equal_finite_differences(topology, backend):
    cost = random_costs(3, 5, 4).requires_grad_()
    lengths = torch.tensor([5, 4, 0]), torch.tensor([3, 4, 4])
    torch.autograd.gradcheck(lambda c: mrlib.ops.soft_dtw(c, 0.3, *lengths, topology), cost)


def test_gradients_of_the_variants_equal_finite_differences():
    cost, drop = random_costs(3, 5, 4).requires_grad_(), random_costs(3, 5).requires_grad_()
    lengths = torch.tensor([5, 4, 0]), torch.tensor([3, 4, 4])
    torch.autograd.gradcheck(lambda c, d: mrlib.ops.drop_dtw(c, d, 0.3, *lengths), (cost, drop))
    torch.autograd.gradcheck(lambda c: mrlib.ops.mean_dtw(c, 0.3, *lengths), cost)
    features = random_costs(3, 5, 6).requires_grad_(), random_costs(3, 4, 6, seed=1).requires_grad_()
    torch.autograd.gradcheck(lambda t, q: mrlib.ops.tcc(t, q, *lengths), features)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_expected_alignment_holds_probabilities(topology, backend):
    E = mrlib.ops.expected_alignment(random_costs(4, 9, 6), 0.2, topology=topology)
    assert (E >= 0).all() and (E < 1 + 1e-12).all()
    assert (E.sum(1) > 1 - 1e-12).all()  # every query clip is matched
    if topology == "global":
        assert (E.sum(2) > 1 - 1e-12).all()
        torch.testing.assert_close(torch.stack([E[:, 0, 0], E[:, -1, -1]]), torch.ones(2, 4, dtype=torch.float64))
    if topology == "otam":
        assert (E.sum(2) < 1 + 1e-12).all()  # no target clip is matched twice


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_long_alignments_equal_the_recursion_cell_by_cell(topology, backend):
    T, N, gamma = 37, 33, 0.05
    cost = random_costs(1, T, N)
    R = {}
    for i, j in product(range(T), range(N)):
        moves = [(i - 1, j - 1), (i - 1, j)] + [(i, j - 1)] * (topology != "otam")
        predecessors = [R[p] for p in moves if p in R]
        predecessors += [torch.zeros((), dtype=torch.float64)] * (j == 0 and (topology != "global" or i == 0))
        if predecessors:
            R[i, j] = cost[0, i, j] + soft_minimum(predecessors, gamma)
    ends = [R[T - 1, N - 1]] if topology == "global" else [R[i, N - 1] for i in range(T) if (i, N - 1) in R]
    value = mrlib.ops.soft_dtw(cost, gamma, topology=topology)[0]
    torch.testing.assert_close(value, soft_minimum(ends, gamma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_does_not_change_the_result(topology, junk, backend):
    alone = [random_costs(1, T, N, seed=T) for T, N in ((7, 4), (3, 6), (1, 1), (9, 2))]
    T_b, N_b = (torch.tensor([c.shape[d] for c in alone]) for d in (1, 2))
    padded = torch.full((4, 11, 8), junk, dtype=torch.float64)
    for b, c in enumerate(alone):
        padded[b, : T_b[b], : N_b[b]] = c
    padded.requires_grad_()
    value = mrlib.ops.soft_dtw(padded, 0.1, T_b, N_b, topology)
    gradient = torch.autograd.grad(value.sum(), padded)[0]
    path = mrlib.ops.hard_alignment(padded, T_b, N_b, topology)
    for b, c in enumerate(alone):
        inside = b, slice(T_b[b]), slice(N_b[b])
        torch.testing.assert_close(value[b], mrlib.ops.soft_dtw(c, 0.1, topology=topology)[0])
        torch.testing.assert_close(gradient[inside], mrlib.ops.expected_alignment(c, 0.1, topology=topology)[0])
        assert torch.equal(path[inside], mrlib.ops.hard_alignment(c, topology=topology)[0])
    assert not (gradient * ~alignment_plain.valid(padded, T_b, N_b)).any()
    assert not (path & ~alignment_plain.valid(padded, T_b, N_b)).any()


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_padding_does_not_change_the_variants(junk):
    T_b, N_b = torch.tensor([6, 3]), torch.tensor([4, 2])
    cost, features = random_costs(2, 6, 4), (random_costs(2, 6, 5), random_costs(2, 4, 5, seed=1))
    for variant in (mrlib.ops.mean_dtw, lambda *a: mrlib.ops.drop_dtw(a[0], 0.3, *a[1:])):
        padded = cost.masked_fill(~alignment_plain.valid(cost, T_b, N_b), junk).requires_grad_()
        value = variant(padded, 0.1, T_b, N_b)
        torch.testing.assert_close(value[1:], variant(cost[1:, :3, :2], 0.1))
        gradient = torch.autograd.grad(value.sum(), padded)[0]
        assert gradient.isfinite().all() and not gradient[1, 3:].any() and not gradient[1, :, 2:].any()
    target, query = features
    target[1, 3:], query[1, 2:] = junk, junk
    torch.testing.assert_close(mrlib.ops.tcc(target, query, T_b, N_b)[1:], mrlib.ops.tcc(target[1:, :3], query[1:, :2]))
    path = mrlib.ops.tcc_alignment(target, query, T_b, N_b)[1]
    assert torch.equal(path[:3, :2], mrlib.ops.tcc_alignment(target[1:, :3], query[1:, :2])[0]) and path.sum() == 2


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_empty_sample_has_value_0_gradient_0_and_no_path(topology, backend):
    cost = random_costs(4, 5, 3).requires_grad_()
    lengths = torch.tensor([0, 4, 0, 5]), torch.tensor([2, 0, 0, 3])
    value = mrlib.ops.soft_dtw(cost, 0.1, *lengths, topology)
    assert value[:3].tolist() == [0, 0, 0] and value[3] != 0
    assert not torch.autograd.grad(value.sum(), cost)[0][:3].any()
    assert not mrlib.ops.hard_alignment(cost, *lengths, topology)[:3].any()
    assert not mrlib.ops.drop_dtw(cost, 0.3, 0.1, *lengths)[:3].any()
    assert not mrlib.ops.drop_alignment(cost, 0.3, *lengths)[:3].any()


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0, 0)])
def test_empty_tensors_give_empty_results_and_zeros(shape, backend):
    cost = torch.zeros(shape, requires_grad=True)
    for function in (mrlib.ops.soft_dtw, mrlib.ops.mean_dtw, lambda c: mrlib.ops.drop_dtw(c, 0.3)):
        value = function(cost)
        assert value.shape == shape[:1] and not value.any()
        assert torch.autograd.grad(value.sum(), cost)[0].shape == shape
    assert mrlib.ops.expected_alignment(cost).shape == shape
    for path in (mrlib.ops.hard_alignment(cost), mrlib.ops.drop_alignment(cost, 0.3)):
        assert path.shape == shape and path.dtype == torch.bool
        assert [x.tolist() for x in mrlib.ops.span_of(path)] == [[0] * shape[0]] * 2
    features = torch.ones(*shape[:2], 6), torch.ones(shape[0], shape[2], 6)
    value = mrlib.ops.tcc(*features)
    assert value.shape == shape[:1] and not value.any()
    assert mrlib.ops.tcc_alignment(*features).shape == shape


def test_ties_between_paths_prefer_the_diagonal_and_then_the_target_step(backend):
    """First with all costs 0, where every path is equal; then ties at one cell."""
    path = {t: mrlib.ops.hard_alignment(torch.zeros(1, 4, 3), topology=t)[0].nonzero().tolist() for t in TOPOLOGIES}
    assert path["global"] == [[0, 0], [1, 0], [2, 1], [3, 2]]  # traced backwards: diagonal steps first
    assert path["subsequence"] == [
        [0, 0],
        [0, 1],
        [0, 2],
    ]  # the earliest end is in row 0
    assert path["otam"] == [[0, 0], [1, 1], [2, 2]]
    around_the_middle = torch.tensor([[[0.0, 1, 0], [1, 5, 1], [0, 1, 0]]])
    assert mrlib.ops.hard_alignment(around_the_middle)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    up_or_left = torch.tensor([[[0.0, 1], [1, 9], [9, 0]]])  # (2, 1) is reached diagonally from (1, 0)
    assert mrlib.ops.hard_alignment(up_or_left)[0].nonzero().tolist() == [[0, 0], [1, 0], [2, 1]]
    no_diagonal = torch.tensor([[[0.0, 0, 9], [0, 9, 2], [9, 2, 0]]])  # (1, 2) and (2, 1) lead to the end at equal cost
    assert mrlib.ops.hard_alignment(no_diagonal)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    start_free = torch.tensor([[[0.0], [0.0], [-1.0]]])  # to start at the last clip costs as much as before it
    assert mrlib.ops.hard_alignment(start_free, topology="subsequence")[0].nonzero().tolist() == [[2, 0]]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_infinite_cost_forbids_a_cell(topology, backend):
    cost = random_costs(3, 6, 4)
    cost[0, 2, 1], cost[1, :, 2], cost[2, 4:, 3] = torch.inf, torch.inf, torch.inf
    cost.requires_grad_()
    value = mrlib.ops.soft_dtw(cost, 0.1, topology=topology)
    torch.testing.assert_close(value[0], by_enumeration(cost[0], 0.1, topology))
    gradient = torch.autograd.grad(value.sum(), cost)[0]
    assert gradient.isfinite().all() and not gradient[cost.isinf()].any()
    assert value[1] == torch.inf and not gradient[1].any()
    path = mrlib.ops.hard_alignment(cost, topology=topology)
    assert not (path & cost.isinf()).any() and path[0].any() and not path[1].any()
    if topology == "global":
        assert value[2] == torch.inf


FUNCTIONS = {
    "soft_dtw": mrlib.ops.soft_dtw,
    "with gradient": lambda c, **k: mrlib.ops.soft_dtw(c.clone().requires_grad_(), **k),
    "expected_alignment": mrlib.ops.expected_alignment,
    "hard_alignment": mrlib.ops.hard_alignment,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_cost_that_is_no_number_is_refused_and_its_cell_named(name, topology, dtype, value, backend):
    """Also beside forbidden cells, whose sum with it is no number either, and in a cell that no path crosses."""
    cost = random_costs(3, 6, 4).to(dtype)
    cost[0, 1, 1], cost[1, 0, 3] = math.inf, value
    with pytest.raises(ValueError, match=f"the cost is {value} at batch element 1, target clip 0, query clip 3"):
        FUNCTIONS[name](cost, topology=topology)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_number_on_padding_is_no_error_and_changes_nothing(name, backend):
    cost, lengths = (
        random_costs(3, 6, 4),
        {"target_lengths": torch.tensor([6, 4, 0]), "query_lengths": torch.tensor([4, 3, 2])},
    )
    outside = ~alignment_plain.valid(cost, *lengths.values())
    for junk in (math.nan, -math.inf, math.inf):
        assert torch.equal(
            FUNCTIONS[name](cost.masked_fill(outside, junk), **lengths), FUNCTIONS[name](cost, **lengths)
        )


def test_huge_costs_whose_sum_overflows_are_no_error(backend):
    cost = torch.full((1, 4, 3), -3e38)
    assert mrlib.ops.soft_dtw(cost).item() == -math.inf  # six clips cost -1.8e39, beyond float32
    torch.testing.assert_close(mrlib.ops.soft_dtw(cost.double()).item(), -1.8e39, rtol=1e-6, atol=0)


def band_mask(T, N, band):
    """bool (T, N): the cells outside of the band, one by one."""
    return torch.tensor([[abs(i - j) > band for j in range(N)] for i in range(T)])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("T, N", [(5, 4), (3, 4), (4, 4), (5, 1), (1, 4)])
@pytest.mark.parametrize("band", [0, 1, 2, 7])
def test_with_a_band_only_paths_inside_of_it_count(T, N, band, topology, backend):
    """[Sakoe & Chiba 1978] By enumeration: value, gradient and cheapest path over the paths with |i - j| <= band."""
    cost = random_costs(2, T, N)
    inside = [p for p in paths(T, N, topology) if all(abs(i - j) <= band for i, j in p)]
    ours = cost.clone().requires_grad_()
    value = mrlib.ops.soft_dtw(ours, 0.3, topology=topology, band=band)
    (gradient,) = torch.autograd.grad(value.sum(), ours)
    E = mrlib.ops.expected_alignment(cost, 0.3, topology=topology, band=band)
    path = mrlib.ops.hard_alignment(cost, topology=topology, band=band)
    assert torch.equal(gradient, E) and not E[:, band_mask(T, N, band)].any()
    for b in range(2):
        if not inside:
            assert value[b] == math.inf and not E[b].any() and not path[b].any()
            continue
        reference = cost[b].clone().requires_grad_()
        defined = soft_minimum([sum(reference[cell] for cell in p) for p in inside], 0.3)
        torch.testing.assert_close(value[b], defined.detach(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(E[b], torch.autograd.grad(defined, reference)[0], rtol=1e-9, atol=1e-11)
        assert sorted(map(tuple, path[b].nonzero().tolist())) == min(inside, key=lambda p: sum(cost[b][c] for c in p))


@pytest.mark.parametrize("seed", range(10))
def test_a_band_is_the_same_as_forbidding_the_cells_outside(seed, backend):
    """For samples of any lengths, to the last bit; a band as wide as the table is none."""
    cost, *lengths = random_batches(seed)
    T, N = cost.shape[1:]
    for topology, band in product(TOPOLOGIES, (0, 1, 3, 6, max(T, N))):
        masked = cost.masked_fill(band_mask(T, N, band), math.inf)
        for function in (mrlib.ops.soft_dtw, mrlib.ops.expected_alignment):
            banded = function(cost, 0.1, *lengths, topology, band)
            assert torch.equal(banded, function(masked, 0.1, *lengths, topology))
        path = mrlib.ops.hard_alignment(cost, *lengths, topology, band)
        assert torch.equal(path, mrlib.ops.hard_alignment(masked, *lengths, topology))


def test_the_narrowest_band_leaves_the_diagonal_and_one_too_narrow_nothing(backend):
    cost = random_costs(1, 5, 5)
    assert mrlib.ops.soft_dtw(cost, band=0).item() == pytest.approx(cost[0].trace().item())
    lengths = torch.tensor([5]), torch.tensor([2])
    assert mrlib.ops.soft_dtw(cost, 0.1, *lengths, band=2).item() == math.inf  # 5 target and 2 query clips need 3
    assert mrlib.ops.soft_dtw(cost, 0.1, *lengths, band=3).isfinite()


@pytest.mark.parametrize("band", [-1, 1.0, True, "2", torch.tensor(2)])
def test_a_band_that_is_no_number_of_clips_is_refused(band):
    functions = (mrlib.ops.soft_dtw, mrlib.ops.expected_alignment, mrlib.ops.hard_alignment)
    for function in (*functions, lambda c, band: mrlib.ops.drop_dtw(c, 0.3, band=band)):
        with pytest.raises(ValueError, match="band must be a whole number of clips, 0 or more, or None"):
            function(GOLDEN, band=band)


@pytest.mark.parametrize("scale", [1e6, 1e12, 1e14, 1e17, 1e25])
@pytest.mark.parametrize("topology", ["subsequence", "otam"])
def test_tied_ends_share_one_path_whatever_the_size_of_the_costs(scale, topology, backend):
    """Longer paths cost a clip more, so the last query clip is matched once, by one of equally good target clips."""
    cost = torch.full((1, 6, 3), scale, dtype=torch.float64)
    last = mrlib.ops.expected_alignment(cost, 1.0, topology=topology)[0, :, -1]
    assert last.max() <= 1 / 3 + 1e-3 and last.sum().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("topology", ["global", "subsequence"])
def test_float32_costs_stay_accurate_at_a_small_gamma(topology, backend):
    """[MATR §3.2] 512 x 512 and gamma 0.01, where R / gamma has six digits before the decimal point."""
    cost = random_costs(1, 512, 512).float()
    exact, value = (mrlib.ops.soft_dtw(c, 0.01, topology=topology) for c in (cost.double(), cost))
    assert ((value - exact) / exact).abs().max() < 1e-6
    exact, E = (mrlib.ops.expected_alignment(c, 0.01, topology=topology) for c in (cost.double(), cost))
    assert (E - exact).abs().max() < 1e-4


@pytest.mark.parametrize("seed", range(12))
def test_float32_costs_give_the_float64_result(seed, backend):
    """With forbidden cells, ties and padding, and no numpy warning, even if every one is raised as an error."""
    cost, *lengths = random_batches(seed)
    cost = cost.float()
    original = cost.clone()
    for topology, gamma in product(TOPOLOGIES, (0.01, 0.1, 10.0)):
        with np.errstate(all="raise"):
            value = mrlib.ops.soft_dtw(cost, gamma, *lengths, topology)
            E = mrlib.ops.expected_alignment(cost, gamma, *lengths, topology)
        exact = cost.double(), gamma, *lengths, topology
        assert value.dtype == E.dtype == torch.float32
        torch.testing.assert_close(value.double(), mrlib.ops.soft_dtw(*exact), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(E.double(), mrlib.ops.expected_alignment(*exact), rtol=0, atol=1e-5)
    torch.testing.assert_close(cost, original, rtol=0, atol=0, equal_nan=True)


def test_the_soft_value_falls_with_gamma_and_tends_to_the_hard_value_at_0(backend):
    cost = random_costs(3, 7, 5)
    for topology in TOPOLOGIES:
        path = mrlib.ops.hard_alignment(cost, topology=topology)
        hard = (cost * path).sum((1, 2))
        values = [mrlib.ops.soft_dtw(cost, gamma, topology=topology) for gamma in (1e-6, 1e-3, 0.1, 1.0, 10.0)]
        torch.testing.assert_close(values[0], hard, rtol=0, atol=1e-4)
        assert all((a >= b - 1e-12).all() for a, b in zip(values, values[1:], strict=False))
        E = mrlib.ops.expected_alignment(cost, 1e-6, topology=topology)
        torch.testing.assert_close(E, path.double(), rtol=0, atol=1e-6)
    free = mrlib.ops.soft_dtw(cost, 1e-6, topology="subsequence")
    assert (free <= mrlib.ops.soft_dtw(cost, 1e-6)).all()


@pytest.mark.parametrize("gamma", [1e-100, 1e-20, 1e20, 1e100])
def test_extreme_gammas_give_the_limits(gamma, backend):
    cost = random_costs(1, 6, 4)
    value = mrlib.ops.soft_dtw(cost, gamma)
    if gamma < 1:
        torch.testing.assert_close(value, (cost * mrlib.ops.hard_alignment(cost)).sum((1, 2)))
    else:
        torch.testing.assert_close(value / gamma, torch.tensor([-math.log(len(paths(6, 4, "global")))]).double())


def test_importing_the_package_loads_no_kernels_and_starts_no_cuda():
    program = """
import sys, mrlib.ops
assert not {"mrlib.ops.alignment", "numba", "triton"} & set(sys.modules)
mrlib.ops.soft_dtw
import torch
assert "numba" not in sys.modules and not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_second_derivative_raises_an_error(backend):
    cost = random_costs(1, 4, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative of soft_dtw is not implemented"):
        torch.autograd.grad(mrlib.ops.soft_dtw(cost).sum(), cost, create_graph=True)


def test_the_gradient_can_be_computed_twice_and_is_scaled_by_the_output_gradient(backend):
    cost = random_costs(2, 4, 3).requires_grad_()
    value = mrlib.ops.soft_dtw(cost, 0.1)
    E = mrlib.ops.expected_alignment(cost, 0.1)
    assert not E.requires_grad
    for weight in (torch.tensor([1.0, -3.0]).double(), torch.tensor([0.5, 0.0]).double()):
        gradient = torch.autograd.grad(value, cost, weight, retain_graph=True)[0]
        torch.testing.assert_close(gradient, weight[:, None, None] * E)


def test_a_cost_changed_in_place_changes_no_gradient_and_a_second_pass_is_refused(backend):
    """The first pass has what it needs; a second one computes it anew, from the cost."""
    leaf, scale = random_costs(2, 4, 3).requires_grad_(), torch.ones((), dtype=torch.float64)
    cost = leaf * scale
    value, E = mrlib.ops.soft_dtw(cost), mrlib.ops.expected_alignment(cost)
    cost.data.zero_()  # autograd does not notice it
    first = torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]
    torch.testing.assert_close(first, E)
    value = mrlib.ops.soft_dtw(cost)
    cost.mul_(2)
    torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    torch.testing.assert_close(first, E)


def test_without_grad_mode_the_value_has_no_graph(backend):
    cost = random_costs(2, 5, 4).requires_grad_()
    with torch.no_grad():
        value = mrlib.ops.soft_dtw(cost)
    assert not value.requires_grad
    assert torch.equal(value, mrlib.ops.soft_dtw(cost))


def test_strided_costs_give_the_result_of_their_copies(backend):
    cost = random_costs(4, 8, 6).transpose(1, 2)[::2, :, 1::2]
    assert torch.equal(mrlib.ops.soft_dtw(cost), mrlib.ops.soft_dtw(cost.contiguous()))
    strided = cost.clone(memory_format=torch.preserve_format).requires_grad_()
    gradient = torch.autograd.grad(mrlib.ops.soft_dtw(strided).sum(), strided)[0]
    torch.testing.assert_close(gradient, mrlib.ops.expected_alignment(cost.contiguous()))
    assert torch.equal(mrlib.ops.hard_alignment(cost), mrlib.ops.hard_alignment(cost.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_with_and_without_autocast(dtype, backend):
    cost = random_costs(2, 5, 4).to(dtype).requires_grad_()
    functions = mrlib.ops.soft_dtw, mrlib.ops.mean_dtw, lambda c: mrlib.ops.drop_dtw(c, 0.3)
    for function in functions:
        expected = function(cost.float())
        with torch.autocast("cpu", torch.bfloat16):
            value = function(cost)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected) and torch.equal(function(cost), expected)
        assert torch.autograd.grad(value.sum(), cost)[0].dtype == dtype
    features = random_costs(2, 5, 8).float(), random_costs(2, 4, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = mrlib.ops.tcc(*features)
    assert torch.equal(value, mrlib.ops.tcc(*features))


def test_span_of_is_the_hull_of_the_matched_target_clips():
    path = torch.zeros(4, 6, 3, dtype=torch.bool)
    path[0, 2:4, 1], path[1, 0, 0], path[1, 5, 2], path[2, 5, 0] = True, True, True, True
    start, end = mrlib.ops.span_of(path)
    assert start.tolist() == [2, 0, 5, 0] and end.tolist() == [4, 6, 6, 0]
    assert start.dtype == end.dtype == torch.int64


@pytest.mark.parametrize("path", [torch.zeros(2, 3), torch.zeros(2, 3, 4), None])
def test_the_span_of_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match=r"path must be a bool tensor \(B, T, N\), not"):
        mrlib.ops.span_of(path)


def test_otam_falls_back_where_the_target_is_too_short(backend):
    cost = random_costs(3, 5, 4)
    lengths = torch.tensor([5, 2, 3]), torch.tensor([4, 4, 3])
    value = mrlib.ops.soft_dtw(cost, 0.1, *lengths, "otam")
    torch.testing.assert_close(value[1], mrlib.ops.soft_dtw(cost[1:2, :2], 0.1, topology="subsequence")[0])
    for b in (0, 2):
        alone = cost[b, : lengths[0][b], : lengths[1][b]]
        torch.testing.assert_close(value[b], by_enumeration(alone, 0.1, "otam"))


@pytest.mark.parametrize(
    "gamma", [0, -0.1, math.nan, math.inf, "0.1", None, True, torch.tensor(0.1), 2**2000, 5e-324, 1e-101, 1e101]
)
def test_a_gamma_that_is_not_a_positive_number_raises_an_error(gamma):
    for function in (mrlib.ops.soft_dtw, mrlib.ops.expected_alignment, mrlib.ops.mean_dtw):
        with pytest.raises(ValueError, match="gamma -> 0 is hard_alignment"):
            function(GOLDEN, gamma)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cost": torch.zeros(3, 4)}, r"cost must be a floating-point tensor \(B, T, N\), not torch.float32 of .*3, 4"),
        ({"cost": torch.zeros(1, 3, 4, dtype=torch.int64)}, "cost must be a floating-point tensor"),
        ({"cost": torch.zeros(1, 3, 4, device="meta")}, "cost must be a floating-point tensor .* with data"),
        ({"cost": torch.zeros(1, 3, 4).to_sparse()}, "cost must be a floating-point tensor .* dense"),
        ({"cost": [[[1.0]]]}, "cost must be a floating-point tensor .* not list"),
        ({"topology": "sub"}, "topology must be one of global, subsequence, otam, not 'sub'"),
        ({"target_lengths": torch.tensor([6])}, r"target_lengths must lie in 0..5 .* not \[6\]"),
        ({"query_lengths": torch.tensor([-1])}, r"query_lengths must lie in 0..3 .* not \[-1\]"),
        ({"query_lengths": torch.tensor([1, 1])}, r"query_lengths must have shape \(1,\)"),
        ({"target_lengths": torch.tensor([1.0])}, "target_lengths must be an integer tensor"),
        ({"target_lengths": [1]}, "target_lengths must be an integer tensor"),
        ({"target_lengths": torch.tensor([True])}, "target_lengths must be an integer tensor"),
    ],
)
def test_bad_input_raises_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        mrlib.ops.soft_dtw(**{"cost": GOLDEN, **arguments})
    with pytest.raises(ValueError, match=message):
        mrlib.ops.hard_alignment(**{"cost": GOLDEN, **arguments})


def test_bad_input_of_the_variants_raises_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"drop must be a number, \(1,\) or \(1, 5\), not \(3,\)"):
        mrlib.ops.drop_dtw(GOLDEN, torch.zeros(3))
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, at least 1e-30, not 0"):
        mrlib.ops.tcc(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), temperature=0)
    with pytest.raises(ValueError, match="differ in batch or features"):
        mrlib.ops.tcc(torch.zeros(1, 3, 4), torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="query must be a floating-point tensor of three dimensions"):
        mrlib.ops.tcc(torch.zeros(1, 3, 4), torch.zeros(3, 4))


def test_a_compiled_model_may_call_soft_dtw(backend):
    cost = random_costs(2, 5, 4)
    compiled = torch.compile(lambda c: mrlib.ops.soft_dtw(c.relu(), 0.1) * 2, backend="aot_eager")
    torch.testing.assert_close(compiled(cost), mrlib.ops.soft_dtw(cost, 0.1) * 2)


def test_an_unknown_name_of_the_package_raises_an_error_that_names_it():
    with pytest.raises(AttributeError, match="no attribute 'hard_dtw'"):
        mrlib.ops.hard_dtw  # noqa: B018
    assert "soft_dtw" in dir(mrlib.ops)
