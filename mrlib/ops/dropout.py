r"""Dropout without a stored mask, and layer norm, dropout and linear layer as one operation.

With stored masks, a third of a training step with a projection of wide features went into drawing, writing and reading
them. On the CPU `mrlib.ops.dropout_cpu` computes a mask by a hash wherever it is needed. On other devices, in half
precision, inside torch.compile and without numba, torch's dropout is used. The key of a mask is drawn from torch's
generator, so results follow `torch.manual_seed`.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 128  # rows per block of the backward pass; their gradients fit in the cache
_MOST = 2**32  # numbers in a tensor that the hash can tell apart


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout as in training: each number is 0 with probability p, else divided by 1 - p.  x (...), returns (...)"""
    return _Dropout.apply(x, p, new_key()) if 0 < p < 1 and has_cpu_kernel(x) else F.dropout(x, p)


def norm_dropout_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    p: float,
    weight: Tensor,
    bias: Tensor,
    extra: Tensor | None = None,
) -> Tensor:
    r"""$\mathrm{drop}_p(\mathrm{LN}(x)) W^\top + b$; faster if x needs no gradient.

    With $\hat x$ the normalised rows, m the mask divided by 1 - p and g the gradient of the output:

    $$h = m \odot (\hat x \odot \gamma + \beta), \quad dW = g^\top h, \quad
    d\gamma = \sum_n (g W) \odot m \odot \hat x, \quad d\beta = \sum_n (g W) \odot m$$

    g W is computed for a block of rows at a time, and never stored as a whole; without dropout and gradients, nor is h.

    x            (..., X)
    norm_weight  (D,)  and norm_bias (D,)
    p            share of the numbers that are dropped, as in training; 0: none
    weight       (d, D)
    bias         (d,)
    extra        (..., D - X)  further features, after those of x; they get no gradient
    returns      (..., d)
    """
    parameters = (norm_weight, norm_bias, weight, bias)
    extra = x[..., :0] if extra is None else extra
    if p < 1 and not x.requires_grad and all(has_cpu_kernel(t) and t.dtype == x.dtype for t in (x, *parameters)):
        if p:
            return _NormDropoutLinear.apply(x, extra.to(x.dtype), *parameters, eps, p, new_key())
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in parameters)):
            return _norm_linear(x, extra.to(x.dtype), *parameters, eps)
    x = torch.cat([x, extra], -1) if extra.shape[-1] else x
    return F.linear(dropout(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), p), weight, bias)


def _norm_linear(
    x: Tensor, extra: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """`norm_dropout_linear` without dropout, block by block."""
    rows = x.reshape(-1, x.shape[-1])  # (n, X)
    extra = extra.reshape(len(rows), extra.shape[-1])  # (n, D - X)
    out = rows.new_empty(len(rows), len(weight))  # (n, d)
    for block in (slice(begin, begin + _ROWS) for begin in range(0, len(rows), _ROWS)):
        h = F.layer_norm(torch.cat([rows[block], extra[block]], 1), norm_weight.shape, norm_weight, norm_bias, eps)
        torch.addmm(bias, h, weight.mT, out=out[block])
    return out.view(*x.shape[:-1], -1)


@functools.cache
def cpu_kernels(name: str = "dropout_cpu") -> ModuleType | None:
    """A module of mrlib.ops with kernels for the CPU; None without numba."""
    try:
        return importlib.import_module(f"mrlib.ops.{name}")
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None


def has_cpu_kernel(x: Tensor) -> bool:
    """Whether the CPU kernels can be used for x."""
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and 0 < x.numel() < _MOST
    eager = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    return supported and eager and cpu_kernels() is not None


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
    cpu_kernels().drop(_numpy(x).reshape(-1), key, p, out.view(-1).numpy())
    return out


class _NormDropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, extra, norm_weight, norm_bias, weight, bias, eps, p, key):
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # (n, X)
        extra = extra.reshape(len(rows), extra.shape[-1]).contiguous()  # (n, D - X)
        mean, rstd = rows.new_empty(2, len(rows))
        h = rows.new_empty(len(rows), len(norm_weight))  # (n, D)
        inputs = rows, extra, norm_weight, norm_bias
        cpu_kernels().norm(*map(_numpy, inputs), eps, key, p, *map(_numpy, (mean, rstd, h)))
        ctx.save_for_backward(rows, extra, mean, rstd, h, weight)
        ctx.key, ctx.p = key, p
        return F.linear(h, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, extra, mean, rstd, h, weight = ctx.saved_tensors
        grad = grad.reshape(len(rows), -1)  # (n, d)
        sums = rows.new_zeros(2, h.shape[1])  # the gradients of norm_weight and norm_bias
        buffer = rows.new_empty(min(_ROWS, len(rows)), h.shape[1])
        inputs = *map(_numpy, (rows, extra)), ctx.key, ctx.p, *map(_numpy, (mean, rstd, *sums))
        for begin in range(0, len(rows), _ROWS):
            block = grad[begin : begin + _ROWS]
            dh = torch.mm(block, weight, out=buffer[: len(block)])
            cpu_kernels().norm_gradient(_numpy(dh), begin, *inputs)
        return None, None, *sums, grad.mT @ h, grad.sum(0), None, None, None
