r"""Scaled dot-product attention, head by head, in memory that grows with T and not with T².

Blocks   on the CPU, weights are computed for a block of rows at a time, which fits in the cache, and once more in the
         backward pass; only queries, keys, values and output are kept. The mask of the dropout is a hash of a key and
         the place, see `mrlib.ops.dropout_cpu`, so it is the same in both passes
Few      where there are at most `_FEW` queries or keys, weights are stored: they grow with T only, and this is faster
Torch    has a fused kernel without dropout, on GPUs also with dropout. It is used there, in half precision, inside
         torch.compile and without numba
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.dropout import dropout, has_cpu_kernel, new_key

_BLOCK = 1 << 18  # weights in a block
_FEW = 128  # queries or keys


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, key_mask: Tensor | None, p: float, visible: Tensor | None = None
) -> Tensor:
    r"""$\mathrm{drop}_p(\mathrm{softmax}(q k^\top / \sqrt{e / heads}))\, v$ in every head.

    The output of a row that can see no key at all is finite, and not to be used: torch's kernel gives 0, the others the
    mean of the values.

    q (B, L, e), k (B, S, e), v (B, S, f), heads side by side in their channels; e and f may differ
    key_mask  bool (B, S)  real keys; None: all are real. Where none is, all are seen
    p         dropout of the weights; 0 outside training
    visible   bool (B, heads, L, S)  keys that each query vector may attend to; None: all real ones
    returns   (B, L, f)
    raises    RuntimeError in a backward pass with `create_graph=True`, if there is dropout on the CPU and there are
              more than 128 queries and keys
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L or S, e or f / heads)
    mask = visible  # bool (B, 1 or heads, 1 or L, S)
    if key_mask is not None:
        real = (key_mask | ~key_mask.any(1, keepdim=True))[:, None, None]  # (B, 1, 1, S)
        mask = real if visible is None else real & visible
    if not 0 < p < 1 or not all(has_cpu_kernel(x) and x.dtype == q.dtype for x in (q, k, v)):
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    elif min(q.shape[2], k.shape[2]) <= _FEW:
        x = _stored(q, k, v, mask, p)
    else:
        x = _Blockwise.apply(q, k, v, mask, p, new_key())
    return x.transpose(1, 2).flatten(-2)


def _stored(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Attention with stored weights; q, k, v (B, heads, L or S, e or f), returns (B, heads, L, f)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, L, S)
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=q.dtype)
        scores = scores + bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    return dropout(scores.softmax(-1), p) @ v


class _Block(NamedTuple):
    """Some rows of some heads; heads of all samples are counted through."""

    heads: slice
    rows: slice
    shape: tuple[int, int, int]  # of their weights: heads, rows, S
    place: int  # of the first weight among all B x heads x L x S


def _blocks(heads: int, L: int, S: int) -> Iterator[_Block]:
    """Blocks of at most `_BLOCK` weights: whole heads, or rows of one head, at least one row."""
    rows = max(1, min(L, _BLOCK // S))
    group = max(1, _BLOCK // (L * S)) if rows == L else 1
    for n in range(0, heads, group):
        for i in range(0, L, rows):
            shape = min(group, heads - n), min(rows, L - i), S
            yield _Block(slice(n, n + shape[0]), slice(i, i + shape[1]), shape, (n * L + i) * S)


class _Blockwise(torch.autograd.Function):
    """Attention by blocks; q, k, v (B, heads, L or S, e or f)."""

    @staticmethod
    def forward(ctx, q, k, v, mask, p, key):
        from mrlib.ops import attention_cpu  # needs numba

        B, heads, L, e = q.shape
        q, k, v = (x.flatten(0, 1).contiguous() for x in (q * e**-0.5, k, v))  # (B heads, L or S, e or f)
        ctx.hidden, ctx.p, ctx.key = _hidden(mask, heads), p, key
        out, buffer = q.new_empty(len(q), L, v.shape[2]), _buffer(q, k)
        for block in _blocks(len(q), L, k.shape[1]):
            weights = _softmax(block, q, k, ctx.hidden, buffer)
            attention_cpu.drop(weights.view(-1).numpy(), block.place, key, p)
            torch.bmm(weights, v[block.heads], out=out[block.heads, block.rows])
        out = out.unflatten(0, (B, heads)).transpose(1, 2).contiguous().transpose(1, 2)  # in memory (B, L, heads, f)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, dout):
        from mrlib.ops import attention_cpu

        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("attention by blocks has no second derivative: set the dropout to 0")
        q, k, v, out = ctx.saved_tensors
        mean = (dout * out).sum(-1).flatten()  # (B heads L,), sum of every row of the weights times their gradients
        dout = dout.flatten(0, 1).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        buffer, other, S = _buffer(q, k), _buffer(q, k), k.shape[1]
        for block in _blocks(len(q), q.shape[1], S):
            n, rows, drows = block.heads, q[block.heads, block.rows], dout[block.heads, block.rows]
            weights = _softmax(block, q, k, ctx.hidden, buffer)
            grad = torch.bmm(drows, v[n].mT, out=_shaped(other, block.shape))
            attention_cpu.gradient(
                weights.view(-1, S).numpy(),
                grad.view(-1, S).numpy(),
                mean[block.place // S :].numpy(),
                block.place,
                ctx.key,
                ctx.p,
            )
            dv[n].baddbmm_(weights.mT, drows)
            torch.bmm(grad, k[n], out=dq[n, block.rows])
            dk[n].baddbmm_(grad.mT, rows)
        dq *= q.shape[2] ** -0.5
        return *(x.unflatten(0, out.shape[:2]) for x in (dq, dk, dv)), None, None, None


def _hidden(mask: Tensor | None, heads: int) -> Tensor | None:
    """The negated mask of visible keys, per head: bool (B, 1 or heads, 1 or L, S) -> (B heads, 1 or L, S).

    None where no key is hidden.
    """
    return None if mask is None or mask.all() else (~mask).expand(-1, heads, -1, -1).flatten(0, 1)


def _buffer(q: Tensor, k: Tensor) -> Tensor:
    """Memory for the weights of a block."""
    heads, L, S = *q.shape[:2], k.shape[1]
    return q.new_empty(min(max(_BLOCK, S), heads * L * S))


def _shaped(buffer: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The beginning of a buffer as a tensor of this shape."""
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)


def _softmax(block: _Block, q: Tensor, k: Tensor, hidden: Tensor | None, buffer: Tensor) -> Tensor:
    """The weights of a block before dropout, in the buffer; q scaled, (B heads, L, e); k (B heads, S, e)."""
    rows = q[block.heads, block.rows]
    scores = torch.bmm(rows, k[block.heads].mT, out=_shaped(buffer, block.shape))
    if hidden is not None:
        part = hidden[block.heads]
        part = part if part.shape[1] == 1 else part[:, block.rows]
        scores.masked_fill_(part, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, out=scores)
