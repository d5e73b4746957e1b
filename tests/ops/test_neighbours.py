"""Convolution channel by channel and local attention against their definitions in float64, place by place."""

import sys

import pytest
import torch

from mrlib.ops import neighbours
from mrlib.ops.dropout import cpu_kernels
from mrlib.ops.neighbours import channel_convs, local_attention

MASK = torch.arange(9) < torch.tensor([9, 4, 1, 0])[:, None]  # (4, 9)
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-11, "atol": 1e-12}}


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """In kernels compiled by numba, or in torch's operations."""
    if request.param == "plain":
        monkeypatch.setattr(neighbours, "has_cpu_kernel", lambda x: False)
    elif cpu_kernels() is None:
        pytest.skip("numba is not installed")
    return request.param


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"], autouse=True)
def threads(request, monkeypatch):
    """Threads are used for few numbers too."""
    if (kernels := cpu_kernels("neighbours_cpu")) is not None:
        monkeypatch.setattr(kernels, "threads_for", lambda numbers: request.param)


def drawn(*shapes):
    """Random numbers with few digits, the same in float32 and float64."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=g).double() for shape in shapes]


def convolved(x, mask, weight, stride):
    """The sum over the three places around each, by hand."""
    (B, L, d), many = x.shape, len(weight) // x.shape[2]
    rows = [[x[b, i] if 0 <= i < L and mask[b, i] else torch.zeros(d) for i in range(-1, L + 1)] for b in range(B)]
    outputs = []
    for m in range(many):
        taps = weight[m::many, 0]  # (d, 3)
        places = [
            torch.stack([sum(taps[:, k] * row[i + k] for k in range(3)) for i in range(0, L, stride)]) for row in rows
        ]
        outputs.append(torch.stack(places))
    return outputs


def attended(q, k, v, mask, heads, near):
    """Softmax over the real places of each window, by hand; without one, the sum of the window over its size."""
    (B, L, d), rows = q.shape, []
    for b in range(B):
        for i in range(L):
            around = [j for j in range(i - near, i + near + 1) if 0 <= j < L]
            real = [j for j in around if mask[b, j]]
            for channels in torch.arange(d).chunk(heads):
                value = v[b][:, channels]
                if real:
                    scores = k[b][real][:, channels] @ q[b, i, channels] / len(channels) ** 0.5
                    rows.append(scores.softmax(0) @ value[real])
                else:
                    rows.append(value[around].sum(0) / (2 * near + 1))
    return torch.cat(rows).view(B, L, d)


def compare(function, definition, tensors, dtype, *others):
    """Values and gradients, for random gradients of the outputs."""
    results = []
    for call, kind in ((function, dtype), (definition, torch.float64)):
        leaves = [t.to(kind).requires_grad_() for t in tensors]
        outputs = call(leaves, *others)
        g = torch.Generator().manual_seed(1)
        grads = [torch.randn(y.shape, generator=g).to(kind) for y in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, grads)])
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stride, many", [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_a_convolution_reads_the_real_neighbours_of_its_own_channel(stride, many, dtype, way):
    """Of 9, 4, 1 and 0 real places of nine; with every stride the outputs begin at the first place."""
    compare(
        lambda leaves: channel_convs(leaves[0], MASK, leaves[1], stride),
        lambda leaves: convolved(leaves[0], MASK, leaves[1], stride),
        drawn((4, 9, 6), (6 * many, 1, 3)),
        dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads, near", [(1, 2), (3, 2), (2, 1), (6, 12)])
def test_local_attention_reads_the_real_places_of_the_window(heads, near, dtype, way):
    compare(
        lambda leaves: [local_attention(*leaves, MASK, heads, near)],
        lambda leaves: [attended(*leaves, MASK, heads, near)],
        drawn(*[(4, 9, 6)] * 3),
        dtype,
    )


def test_padding_may_hold_anything_but_gets_no_gradient_of_the_convolution(way):
    x, weight = drawn((4, 9, 6), (6, 1, 3))
    x = x.requires_grad_()
    (y,) = channel_convs(x, MASK, weight)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert not dx[~MASK].any() and dx[MASK].all()


@pytest.mark.parametrize("L", [1, 2])
def test_one_or_two_places(L, way):
    mask = torch.ones(2, L, dtype=torch.bool)
    q, k, v, weight = drawn(*[(2, L, 4)] * 3, (4, 1, 3))
    torch.testing.assert_close(local_attention(q, k, v, mask, 2, 2), attended(q, k, v, mask, 2, 2))
    for stride in (1, 2):
        (y,) = channel_convs(q, mask, weight, stride)
        torch.testing.assert_close(y, *convolved(q, mask, weight, stride))


def test_inputs_need_not_be_contiguous(way):
    q, k, v = (x.mT for x in drawn(*[(4, 6, 9)] * 3))
    torch.testing.assert_close(local_attention(q, k, v, MASK, 3, 2), attended(q, k, v, MASK, 3, 2))
    (y,) = channel_convs(q, MASK.mT.contiguous().mT, v[0, :6, :1, None].expand(-1, -1, 3))
    torch.testing.assert_close(y, *convolved(q, MASK, v[0, :6, :1, None].expand(-1, -1, 3), 1))


def test_in_half_precision_torchs_operations_are_used():
    """bfloat16 has three digits."""
    q, k, v = (x.bfloat16() for x in drawn(*[(4, 9, 6)] * 3))
    out = local_attention(q, k, v, MASK, 3, 2)
    expected = attended(*(x.double() for x in (q, k, v)), MASK, 3, 2)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.05)


def test_without_numba_torchs_operations_are_used(monkeypatch):
    q, k, v = drawn(*[(4, 9, 6)] * 3)
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("dropout_cpu", "neighbours_cpu"):
        monkeypatch.delitem(sys.modules, f"mrlib.ops.{name}", raising=False)
        monkeypatch.delattr(f"mrlib.ops.{name}", raising=False)
    cpu_kernels.cache_clear()
    try:
        assert not neighbours.has_cpu_kernel(q)
        torch.testing.assert_close(local_attention(q, k, v, MASK, 3, 2), attended(q, k, v, MASK, 3, 2))
    finally:
        cpu_kernels.cache_clear()
