r"""Dropout whose mask is never written down, and a first layer's norm, dropout and product in one piece.

Of a training step with a projection of wide features a third went into drawing masks, storing and reading them. On the
CPU `mrlib.ops.dropout_cpu` hashes them where they are needed; elsewhere, in half precision, inside torch.compile and
where numba is missing it is torch's dropout. The key of a mask comes from torch's generator, so `torch.manual_seed`
decides.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 128  # whose gradients stay in cache
_MOST = 2**32  # places that a hash tells apart


def dropout(x: Tensor, p: float) -> Tensor:
    """x with a share p of its numbers 0 and the others divided by 1 - p, as in training."""
    return _Dropout.apply(x, p, _key()) if 0 < p < 1 and fused(x) else F.dropout(x, p)


def norm_dropout_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, p: float, weight: Tensor, bias: Tensor
) -> Tensor:
    r"""$\mathrm{drop}_p(\mathrm{LN}(x)) W^\top + b$ of features that need no gradient, of which torch makes one.

    With $\hat x$ the normalised rows, m the mask over 1 - p and g the gradient of what is returned:

    $$h = m \odot (\hat x \odot \gamma + \beta), \quad dW = g^\top h, \quad
    d\gamma = \sum_n (g W) \odot m \odot \hat x, \quad d\beta = \sum_n (g W) \odot m$$

    g W is made some rows at a time and never whole.

    x (..., D); norm_weight, norm_bias (D,); weight (d, D), bias (d,); returns (..., d)
    """
    parameters = (norm_weight, norm_bias, weight, bias)
    if 0 < p < 1 and not x.requires_grad and all(fused(t) and t.dtype == x.dtype for t in (x, *parameters)):
        return _NormDropoutLinear.apply(x, *parameters, eps, p, _key())
    return F.linear(F.dropout(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), p), weight, bias)


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from mrlib.ops import dropout_cpu
    except ModuleNotFoundError as missing:
        if missing.name != "numba":
            raise
        return None
    return dropout_cpu


def fused(x: Tensor) -> bool:
    """The kernels of this module take it, and torch's would be slower."""
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and 0 < x.numel() < _MOST
    free = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    return plain and free and _kernels() is not None


def _key() -> int:
    return int(torch.randint(2**63 - 1, ()))


def _numpy(x: Tensor):
    return x.detach().contiguous().numpy()


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, key: int) -> Tensor:
        ctx.dice = p, key
        return _dropped(x, p, key)

    @staticmethod
    def backward(ctx, g: Tensor):
        return _Dropout.apply(g, *ctx.dice), None, None


def _dropped(x: Tensor, p: float, key: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    _kernels().drop(_numpy(x).reshape(-1), key, p, out.view(-1).numpy())
    return out


class _NormDropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, eps, p, key):
        rows = x.contiguous().view(-1, x.shape[-1])
        mean, rstd, h = rows.new_empty(len(rows)), rows.new_empty(len(rows)), torch.empty_like(rows)
        given = (rows, norm_weight, norm_bias)
        _kernels().norm(*map(_numpy, given), eps, key, p, *map(_numpy, (mean, rstd, h)))
        ctx.save_for_backward(rows, mean, rstd, h, weight)
        ctx.dice = key, p
        return F.linear(h, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        rows, mean, rstd, h, weight = ctx.saved_tensors
        g = g.reshape(len(rows), -1)
        sums = rows.new_zeros(2, rows.shape[1])
        space = rows.new_empty(min(_ROWS, len(rows)), rows.shape[1])
        for begin in range(0, len(rows), _ROWS):
            part = g[begin : begin + _ROWS]
            dh = torch.mm(part, weight, out=space[: len(part)])
            _kernels().norm_gradient(_numpy(dh), begin, _numpy(rows), *ctx.dice, *map(_numpy, (mean, rstd, *sums)))
        return None, *sums, g.mT @ h, g.sum(0), None, None, None
