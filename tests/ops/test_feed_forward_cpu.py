"""The kernels of feed-forward layers against their definition, with the masks of `dropout_cpu`."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
from mrlib.ops import dropout_cpu, feed_forward_cpu

KEY, P, SLOPE = 0x1234_5678_9ABC_DEF0, 0.4, 0.3


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Threads are used for few numbers too."""
    monkeypatch.setattr(dropout_cpu, "_ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def block(dtype):
    """Rows 6..10 of 15 rows of 11 hidden numbers: h, bias, gradient of the output, and the factors of dropout."""
    g = np.random.default_rng(0)
    h, grad, bias = (g.standard_normal(shape).astype(dtype) for shape in ((15, 11), (15, 11), (11,)))
    mask = np.empty((15, 11), dtype)
    dropout_cpu.drop(np.ones(15 * 11, dtype), KEY, P, mask.reshape(-1))
    return *(np.ascontiguousarray(x[6:11]) for x in (h, grad, mask)), bias


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activate_is_bias_activation_and_dropout(dtype, threads):
    h, _, mask, bias = block(dtype)
    out = np.full_like(h, np.nan)
    feed_forward_cpu.activate(h, 6, bias, SLOPE, KEY, P, out)
    x = h + bias
    np.testing.assert_allclose(out, np.where(x > 0, x, SLOPE * x) * mask, rtol=1e-6)
    assert 0 < (out == 0).sum() < out.size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_is_that_of_activate(dtype, threads):
    """Sums over the rows are added to what is there."""
    h, grad, mask, bias = block(dtype)
    x, dx, out, dbias, dslope = h + bias, grad.copy(), np.full_like(h, np.nan), *np.ones((2, 11), dtype)
    feed_forward_cpu.activation_gradient(h, 6, bias, SLOPE, KEY, P, dx, out, dbias, dslope)
    expected = grad * mask * np.where(x > 0, 1, SLOPE)
    np.testing.assert_allclose(out, np.where(x > 0, x, SLOPE * x) * mask, rtol=1e-6)
    np.testing.assert_allclose(dx, expected, rtol=1e-6)
    np.testing.assert_allclose(dbias, 1 + expected.sum(0), rtol=1e-5)
    np.testing.assert_allclose(dslope, 1 + (grad * mask * np.minimum(x, 0)).sum(0), rtol=1e-5)
