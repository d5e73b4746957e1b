"""`mrlib.ops.dropout` against torch's operations one after another, with the same mask."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from mrlib.layers import Dropout, Projection
from mrlib.ops import dropout as module
from mrlib.ops.attention import attend
from mrlib.ops.dropout import dropout, has_cpu_kernel, norm_dropout_linear

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def mask_of(function, *shape, seed=3, dtype=torch.float64):
    """Dropout of ones: the mask divided by 1 - p."""
    torch.manual_seed(seed)
    return function(torch.ones(*shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled(p):
    """Of a million numbers; five standard deviations."""
    y = mask_of(lambda x: dropout(x, p), 1000, 1000, dtype=torch.float32)
    assert abs((y == 0).double().mean() - p) < 5 * (p * (1 - p) / 1e6) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))


@needs_numba
def test_neighbouring_places_and_masks_of_two_keys_are_uncorrelated():
    """A million pairs: of two masks, along rows and along columns; five standard deviations."""
    torch.manual_seed(0)
    a, b = (dropout(torch.ones(1000, 1024), 0.5) - 1 for _ in range(2))
    for x, y in ((a, b), (a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a[:, 16:], a[:, :-16])):
        assert abs((x * y).mean()) < 5e-3


def test_dropout_depends_on_the_seed_and_not_on_the_threads():
    x = torch.randn(300, 500)
    threads, pairs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            pairs.append((dropout(x, 0.3), dropout(x, 0.3)))
    finally:
        torch.set_num_threads(threads)
    assert not pairs[0][0].equal(pairs[0][1])
    assert all(a.equal(b) for pair in pairs[1:] for a, b in zip(pairs[0], pair, strict=True))


def test_the_gradient_passes_where_the_number_is_kept():
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, y.detach() / x.detach())


def test_dropout_can_be_differentiated_twice():
    """d/dx of (m x^2)' = 2 m x is 2 m, with the same mask m."""
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    y = dropout(x**2, 0.4)
    mask = y.detach() / x.detach() ** 2
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(dx.sum(), x)[0], 2 * mask)


def test_strided_and_empty_tensors_can_be_dropped_out():
    """A strided tensor gets the mask of a contiguous one of its shape."""
    x = torch.randn(6, 8, dtype=torch.float64).mT[::2]
    mask = mask_of(lambda ones: dropout(ones, 0.5), 4, 6)
    torch.testing.assert_close(mask_of(lambda _: dropout(x, 0.5), 4, 6), x * mask)
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_p_may_be_0_or_1(p):
    x = torch.randn(4, 5)
    assert dropout(x, p).equal(x * (1 - p))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_norm_dropout_linear_without_randomness(p):
    """At p = 0 it is norm and product, at p = 1 the bias; torch's generator does not advance at p = 0."""
    x, parameters = features_and_parameters()
    state = torch.get_rng_state()
    y = norm_dropout_linear(x, *parameters[:2], 1e-5, p, *parameters[2:])
    torch.testing.assert_close(y, one_after_another(x, *parameters, 1 - p))
    if p == 0:
        dropout(x, p)
        assert torch.get_rng_state().equal(state)


@needs_numba
def test_the_kernels_are_used_for_float_tensors_on_the_cpu():
    assert has_cpu_kernel(torch.ones(2)) and has_cpu_kernel(torch.ones(2, dtype=torch.float64))
    assert not has_cpu_kernel(torch.ones(0)) and not has_cpu_kernel(torch.ones(2, dtype=torch.int64))
    assert not has_cpu_kernel(torch.ones(1).expand(2**32)) and has_cpu_kernel(torch.ones(1).expand(2**32 - 1))


def test_without_numba_torchs_dropout_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "mrlib.ops.dropout_cpu", raising=False)
    monkeypatch.delattr("mrlib.ops.dropout_cpu", raising=False)
    module.cpu_kernels.cache_clear()
    try:
        assert not has_cpu_kernel(torch.ones(2))
        torch.manual_seed(3)
        expected = F.dropout(torch.ones(50), 0.5)
        assert mask_of(lambda x: dropout(x, 0.5), 50, dtype=torch.float32).equal(expected)
    finally:
        module.cpu_kernels.cache_clear()


def test_half_precision_and_autocast_use_torchs_dropout():
    x = torch.randn(4, 5)
    assert not has_cpu_kernel(x.bfloat16())
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    layers = Projection(6, 4, 2, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers(torch.randn(3, 6)).dtype == torch.bfloat16
        assert not has_cpu_kernel(x)


def features_and_parameters(D=11, d=3, rows=(2, 70), dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x, *parameters = (torch.randn(shape, generator=g, dtype=dtype) for shape in ((*rows, D), (D,), (D,), (d, D), (d,)))
    return x, [p.requires_grad_() for p in parameters]


def one_after_another(x, norm_weight, norm_bias, weight, bias, mask):
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, 1e-5) * mask, weight, bias)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_dropout_linear_equals_the_three_operations_one_after_another(threads):
    """With the mask of the same seed; there are more rows than a block holds, and enough numbers for two threads."""
    x, parameters = features_and_parameters(D=600)
    mask = mask_of(lambda ones: dropout(ones, 0.5), *x.shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        y = norm_dropout_linear(x, *parameters[:2], 1e-5, 0.5, *parameters[2:])
        expected, dy = one_after_another(x, *parameters, mask), torch.randn_like(y)
        torch.testing.assert_close(y, expected)
        ours, reference = (torch.autograd.grad(out, parameters, dy) for out in (y, expected))
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_gradients_of_norm_dropout_linear_equal_finite_differences():
    x, parameters = features_and_parameters()

    def function(norm_weight, norm_bias, weight, bias):
        torch.manual_seed(2)
        return norm_dropout_linear(x, norm_weight, norm_bias, 1e-5, 0.5, weight, bias)

    assert torch.autograd.gradcheck(function, parameters)


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("D", [11, 600])
def test_further_features_come_after_those_of_x(D, p):
    """As if all had been in one tensor, with and without gradients; more rows than a block holds."""
    x, parameters = features_and_parameters(D=D)
    results = []
    for features, extra in ((x, None), (x[..., :-2], x[..., -2:])):
        torch.manual_seed(3)
        y = norm_dropout_linear(features, *parameters[:2], 1e-5, p, *parameters[2:], extra)
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.manual_seed(3)
        y = norm_dropout_linear(x[..., :-2], *parameters[:2], 1e-5, p, *parameters[2:], x[..., -2:])
    torch.testing.assert_close(y, results[0][0], rtol=1e-12, atol=1e-12)


def test_further_features_may_have_another_precision():
    """Endpoints are float32 also where the clips are float64."""
    x, parameters = features_and_parameters()
    extra = x[..., -2:].float()
    expected = one_after_another(torch.cat([x[..., :-2], extra], -1), *parameters, 1.0)
    torch.testing.assert_close(
        norm_dropout_linear(x[..., :-2], *parameters[:2], 1e-5, 0.0, *parameters[2:], extra), expected
    )
    with torch.no_grad():
        y = norm_dropout_linear(x[..., :-2], *parameters[:2], 1e-5, 0.0, *parameters[2:], extra)
    torch.testing.assert_close(y, expected)


@needs_numba
def test_strided_features_give_the_result_of_their_copies():
    x, parameters = features_and_parameters()
    strided = x.mT.contiguous().mT
    results = []
    for features in (x, strided):
        torch.manual_seed(3)
        results.append(norm_dropout_linear(features, *parameters[:2], 1e-5, 0.5, *parameters[2:]))
    assert not strided.is_contiguous() and torch.equal(*results)


def test_features_that_require_a_gradient_get_one():
    x, parameters = features_and_parameters()
    y = norm_dropout_linear(x.requires_grad_(), *parameters[:2], 1e-5, 0.5, *parameters[2:])
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0


def test_without_dropout_training_and_evaluation_agree():
    x, layers = torch.randn(3, 6), Projection(6, 4, 2, 0.0)
    assert layers.train()(x).equal(layers.eval()(x))
    assert Dropout(0.0)(x).equal(x)


def test_attention_with_hardly_any_dropout_equals_attention_without():
    """Dropout is computed by other code; with masked keys, a row without keys, and keys hidden from single vectors."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 8, generator=g, dtype=torch.float64) for n in (4, 5, 5))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    seen = torch.rand(3, 2, 4, 5, generator=g) < 0.7
    seen[..., 0] = True
    for key_mask, visible in ((None, None), (mask, None), (mask, seen)):
        torch.testing.assert_close(
            attend(q, k, v, 2, key_mask, 1e-12, visible), attend(q, k, v, 2, key_mask, 0.0, visible)
        )


def test_dropout_in_attention_drops_weights():
    """The four keys are equal, so every weight is 1/4 and the output counts the weights that are kept."""
    q, k, v = torch.zeros(2, 300, 4), torch.zeros(2, 4, 4), torch.ones(2, 4, 4)
    torch.manual_seed(0)
    counts = attend(q, k, v, 1, None, 0.5) * 2
    assert counts.round().sub(counts).abs().max() < 1e-5
    assert counts.unique().tolist() == [0, 1, 2, 3, 4]
