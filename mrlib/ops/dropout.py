r"""Dropout without a stored mask, and layer norm, dropout and linear layer as one operation.

With stored masks, a third of a training step with a projection of wide features went into drawing, writing and reading
them. On the CPU `mrlib.ops.dropout_cpu` computes a mask by a hash wherever it is needed. On other devices, in half
precision, inside torch.compile and without numba, torch's dropout is used. The key of a mask is drawn from torch's
generator, so results follow `torch.manual_seed`.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 128  # rows per block of the backward pass; their gradients fit in the cache
_MANY = 1 << 22  # numbers from which on the normalised rows are computed again in the backward pass, not kept
_MOST = 2**32  # numbers in a tensor that the hash can tell apart


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout as in training: each number is 0 with probability p, else divided by 1 - p.  x (...), returns (...)"""
    return _Dropout.apply(x, p, new_key()) if 0 < p < 1 and has_cpu_kernel(x) else F.dropout(x, p)


def norm_dropout_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, p: float, weight: Tensor, bias: Tensor
) -> Tensor:
    r"""$\mathrm{drop}_p(\mathrm{LN}(x)) W^\top + b$; faster if x needs no gradient.

    With $\hat x$ the normalised rows, m the mask divided by 1 - p and g the gradient of the output:

    $$h = m \odot (\hat x \odot \gamma + \beta), \quad dW = g^\top h, \quad
    d\gamma = \sum_n (g W) \odot m \odot \hat x, \quad d\beta = \sum_n (g W) \odot m$$

    g W is computed for a block of rows at a time, and never stored as a whole; so is h, if x is large.

    x            (..., D)
    norm_weight  (D,)  and norm_bias (D,)
    weight       (d, D)
    bias         (d,)
    returns      (..., d)
    """
    parameters = (norm_weight, norm_bias, weight, bias)
    if 0 < p < 1 and not x.requires_grad and all(has_cpu_kernel(t) and t.dtype == x.dtype for t in (x, *parameters)):
        return _NormDropoutLinear.apply(x, *parameters, eps, p, new_key())
    return F.linear(dropout(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), p), weight, bias)


@functools.cache
def _kernels() -> ModuleType | None:
    """`mrlib.ops.dropout_cpu`, or None without numba."""
    try:
        from mrlib.ops import dropout_cpu
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return dropout_cpu


def has_cpu_kernel(x: Tensor) -> bool:
    """Whether the CPU kernels can be used for x."""
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and 0 < x.numel() < _MOST
    eager = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    return supported and eager and _kernels() is not None


def drop_in_place(x: Tensor, place: int, key: int, p: float) -> Tensor:
    """Dropout of a contiguous x (...), a part of a tensor for which there is a CPU kernel; no gradient; returns x.

    place  of the first number of x in the tensor
    key    of the mask, see `new_key`
    """
    if p:
        _kernels().drop_in_place(x.view(-1).numpy(), place, key, p)
    return x


def new_key() -> int:
    """A new key of 63 bits from torch's generator."""
    return int(torch.randint(2**63 - 1, ()))


def _numpy(x: Tensor):
    return x.detach().contiguous().numpy()


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, key: int) -> Tensor:
        ctx.p, ctx.key = p, key
        return _dropped(x, p, key)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Dropout.apply(grad, ctx.p, ctx.key), None, None


def _dropped(x: Tensor, p: float, key: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    _kernels().drop(_numpy(x).reshape(-1), key, p, out.view(-1).numpy())
    return out


class _NormDropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, eps, p, key):
        rows = x.contiguous().view(-1, x.shape[-1])  # (n, D)
        keep = rows.numel() < _MANY
        mean, rstd = rows.new_empty(2, len(rows))
        h = rows.new_empty(len(rows) if keep else min(_ROWS, len(rows)), rows.shape[1])
        out = rows.new_empty(len(rows), len(weight))
        for begin in range(0, len(rows), len(h)):
            block = _norm(rows, norm_weight, norm_bias, eps, key, p, mean, rstd, begin, h[: len(rows) - begin])
            torch.addmm(bias, block, weight.mT, out=out[begin : begin + len(block)])
        ctx.save_for_backward(rows, norm_weight, norm_bias, mean, rstd, h if keep else None, weight)
        ctx.eps, ctx.key, ctx.p = eps, key, p
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, norm_weight, norm_bias, mean, rstd, h, weight = ctx.saved_tensors
        grad = grad.reshape(len(rows), -1)  # (n, d)
        sums = rows.new_zeros(2, rows.shape[1])  # the gradients of norm_weight and norm_bias
        dweight = torch.zeros_like(weight) if h is None else grad.mT @ h
        buffer = rows.new_empty(min(_ROWS, len(rows)), rows.shape[1])
        for begin in range(0, len(rows), _ROWS):
            block = grad[begin : begin + _ROWS]
            if h is None:
                again = (rows, norm_weight, norm_bias, ctx.eps, ctx.key, ctx.p, mean, rstd)
                dweight.addmm_(block.mT, _norm(*again, begin, buffer[: len(block)]))
            dh = torch.mm(block, weight, out=buffer[: len(block)])
            _kernels().norm_gradient(_numpy(dh), begin, _numpy(rows), ctx.key, ctx.p, *map(_numpy, (mean, rstd, *sums)))
        return None, *sums, dweight, grad.sum(0), None, None, None


def _norm(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    key: int,
    p: float,
    mean: Tensor,
    rstd: Tensor,
    begin: int,
    out: Tensor,
) -> Tensor:
    """Layer norm and dropout of rows begin.. of (n, D) into out (k, D), which is returned; fills mean and rstd (n,)."""
    inputs = _numpy(weight), _numpy(bias)
    _kernels().norm(_numpy(rows), begin, *inputs, eps, key, p, *map(_numpy, (mean, rstd, out)))
    return out
