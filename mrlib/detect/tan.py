r"""Moments as cells of a map: what is in clips i to j, and how much neighbouring moments have of it (2D-TAN).

Paper    Zhang et al., "Learning 2D Temporal Adjacent Networks for Moment Localization with Natural Language", AAAI 2020
         (arXiv 1912.03590)
Here     `moment_map` is its features of all moments, `TanDetector.fuse` their meeting with the whole query,
         `TanDetector.forward` the convolutions, `scaled_iou` and `.losses` what they learn, `.decode` the suppression
         [2D-TAN]
Cells    cell (i, j) means clips i..j, both included, as in `mrlib.detect.similarity_map`
Borders  each convolution sees what those before have spread outside the triangle of moments. The map has a border for
         it, half as wide as the released padding: what has spread farther cannot come back. Beyond is nothing, so that
         it does not matter how far a batch is padded
Ours     every cell with i <= j is a moment; the released code leaves out most of the long ones, and pools a video to
         16, 64 or 128 clips first. Of several windows the one with the highest IoU counts. The kernels start larger
         than Xavier's by the number of their places, which the weighting divides by: else little is left of what a
         cell has after a few layers
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.similarity_map import cells
from mrlib.ops import spans
from mrlib.ops.conv import LargeKernelConv2d, conv2d
from mrlib.ops.counts import shared_count
from mrlib.settings import require

LEAST, MOST = 0.5, 1.0  # IoU up to which a cell is no moment, and from which on it is one
KEPT = 10  # moments that leave the suppression


def moment_map(x: Tensor) -> Tensor:
    r"""$F_{ij} = \max_{i \leq t \leq j} x_t$, each cell from its left neighbour, 0 where j < i.  [2D-TAN]

    x        (B, H, T)  from 0 on
    returns  (B, H, T, T)
    """
    rows = x[:, :, None].expand(-1, -1, x.shape[-1], -1)
    return rows.triu().cummax(-1).values  # the zeros before clip i are never more than what follows


def weights(there: Tensor, kernel: int) -> Tensor:
    """One over the number of cells under the kernel that are there; 0 where none is.  [2D-TAN]

    there    bool (B, 1, M, M)
    returns  (B, 1, M, M)  float32
    """
    count = conv2d(there.float(), torch.ones(1, 1, kernel, kernel, device=there.device)).round()
    return torch.where(count > 0, 1 / count.clamp(min=1), 0)


def cell_ends(mask: Tensor) -> Tensor:
    """Start i and end j + 1 of every cell in clips, of bool (B, T); float32 (T, T, 2), exact."""
    t = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32)
    return torch.stack(torch.broadcast_tensors(t[:, None], t + 1), -1)


def scaled_iou(batch: Batch) -> Tensor:
    r"""$y = (\mathrm{IoU} - 0.5) / 0.5$ cut to 0..1, of every cell with the window that it fits best.  [2D-TAN]

    returns  (B, T, T)  0 where there is no window
    """
    found, labels = cell_ends(batch.target_mask), batch.labels
    windows = labels.spans * batch.lengths[:, None, None]
    overlap = windows.new_zeros(len(batch), *found.shape[:2])
    for window, there in zip(windows.unbind(1), labels.span_mask.unbind(1), strict=True):
        overlap = overlap.maximum(spans.iou(found, window[:, None, None]) * there[:, None, None])
    return ((overlap - LEAST) / (MOST - LEAST)).clamp(0, 1)


class TanDetector(nn.Module):
    """A logit for every moment, from its own features and its neighbours'.  [2D-TAN]"""

    def __init__(self, width: int, *, channels: int = 256, convolutions: int = 4, kernel: int = 9, nms: float = 0.5):
        """A map of an aligner's clips, of this width, and its `query_global`.

        channels      H, of the map; 512 in the released code
        convolutions  L, and the side of their kernels, odd: 4 of 9 for ActivityNet Captions, 8 of 5 for Charades-STA
        nms           IoU above which the worse of two moments is dropped
        """
        require(type(channels) is int and channels >= 1, "channels", channels, "1 or more")
        require(type(convolutions) is int and convolutions >= 1, "convolutions", convolutions, "1 or more")
        require(0 <= nms <= 1, "nms", nms, "from 0 to 1")
        super().__init__()
        self.kernel, self.threshold = kernel, nms
        self.clips, self.query = nn.Linear(width, channels), nn.Linear(width, channels)
        self.moments, self.score = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 1, 1)
        self.convolve = nn.ModuleList(LargeKernelConv2d(channels, channels, kernel) for _ in range(convolutions))
        with torch.no_grad():
            for layer in self.convolve:
                layer.weight *= kernel**2

    def fuse(self, aligned: Aligned) -> Tensor:
        r"""$(W_t q) \odot (W_v F_{ij})$ over its length, 0 where there is no moment.  [2D-TAN]

        returns  (B, H, T, T)
        """
        clips = self.clips(aligned.target).relu().masked_fill(~aligned.mask[..., None], 0)
        x = self.query(aligned.query_global)[..., None, None] * self.moments(moment_map(clips.mT))
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=1e-6)
        return x.masked_fill(~cells(aligned.mask)[:, None], 0)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """logits (B, T, T), of clips i..j being a moment; undefined where they are none.  [2D-TAN]"""
        T, border = aligned.mask.shape[1], self.kernel // 2 * (len(self.convolve) // 2)
        x, there = (F.pad(each, [border] * 4) for each in (self.fuse(aligned), cells(aligned.mask)[:, None]))
        for layer in self.convolve:
            weight = weights(there, self.kernel)
            x, there = layer(x).relu() * weight, weight > 0
        return {"logits": self.score(x[..., border : border + T, border : border + T])[:, 0]}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """Ten moments at most, greedily suppressed; of equal ones the smaller start, then end, first.  [2D-TAN]"""
        scores = outputs["logits"].float().sigmoid().masked_fill(~cells(batch.target_mask), -1).flatten(1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        found = cell_ends(batch.target_mask).flatten(0, 1)[order]
        kept, there = spans.nms(found, scores >= 0, self.threshold, KEPT)  # in clips: an IoU of 1 / 2 is not above 0.5
        found = found.gather(1, kept[..., None].expand(-1, -1, 2)) / batch.lengths.clamp(min=1)[:, None, None]
        return Moments(found, scores.gather(1, kept), there)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict | None = None
    ) -> dict[str, Tensor]:
        """`overlap`: cross-entropy with the scaled IoU, mean over the moments of the batch.  [2D-TAN]"""
        moments = cells(batch.target_mask)
        # selected and not weighed: what stands on padding may be anything
        logits, y = outputs["logits"].float()[moments], scaled_iou(batch).float()[moments]
        loss = F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        return {"overlap": loss / shared_count(moments.sum())}
