"""The soft-DTW divergence: against the recursion in plain loops, and as a distance of sequences."""

import math

import pytest
import torch

import mrlib.ops
from mrlib.ops.divergence import DISTANCES
from tests.support.alignments import random_costs, soft_minimum


def soft_dtw_cell_by_cell(x, y, gamma, distance):
    """The recursion [Cuturi & Blondel 2017, Alg. 1] over two sequences (n, d) and (m, d)."""
    R = {(-1, -1): torch.zeros((), dtype=torch.float64)}
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            cost = ((a - b) ** 2).sum()
            if distance == "log_sqeuclidean":
                cost = cost + gamma * torch.log(2 - torch.exp(-cost / gamma))
            before = [R[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in R]
            R[i, j] = cost + soft_minimum(before, gamma)
    return R[len(x) - 1, len(y) - 1]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_the_divergence_is_its_definition_and_so_is_its_gradient(distance, gamma):
    """[Blondel et al. 2021] Sequences of unequal lengths, each within its lengths."""
    n, m = [7, 3, 1, 5], [4, 6, 2, 1]
    inputs = random_costs(4, 7, 3).requires_grad_(), random_costs(4, 6, 3, seed=1).requires_grad_()
    value = mrlib.ops.soft_dtw_divergence(*inputs, gamma, torch.tensor(n), torch.tensor(m), distance)
    defined = []
    for x, y, n_b, m_b in zip(*inputs, n, m, strict=True):
        x, y = x[:n_b], y[:m_b]
        xy, xx, yy = (soft_dtw_cell_by_cell(a, b, gamma, distance) for a, b in ((x, y), (x, x), (y, y)))
        defined.append(xy - xx / 2 - yy / 2)
    defined = torch.stack(defined)
    torch.testing.assert_close(value, defined, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(total.sum(), inputs) for total in (value, defined))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_gradients_equal_finite_differences():
    inputs = random_costs(2, 5, 3).requires_grad_(), random_costs(2, 4, 3, seed=1).requires_grad_()
    for distance in DISTANCES:
        torch.autograd.gradcheck(lambda x, y, d=distance: mrlib.ops.soft_dtw_divergence(x, y, 0.3, distance=d), inputs)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_equal_sequences_have_divergence_0_and_gradient_0(distance, dtype):
    """Exactly, whatever the padding and however large; and with another clip, above 0."""
    x = (random_costs(3, 9, 40) * torch.tensor([1e-3, 1.0, 200.0])[:, None, None]).to(dtype)
    lengths = torch.tensor([9, 6, 1])
    y = torch.cat([x, torch.full((3, 4, 40), math.nan, dtype=dtype)], 1)
    x, y = x.requires_grad_(), y.requires_grad_()
    value = mrlib.ops.soft_dtw_divergence(x, y, 0.1, lengths, lengths, distance)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.tolist() == [0, 0, 0] and not any(g.any() for g in torch.autograd.grad(value.sum(), (x, y)))
    other = y.detach().clone()
    other[:, 0] += 1
    assert (mrlib.ops.soft_dtw_divergence(x, other, 0.1, lengths, lengths, distance) > 0).all()


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0, 100.0])
def test_the_divergence_is_symmetric_and_never_below_0(gamma):
    """Also of sequences that soft-DTW itself calls nearer than equal ones, and of nearly equal ones."""
    x, y = random_costs(50, 8, 2) - 0.5, random_costs(50, 11, 2, seed=1) - 0.5
    pairs = [(x, y), (x, x + 1e-9 * y[:, :8]), (x * 1e-3, y * 1e-3), (x[:, :1], y)]
    for distance in DISTANCES:
        for a, b in pairs:
            value = mrlib.ops.soft_dtw_divergence(a, b, gamma, distance=distance)
            assert (value >= 0).all()
            torch.testing.assert_close(value, mrlib.ops.soft_dtw_divergence(b, a, gamma, distance=distance))


def test_an_empty_sample_has_value_0_and_gradient_0():
    inputs = random_costs(3, 5, 2).requires_grad_(), random_costs(3, 4, 2, seed=1).requires_grad_()
    value = mrlib.ops.soft_dtw_divergence(*inputs, 0.1, torch.tensor([0, 5, 0]), torch.tensor([4, 0, 0]))
    assert value.tolist() == [0, 0, 0]
    assert not any(g.any() for g in torch.autograd.grad(value.sum(), inputs))
    for shapes in (((0, 4, 2), (0, 3, 2)), ((2, 0, 2), (2, 3, 2)), ((2, 0, 2), (2, 0, 2))):
        inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        value = mrlib.ops.soft_dtw_divergence(*inputs)
        assert value.shape == shapes[0][:1] and not value.any()
        assert all(g.shape == s for g, s in zip(torch.autograd.grad(value.sum(), inputs), shapes, strict=True))


def test_bad_input_is_refused_and_named():
    x, y = random_costs(2, 5, 3), random_costs(2, 4, 3)
    with pytest.raises(ValueError, match="distance must be one of sqeuclidean, log_sqeuclidean, not 'cosine'"):
        mrlib.ops.soft_dtw_divergence(x, y, distance="cosine")
    with pytest.raises(ValueError, match="gamma must be a finite number above 0"):
        mrlib.ops.soft_dtw_divergence(x, y, 0)
    with pytest.raises(ValueError, match="differ in batch or features"):
        mrlib.ops.soft_dtw_divergence(x, y[..., :2])
    with pytest.raises(ValueError, match="query_lengths must lie in 0..4"):
        mrlib.ops.soft_dtw_divergence(x, y, 0.1, None, torch.tensor([4, 5]))
    y[1, 2] = math.nan
    with pytest.raises(ValueError, match="the norm of the query is nan at batch element 1, clip 2"):
        mrlib.ops.soft_dtw_divergence(x, y)
    with pytest.raises(RuntimeError, match="second derivative of soft_dtw is not implemented"):
        x = x.requires_grad_()
        torch.autograd.grad(mrlib.ops.soft_dtw_divergence(x, x[:, 1:]).sum(), x, create_graph=True)
