r"""Moments as cells of a map: the features of clips i to j, and convolutions over neighbouring moments (2D-TAN).

Paper    Zhang et al., "Learning 2D Temporal Adjacent Networks for Moment Localization with Natural Language", AAAI 2020
         (arXiv 1912.03590)
Here     `moment_map` gives the features of all moments, `TanDetector.fuse` combines them with the whole query,
         `TanDetector.forward` runs the convolutions, `scaled_iou` and `.losses` are the training targets and loss,
         `.decode` is the suppression  [2D-TAN]
Cells    cell (i, j) stands for clips i..j, both included, as in `mrlib.detect.similarity_map`
Borders  convolutions spread values outside the triangle of moments, and later convolutions read them. The map has a
         border for them, half as wide as the released padding: values farther out cannot come back. A convolution reads
         0 from cells that no value has reached, so the padding of the batch makes no difference
Ours     every cell with i <= j is a moment; the released code leaves out most of the long ones, and pools a video to
         16, 64 or 128 clips first. Of several windows the one with the highest IoU counts. The initial weights are
         Xavier's times the number of places in a kernel, since the weighting divides by that number; otherwise the
         values of a cell nearly vanish after a few layers
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.arguments import require
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.map_size import require_maps_fit
from mrlib.detect.similarity_map import cells
from mrlib.layers import full_precision
from mrlib.ops import spans
from mrlib.ops.conv import LargeKernelConv2d, conv2d
from mrlib.ops.counts import shared_count

LEAST_IOU, FULL_IOU = 0.5, 1.0  # IoU up to which the target is 0, and from which it is 1
PREDICTION, TRAINING = 64, 200  # bytes that are held at once for a cell and a channel of a map, as measured
KEPT = 10  # moments that remain after the suppression


def moment_map(x: Tensor) -> Tensor:
    r"""$F_{ij} = \max_{i \leq t \leq j} x_t$, each cell from its left neighbour, 0 where j < i.  [2D-TAN]

    x        (B, H, T)  not negative
    returns  (B, H, T, T)
    """
    rows = x[:, :, None].expand(-1, -1, x.shape[-1], -1)  # (B, H, T, T)
    return rows.triu().cummax(-1).values  # the zeros before clip i never exceed the values after it


def inverse_counts(mask: Tensor, kernel: int) -> Tensor:
    """One over the number of valid cells under a square kernel; 0 where there is none.  [2D-TAN]

    mask     bool (B, 1, M, M)  valid cells
    kernel   its side
    returns  (B, 1, M, M)  float32
    """
    count = conv2d(mask.float(), torch.ones(1, 1, kernel, kernel, device=mask.device)).round()
    return torch.where(count > 0, 1 / count.clamp(min=1), 0)


def cell_ends(mask: Tensor) -> Tensor:
    """Start i and end j + 1 of every cell in clips, for a mask bool (B, T); float32 (T, T, 2), exact."""
    t = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32)
    return torch.stack(torch.broadcast_tensors(t[:, None], t + 1), -1)  # (T, T, 2)


def scaled_iou(batch: Batch) -> Tensor:
    r"""$y = (\mathrm{IoU} - 0.5) / 0.5$ clamped to 0..1, of every cell with its best window.  [2D-TAN]

    returns  (B, T, T)  0 for a sample without windows
    """
    ends, labels = cell_ends(batch.target_mask), batch.labels  # (T, T, 2)
    windows = labels.spans * batch.lengths[:, None, None]  # (B, W, 2)
    overlap = windows.new_zeros(len(batch), *ends.shape[:2])  # (B, T, T)
    for window, valid in zip(windows.unbind(1), labels.span_mask.unbind(1), strict=True):
        overlap = overlap.maximum(spans.iou(ends, window[:, None, None]) * valid[:, None, None])
    return ((overlap - LEAST_IOU) / (FULL_IOU - LEAST_IOU)).clamp(0, 1)


class TanDetector(nn.Module):
    """A logit for every moment, from its features and those of its neighbours.  [2D-TAN]"""

    def __init__(self, width: int, *, channels: int = 256, convolutions: int = 4, kernel: int = 9, nms: float = 0.5):
        """For an aligner of this width, whose clips and `query_global` are read.

        channels      H, of the map; 512 in the released code
        convolutions  L, their number: 4 with kernel 9 for ActivityNet Captions, 8 with kernel 5 for Charades-STA
        kernel        side of the convolutions' kernels, odd
        nms           IoU above which the worse of two moments is dropped
        """
        require(type(channels) is int and channels >= 1, "channels", channels, "1 or more")
        require(type(convolutions) is int and convolutions >= 1, "convolutions", convolutions, "1 or more")
        require(0 <= nms <= 1, "nms", nms, "from 0 to 1")
        super().__init__()
        self.kernel, self.nms = kernel, nms
        self.clips, self.query = nn.Linear(width, channels), nn.Linear(width, channels)
        self.moments, self.score = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 1, 1)
        self.convolve = nn.ModuleList(LargeKernelConv2d(channels, channels, kernel) for _ in range(convolutions))
        with torch.no_grad():
            for layer in self.convolve:
                layer.weight *= kernel**2

    def fuse(self, aligned: Aligned) -> Tensor:
        r"""$(W_t q) \odot (W_v F_{ij})$ divided by its norm, 0 in cells that are no moment.  [2D-TAN]

        returns  (B, H, T, T)
        """
        clips = self.clips(aligned.target).relu().masked_fill(~aligned.mask[..., None], 0)  # (B, T, H)
        x = self.query(aligned.query_global)[..., None, None] * self.moments(moment_map(clips.mT))  # (B, H, T, T)
        x = F.normalize(full_precision(x), dim=1, eps=1e-6)
        return x.masked_fill(~cells(aligned.mask)[:, None], 0)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """logits (B, T, T) of clips i..j being a moment; undefined in cells that are no moment.  [2D-TAN]

        raises  ValueError for a video whose maps do not fit into the memory
        """
        maps = TRAINING if torch.is_grad_enabled() else PREDICTION
        require_maps_fit(*aligned.mask.shape, maps * len(self.score.weight[0]), aligned.mask.device)
        T, border = aligned.mask.shape[1], self.kernel // 2 * (len(self.convolve) // 2)
        x = F.pad(self.fuse(aligned), [border] * 4)  # (B, H, M, M), M = T + 2 border
        mask = F.pad(cells(aligned.mask)[:, None], [border] * 4)  # (B, 1, M, M)
        for layer in self.convolve:
            weight = inverse_counts(mask, self.kernel)  # (B, 1, M, M)
            x, mask = layer(x).relu() * weight, weight > 0  # (B, H, M, M), (B, 1, M, M)
        return {"logits": self.score(x[..., border : border + T, border : border + T])[:, 0]}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """Ten moments at most, greedily suppressed; of equal ones the smaller start, then end, first.  [2D-TAN]"""
        scores = full_precision(outputs["logits"]).sigmoid().masked_fill(~cells(batch.target_mask), -1)  # (B, T, T)
        scores, order = scores.flatten(1).sort(dim=-1, descending=True, stable=True)  # (B, T T) each
        ends = cell_ends(batch.target_mask).flatten(0, 1)[order]  # (B, T T, 2)
        # in clips, where the IoU is exact: one of 1 / 2 is not above 0.5
        kept, mask = spans.nms(ends, scores >= 0, self.nms, KEPT)  # (B, K) each
        predicted = (
            ends.gather(1, kept[..., None].expand(-1, -1, 2)) / batch.lengths.clamp(min=1)[:, None, None]
        )  # (B, K, 2)
        return Moments(predicted, scores.gather(1, kept), mask)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """overlap: cross-entropy with the scaled IoU, mean over the moments of the batch.  [2D-TAN]

        All targets of a null query are 0.
        """
        moments = cells(batch.target_mask)  # (B, T, T)
        # selected and not weighted by 0, since padding may hold anything
        logits = full_precision(outputs["logits"])[moments]  # (number of moments,)
        y = scaled_iou(batch)[moments].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        return {"overlap": loss / shared_count(moments.sum())}
