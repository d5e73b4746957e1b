"""The kernels of soft-DTW where numbers leave the range of a float64, and samples side by side."""

import importlib.util
import math
from itertools import product

import numpy as np
import pytest
import torch

import mrlib.ops
from mrlib.ops import alignment_plain
from tests.support.alignments import TOPOLOGIES, random_costs

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def assert_plain(cost, gamma, topology, band=None, tolerance=1e-9):
    """Value and expected alignment equal those of the plain recursion."""
    from mrlib.ops import alignment_cpu

    lengths = (torch.full((len(cost),), n) for n in cost.shape[1:])
    arguments = (cost, gamma, *lengths, topology, band)
    plain = alignment_plain.soft(*arguments, keep=True)
    torch.testing.assert_close(alignment_cpu.soft(*arguments, keep=True), plain, rtol=tolerance, atol=tolerance)


SHAPES = [(6, 40, 50), (5, 1, 70), (5, 70, 1), (3, 1, 1), (2, 300, 20), (3, 20, 300), (1, 90, 90)]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("gamma", [1e-3, 0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("least, most", [(0, 1), (-1, 1), (0, 1e4), (-30, 30)])
def test_smooth_and_sharp_alignments_of_small_and_large_costs(topology, gamma, least, most):
    for shape in SHAPES:
        assert_plain(least + (most - least) * random_costs(*shape, seed=shape[1]), gamma, topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("level", [2.0, 20.0])
def test_paths_that_fall_behind_by_thousands_of_powers_of_two_and_catch_up(topology, level):
    """The first rows are dear to column 100 and then cheap, the others the reverse; so by columns, and in scenes."""
    n = 200
    early = torch.arange(n) < n // 2
    first = torch.arange(n)[:, None] < 3
    rows = level * (first == early).double() + random_costs(n, n) / 100
    scenes = level * (early[:, None] != early).double() + random_costs(n, n, seed=1) / 100
    for cost in (rows, rows.mT, scenes, scenes.flip(1), level - rows):
        assert_plain(cost[None].contiguous(), 0.1, topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("band", [5, 40])
def test_cells_that_a_band_and_infinite_costs_close(topology, band):
    cost = random_costs(5, 120, 110)
    cost[1:3][random_costs(2, 120, 110, seed=1) < 0.2] = torch.inf
    cost[3, 30:60, 20:] = torch.inf
    cost[4, 50] = torch.inf
    for gamma in (1e-3, 0.1, 10.0):
        assert_plain(cost, gamma, topology, band)
        assert_plain(cost, gamma, topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rows_of_small_and_of_large_costs_in_turn(topology):
    """Exponents last for many rows, for none, and for many again."""
    cost = random_costs(3, 150, 40)
    cost[:, 50:90] *= 1000
    assert_plain(cost, 0.1, topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_long_videos(topology):
    assert_plain(random_costs(2, 5000, 20), 0.1, topology)
    assert_plain(random_costs(1, 20, 5000), 0.1, topology)


def test_results_depend_neither_on_the_other_samples_nor_on_the_run():
    """To the last bit; some samples have costs for which all of their group take the longer way."""
    cost = random_costs(13, 60, 40).float()
    cost[3] *= 1e4
    cost[7, 20:30, 5:] = torch.inf
    for topology in TOPOLOGIES:
        together = mrlib.ops.soft_dtw(cost, topology=topology), mrlib.ops.expected_alignment(cost, topology=topology)
        assert torch.equal(mrlib.ops.expected_alignment(cost, topology=topology), together[1])
        for b in range(len(cost)):
            alone = cost[b : b + 1]
            assert torch.equal(mrlib.ops.soft_dtw(alone, topology=topology)[0], together[0][b])
            assert torch.equal(mrlib.ops.expected_alignment(alone, topology=topology)[0], together[1][b])


def test_the_gradient_in_float32_is_as_exact_as_the_shares_of_predecessors_that_it_multiplies():
    """Each is rounded once to float32, by 3e-8 at most."""
    for (T, N), topology in product([(75, 75), (200, 300)], TOPOLOGIES[:2]):
        cost = random_costs(4, T, N).float()
        exact = mrlib.ops.expected_alignment(cost.double(), topology=topology)
        ours = mrlib.ops.expected_alignment(cost, topology=topology)
        assert (ours - exact).abs().max() < 1e-6 and (ours - exact).square().mean().sqrt() < 2e-8


def test_powers_of_two_are_exact_and_end_at_0():
    from mrlib.ops.alignment_rows import _power_of_two

    assert [_power_of_two(float(n)) for n in range(-1022, 1024)] == [math.ldexp(1, n) for n in range(-1022, 1024)]
    assert [_power_of_two(n) for n in (-1023.0, -2000.0, -1e300)] == [0, 0, 0]


def test_powers_of_fractions_are_those_of_numpy_to_the_last_digit():
    from mrlib.ops.alignment_rows import _power_of_fraction

    f = np.linspace(-0.5, 0.5, 2001)
    np.testing.assert_allclose([_power_of_fraction(x) for x in f], np.exp2(f), rtol=4e-16, atol=0)
    assert _power_of_fraction(0.0) == 1


def test_a_number_is_rounded_to_the_nearest_integer():
    from mrlib.ops.alignment_rows import _rounded

    t = np.random.default_rng(0).uniform(-1e4, 1e4, 1000)
    assert [_rounded(x) for x in t] == np.round(t).tolist()


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 0.3, 1e-300, 1e300, 2.0**-1022])
def test_a_number_is_split_into_a_number_from_1_to_2_and_a_power_of_two(p):
    from mrlib.ops.alignment_rows import _normalised

    m, e = _normalised(p)
    assert 1 <= m < 2 and math.ldexp(m, int(e)) == p


@pytest.mark.parametrize("p", [0.0, 5e-324])
def test_zero_and_the_least_numbers_are_split_into_zero(p):
    from mrlib.ops.alignment_rows import _normalised

    assert _normalised(p)[0] == 0


@pytest.mark.parametrize(
    "p, moderate",
    [(1.0, True), (2.0**450, True), (2.0**-450, True), (2.0**451, False), (2.0**-451, False)]
    + [(p, False) for p in (0.0, math.inf, math.nan, -1.0)],
)
def test_which_numbers_are_moderate(p, moderate):
    from mrlib.ops.alignment_rows import _is_moderate

    assert _is_moderate(p) == moderate
