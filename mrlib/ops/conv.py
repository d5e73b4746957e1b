r"""Exact convolution with large kernels, direct or through the Fourier transform, whichever is faster.

Paper    [F2SGD Eq. 13] convolves the similarity map twice with 21 x 21 (or 27 x 27) kernels, almost all of its work
Here     `conv2d` equals `torch.nn.functional.conv2d(x, weight, bias, padding="same")` up to float32 rounding. Through
         the transform, the cost does not depend on the kernel's size: one small matrix product (in x out) per frequency
Layout   complex products are computed as real ones. A complex number is a row (re, im) and multiplication by a weight
         is a 2 x 2 block, so each frequency is one real matrix product, and its transpose serves the backward pass.
         (Torch's complex `bmm` takes eight times as long on the CPU.)
Wrap     a grid of M >= N + C//2 points suffices for N outputs: the circular convolution wraps only into outputs that
         are discarded. Long sides are cut into overlapping tiles, so memory grows with the map, not with the
         kernels; short ones too if there are so many channels that the transforms of the kernels weigh most
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.ops.eager import eager

_ONE_TILE = 160  # the largest grid on which a side is transformed in one piece
_GRIDS = (32, 48, 64, 96, 128)  # points of a side of a tile


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with stride 1 and zero padding; the output is as large as the input.

    x        (B, I, H, W)
    weight   (O, I, C, C')  C and C' odd
    bias     (O,)
    returns  (B, O, H, W)  float32 for half-precision inputs, also under autocast, since it sums hundreds of products
    raises   ValueError for a kernel with an even side, which has no centre
    """
    _require_centre(*weight.shape[-2:])
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, weight = x.to(dtype), weight.to(dtype)
        y = fourier(x, weight) if fourier_is_faster(x.shape, weight.shape) else direct(x, weight)
        return y if bias is None else y + bias.to(dtype)[:, None, None]


class LargeKernelConv2d(nn.Module):
    """`conv2d` as a layer: Xavier-uniform weight, zero bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        """kernel  side length, odd; ValueError if it is even"""
        super().__init__()
        _require_centre(kernel, kernel)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_channels, in_channels, kernel, kernel)))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, I, H, W) -> (B, O, H, W)."""
        return conv2d(x, self.weight, self.bias)


def _require_centre(height: int, width: int) -> None:
    if min(height, width) < 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"a kernel of {height} x {width} has no centre: choose odd sides")


def direct(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution by its defining sum, in torch.  x (B, I, H, W), weight (O, I, C, C'); returns (B, O, H, W)"""
    return F.conv2d(x, weight, padding=(weight.shape[-2] // 2, weight.shape[-1] // 2))


@eager
def fourier(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution through the Fourier transform; RuntimeError in a backward pass with `create_graph=True`."""
    return _FourierConv2d.apply(x, weight)


def fourier_is_faster(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> bool:
    """Whether `fourier` is faster, estimated from the sizes alone, so that equal calls give equal bytes.

    The estimate is of forward and backward pass together: `direct` takes 0.03 ns per multiplication, more with few
    channels; for `fourier` see `_tiles`, and half a millisecond.
    Measured (time of `direct` / time of `fourier`, batch 32, two CPU threads): 32 -> 32 channels on 75 x 75, kernel 21:
    16; 16 -> 16: 40; 1 -> 32: 3; 32 -> 32, kernel 7: 1.3, kernel 5: 0.9; 8 -> 8 on 32 x 32, kernel 9: 2, kernel 5: 0.6.
    The estimate is fitted on the CPU and used on every device; `tests/benchmarks/bench_conv.py --device cuda` measures
    both on a GPU.

    x_shape       (B, I, H, W)
    weight_shape  (O, I, C, C')
    """
    (batch, inputs, height, width), (outputs, _, kernel_height, kernel_width) = x_shape, weight_shape
    products = batch * inputs * outputs * height * width * kernel_height * kernel_width
    return 0.03 * products * (1 + 8 / min(inputs, outputs)) > _tiles(x_shape, weight_shape)[0] + 5e5


def _tiles(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[float, _Axis, _Axis]:
    """The tiles with the least work: nanoseconds as estimated, rows and columns.

    9 ns per grid point of every map and kernel, and 0.12 ns per point and product of channels. With many channels the
    kernels weigh most, and small tiles are best: 256 -> 256 channels have 65,536 kernels.
    """
    (batch, inputs, *sides), (outputs, _, *kernels) = x_shape, weight_shape
    maps, products = inputs + outputs, inputs * outputs

    def work(rows: _Axis, cols: _Axis) -> float:
        tiles = batch * rows.count * cols.count
        return rows.grid * cols.grid * (tiles * (9 * maps + 0.12 * products) + 9 * products)

    rows, cols = (_Axis.choices(side, kernel) for side, kernel in zip(sides, kernels, strict=True))
    choices = [(work(row, col), row, col) for row in rows for col in cols]
    least = min(choice[0] for choice in choices)  # `min` with a key is not compiled
    return next(choice for choice in choices if choice[0] == least)


class _Axis:
    """One side of the map, `size` outputs for a kernel of `kernel` taps: `count` tiles of `tile` outputs, each
    transformed on `grid` points."""

    def __init__(self, size: int, kernel: int, grid: int):
        """grid  one tile if it holds the side and what wraps around"""
        self.size, self.kernel, self.half, self.grid = size, kernel, kernel // 2, grid
        self.tile = size if size + self.half <= grid else grid - (kernel - 1)
        self.count = math.ceil(size / self.tile)
        self.padded = (self.count - 1) * self.tile + self.grid  # inputs that the tiles cover, with the halo

    @classmethod
    def choices(cls, size: int, kernel: int) -> list[_Axis]:
        """The side in one piece, unless it is long, and in tiles of several sizes."""
        whole = fast_size(max(size + kernel // 2, kernel))
        grids = {fast_size(max(grid, 2 * kernel)) for grid in _GRIDS}
        if whole <= _ONE_TILE:
            grids = {whole, *[grid for grid in grids if grid < whole]}
        return [cls(size, kernel, grid) for grid in sorted(grids)]


def fast_size(least: int) -> int:
    """The smallest even number that is at least `least` and has no prime factor above 5."""
    size = least + least % 2
    while size // math.gcd(size, 2**20 * 3**12 * 5**9) > 1:
        size += 2
    return size


def _spectra(x: Tensor, rows: _Axis, cols: _Axis) -> Tensor:
    """x (B, I, tiles, tiles, h, w) -> real (F, B * tiles * tiles, 2 I), one matrix per frequency."""
    f = torch.fft.rfft2(x, s=(rows.grid, cols.grid)).permute(4, 5, 0, 2, 3, 1)  # (grid, grid/2 + 1, B, tiles, tiles, I)
    return torch.view_as_real(f).reshape(f.shape[0] * f.shape[1], -1, 2 * f.shape[-1])


def _maps(spectra: Tensor, batch: int, rows: _Axis, cols: _Axis) -> Tensor:
    """The inverse of `_spectra`, on the whole grid: (F, B * tiles * tiles, 2 O) -> (B, O, tiles, tiles, grid, grid)."""
    f = spectra.reshape(rows.grid, cols.grid // 2 + 1, batch, rows.count, cols.count, -1, 2)  # last: re, im
    return torch.fft.irfft2(torch.view_as_complex(f).permute(2, 5, 3, 4, 0, 1), s=(rows.grid, cols.grid))


def _kernel_blocks(weight: Tensor, rows: _Axis, cols: _Axis) -> Tensor:
    """weight (O, I, C, C') -> (F, 2 I, 2 O), matrices that multiply by the conjugate kernel spectrum (correlation)."""
    f = torch.fft.rfft2(weight, s=(rows.grid, cols.grid)).permute(2, 3, 1, 0)  # (grid, grid/2 + 1, I, O)
    blocks = torch.empty(*f.shape[:3], 2, f.shape[3], dtype=f.dtype, device=f.device)  # (grid, grid/2 + 1, I, 2, O)
    blocks[..., 0, :] = f.conj()  # the image of 1
    torch.mul(blocks[..., 0, :], 1j, out=blocks[..., 1, :])  # the image of i
    return torch.view_as_real(blocks).reshape(f.shape[0] * f.shape[1], 2 * f.shape[2], 2 * f.shape[3])


class _FourierConv2d(torch.autograd.Function):
    """y[n] = sum_k w[k] x[n + k - C//2], from overlapping tiles; the backward pass adds the overlaps of the tiles."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        _, rows, cols = _tiles(x.shape, weight.shape)
        sides = [side for axis in (cols, rows) for side in (axis.half, axis.padded - axis.half - axis.size)]
        tiles = F.pad(x, sides).unfold(2, rows.grid, rows.tile).unfold(3, cols.grid, cols.tile)  # (B, I, n, n, h, w)
        spectra, blocks = _spectra(tiles, rows, cols), _kernel_blocks(weight, rows, cols)
        y = _maps(spectra @ blocks, len(x), rows, cols)[..., : rows.tile, : cols.tile]  # (B, O, n, n, tile, tile)
        y = y.transpose(3, 4).reshape(len(x), -1, rows.count * rows.tile, cols.count * cols.tile)  # (B, O, >=H, >=W)
        ctx.axes = rows, cols
        ctx.save_for_backward(spectra if ctx.needs_input_grad[1] else None, blocks if ctx.needs_input_grad[0] else None)
        return y[..., : rows.size, : cols.size].contiguous()

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("fourier has no second derivative: use mrlib.ops.conv.direct")
        (spectra, blocks), (rows, cols) = ctx.saved_tensors, ctx.axes
        batch = len(dy)
        dy = F.pad(dy, (0, cols.count * cols.tile - cols.size, 0, rows.count * rows.tile - rows.size))
        dy = _spectra(dy.unfold(2, rows.tile, rows.tile).unfold(3, cols.tile, cols.tile), rows, cols)
        dx = dweight = None
        if blocks is not None:
            tiles = _maps(dy @ blocks.mT, batch, rows, cols)  # (B, I, n, n, grid, grid)
            dx = tiles.new_zeros(batch, tiles.shape[1], rows.padded, cols.padded)
            for i in range(rows.count):
                for j in range(cols.count):
                    top, left = i * rows.tile, j * cols.tile
                    dx[..., top : top + rows.grid, left : left + cols.grid] += tiles[:, :, i, j]
            dx = dx[..., rows.half : rows.half + rows.size, cols.half : cols.half + cols.size]
        if spectra is not None:
            d = (spectra.mT @ dy).reshape(rows.grid, cols.grid // 2 + 1, -1, 2, dy.shape[-1] // 2, 2)
            d = torch.view_as_complex(d)  # x dy, (grid, grid/2 + 1, I, re or im of x, O)
            d = d[..., 0, :].sub(d[..., 1, :], alpha=1j).conj()  # x times the conjugate of dy, (grid, grid/2 + 1, I, O)
            dweight = torch.fft.irfft2(d.permute(3, 2, 0, 1), s=(rows.grid, cols.grid))
            dweight = dweight[..., : rows.kernel, : cols.kernel]
        return dx, dweight
