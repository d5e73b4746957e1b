"""`mrlib.ops.feed_forward` against its four operations one after another, with the same mask."""

import importlib.util

import pytest
import torch

from mrlib.ops import feed_forward as module
from mrlib.ops.dropout import dropout
from mrlib.ops.feed_forward import feed_forward

WIDTH, HIDDEN = 5, 12
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def inputs(*rows, slope=0.3, dtype=torch.float64, seed=0):
    """x (*rows, WIDTH), the weights and biases, and a slope; None: ReLU."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((*rows, WIDTH), (HIDDEN, WIDTH), (HIDDEN,), (WIDTH, HIDDEN), (WIDTH,))
    x, weight1, bias1, weight2, bias2 = (torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)
    tensors = [x, weight1, bias1, None if slope is None else torch.tensor([slope], dtype=dtype), weight2, bias2]
    return [t if t is None else t.requires_grad_() for t in tensors]


def one_after_another(x, weight1, bias1, slope, weight2, bias2, mask=1.0):
    h = x @ weight1.mT + bias1
    activated = torch.where(h > 0, h, h * (0 if slope is None else slope))
    return activated * mask @ weight2.mT + bias2


def seeded(tensors, p, seed=3):
    torch.manual_seed(seed)
    return feed_forward(*tensors, p)


def mask_of(*rows, p, dtype=torch.float64, seed=3):
    torch.manual_seed(seed)
    return dropout(torch.ones(*rows, HIDDEN, dtype=dtype), p)


def gradients(y, tensors, dy):
    return torch.autograd.grad(y, [t for t in tensors if t is not None], dy)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slope", [None, 0.0, 0.3, -0.5])
@pytest.mark.parametrize("rows", [(2, 3), (3, 7, 1), (1,)])
def test_values_and_gradients_equal_the_operations_one_after_another(rows, slope, threads, monkeypatch):
    """Also where the rows are no whole number of blocks; the mask is that of all hidden numbers."""
    monkeypatch.setattr(module, "_ROWS", 4)
    monkeypatch.setattr("mrlib.ops.dropout_cpu._ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = inputs(*rows, slope=slope)
    y, expected = seeded(tensors, 0.4), one_after_another(*tensors, mask_of(*rows, p=0.4))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(y.shape, dtype=torch.float64)
    for a, b in zip(gradients(y, tensors, dy), gradients(expected, tensors, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@needs_numba
def test_gradients_equal_finite_differences():
    tensors = inputs(2, 3)
    assert torch.autograd.gradcheck(lambda *t: seeded(t, 0.5), tensors)


def test_float32_is_as_exact_as_one_operation_after_another(monkeypatch):
    """Against float64: with several blocks, gradients of weights are sums of the blocks' parts."""
    tensors = inputs(40, 30, dtype=torch.float32)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y, expected = seeded(tensors, 0.4), one_after_another(*exact, mask_of(40, 30, p=0.4, dtype=torch.float32).double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    dy = torch.randn(y.shape)
    for a, b in zip(gradients(y, tensors, dy), gradients(expected, exact, dy.double()), strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()


@pytest.mark.parametrize("slope", [None, 0.3])
def test_without_dropout_the_result_is_the_same_with_and_without_a_gradient(slope, monkeypatch):
    """At p = 0 torch's generator does not advance; without a gradient there is one block of hidden vectors."""
    monkeypatch.setattr(module, "_ROWS", 4)
    tensors, state = inputs(3, 5, slope=slope), torch.get_rng_state()
    expected = one_after_another(*tensors)
    torch.testing.assert_close(feed_forward(*tensors, 0.0), expected)
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(*tensors, 0.0), expected)
    assert torch.get_rng_state().equal(state)
    for a, b in zip(*(gradients(y, tensors, expected) for y in (feed_forward(*tensors, 0.0), expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_with_everything_dropped_the_second_bias_is_left():
    tensors = inputs(3, 5)
    torch.testing.assert_close(feed_forward(*tensors, 1.0), tensors[-1].expand(3, 5, WIDTH))


def test_dropout_without_a_gradient_draws_the_same_mask():
    tensors = inputs(3, 5)
    with torch.no_grad():
        y = seeded(tensors, 0.4)
    torch.testing.assert_close(y, seeded(tensors, 0.4))


def test_frozen_parameters_get_no_gradient():
    tensors = inputs(3, 5)
    for t in tensors[1:]:
        t.requires_grad_(False)
    (dx,) = torch.autograd.grad(seeded(tensors, 0.4).sum(), tensors[:1])
    expected = one_after_another(*tensors, mask_of(3, 5, p=0.4)).sum()
    torch.testing.assert_close(dx, torch.autograd.grad(expected, tensors[:1])[0])


def test_strided_and_empty_inputs():
    tensors = inputs(3, 5)
    x = tensors[0].detach().mT.contiguous().mT.requires_grad_()
    assert not x.is_contiguous() and seeded([x, *tensors[1:]], 0.4).equal(seeded(tensors, 0.4))
    assert feed_forward(*inputs(0, 3), 0.4).shape == (0, 3, WIDTH)
    with torch.no_grad():
        assert feed_forward(*inputs(0, 3), 0.0).shape == (0, 3, WIDTH)


def test_numbers_that_are_not_finite_stay_so():
    """NaN and infinity reach the loss, which training checks."""
    for value in (torch.nan, torch.inf):
        tensors = inputs(2, 3)
        tensors[0].data[0, 0, 0] = value
        for y in (seeded(tensors, 0.1), feed_forward(*tensors, 0.0)):
            assert not y[0, 0].isfinite().any() and y[1].isfinite().all()
        with torch.no_grad():
            assert not feed_forward(*tensors, 0.0)[0, 0].isfinite().any()


def test_half_precision_and_autocast_take_torchs_operations():
    tensors = [t.detach() for t in inputs(2, 3, dtype=torch.float32)]
    assert feed_forward(*(t.bfloat16() for t in tensors), 0.5).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert feed_forward(*tensors, 0.5).dtype == torch.bfloat16


@needs_numba
def test_a_second_derivative_raises_an_error():
    tensors = inputs(2, 3)
    (dx,) = torch.autograd.grad(seeded(tensors, 0.4).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
