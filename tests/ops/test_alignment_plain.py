"""The plain recursion against an enumeration of all alignments; it is used where numba is missing."""

import sys

import pytest
import torch

from mrlib.ops import alignment, alignment_plain
from tests.support.alignments import TOPOLOGIES, by_enumeration, paths, random_costs

LENGTHS = torch.tensor([5, 4, 1, 0, 3]), torch.tensor([3, 4, 2, 2, 0])


def test_without_numba_the_plain_recursion_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("alignment_cpu", "alignment_rows"):
        monkeypatch.delitem(sys.modules, f"mrlib.ops.{name}", raising=False)
    assert alignment._kernels(torch.zeros(1, 1, 1)) is alignment_plain


def otam_fits(T, N, topology):
    """[OTAM] matches no target clip twice, so it needs as many target clips as query clips."""
    return topology != "otam" or T >= N


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_value_and_expected_alignment_are_the_soft_minimum_and_its_gradient(gamma, topology):
    """[Cuturi & Blondel 2017] Each sample within its lengths; 0 for a sample without clips."""
    cost = random_costs(5, 5, 4)
    value, expected = alignment_plain.soft(cost, gamma, *LENGTHS, topology, None, keep=True)
    assert alignment_plain.soft(cost, gamma, *LENGTHS, topology, None, keep=False)[1] is None
    for b, (T, N) in enumerate(zip(*(n.tolist() for n in LENGTHS), strict=True)):
        outside = ~alignment_plain.valid(cost, *LENGTHS)[b]
        assert not expected[b][outside].any()
        if T == 0 or N == 0:
            assert value[b] == 0
        elif not otam_fits(T, N, topology):
            assert value[b] == torch.inf and not expected[b].any()
        else:
            part = cost[b, :T, :N].clone().requires_grad_()
            total = by_enumeration(part, gamma, topology)
            torch.testing.assert_close(value[b], total.detach(), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(expected[b, :T, :N], torch.autograd.grad(total, part)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("T", "N"), [(2, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize("topology", ["global", "subsequence"])
def test_queries_much_longer_or_shorter_than_their_target_are_aligned(topology, T, N):
    """[Cuturi & Blondel 2017] By enumeration."""
    cost = random_costs(1, T, N, seed=2)
    lengths = torch.tensor([T]), torch.tensor([N])
    value, expected = alignment_plain.soft(cost, 0.3, *lengths, topology, None, keep=True)
    part = cost[0].clone().requires_grad_()
    total = by_enumeration(part, 0.3, topology)
    torch.testing.assert_close(value[0], total.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(expected[0], torch.autograd.grad(total, part)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_hard_path_is_the_cheapest_path(topology):
    cost = random_costs(5, 5, 4, seed=1)
    path = alignment_plain.hard_path(cost, *LENGTHS, topology, None)
    for b, (T, N) in enumerate(zip(*(n.tolist() for n in LENGTHS), strict=True)):
        if T == 0 or N == 0 or not otam_fits(T, N, topology):
            assert not path[b].any()
        else:
            best = min(paths(T, N, topology), key=lambda path, b=b: sum(cost[b][cell] for cell in path))
            assert sorted(best) == [tuple(cell) for cell in path[b].nonzero().tolist()]


def test_skew_puts_an_antidiagonal_into_one_row():
    """(T, N) = (2, 3): cell (i, j) at [i + j, j]; 9 is the value outside."""
    x = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    assert alignment_plain.skew(x, 9.0)[..., 0].tolist() == [[1, 9, 9], [4, 2, 9], [9, 5, 3], [9, 9, 6]]


def test_valid_is_true_within_the_lengths():
    valid = alignment_plain.valid(torch.zeros(2, 2, 3), torch.tensor([1, 2]), torch.tensor([3, 1]))
    assert valid.int().tolist() == [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_has_the_dtype_of_the_costs(dtype):
    table = alignment_plain.empty(2, 3, like=torch.zeros(1, dtype=dtype))
    assert table.shape == (2, 3) and table.dtype == dtype
