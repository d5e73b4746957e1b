"""The kernels of attention against their definition with the mask of `mrlib.ops.dropout_cpu`."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
from mrlib.ops import attention_cpu, dropout_cpu

KEY, P = 0x1234_5678_9ABC_DEF0, 0.4


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"], autouse=True)
def threads(request, monkeypatch):
    """Threads are used for few numbers too."""
    monkeypatch.setattr(dropout_cpu, "_ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def mask(count, dtype):
    """The first factors of the mask."""
    out = np.empty(count, dtype)
    dropout_cpu.drop(np.ones(count, dtype), KEY, P, out)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 1, 77])
def test_drop_is_a_part_of_the_mask_of_all_weights(place, dtype):
    weights = np.random.default_rng(0).random(53).astype(dtype)
    out = weights.copy()
    attention_cpu.drop(out, place, KEY, P)
    np.testing.assert_allclose(out, weights * mask(130, dtype)[place : place + 53], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 22])
def test_gradient_equals_that_of_softmax_and_dropout(place, dtype):
    """Seven rows of 11 weights; against autograd."""
    g = torch.Generator().manual_seed(0)
    scores, dy = (torch.randn(7, 11, generator=g, dtype=dtype) for _ in range(2))
    factors = torch.from_numpy(mask(place + 77, scores.numpy().dtype))[place:].view(7, 11)
    scores.requires_grad_()
    weights = scores.softmax(1)
    kept = weights * factors
    (expected,) = torch.autograd.grad(kept, scores, dy)
    weights, grad, mean = weights.detach().clone(), dy.clone(), (kept.detach() * dy).sum(1)
    attention_cpu.gradient(weights.numpy(), grad.numpy(), mean.numpy(), place, KEY, P)
    torch.testing.assert_close(weights, kept.detach())
    torch.testing.assert_close(grad, expected)


def test_places_beyond_32_bits_begin_again():
    weights, again = np.ones(50), np.ones(50)
    attention_cpu.drop(weights, 2**32 - 20, KEY, P)
    attention_cpu.drop(again, 0, KEY, P)
    np.testing.assert_array_equal(weights[20:], again[:30])
