r"""Convolution of 3 over time in half of the multiplications, for features that lie clip by clip.

Paper    Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: Winograd's minimal filtering
         F(4, 3), here over time and with all channels at once
Here     `time_convs` equals `torch.nn.functional.conv1d(x.mT, weight, bias, padding=1).mT` up to rounding. Four outputs
         in a row are $y = A^\top [(G g) \odot (B^\top d)]$ of their six inputs d and the weights g: six products
         instead of twelve. With channels, each of them is a matrix product
Matrices evaluate the polynomials with the coefficients g and y at six points, and B interpolates (Toom-Cook). Points
         are free; those here round less than the usual 0, ±1, ±2: at 1024 channels the largest error is 1.3e-6 of the
         largest output instead of 2.5e-6, and 5e-7 for the plain sum
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = list[list[float]]


def _matrices(points: Sequence[float]) -> tuple[Matrix, Matrix, Matrix]:
    """B^T (m + 2, m + 2), G (m + 2, 3) and A^T (m, m + 2) for m + 1 points and infinity."""
    m, inputs = len(points) - 1, []
    for p in points:
        others = [q for q in points if q != p]
        inputs.append([*_coefficients(others, 1 / math.prod(p - q for q in others)), 0.0])
    weights = [[1.0, p, p * p] for p in points]
    outputs = [[*(p**i for p in points), float(i == m - 1)] for i in range(m)]
    return [*inputs, _coefficients(points, 1.0)], [*weights, [0.0, 0.0, 1.0]], outputs


def _coefficients(roots: Sequence[float], factor: float) -> list[float]:
    """The coefficients of factor times the product of x - root, lowest power first."""
    result = [factor]
    for root in roots:
        result = [a - root * b for a, b in zip([0.0, *result], [*result, 0.0], strict=True)]
    return result


_INPUTS, _WEIGHTS, _OUTPUTS = _matrices([0.0, 0.75, -0.75, 1.5, -1.5])
_TILE = len(_OUTPUTS)  # outputs of a tile, from two inputs more
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
    75 places 2.3, with 4 x 300 1.7, with 4 x 75 1.3, with 1 x 75 0.9; 256 -> 256 with 32 x 156 1.3, with 4 x 156 1.2;
    64 -> 64 with 4 x 64 1.2; 1024 -> 2 with 32 x 75 3.5.
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
    """All videos lie behind one another, S places each, so that tile i of N reads six places from place 4 i on.

    A video begins with a place of zeros, which also ends the one before; zeros fill it up to a multiple of four.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        (B, L, D), S = x.shape, _TILE * (x.shape[1] // _TILE + 1)
        places = x.new_zeros(B * S + 2, D)
        places[:-2].view(B, S, D)[:, 1 : L + 1] = x
        tiles = places.as_strided((B * S // _TILE, _TILE + 2, D), (_TILE * D, D, 1))  # (N, 6, D)
        inputs = _sums(_INPUTS, tiles).transpose(0, 1)  # (6, N, D)
        last = tiles[S // _TILE - 1 :: S // _TILE].clone()  # of each video (B, 6, D); without the first place of the
        last[:, -1] = 0  # next one, which may be NaN: only outputs after the end read it, but 0 times NaN is NaN
        inputs[:, S // _TILE - 1 :: S // _TILE] = _sums(_INPUTS, last).transpose(0, 1)
        outputs, transformed = [], []
        for weight, bias in zip(weights, biases, strict=True):
            w = (x.new_tensor(_WEIGHTS) @ weight.flatten(0, 1).mT).view(_TILE + 2, -1, D)  # (6, O, D)
            y = _sums(_OUTPUTS, torch.bmm(inputs, w.mT).transpose(0, 1), bias)  # (N, 4, O)
            outputs.append(y.view(B, S, -1)[:, :L])
            transformed.append(w)
        ctx.save_for_backward(inputs, *transformed)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *transformed = ctx.saved_tensors
        (B, L), N, D = grads[0].shape[:2], *inputs.shape[1:]
        S = _TILE * N // B
        d_parameters, d_inputs = [], None
        for i, (grad, w) in enumerate(zip(grads, transformed, strict=True)):
            padded = F.pad(grad, (0, 0, 0, S - L)).view(N, _TILE, -1)
            d_products = _sums(_transposed(_OUTPUTS), padded).transpose(0, 1)  # (6, N, O)
            d_w = torch.bmm(d_products.mT, inputs)  # (6, O, D)
            d_weight = (grad.new_tensor(_WEIGHTS).mT @ d_w.flatten(1)).mT.reshape(-1, D, 3)
            d_parameters += [d_weight, grad.sum((0, 1)) if ctx.needs_input_grad[2 * i + 2] else None]
            if not ctx.needs_input_grad[0]:
                continue
            if d_inputs is None:
                d_inputs = torch.bmm(d_products, w)  # (6, N, D)
            else:
                torch.baddbmm(d_inputs, d_products, w, out=d_inputs)
        if d_inputs is None:
            return None, *d_parameters
        d_inputs, transposed = d_inputs.transpose(0, 1), _transposed(_INPUTS)  # (N, 6, D)
        d_places = _sums(transposed[:_TILE], d_inputs)  # (N, 4, D); a place is one of the first four of a tile,
        rest = grads[0].new_tensor(transposed[_TILE:]).expand(N - 1, -1, -1)
        d_places[1:, :2].baddbmm_(rest, d_inputs[:-1])  # and perhaps of the last two of the tile before
        return d_places.view(B, S, D)[:, 1 : L + 1], *d_parameters


def _transposed(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*matrix, strict=True))


def _sums(matrix: Sequence[Sequence[float]], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of a small matrix (m, n) with every tile of x (N, n, d), plus bias (d,); (N, m, d)."""
    matrix = x.new_tensor(matrix).expand(len(x), -1, -1)
    if bias is None:
        return torch.bmm(matrix, x)
    return torch.baddbmm(bias.expand(*matrix.shape[:2], -1), matrix, x)
