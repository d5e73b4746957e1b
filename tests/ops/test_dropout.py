import importlib.util

import pytest
import torch
import torch.nn.functional as F

from mrlib.layers import Dropout, Projection, attend
from mrlib.ops.dropout import dropout, fused, norm_dropout_linear

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def mask_of(function, *shape, seed=3, dtype=torch.float64):
    """What dropout does to ones."""
    torch.manual_seed(seed)
    return function(torch.ones(*shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_asked_for_is_dropped_and_the_rest_scaled(p):
    """Of a million numbers; five standard deviations."""
    y = mask_of(lambda x: dropout(x, p), 1000, 1000, dtype=torch.float32)
    assert abs((y == 0).double().mean() - p) < 5 * (p * (1 - p) / 1e6) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))


@needs_numba
def test_neighbours_and_masks_of_two_keys_know_nothing_of_each_other():
    """Correlations of a million pairs, along rows, along columns, and of two draws: five standard deviations."""
    torch.manual_seed(0)
    a, b = (dropout(torch.ones(1000, 1024), 0.5) - 1 for _ in range(2))
    for x, y in ((a, b), (a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a[:, 16:], a[:, :-16])):
        assert abs((x * y).mean()) < 5e-3


def test_dropout_follows_the_seed_and_not_the_threads():
    x = torch.randn(300, 500)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            found.append((dropout(x, 0.3), dropout(x, 0.3)))
    finally:
        torch.set_num_threads(threads)
    assert not found[0][0].equal(found[0][1])
    assert all(a.equal(b) for pair in found[1:] for a, b in zip(found[0], pair, strict=True))


def test_the_gradient_passes_where_the_number_did():
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, y.detach() / x.detach())


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_or_all_can_be_dropped(p):
    x = torch.randn(4, 5)
    assert dropout(x, p).equal(x * (1 - p))


def test_half_precision_and_autocast_take_the_way_of_torch():
    x = torch.randn(4, 5)
    assert not fused(x.bfloat16())
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    layers = Projection(6, 4, 2, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers(torch.randn(3, 6)).dtype == torch.bfloat16
        assert not fused(x)


def parts(D=11, d=3, rows=(2, 70), dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x, *parameters = (torch.randn(shape, generator=g, dtype=dtype) for shape in ((*rows, D), (D,), (D,), (d, D), (d,)))
    return x, [p.requires_grad_() for p in parameters]


def plain(x, norm_weight, norm_bias, weight, bias, mask):
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, 1e-5) * mask, weight, bias)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_dropout_and_product_in_one_are_those_one_after_another(threads):
    """With the mask that the same seed gives ones; more rows than are taken at a time, and numbers for two threads."""
    x, parameters = parts(D=600)
    mask = mask_of(lambda ones: dropout(ones, 0.5), *x.shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        y = norm_dropout_linear(x, *parameters[:2], 1e-5, 0.5, *parameters[2:])
        expected, dy = plain(x, *parameters, mask), torch.randn_like(y)
        torch.testing.assert_close(y, expected)
        ours, theirs = (torch.autograd.grad(out, parameters, dy) for out in (y, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_gradients_of_norm_dropout_and_product_are_the_slopes():
    x, parameters = parts()

    def function(norm_weight, norm_bias, weight, bias):
        torch.manual_seed(2)
        return norm_dropout_linear(x, norm_weight, norm_bias, 1e-5, 0.5, weight, bias)

    assert torch.autograd.gradcheck(function, parameters)


def test_features_that_need_a_gradient_get_it():
    x, parameters = parts()
    y = norm_dropout_linear(x.requires_grad_(), *parameters[:2], 1e-5, 0.5, *parameters[2:])
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0


def test_without_dropout_training_is_evaluation():
    x, layers = torch.randn(3, 6), Projection(6, 4, 2, 0.0)
    assert layers.train()(x).equal(layers.eval()(x))
    assert Dropout(0.0)(x).equal(x)


def test_attention_with_next_to_no_dropout_is_attention_without():
    """The other way of computing it: masked keys, a row without keys, what each may see."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 8, generator=g, dtype=torch.float64) for n in (4, 5, 5))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    seen = torch.rand(3, 2, 4, 5, generator=g) < 0.7
    seen[..., 0] = True
    for given in ((None, None), (mask, None), (mask, seen)):
        torch.testing.assert_close(
            attend(q, k, v, 2, given[0], 1e-12, given[1]), attend(q, k, v, 2, given[0], 0.0, given[1])
        )


def test_dropout_of_attention_drops_weights():
    """Keys alike: every weight is 1/4, and the output counts those that are left."""
    q, k, v = torch.zeros(2, 300, 4), torch.zeros(2, 4, 4), torch.ones(2, 4, 4)
    torch.manual_seed(0)
    counts = attend(q, k, v, 1, None, 0.5) * 2
    assert counts.round().sub(counts).abs().max() < 1e-5
    assert counts.unique().tolist() == [0, 1, 2, 3, 4]
