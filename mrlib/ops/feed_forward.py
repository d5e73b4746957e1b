r"""The feed-forward layer of a Transformer with ReLU or PReLU, block by block.

$$h = W_1 x + b_1, \quad \phi(h) = \max(h, 0) + a \min(h, 0), \quad y = W_2\, \mathrm{drop}_p(\phi(h)) + b_2$$

The hidden width is four times that of x, so that bias, activation and dropout, each a pass over memory, took as long as
half of the matrix products. On the CPU they are one pass here, over a block of rows that is still in the cache. Of the
hidden vectors only $W_1 x$ is kept, and none without a gradient; the backward pass computes the others again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.dropout import cpu_kernels, dropout, has_cpu_kernel, new_key
from mrlib.ops.prelu import prelu

_ROWS = 512  # rows per block; their hidden vectors, 2 MiB at the papers' width, fit in the cache


def feed_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, slope: Tensor | None, weight2: Tensor, bias2: Tensor, p: float
) -> Tensor:
    """Linear, ReLU or PReLU, dropout, Linear.

    x        (..., d)
    weight1  (H, d), bias1 (H,)
    slope    (1,)  a, of PReLU; None: ReLU, where a is 0
    weight2  (d', H), bias2 (d',)
    p        share of the hidden numbers that are dropped, as in training; 0: none
    returns  (..., d')
    """
    parameters = [t for t in (weight1, bias1, slope, weight2, bias2) if t is not None]
    hidden = x[..., :1].expand(*x.shape[:-1], len(weight1))  # (..., H), for its number of elements
    if p < 1 and has_cpu_kernel(hidden) and all(t.dtype == x.dtype for t in parameters):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
            if p:
                return _FeedForward.apply(x, weight1, bias1, slope, weight2, bias2, p, new_key())
        elif p == 0:
            return _without_gradient(x, weight1, bias1, slope, weight2, bias2)
    h = F.linear(x, weight1, bias1)
    return F.linear(dropout(h.relu() if slope is None else prelu(h, slope), p), weight2, bias2)


def _without_gradient(
    x: Tensor, weight1: Tensor, bias1: Tensor, slope: Tensor | None, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """`feed_forward` without dropout; one block of hidden vectors at a time."""
    rows, negative = x.reshape(-1, x.shape[-1]), 0.0 if slope is None else slope.item()
    y, buffer = rows.new_empty(len(rows), len(weight2)), rows.new_empty(min(_ROWS, len(rows)), len(weight1))
    for begin in range(0, len(rows), _ROWS):
        block = rows[begin : begin + _ROWS]
        h = torch.addmm(bias1, block, weight1.mT, out=buffer[: len(block)])
        torch.addmm(bias2, F.leaky_relu_(h, negative), weight2.mT, out=y[begin : begin + _ROWS])
    return y.view(*x.shape[:-1], -1)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight1, bias1, slope, weight2, bias2, p, key):
        rows, kernels = x.reshape(-1, x.shape[-1]), cpu_kernels("feed_forward_cpu")
        h, y = rows.new_empty(len(rows), len(weight1)), rows.new_empty(len(rows), len(weight2))
        buffer = rows.new_empty(min(_ROWS, len(rows)), len(weight1))
        ctx.p, ctx.key, ctx.slope = p, key, None if slope is None else slope.item()
        for begin in range(0, len(rows), _ROWS):
            block = slice(begin, begin + _ROWS)
            product = torch.mm(rows[block], weight1.mT, out=h[block])
            dropped = buffer[: len(product)]
            kernels.activate(product.numpy(), begin, bias1.numpy(), ctx.slope or 0.0, key, p, dropped.numpy())
            torch.addmm(bias2, dropped, weight2.mT, out=y[block])
        ctx.save_for_backward(rows, weight1, bias1, weight2, h)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, weight1, bias1, weight2, h = ctx.saved_tensors
        kernels, dy, dx = cpu_kernels("feed_forward_cpu"), grad.reshape(len(rows), -1), torch.empty_like(rows)
        dweight1, dweight2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        sums = rows.new_zeros(2, len(weight1))  # the gradient of bias1, and that of the slope by columns
        buffers = rows.new_empty(2, min(_ROWS, len(rows)), len(weight1))
        for begin in range(0, len(rows), _ROWS):
            block = slice(begin, begin + _ROWS)
            dh, dropped = buffers[:, : len(dy[block])]
            torch.mm(dy[block], weight2, out=dh)
            kernels.activation_gradient(
                h[block].numpy(), begin, bias1.numpy(), ctx.slope or 0.0, ctx.key, ctx.p,
                dh.numpy(), dropped.numpy(), *sums.numpy(),
            )  # fmt: skip
            dweight2.addmm_(dy[block].mT, dropped)
            dweight1.addmm_(dh.mT, rows[block])
            torch.mm(dh, weight1, out=dx[block])
        dslope = None if ctx.slope is None else sums[1].sum()[None]
        return dx.view(*grad.shape[:-1], -1), dweight1, sums[0], dslope, dweight2, dy.sum(0), None, None
