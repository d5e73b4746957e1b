"""The dropout kernels against their definition in Python's integers, place by place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")
from mrlib.ops import dropout_cpu

KEY = 0x1234_5678_9ABC_DEF0


def kept(place, key, p):
    """lowbias32 by Wellons, with the halves of the key mixed in before the first and the second multiplication."""
    word = 2**32 - 1
    x = (place & word) ^ (key & word)
    x = (x ^ x >> 16) * 0x7FEB352D & word
    x = (x + (key >> 32)) & word
    x = (x ^ x >> 15) * 0x846CA68B & word
    return (x ^ x >> 16) >= min(round(p * 2**32), word)


def mask(shape, key, p):
    """The factors of dropout for a contiguous array."""
    places = range(int(np.prod(shape)))
    return np.array([kept(i, key, p) / (1 - p) for i in places]).reshape(shape)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Threads are used for few numbers too."""
    monkeypatch.setattr(dropout_cpu, "_ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("key", [0, 1, KEY, 2**63 - 2])
def test_a_number_is_dropped_if_the_hash_of_its_place_is_below_the_threshold(key, p, dtype, threads):
    x = np.random.default_rng(0).standard_normal(501).astype(dtype)
    out = np.full_like(x, np.nan)
    dropout_cpu.drop(x, key, p, out)
    np.testing.assert_allclose(out, x * mask(x.shape, key, p), rtol=1e-6)
    assert 0 < (out == 0).sum() < 501


def test_masks_of_different_keys_differ():
    """Keys of 63 bits, as they are drawn; two masks agree at half of the places."""
    x, out = np.ones(1000), np.empty((3, 1000))
    for key, row in zip(torch.randint(2**63 - 1, (3,), generator=torch.Generator().manual_seed(0)), out, strict=True):
        dropout_cpu.drop(x, int(key), 0.5, row)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 400 < (out[a] == out[b]).sum() < 600


@pytest.mark.parametrize("columns", [11, 8, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_equals_torchs_layer_norm_with_the_mask(dtype, columns, threads):
    """Rows of 11 numbers in two parts, places counted over all rows; it also returns mean and 1 / sd of each row."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=g, dtype=dtype) for shape in ((7, 11), (11,), (11,)))
    mean, rstd, out = torch.empty(7, dtype=dtype), torch.empty(7, dtype=dtype), torch.empty(7, 11, dtype=dtype)
    inputs, outputs = (x[:, :columns], x[:, columns:], weight, bias), (mean, rstd, out)
    dropout_cpu.norm(*(t.numpy() for t in inputs), 1e-5, KEY, 0.4, *(t.numpy() for t in outputs))
    expected = F.layer_norm(x, (11,), weight, bias, 1e-5) * torch.from_numpy(mask((7, 11), KEY, 0.4)).to(dtype)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(rstd, (x.var(1, correction=0) + 1e-5).rsqrt())


@pytest.mark.parametrize("columns", [11, 8, 2, 0])
def test_norm_gradient_adds_the_gradients_of_a_block_of_rows(columns, threads):
    """Rows 2, 3 and 4 of six, in two parts, added to ones; against autograd."""
    g = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(6, 11, generator=g, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(11, generator=g, dtype=torch.float64), torch.zeros(11, dtype=torch.float64)
    parameters = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    y = F.layer_norm(x, (11,), *parameters, 1e-5) * torch.from_numpy(mask((6, 11), KEY, 0.4))
    expected = torch.autograd.grad(y[2:5], parameters, dy[2:5])
    mean, rstd, out = np.empty(6), np.empty(6), np.empty((6, 11))
    parts = x[:, :columns].numpy(), x[:, columns:].numpy()
    dropout_cpu.norm(*parts, weight.numpy(), bias.numpy(), 1e-5, KEY, 0.4, mean, rstd, out)
    sums = np.ones((2, 11))
    dropout_cpu.norm_gradient(dy[2:5].numpy(), 2, *parts, KEY, 0.4, mean, rstd, *sums)
    for ours, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours) - 1, reference)
