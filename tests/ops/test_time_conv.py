"""Convolutions of 3 over time against torch's in float64, in every way that `time_convs` chooses between."""

import pytest
import torch
import torch.nn.functional as F

from mrlib.ops import time_conv as module
from mrlib.ops.time_conv import time_conv, time_convs


def inputs(B, L, inputs, outputs, bias, dtype):
    """x (B, L, I) and a weight and a bias for each number of outputs; the same numbers in float32 and float64."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(B, L, inputs, generator=g)
    weights = [torch.randn(out, inputs, 3, generator=g) / (3 * inputs) ** 0.5 for out in outputs]
    biases = [torch.randn(out, generator=g) if bias else None for out in outputs]
    x, *weights = (t.to(dtype).requires_grad_() for t in (x, *weights))
    return x, weights, [b if b is None else b.to(dtype).requires_grad_() for b in biases]


def with_gradients(function, x, weights, biases):
    """The outputs, and the gradients of x, weights and biases for random gradients of the outputs."""
    outputs, g = function(x, weights, biases), torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=g).to(y.dtype) for y in outputs]
    leaves = [x, *weights, *(b for b in biases if b is not None)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def plain(x, weights, biases):
    return [F.conv1d(x.mT, w, b, padding=1).mT for w, b in zip(weights, biases, strict=True)]


def close(ours, exact, tolerance):
    """Within the tolerance of the largest number of a tensor."""
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape and (a.double() - b.double()).abs().max() <= tolerance * b.abs().max()


SHAPES = [  # B, L, channels, outputs, way
    (4, 75, 64, [64], "winograd"),
    (3, 90, 64, [96, 70], "winograd"),
    (300, 1, 64, [64, 64], "winograd"),
    (130, 2, 72, [65], "winograd"),
    (1, 301, 64, [64], "winograd"),
    (2, 9, 64, [64], "direct"),
    (5, 60, 16, [16, 16], "direct"),
    (4, 75, 64, [1], "project first"),
    (2, 1, 64, [1, 2], "project first"),
    (1, 2, 64, [2], "project first"),
]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B, L, channels, outputs, way", SHAPES)
def test_values_and_gradients_equal_torchs_convolution(B, L, channels, outputs, way, bias, dtype, tolerance):
    arguments = inputs(B, L, channels, outputs, bias, dtype)
    assert module._way(*arguments[:2]) == way
    exact = with_gradients(plain, *inputs(B, L, channels, outputs, bias, torch.float64))
    close(with_gradients(time_convs, *arguments), exact, tolerance)


def test_gradients_of_fixed_inputs_and_weights_are_left_out():
    """A convolution of features that need no gradient, and one whose weight is frozen."""
    x, (weight,), (bias,) = inputs(4, 75, 64, [64], True, torch.float64)
    expected = torch.autograd.grad(plain(x, [weight], [bias])[0].square().sum(), [x, weight, bias])
    for i, fixed in enumerate(((x, bias), (weight,))):
        for t in (x, weight, bias):
            t.requires_grad_(all(t is not f for f in fixed))
        free = [t for t in (x, weight, bias) if t.requires_grad]
        loss = time_conv(x, weight, bias).square().sum()
        close(torch.autograd.grad(loss, free), [expected[j] for j in ([1], [0, 2])[i]], 1e-13)


def test_a_second_derivative_raises_an_error():
    x, weights, biases = inputs(4, 75, 64, [64], True, torch.float64)
    (dx,) = torch.autograd.grad(time_convs(x, weights, biases)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_half_precision_and_autocast_use_torchs_convolution():
    x, weights, biases = inputs(4, 75, 64, [64], True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert module._way(x, weights) == "direct"
        assert torch.equal(time_convs(x, weights, biases)[0], plain(x, weights, biases)[0])
    half = [t.bfloat16() for t in (x, weights[0], biases[0])]
    assert module._way(half[0], half[1:2]) == "direct"
    assert torch.equal(time_conv(*half), plain(half[0], half[1:2], half[2:])[0])


@pytest.mark.parametrize("L", [73, 74, 75, 76])
def test_a_damaged_video_changes_no_other_one(L):
    x, weights, biases = inputs(4, L, 64, [64], True, torch.float32)
    damaged = x.detach().clone()
    damaged[1] = torch.nan
    assert module._way(x, weights) == "winograd"
    expected, y = (time_convs(each, weights, biases)[0] for each in (x, damaged))
    assert torch.equal(y[[0, 2, 3]], expected[[0, 2, 3]]) and y[1].isnan().all()


def test_winograd_by_hand():
    """1, 2, 3, 4 with weights 1, 10, 100: each place has itself ten times, its neighbours once and a hundred times."""
    x, weight = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None], torch.tensor([[[1.0, 10.0, 100.0]]])
    (y,) = module._Winograd.apply(x, weight, torch.tensor([0.5]))
    assert y[0, :, 0].tolist() == pytest.approx([210.5, 321.5, 432.5, 43.5], rel=1e-6)
