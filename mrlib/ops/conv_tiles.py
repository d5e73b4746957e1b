r"""Two convolutions with large kernels and a pointwise MLP on square maps, tile by tile.

Paper    [F2SGD Eq. 13] is this network. Of its output only cells with i <= j are read
Here     `large_kernel_network` cuts a map into overlapping tiles, each of which goes through the whole network on a
         grid of M x M points: a tile of M - 2 (C - 1) outputs reads a halo of C - 1 cells on every side. Tiles below
         the diagonal and in the padding are left out, which is half of the work. Only the maps of one channel, at
         both ends, are as large as the video is long
Wrap     a small map is one tile, on a grid of M >= T + C//2 points: what wraps around lies outside the map
Memory   the backward pass reads the hidden values of the tiles. They are kept if they are small, and else computed
         again: half a forward pass more, for memory that does not grow with c T^2
Layout   as in `mrlib.ops.conv`, one real matrix product per frequency mixes the channels. The kernels are transformed
         by matrix products too: of the M x M points of their grid only C x C are not 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.conv import fast_size
from mrlib.ops.eager import eager

ONE_TILE = 160  # the largest grid on which a map is transformed in one piece
TILES = (128, 144, 160)  # grid points of a tile of a longer map, at least
KEPT = 2**27  # values of the hidden maps at most, if they are kept for the backward pass
# values of the hidden maps of a group, whose channels are mixed at once, since each group reads all kernels; and of a
# piece of it, which is transformed at once: on the CPU, it fits into a cache
GROUP = {"cpu": 2**24, "cuda": 2**26}
PIECE = {"cpu": 2**17, "cuda": 2**26}


class Network(NamedTuple):
    """The parameters: two convolutions, 1 -> c -> c channels, and an MLP, c -> c -> 1, with ReLU between."""

    first: Tensor  # (c, 1, C, C)
    first_bias: Tensor  # (c,)
    second: Tensor  # (c, c, C, C)
    second_bias: Tensor  # (c,)
    mix: Tensor  # (c, c)
    mix_bias: Tensor  # (c,)
    last: Tensor  # (1, c)
    last_bias: Tensor  # (1,)


@eager
def large_kernel_network(s: Tensor, mask: Tensor, network: Network, *, triangle: bool) -> Tensor:
    """The network's output for maps of similarities; hidden maps are 0 where the mask is.

    s         (B, T, T)  0 where a clip is not real
    mask      bool (B, T)  real clips
    triangle  the cells with i > j are not needed
    returns   (B, T, T)  in float32 for half-precision inputs, also under autocast; any value in cells that are not
                         needed, or whose clips are not real
    raises    RuntimeError in a backward pass with `create_graph=True`
    """
    dtype = torch.promote_types(torch.promote_types(s.dtype, network.second.dtype), torch.float32)
    with torch.autocast(s.device.type, enabled=False):
        values = [x.to(dtype) for x in (s, *network)]
        tiling = Tiling.of(mask, network.second.shape[-1], triangle)
        size = len(tiling.tiles) * network.second.shape[0] * tiling.grid**2
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in values)
        return _Tiles.apply(tiling, learns and 3 * size <= KEPT, *values)


def is_one_tile(size: int, kernel: int) -> bool:
    """Whether a map of so many clips is transformed in one piece."""
    return fast_size(max(size + kernel // 2, kernel)) <= ONE_TILE


class Tile(NamedTuple):
    sample: int
    row: int
    column: int
    inner: bool  # whether all hidden cells that it computes are real


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a batch of maps lie. Tile k of a side has the outputs k `tile` to (k + 1) `tile`."""

    size: int  # T
    kernel: int  # C
    grid: int  # M, points of a side of a tile
    tile: int  # outputs of a side
    count: int  # tiles of a side
    shift: int  # of the kernels: their first tap is at -shift
    margin: int  # C//2 cells before the outputs on which a hidden cell depends, 0 if the map is one tile
    real: Tensor  # bool (B, count, grid)  the real cells of the hidden map, along a side of each tile
    tiles: tuple[Tile, ...]  # that are computed; those of one row and column stand together, in order of the samples

    @classmethod
    def of(cls, mask: Tensor, kernel: int, triangle: bool) -> Tiling:
        """For real clips bool (B, T)."""
        size, half = mask.shape[1], kernel // 2
        if is_one_tile(size, kernel):
            grid, tile, count, margin = fast_size(max(size + half, kernel)), size, 1, 0
        else:
            margin, grids = half, [fast_size(max(least, 6 * kernel)) for least in TILES]
            counts = [math.ceil(size / (grid - 4 * half)) for grid in grids]
            # a point costs a little more on a larger grid, which fits into a cache less well: about its side
            work = [count * (count + 1) * grid**3 for grid, count in zip(grids, counts, strict=True)]
            grid, count = min(zip(work, grids, counts, strict=True))[1:]
            tile = grid - 4 * half
        padded = F.pad(mask, (margin, count * tile + grid - margin - size))
        real = padded.unfold(1, grid, tile)[:, :count]  # (B, count, grid)
        whole, some = real.all(2).tolist(), real[..., margin : margin + tile].any(2).tolist()
        tiles = [
            Tile(b, i, j, whole[b][i] and whole[b][j])
            for i in range(count)
            for j in range(i if triangle else 0, count)
            for b in range(len(mask))
            if some[b][i] and some[b][j]
        ]
        tiles.sort(key=lambda tile: tile.inner)  # stable
        return cls(size, kernel, grid, tile, count, half - margin, margin, real, tuple(tiles))

    def groups(self, channels: int) -> Iterator[list[Piece]]:
        """The tiles, in groups of pieces."""
        kind = self.real.device.type if self.real.device.type in GROUP else "cuda"
        group, piece = (max(1, most[kind] // (channels * self.grid**2)) for most in (GROUP, PIECE))
        for start in range(0, len(self.tiles), group):
            stop = min(start + group, len(self.tiles))
            yield [self.piece(start, slice(i, min(i + piece, stop))) for i in range(start, stop, piece)]

    def piece(self, group: int, part: slice) -> Piece:
        """Some of the tiles, for a group that begins at the tile `group`."""
        tiles = self.tiles[part]
        samples, rows, columns = torch.tensor([tile[:3] for tile in tiles]).to(self.real.device).unbind(1)
        real = None
        if not all(tile.inner for tile in tiles):
            real = self.real[samples, rows, :, None] & self.real[samples, columns, None]  # (n, M, M)
        return Piece(slice(part.start - group, part.stop - group), tiles, (samples, rows, columns), real)

    def inputs(self, s: Tensor) -> Tensor:
        """A view of the maps (B, T, T) as (B, count, count, M, M), with the halo, 0 outside the maps."""
        before = 2 * self.margin
        after = (self.count - 1) * self.tile + self.grid - before - self.size
        return F.pad(s, (before, after) * 2).unfold(1, self.grid, self.tile).unfold(2, self.grid, self.tile)

    def outputs(self, p: Tensor) -> Tensor:
        """A view of maps (B, count tile, count tile) as (B, count, count, tile, tile)."""
        return p.unfold(1, self.tile, self.tile).unfold(2, self.tile, self.tile)

    def add(self, piece: Piece, values: Tensor, total: Tensor) -> None:
        """Add the tiles (n, M, M) of a piece to maps with halo, in the order of the tiles."""
        start = 0
        for (row, column), same in groupby(piece.tiles, key=lambda tile: tile[1:3]):
            samples = [tile.sample for tile in same]
            top, left, stop = row * self.tile, column * self.tile, start + len(samples)
            total[samples, top : top + self.grid, left : left + self.grid] += values[start:stop]
            start = stop


class Piece(NamedTuple):
    """n tiles that are transformed together."""

    part: slice  # of its group
    tiles: tuple[Tile, ...]
    index: tuple[Tensor, Tensor, Tensor]  # int64 (n,) each: samples, rows and columns
    real: Tensor | None  # bool (n, M, M)  the real cells of their hidden maps; None: all


class Hidden(NamedTuple):
    """The first hidden maps of a group of N tiles; K = M/2 + 1."""

    spectra: Tensor  # (N, M K, 2 c)  a channel as (re, im)
    # what only the backward pass reads
    source: Tensor | None = None  # complex (N, M, K)  the spectra of the similarities
    dead: Tensor | None = None  # bool (N, c, M, M)  where the ReLU is 0


class _Tiles(torch.autograd.Function):
    """The network, a group of tiles after the other."""

    @staticmethod
    def forward(ctx: Any, tiling: Tiling, keep: bool, s: Tensor, *parameters: Tensor) -> Tensor:
        way = Way(tiling, Network(*parameters))
        inputs = tiling.inputs(s)
        p = s.new_zeros(len(s), *[tiling.count * tiling.tile] * 2)
        outputs, kept, hidden, mixed = tiling.outputs(p), [], None, None
        for group in tiling.groups(way.channels):
            hidden = way.hidden(inputs, group, None if keep else hidden, back=keep)
            mixed = way.mixed(hidden.spectra, None if keep else mixed)
            seconds = []
            for piece in group:
                y = way.second(mixed[:, piece.part])
                outputs[piece.index] = way.score(y).unflatten(1, [tiling.tile] * 2)
                seconds.append(y)
            kept += [*hidden, torch.cat(seconds)] if keep else ()
        ctx.tiling = tiling
        ctx.save_for_backward(s, *parameters, *([way.first_kernel, way.second_kernel, *kept] if keep else ()))
        return p[:, : tiling.size, : tiling.size].contiguous()

    @staticmethod
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; without this error the second derivative would be wrong
            raise RuntimeError("large_kernel_network has no second derivative: convolve with mrlib.ops.conv.direct")
        tiling = ctx.tiling
        s, *rest = ctx.saved_tensors
        kernels, kept = rest[8:10], rest[10:]
        way = Way(tiling, Network(*rest[:8]), *kernels)
        inputs = tiling.inputs(s)
        side = (tiling.count - 1) * tiling.tile + tiling.grid
        ds = s.new_zeros(len(s), side, side)
        missing = tiling.count * tiling.tile - tiling.size
        outputs = tiling.outputs(F.pad(dp, (0, missing) * 2))
        hidden = None
        for k, group in enumerate(tiling.groups(way.channels)):
            if kept:
                *values, second = kept[4 * k : 4 * k + 4]
                hidden = Hidden(*values)
                dy = torch.empty_like(hidden.spectra.transpose(0, 1), memory_format=torch.contiguous_format)
            else:
                hidden, second = way.hidden(inputs, group, hidden, back=True), None
                dy = way.mixed(hidden.spectra)
            for piece in group:
                y = way.second(dy[:, piece.part]) if second is None else second[piece.part]
                d = way.score_backward(y, outputs[piece.index].flatten(1))
                way.frequencies(d, dy[:, piece.part].transpose(0, 1))
            dx = way.mixed_backward(hidden.spectra, dy)
            for piece in group:
                tiling.add(piece, way.hidden_backward(hidden, dx, piece.part), ds)
        start = 2 * tiling.margin
        return None, None, ds[:, start : start + tiling.size, start : start + tiling.size], *way.gradients()


class Way:
    """The way of a group of tiles through the network and back, with the sums of the parameters' gradients."""

    def __init__(self, tiling: Tiling, network: Network, *kernels: Tensor):
        """kernels  `first_kernel` and `second_kernel`, if they are known"""
        self.tiling, self.network, self.points = tiling, network, tiling.grid**2
        self.channels, self.half = len(network.mix), tiling.grid // 2 + 1
        self.kernels = Kernels(tiling.kernel, tiling.grid, tiling.shift, network.second)
        self.first_kernel, self.second_kernel = kernels or (  # complex (c, M, K), (M K, 2 c, 2 c)
            self.kernels.spectrum(network.first[:, 0]),
            self.kernels.blocks(network.second),
        )
        self.sums: dict[str, Tensor] = {}

    def hidden(self, inputs: Tensor, group: list[Piece], out: Hidden | None, *, back: bool) -> Hidden:
        """The first hidden maps of the inputs (B, count, count, M, M) at the tiles of a group.

        out   of a group of at least that size, whose memory is used again; None: new memory
        back  whether they are for the backward pass
        """
        size, grid = group[-1].part.stop, self.tiling.grid
        if out is None:
            out = Hidden(inputs.new_empty(size, grid * self.half, 2 * self.channels))
            if back:
                source = torch.empty(size, grid, self.half, dtype=inputs.dtype.to_complex(), device=inputs.device)
                dead = torch.empty(size, self.channels, grid, grid, dtype=torch.bool, device=inputs.device)
                out = Hidden(out.spectra, source, dead)
        out = Hidden(*[None if x is None else x[:size] for x in out])
        conjugate = self.first_kernel.conj().resolve_conj()
        for part, _, index, real in group:
            source = torch.fft.rfft2(inputs[index])  # (n, M, K)
            spectra = source[:, None] * conjugate  # (n, c, M, K)
            spectra[..., 0, 0] += self.points * self.network.first_bias  # the sum over the grid
            # in two steps, since `irfft2` copies its input twice
            x = torch.fft.irfft(torch.fft.ifft(spectra, dim=2), n=grid).relu_()  # (n, c, M, M)
            if real is not None:
                x *= real[:, None]
            if back:
                out.source[part] = source
                torch.eq(x, 0, out=out.dead[part])
            self.frequencies(x, out.spectra[part])
        return out

    def mixed(self, spectra: Tensor, out: Tensor | None = None) -> Tensor:
        """The second convolution of spectra (N, M K, 2 c): (M K, N, 2 c), into `out` if that has this shape."""
        x = spectra.transpose(0, 1)
        return torch.bmm(x, self.second_kernel, out=out if out is not None and out.shape == x.shape else None)

    def second(self, spectra: Tensor) -> Tensor:
        """The second hidden maps (n, c, tile^2), from spectra (M K, n, 2 c), which are changed."""
        spectra[0, :, ::2] += self.points * self.network.second_bias
        return self.maps(spectra)[..., : self.tiling.tile, : self.tiling.tile].relu().flatten(2)

    def mlp_hidden(self, y: Tensor) -> Tensor:
        """(n, c, tile^2) -> (n, c, tile^2)."""
        return (self.network.mix @ y).add_(self.network.mix_bias[:, None]).relu_()

    def score(self, y: Tensor) -> Tensor:
        """The MLP's output: (n, c, tile^2) -> (n, tile^2)."""
        return (self.network.last @ self.mlp_hidden(y))[:, 0] + self.network.last_bias

    def score_backward(self, y: Tensor, dp: Tensor) -> Tensor:
        """From dp (n, tile^2) through the MLP and the second ReLU: (n, c, tile, tile)."""
        h = self.mlp_hidden(y)  # (n, c, tile^2)
        self.add("last", (h @ dp[..., None]).sum(0).mT)
        self.add("last_bias", dp.sum()[None])
        dh = _where_positive(self.network.last.mT * dp[:, None], h)  # (n, c, tile^2)
        self.add("mix", (dh @ y.mT).sum(0))
        self.add("mix_bias", dh.sum((0, 2)))
        dy = _where_positive(self.network.mix.mT @ dh, y)
        self.add("second_bias", dy.sum((0, 2)))
        return dy.unflatten(2, [self.tiling.tile] * 2)

    def mixed_backward(self, spectra: Tensor, dy: Tensor) -> Tensor:
        """From dy (M K, N, 2 c) through the second convolution of spectra (N, M K, 2 c): (M K, N, 2 c)."""
        x = spectra.permute(1, 2, 0)  # (M K, 2 c, N)
        self.sums["second"] = self.sums["second"].baddbmm_(x, dy) if "second" in self.sums else x @ dy
        return dy @ self.second_kernel.mT

    def hidden_backward(self, hidden: Hidden, dx: Tensor, part: slice) -> Tensor:
        """From the spectra dx (M K, N, 2 c) of a group to a part's inputs (n, M, M)."""
        d = torch.fft.rfft2(self.maps(dx[:, part]).masked_fill_(hidden.dead[part], 0))  # (n, c, M, K)
        self.add("first_bias", d[..., 0, 0].real.sum(0))
        self.add("first", (d * hidden.source[part, None].conj()).sum(0))
        return torch.fft.irfft2((d * self.first_kernel).sum(1), s=[self.tiling.grid] * 2)

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the parameters, in their order."""
        if not self.sums:
            return tuple(torch.zeros_like(x) for x in self.network)
        first = self.kernels.taps(self.sums["first"].conj())[:, None]
        second = self.kernels.blocks_backward(self.sums["second"])
        return tuple((self.sums | {"first": first, "second": second})[name] for name in Network._fields)

    def add(self, name: str, value: Tensor) -> None:
        """Add to the sum of a parameter's gradients."""
        self.sums[name] = self.sums[name].add_(value) if name in self.sums else value

    def frequencies(self, maps: Tensor, out: Tensor) -> None:
        """Write the spectra of maps (n, c, h, w), with zeros around them, into (n, M K, 2 c)."""
        f = torch.fft.rfft2(maps, s=[self.tiling.grid] * 2)  # (n, c, M, K)
        torch.view_as_complex(out.unflatten(2, (-1, 2))).copy_(f.flatten(2).mT)

    def maps(self, spectra: Tensor) -> Tensor:
        """(M K, n, 2 c) -> (n, c, M, M): torch transposes while it transforms."""
        f = torch.view_as_complex(spectra.unflatten(2, (-1, 2)))  # (M K, n, c)
        f = torch.fft.ifft(f.unflatten(0, (-1, self.half)), dim=0)  # (M, K, n, c)
        return torch.fft.irfft(f, n=self.tiling.grid, dim=1).permute(2, 3, 0, 1)


def _where_positive(gradient: Tensor, value: Tensor) -> Tensor:
    """The gradient, 0 where the value of a ReLU is 0."""
    return torch.ops.aten.threshold_backward(gradient, value, 0)


class Kernels:
    """Kernels of C x C taps as spectra on a grid of M x M points, with the first tap at -shift, and the way back.

    A tap is multiplied by the cosine and sine of its angle along u, then along v: of the C x C taps, all C are read
    for each of the M K frequencies, which is less than a fast transform of a grid that is nearly empty.
    """

    def __init__(self, kernel: int, grid: int, shift: int, like: Tensor):
        """like  its device and type are taken"""
        self.kernel, self.grid, self.shift = kernel, grid, shift
        at = torch.arange(kernel, device=like.device) - shift
        frequency = torch.arange(grid, device=like.device)
        # the products are reduced modulo the grid as integers, where they are exact
        angle = (frequency[:, None] * at % grid).double() * (2 * math.pi / grid)  # (M, C)
        cos, sin = angle.cos(), angle.sin()
        half = grid // 2 + 1
        self.along_u = torch.stack([cos, -sin], 1).flatten(0, 1).to(like)  # (2 M, C)
        self.along_v = torch.cat([cos, sin], 1)[:half].to(like)  # (K, 2 C)
        # a frequency and its conjugate, of which the half spectrum holds one, count twice
        twice = torch.full((half, 1), 2.0, device=like.device, dtype=torch.float64)
        twice[0] = twice[-1] = 1
        self.back_v = (self.along_v.double() * twice / grid**2).to(like).mT.contiguous()  # (2 C, K)

    def spectrum(self, weight: Tensor) -> Tensor:
        """weight (c, C, C) -> complex (c, M, K)."""
        padded = F.pad(weight, (0, self.grid - self.kernel) * 2)
        return torch.fft.rfft2(padded.roll((-self.shift, -self.shift), (1, 2)))

    def taps(self, spectrum: Tensor) -> Tensor:
        """The inverse of `spectrum`."""
        maps = torch.fft.irfft2(spectrum, s=[self.grid] * 2).roll((self.shift, self.shift), (1, 2))
        return maps[..., : self.kernel, : self.kernel]

    def blocks(self, weight: Tensor) -> Tensor:
        """weight (O, I, C, C) -> (M K, 2 I, 2 O), which multiply by the conjugate of the spectrum (correlation).

        A channel is a pair (re, im) in rows and columns. The block of k is [[re k, -im k], [im k, re k]].
        """
        outputs, inputs = weight.shape[:2]
        z = self.along_u @ weight.permute(2, 3, 1, 0).flatten(1)  # (2 M, C I O)
        z = z.view(self.grid, 2, self.kernel, inputs, outputs)
        blocks = weight.new_empty(self.grid, self.along_v.shape[0], 4 * inputs * outputs)  # (M, K, 4 I O)
        for rows in torch.arange(self.grid).split(8):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            turned = torch.stack([z[part, 1], -z[part, 0]], 1)  # for the imaginary part
            expanded = z.new_empty(len(rows), 2, self.kernel, inputs, 2, outputs, 2)
            expanded[..., 0, :, 0] = expanded[..., 1, :, 1] = z[part]
            expanded[..., 1, :, 0] = turned
            expanded[..., 0, :, 1] = -turned
            torch.matmul(self.along_v, expanded.view(len(rows), 2 * self.kernel, -1), out=blocks[part])
        return blocks.view(-1, 2 * inputs, 2 * outputs)

    def blocks_backward(self, dblocks: Tensor) -> Tensor:
        """The gradient of the weight (O, I, C, C), from the products of the spectra (M K, 2 I, 2 O)."""
        inputs, outputs = dblocks.shape[1] // 2, dblocks.shape[2] // 2
        dz = dblocks.new_empty(self.grid, 2, self.kernel, inputs, outputs)
        dblocks = dblocks.view(self.grid, self.along_v.shape[0], -1)  # (M, K, 4 I O)
        for rows in torch.arange(self.grid).split(8):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            d = (self.back_v @ dblocks[part]).view(len(rows), 2, self.kernel, inputs, 2, outputs, 2)
            turned = d[..., 1, :, 0] - d[..., 0, :, 1]  # (rows, 2, C, I, O)
            torch.add(d[..., 0, :, 0], d[..., 1, :, 1], out=dz[part])
            dz[part, 0] -= turned[:, 1]
            dz[part, 1] += turned[:, 0]
        dweight = self.along_u.mT @ dz.flatten(2).flatten(0, 1)  # (C, C I O)
        return dweight.view(self.kernel, self.kernel, inputs, outputs).permute(3, 2, 0, 1)
