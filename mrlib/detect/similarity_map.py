r"""Moments as cells of a map: cell (i, j) of the clips' similarities stands for the moment from clip i to clip j.

Paper    "Anchor-Aware Similarity Cohesion in Target Frames Enables Predicting Temporal Moment Boundaries in 2D",
         CVPR 2025
Here     [F2SGD Eq. 13] is `similarity` and `SimilarityMapDetector.forward`, [F2SGD Eq. 14] `target_map` and `.losses`,
         [F2SGD Eq. 15] `.decode`
Cells    cell (i, j) stands for clips i..j, both included: start i / n, end (j + 1) / n, in fractions of the n clips
Ours     the paper leaves open channels, activation, padding, depth, output and the loss's reduction. Here: two
         zero-padded convolutions and a pointwise MLP of two layers, with ReLU between; a linear output, so that squared
         error makes it a regression of the 0/1 target (a sigmoid saturates with some 1,500 negatives for each
         positive); a loss summed over a sample's cells with i <= j, the only ones that can be predicted, and averaged
         over samples. The output of a convolution is masked to the real clips, so that padding changes nothing. The
         last layer starts at zero: random outputs of order 1 on thousands of cells would first drive the hidden layers
         to zero
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.arguments import require
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.map_size import require_maps_fit
from mrlib.layers import full_precision
from mrlib.ops import conv
from mrlib.ops.conv import LargeKernelConv2d
from mrlib.ops.conv_tiles import Network, is_one_tile, large_kernel_network
from mrlib.ops.counts import shared_count

PREDICTION, TRAINING = 24, 48  # bytes that are held at once for a cell of a map, measured at 5,000 and 3,000 clips


def similarity(target: Tensor, mask: Tensor) -> Tensor:
    r"""$S_{ij} = \cos(v_i, v_j)$, 0 on padding: the input of [F2SGD Eq. 13].

    In float32 also under autocast. Padding is set to 0 after the product: if only the vectors were zero, gradients of
    size 1 / eps would reach them through the norm, since the convolutions mix padded cells into real ones.

    target   (B, T, d)
    mask     bool (B, T)
    returns  (B, T, T)
    """
    with torch.autocast(target.device.type, enabled=False):
        v = F.normalize(full_precision(target), dim=-1, eps=1e-6)  # (B, T, d)
        return (v @ v.mT).masked_fill(~real_cells(mask), 0)


def standardised(s: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, T, T), 0 on padding, scaled to mean 0 and standard deviation 1 over their real cells. Not in the paper.

    Clips of one video have a large part in common, so their cosines are all close to a large mean. In short training
    runs, removing that mean makes the difference.
    """
    valid = real_cells(mask)  # (B, T, T)
    count = valid.sum((1, 2), keepdim=True).clamp(min=1)  # (B, 1, 1)
    centred = (s - s.sum((1, 2), keepdim=True) / count).masked_fill(~valid, 0)  # (B, T, T)
    return centred * (centred.square().sum((1, 2), keepdim=True) / count + 1e-6).rsqrt()


def real_cells(mask: Tensor) -> Tensor:
    """Cells (i, j) whose clips are both real; bool (B, T) -> bool (B, T, T)."""
    return mask[:, :, None] & mask[:, None, :]


def cells(mask: Tensor) -> Tensor:
    """Cells that are moments: both clips are real, and i <= j; bool (B, T) -> bool (B, T, T)."""
    return real_cells(mask).triu()


def window_cells(spans: Tensor, lengths: Tensor) -> Tensor:
    r"""The cell of a span: $t^s = \lfloor s + \frac12 \rfloor$, $t^e = \lfloor e + \frac12 \rfloor - 1$ in clips.

    Clamped to 0 <= t^s <= t^e <= n - 1, so that a span shorter than a clip gets one clip. Decoding is the inverse for
    spans that start and end on edges of clips.

    spans    (B, W, 2)  fractions of the target
    lengths  int64 (B,)  n, its clips
    returns  int64 (B, W, 2)  first and last clip, both included
    """
    # 1e-4, so that halves are rounded up also if float32 puts them slightly lower
    edges = (spans.double() * lengths[:, None, None] + 0.5 + 1e-4).floor().long()  # (B, W, 2)
    end = (edges[..., 1] - 1).clamp(min=0).minimum(lengths[:, None] - 1)  # (B, W)
    return torch.stack([edges[..., 0].clamp(min=0).minimum(end), end], -1)


def target_map(batch: Batch) -> Tensor:
    """G: 1 at the cell of every window, else 0.  [F2SGD Eq. 14]

    returns  (B, T, T)
    """
    b, w = batch.labels.span_mask.nonzero(as_tuple=True)  # (number of windows,) each
    first, last = window_cells(batch.labels.spans, batch.lengths)[b, w].unbind(-1)  # (number of windows,) each
    g = torch.zeros(*batch.target_mask.shape, batch.target_mask.shape[1], device=batch.target_mask.device)
    g[b, first, last] = 1
    return g


def highest_cells(p: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest cells of maps, best first; of equal ones the smaller row, then column.

    Each of them lies in one of the `most` rows with the highest maxima, of equal ones the first: the maximum of every
    row before those of its own is a better cell. So only these rows are sorted.

    p        (B, T, T)
    most     cells to return
    returns  scores  (B, K)  K = min(most, T * T)
             cells   int64 (B, K)  row * T + column
    """
    T = p.shape[2]
    rows = p.amax(2).sort(dim=1, descending=True, stable=True).indices[:, :most].sort(dim=1).values  # (B, R)
    candidates = p.gather(1, rows[..., None].expand(-1, -1, T)).flatten(1)  # (B, R T)
    scores, order = candidates.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :most], order[:, :most]  # (B, K)
    return scores, rows.gather(1, order // T) * T + order % T


def linear(x: Tensor) -> Tensor:
    """The score of a cell is the output of the last layer."""
    return x


def probability(x: Tensor) -> Tensor:
    """The score of a cell is a probability."""
    return x.sigmoid()


def summed(errors: Tensor, counted: Tensor) -> Tensor:
    """The sum of the errors (B, T, T) over the counted cells, bool (B, T, T); (B,)."""
    return errors.masked_fill(~counted, 0).sum((1, 2))


def averaged(errors: Tensor, counted: Tensor) -> Tensor:
    """The mean of the errors over the counted cells; arguments and result as in `summed`."""
    return summed(errors, counted) / counted.sum((1, 2))


# option "head" -> the score of a cell, and the initial bias of the last layer; probabilities start at 0.01
HEADS = {"linear": (linear, 0.0), "sigmoid": (probability, -math.log((1 - 0.01) / 0.01))}
LOSS_CELLS = {"triangle": cells, "full": real_cells}
REDUCTIONS = {"sum": summed, "mean": averaged}


class SimilarityMapDetector(nn.Module):
    """Large-kernel convolutions on the similarity map; the highest cells of the output are the moments.

    [F2SGD Eq. 13] to [F2SGD Eq. 15]
    """

    def __init__(
        self,
        *,
        kernel: int = 21,
        channels: int = 32,
        candidates: int = 10,
        head: Callable[[Tensor], Tensor] = linear,
        bias: float = 0.0,
        loss_cells: Callable[[Tensor], Tensor] = cells,
        reduction: Callable[[Tensor, Tensor], Tensor] = summed,
        standardise: bool = False,
        zero_init: bool = True,
    ):
        """For clips of any width.

        kernel       C, side of the convolutions' kernels, odd; ValueError if it is even
        channels     c, of the hidden maps
        candidates   moments that are predicted, at most
        head         from the output of the last layer to the score of a cell: `linear` or `probability`
        bias         initial bias of the last layer
        loss_cells   from the mask bool (B, T) to the cells of the loss, bool (B, T, T): `cells`, those with i <= j, or
                     `real_cells`, as printed
        reduction    of the loss over a sample's cells: `summed` or `averaged`
        standardise  apply `standardised` to the similarities; departs from the paper
        zero_init    start the last layer's weights at zero; False: Xavier-uniform like the others
        """
        super().__init__()
        require(channels >= 1, "channels", channels, "at least 1")
        require(candidates >= 1, "candidates", candidates, "at least 1")
        self.candidates, self.head, self.loss_cells = candidates, head, loss_cells
        self.reduction, self.standardise = reduction, standardise
        self.convolve = nn.ModuleList(
            [LargeKernelConv2d(1, channels, kernel), LargeKernelConv2d(channels, channels, kernel)]
        )
        self.mix, self.last = nn.Linear(channels, channels), nn.Linear(channels, 1)  # the MLP, cell by cell
        for layer in (self.mix, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if zero_init:
            nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, bias)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """`map` P (B, T, T), the score of clips i..j as a moment, and `similarity` S, its input.  [F2SGD Eq. 13]

        The network goes over a long map in tiles. If the loss does not read them, `map` is 0 there in cells with i > j.

        raises  ValueError for a video whose maps do not fit into the memory
        """
        B, T, _ = aligned.target.shape
        require_maps_fit(B, T, TRAINING if torch.is_grad_enabled() else PREDICTION, aligned.target.device)
        s = similarity(aligned.target, aligned.mask)  # (B, T, T)
        x = standardised(s, aligned.mask) if self.standardise else s
        kernel = self.convolve[1].weight.shape  # (c, c, C, C)
        tiled = not is_one_tile(T, kernel[-1])
        if tiled or conv.fourier_is_faster((B, kernel[0], T, T), kernel):
            triangle = self.loss_cells is cells
            layers = (*self.convolve, self.mix, self.last)
            network = Network(*[x for layer in layers for x in (layer.weight, layer.bias)])
            p = self.head(large_kernel_network(x, aligned.mask, network, triangle=triangle).to(s.dtype))
            return {"map": p.triu() if tiled and triangle else p, "similarity": s}
        return {"map": self.head(self.directly(x, aligned.mask).to(s.dtype)), "similarity": s}

    def directly(self, x: Tensor, mask: Tensor) -> Tensor:
        """The network, a layer at a time: similarities (B, T, T), mask bool (B, T) -> (B, T, T).  [F2SGD Eq. 13]"""
        valid, x = real_cells(mask), x[:, None]  # (B, T, T), (B, 1, T, T)
        for layer in self.convolve:
            x = F.relu(layer(x)) * valid[:, None]  # (B, c, T, T)
        x = F.relu(self.mix(x.movedim(1, -1)))  # (B, T, T, c)
        return self.last(x)[..., 0]

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """The highest cells with i <= j, best first; of equal ones the smaller start, then end.  [F2SGD Eq. 15]

        No suppression of neighbours. K = min(candidates, T * T); a target with fewer cells has fewer moments: the rest
        have `mask` False and score -inf.
        """
        p = full_precision(outputs["map"]).masked_fill(~cells(batch.target_mask), -torch.inf)  # (B, T, T)
        scores, order = highest_cells(p, self.candidates)  # (B, K) each
        mask, T = scores > -torch.inf, batch.target_mask.shape[1]  # (B, K)
        spans = torch.stack([order // T, order % T + 1], -1) / batch.lengths[:, None, None]  # (B, K, 2)
        return Moments(spans * mask[..., None], scores, mask)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        r"""map: $\lVert P - G \rVert_2^2$ per sample, mean over the samples; G = 0 for a null query.  [F2SGD Eq. 14]"""
        errors = (outputs["map"] - target_map(batch)).square()  # (B, T, T)
        loss = self.reduction(errors, self.loss_cells(batch.target_mask))  # (B,)
        return {"map": loss.sum() / shared_count(len(batch))}


def build_similarity_map(
    width: int,
    *,
    head: str = "linear",
    loss_cells: str = "triangle",
    reduction: str = "sum",
    **options: Any,
) -> SimilarityMapDetector:
    """The detector "similarity_map", for clips of any width.

    head        "linear", or "sigmoid": probabilities, starting at 0.01
    loss_cells  "triangle": cells with i <= j; "full": every cell, as printed
    reduction   of the loss over a sample's cells, "sum" or "mean"
    options     further options of `SimilarityMapDetector`
    """
    require(head in HEADS, "head", head, "linear or sigmoid")
    require(loss_cells in LOSS_CELLS, "loss_cells", loss_cells, "triangle or full")
    require(reduction in REDUCTIONS, "reduction", reduction, "sum or mean")
    score, bias = HEADS[head]
    return SimilarityMapDetector(
        head=score, bias=bias, loss_cells=LOSS_CELLS[loss_cells], reduction=REDUCTIONS[reduction], **options
    )
