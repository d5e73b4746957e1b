r"""What a place computes from its neighbours alone: convolution channel by channel, and local attention (SnAG).

On the CPU, kernels compiled by numba read every place once. In torch's operations, a window of places around every
place is copied for each of them, which took a third of the time of a block of the pyramid. On other devices, in half
precision, inside torch.compile and without numba, torch's operations are used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.dropout import cpu_kernels, has_cpu_kernel

KERNEL = 3  # places that the convolution reads


def channel_convs(x: Tensor, mask: Tensor, weight: Tensor, stride: int = 1) -> tuple[Tensor, ...]:
    """Convolutions of 3 over the places, each channel by itself, with padding set to 0; every channel has m outputs.

    x        (B, L, d)
    mask     bool (B, L)  real places
    weight   (m d, 1, 3)  as of `nn.Conv1d(d, m * d, 3, groups=d)`: output j of channel c is number m c + j
    stride   distance of the places that have outputs
    returns  m tensors (B, L', d), L' is L / stride, rounded up
    """
    if has_cpu_kernel(x) and weight.dtype == x.dtype:
        return _ChannelConvs.apply(x, mask, weight, stride)
    y = F.conv1d((x * mask[..., None]).mT, weight, None, stride, padding=1, groups=x.shape[2]).mT  # (B, L', d m)
    return y.unflatten(-1, (x.shape[2], -1)).unbind(-1)


def local_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int, near: int) -> Tensor:
    """Every place attends to itself and to so many places on either side; the cost is linear in the length.

    A place without a real place near it takes the mean of its window, with 0 beyond the ends.

    q, k, v  (B, L, d), heads side by side in their channels
    mask     bool (B, L)  real places
    returns  (B, L, d)
    """
    if has_cpu_kernel(q) and q.dtype == k.dtype == v.dtype:
        return _LocalAttention.apply(q, k, v, mask, heads, near)
    window = 2 * near + 1
    k, v = (F.pad(x, (0, 0, near, near)).unfold(1, window, 1) for x in (k, v))  # (B, L, d, window)
    q, k, v = (x.unflatten(2, (heads, -1)) for x in (q, k, v))  # (B, L, heads, d / heads[, window])
    real = F.pad(mask, (near, near)).unfold(1, window, 1)[:, :, None]  # (B, L, 1, window)
    scores = (q[..., None] * k).sum(-2) * q.shape[-1] ** -0.5  # (B, L, heads, window)
    share = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1)
    return (share[..., None, :] * v).sum(-1).flatten(2)


def _arrays(*tensors: Tensor) -> list:
    return [x.detach().contiguous().numpy() for x in tensors]


class _ChannelConvs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, ...]:
        (B, L, d), x = x.shape, x.contiguous()
        taps = weight.reshape(d, -1, KERNEL).permute(1, 2, 0).contiguous()  # (m, 3, d)
        out = x.new_empty(len(taps), B, -(-L // stride), d)
        cpu_kernels("neighbours_cpu").convolve(*_arrays(x, mask, taps, out), stride)
        ctx.save_for_backward(x, mask, taps)
        ctx.stride = stride
        return out.unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, taps = ctx.saved_tensors
        dx, dtaps = torch.zeros_like(x), taps.new_zeros(len(x), *taps.shape)  # dtaps: of every sample, (B, m, 3, d)
        arrays = _arrays(x, mask, taps), tuple(_arrays(*grads)), _arrays(dx, dtaps)
        cpu_kernels("neighbours_cpu").convolve_gradient(*arrays[0], arrays[1], *arrays[2], ctx.stride)
        return dx, None, dtaps.sum(0).permute(2, 0, 1).reshape(-1, 1, KERNEL), None


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int, near: int) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        share, out = q.new_empty(*q.shape[:2], heads, 2 * near + 1), torch.empty_like(q)
        cpu_kernels("neighbours_cpu").attend(*_arrays(q, k, v, mask, share, out))
        ctx.save_for_backward(q, k, v, mask, share)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        cpu_kernels("neighbours_cpu").attend_gradient(*_arrays(*ctx.saved_tensors, dout, *grads))
        return *grads, None, None, None
