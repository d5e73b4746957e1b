r"""Linear, activation, dropout and linear layer as one operation that keeps its input only.

The numbers between the two linear layers, four times as many as the input has, are computed for a block of rows at a
time, which fits in the cache, and once more in the backward pass. That takes one matrix product in seven more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.dropout import drop_in_place, has_cpu_kernel, new_key

_ROWS = 256  # in a block
_MANY = 1 << 22  # numbers between the two layers from which on they are not kept


class Activation(NamedTuple):
    """An activation of numbers h, which may depend on a slope."""

    value: Callable[[Tensor, float], Tensor]  # (h, slope) -> its value
    gradient: Callable[[Tensor, Tensor, float], Tensor]  # (gradient of the value, h, slope) -> gradient of h


ACTIVATIONS = {
    "relu": Activation(lambda h, _: h.relu(), lambda d, h, _: torch.ops.aten.leaky_relu_backward(d, h, 0.0, False)),
    "gelu": Activation(lambda h, _: F.gelu(h), lambda d, h, _: torch.ops.aten.gelu_backward(d, h)),
    "prelu": Activation(
        lambda h, slope: F.leaky_relu(h, slope),
        lambda d, h, slope: torch.ops.aten.leaky_relu_backward(d, h, slope, False),
    ),
}


def saves_memory(x: Tensor, hidden: int) -> bool:
    """Whether `feed_forward` can be used for x (..., d), and its inner numbers are worth computing twice."""
    return x.numel() // max(1, x.shape[-1]) * hidden >= _MANY and has_cpu_kernel(x)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    activation: str,
    slope: Tensor | None,
    p: float,
) -> Tensor:
    r"""$\mathrm{drop}_p(\mathrm{act}(x W_1^\top + b_1)) W_2^\top + b_2$ on the CPU, see `saves_memory`.

    x           (..., d)
    weight1     (H, d)  and bias1 (H,)
    weight2     (d', H)  and bias2 (d',)
    activation  one of `ACTIVATIONS`
    slope       (1,)  of "prelu"
    p           dropout, below 1
    returns     (..., d')
    raises      RuntimeError in a backward pass with `create_graph=True`
    """
    key = new_key() if p else 0
    return _FeedForward.apply(x, weight1, bias1, weight2, bias2, slope, ACTIVATIONS[activation], p, key)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, slope, activation, p, key):
        rows = x.reshape(-1, x.shape[-1])  # (n, d)
        ctx.save_for_backward(rows, weight1, bias1, weight2, slope)
        ctx.activation, ctx.p, ctx.key, ctx.slope = activation, p, key, 0.0 if slope is None else slope.item()
        out, buffer = rows.new_empty(len(rows), len(weight2)), rows.new_empty(min(_ROWS, len(rows)), len(weight1))
        for i, block in _blocks(rows):
            h = torch.addmm(bias1, block, weight1.mT, out=buffer[: len(block)])
            y = drop_in_place(activation.value(h, ctx.slope), i * len(weight1), key, p)
            torch.addmm(bias2, y, weight2.mT, out=out[i : i + len(block)])
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("feed_forward has no second derivative: call the layers one after another")
        rows, weight1, bias1, weight2, slope = ctx.saved_tensors
        shape, grad = (*grad.shape[:-1], rows.shape[1]), grad.reshape(len(rows), -1)  # (n, d')
        dx, dweight1, dbias1, dweight2 = torch.empty_like(rows), *map(torch.zeros_like, (weight1, bias1, weight2))
        dslope = None if slope is None else torch.zeros_like(slope)
        buffers = rows.new_empty(2, min(_ROWS, len(rows)), len(weight1))
        for i, block in _blocks(rows):
            dout, place = grad[i : i + len(block)], i * len(weight1)
            h = torch.addmm(bias1, block, weight1.mT, out=buffers[0, : len(block)])
            y = drop_in_place(ctx.activation.value(h, ctx.slope), place, ctx.key, ctx.p)
            dweight2.addmm_(dout.mT, y)
            dy = drop_in_place(torch.mm(dout, weight2, out=buffers[1, : len(block)]), place, ctx.key, ctx.p)
            if dslope is not None:
                dslope += torch.dot(dy.view(-1), torch.clamp(h, max=0, out=y).view(-1))
            dh = ctx.activation.gradient(dy, h, ctx.slope)
            dbias1 += dh.sum(0)
            dweight1.addmm_(dh.mT, block)
            torch.mm(dh, weight1, out=dx[i : i + len(block)])
        return dx.view(shape), dweight1, dbias1, dweight2, grad.sum(0), dslope, None, None, None


def _blocks(rows: Tensor):
    """Blocks of rows (n, d), each with the number of its first row."""
    return ((i, rows[i : i + _ROWS]) for i in range(0, len(rows), _ROWS))
