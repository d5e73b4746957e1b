r"""Convolution of 3 over time in two thirds of the multiplications, for features that lie clip by clip.

Paper    Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: Winograd's minimal filtering
         F(2, 3), here over time and with all channels at once
Here     `time_convs` equals `torch.nn.functional.conv1d(x.mT, weight, bias, padding=1).mT` up to rounding. Inputs
         $d_0, \dots, d_3$ and weights $g_0, g_1, g_2$ give two outputs with four products, $p_0 = (d_0 - d_2) g_0$,
         $p_1 = (d_1 + d_2)(g_0 + g_1 + g_2) / 2$, $p_2 = (d_2 - d_1)(g_0 - g_1 + g_2) / 2$, $p_3 = (d_1 - d_3) g_2$,
         instead of six: $p_0 + p_1 + p_2$ and $p_1 - p_2 - p_3$. With channels, each is a matrix product
Rounding is that of the plain sum, as no factor is above 1; F(4, 3) would save more and is several times less exact
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_INPUTS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # of a product, from d_0 ... d_3
_WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # of a product, from g_0, g_1, g_2
_OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, -1))  # two outputs, from the four products
_ROWS = 256  # places; with fewer, the sums of the weights cost more than they save
_CHANNELS = 64  # with fewer in or out, the sums of inputs and outputs do


def time_convs(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Convolutions of 3 over time of the same x, with stride 1 and zero padding; an output is as long as x.

    x        (B, L, I)
    weights  (O, I, 3) each
    biases   (O,) each, or None
    returns  (B, L, O) each
    """
    way = _way(x, weights)
    if way == "winograd":
        return list(_Winograd.apply(x, *(p for pair in zip(weights, biases, strict=True) for p in pair)))
    conv = _project_first if way == "project first" else _direct
    return [conv(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def time_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`time_convs` for one: x (B, L, I), weight (O, I, 3), bias (O,) -> (B, L, O)."""
    return time_convs(x, [weight], [bias])[0]


def _way(x: Tensor, weights: Sequence[Tensor]) -> str:
    """The fastest way by sizes, device and number format; on a GPU, cuDNN decides.

    Measured (one thread, forward and backward pass, time of conv1d / time of the way): 1024 -> 1024 channels with 32 x
    75 places 1.8, with 4 x 75 1.4, with 1 x 75 1.07; 256 -> 256 with 32 x 156 1.2, with 4 x 156 1.1; 64 -> 64 with
    4 x 64 1.0; 1024 -> 2 with 32 x 75 3.5.
    """
    plain = x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    exact = x.dtype in (torch.float32, torch.float64) and all(weight.dtype == x.dtype for weight in weights)
    if not plain or not exact:
        return "direct"
    if all(3 * weight.shape[0] < weight.shape[1] for weight in weights):
        return "project first"
    channels = min(min(weight.shape[:2]) for weight in weights)
    return "winograd" if x.shape[0] * x.shape[1] >= _ROWS and channels >= _CHANNELS else "direct"


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Torch's convolution; arguments as in `time_conv`."""
    return F.conv1d(x.mT, weight, bias, padding=1).mT


def _project_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For few outputs: multiply the channels, then add the products of neighbours; arguments as in `time_conv`."""
    products = F.linear(x, weight.permute(2, 0, 1).flatten(0, 1))  # (B, L, 3 O)
    before, here, after = products.chunk(3, -1)  # (B, L, O) each: of the place before, itself, the next
    y = F.pad(before[:, :-1], (0, 0, 1, 0)) + here + F.pad(after[:, 1:], (0, 0, 0, 1))
    return y if bias is None else y + bias


class _Winograd(torch.autograd.Function):
    """All videos lie behind one another, so that tile i is places 2i ... 2i + 3: before each is a place of zeros, which
    also ends the one before, and a second if the length is even. Shapes: N tiles in all."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        (B, L, D), S = x.shape, 2 * (x.shape[1] // 2 + 1)
        places = x.new_zeros(B * S + 2, D)
        places[:-2].view(B, S, D)[:, 1 : L + 1] = x
        tiles = places.as_strided((B * S // 2, 4, D), (2 * D, D, 1))  # (N, 4, D)
        inputs = _sums(_INPUTS, tiles).transpose(0, 1)  # (4, N, D)
        outputs, transformed = [], []
        for weight, bias in zip(weights, biases, strict=True):
            w = (x.new_tensor(_WEIGHTS) @ weight.flatten(0, 1).mT).view(4, -1, D)  # (4, O, D)
            y = _sums(_OUTPUTS, torch.bmm(inputs, w.mT).transpose(0, 1), bias)  # (N, 2, O)
            outputs.append(y.view(B, S, -1)[:, :L])
            transformed.append(w)
        ctx.save_for_backward(inputs, *transformed)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *transformed = ctx.saved_tensors
        (B, L), N, D = grads[0].shape[:2], *inputs.shape[1:]
        S = 2 * N // B
        d_parameters, d_inputs = [], None
        for i, (grad, w) in enumerate(zip(grads, transformed, strict=True)):
            d_products = _sums(_transposed(_OUTPUTS), F.pad(grad, (0, 0, 0, S - L)).view(N, 2, -1)).transpose(0, 1)
            d_w = torch.bmm(d_products.mT, inputs)  # (4, O, D)
            d_weight = (grad.new_tensor(_WEIGHTS).mT @ d_w.flatten(1)).mT.reshape(-1, D, 3)
            d_parameters += [d_weight, grad.sum((0, 1)) if ctx.needs_input_grad[2 * i + 2] else None]
            if not ctx.needs_input_grad[0]:
                continue
            if d_inputs is None:
                d_inputs = torch.bmm(d_products, w)  # (4, N, D)
            else:
                torch.baddbmm(d_inputs, d_products, w, out=d_inputs)
        if d_inputs is None:
            return None, *d_parameters
        d_inputs, transposed = d_inputs.transpose(0, 1), _transposed(_INPUTS)  # (N, 4, D)
        d_places = _sums(transposed[:2], d_inputs)  # (N, 2, D); a place is in the first half of one tile,
        rest = grads[0].new_tensor(transposed[2:]).expand(N - 1, -1, -1)
        d_places[1:].baddbmm_(rest, d_inputs[:-1])  # and in the second half of the tile before
        return d_places.view(B, S, D)[:, 1 : L + 1], *d_parameters


def _transposed(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*matrix, strict=True))


def _sums(matrix: Sequence[Sequence[float]], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of a small matrix (m, n) with every tile of x (N, n, d), plus bias (d,); (N, m, d)."""
    matrix = x.new_tensor(matrix).expand(len(x), -1, -1)
    if bias is None:
        return torch.bmm(matrix, x)
    return torch.baddbmm(bias.expand(*matrix.shape[:2], -1), matrix, x)
