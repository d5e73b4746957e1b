r"""Every clip says whether it is inside the moment and how far away the moment's ends are (UniVTG, MATR).

Paper    Lin et al., "UniVTG", ICCV 2023, and Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025
Here     [MATR §3.2] the two convolutional heads are `BoundaryDetector.forward`, with what they read of an aligner's
         `context` as `fusion`; foreground, L1 and IoU terms are `.losses` [MATR, losses], [UniVTG]
Ours     the paper draws the decoder's l tokens behind the T clips; three convolutions of 3 then carry them into the
         last three clips only. `fusion` offers that ("sequence") and ways that reach every clip
Departs  vl2g/MATR leaves the offsets without sign or bound, times a clip at its right edge, weighs the background with
         0.1, lets padding into the convolutions, and its heads never read the decoder; each is an option. The
         released scoring script adds 6 points to the mIoU and 7 to R@5; nothing here does
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.layers import Attention
from mrlib.ops import alignment, spans
from mrlib.ops.counts import shared_count
from mrlib.settings import require

CANDIDATES = 1000  # spans that enter the suppression
KEPT = 10  # moments that leave it
LAYERS = 3  # of each head


class ConvHead(nn.Module):
    """Convolutions of 3 over time, ReLU between."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        widths = [inputs, *[width] * (LAYERS - 1), outputs]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, inputs), mask bool (B, L) or None, which lets padding in -> (B, L, outputs)."""
        x = x.mT
        for i, layer in enumerate(self.layers):
            x = x.relu() if i else x
            x = layer(x if mask is None else x * mask[:, None])
        return x.mT


class BoundaryDetector(nn.Module):
    """Foreground and offsets at every clip.  [MATR §3.2]"""

    def __init__(
        self,
        width: int,
        *,
        fusion: str = "sequence",
        heads: int = 8,
        offsets: str = "bounded",
        timestamps: str = "centre",
        length: str = "clips",
        background: float = 1.0,
        padding: str = "hidden",
        nms: float = 0.7,
        answer: str = "heads",
    ):
        """Two heads of a width.

        fusion      how the aligner's `context` (B, l, d) comes in, where it has one: "sequence", as l more places after
                    the last clip; "channel", its mean beside every clip; "attend", every clip attends to it with
                    `heads` heads; "none"
        offsets     "bounded", from 0 to 1 to the left and to the right of the clip; "raw", any number, added to it
        timestamps  where a clip is: at its "centre", or, as the official code has it for clips of 2 s, at its right
                    "edge"
        length      what a span is a fraction of when it is decoded: the real "clips", as in training; "duration", as
                    in the official inference
        background  weight of clips outside the moment
        padding     "hidden" from the convolutions, or "seen", as in the official code
        nms         IoU above which the worse of two moments is dropped
        answer      decode the "heads", or the clips of the aligner's path "pre" or "post"
        """
        require(
            fusion in ("sequence", "channel", "attend", "none"), "fusion", fusion, "sequence, channel, attend or none"
        )
        require(offsets in ("bounded", "raw"), "offsets", offsets, "bounded or raw")
        require(timestamps in ("centre", "edge"), "timestamps", timestamps, "centre or edge")
        require(length in ("clips", "duration"), "length", length, "clips or duration")
        require(padding in ("hidden", "seen"), "padding", padding, "hidden or seen")
        require(answer in ("heads", "pre", "post"), "answer", answer, "heads, pre or post")
        require(0 <= nms <= 1, "nms", nms, "from 0 to 1")
        super().__init__()
        self.fusion, self.offsets, self.timestamps, self.length = fusion, offsets, timestamps, length
        self.background, self.padding, self.threshold, self.answer = background, padding, nms, answer
        inputs = 2 * width if fusion == "channel" else width
        self.attend = Attention(width, heads) if fusion == "attend" else None
        self.foreground = ConvHead(inputs, width, 1)
        self.boundary = ConvHead(inputs, width, 2)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Of every clip; what stands on padding is undefined.

        logits  (B, T)     of being inside the moment
        offset  (B, T, 2)  to the start and to the end: distances where they are bounded, else signed
        spans   (B, T, 2)  the moment that the clip sees
        path    (B, 1, 2)  the span of the aligner's path, if that is the answer
        """
        x, mask = self._fused(aligned)
        if self.padding == "seen":
            mask = None
        T = aligned.mask.shape[1]
        logits, offset = self.foreground(x, mask)[:, :T, 0], self.boundary(x, mask)[:, :T]
        t = self._times(aligned.mask)
        if self.offsets == "bounded":
            offset = offset.sigmoid()
            found = torch.stack([t - offset[..., 0], t + offset[..., 1]], -1)
        else:
            found = t[..., None] + offset
        outputs = {"logits": logits, "offset": offset, "spans": found}
        if self.answer != "heads":
            if self.answer not in aligned.paths:
                raise ValueError(
                    f"answer={self.answer!r}: the aligner has no such path; it has {sorted(aligned.paths)}"
                )
            edges = torch.stack(alignment.span_of(aligned.paths[self.answer]), -1)
            outputs["path"] = (edges / batch.lengths.clamp(min=1)[:, None])[:, None]
        return outputs

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """Ten moments at most, greedily suppressed; clamped to the video, for features may run on after its end."""
        length_s = (batch.lengths * batch.clip_s).clamp(min=1e-6)
        if "path" in outputs:
            found = outputs["path"]
            return Moments(found, found.new_ones(found.shape[:2]), batch.target_mask.any(1, keepdim=True))
        found = outputs["spans"].float().sort(-1).values
        if self.length == "duration":
            found = found * (batch.duration_s / length_s)[:, None, None]
        found = found.clamp(min=0).minimum((batch.duration_s / length_s).clamp(max=1)[:, None, None])
        scores = outputs["logits"].float().sigmoid().masked_fill(~batch.target_mask, -1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        scores, order = scores[:, :CANDIDATES], order[:, :CANDIDATES]
        found = found.gather(1, order[..., None].expand(-1, -1, 2))
        kept, there = spans.nms(found, scores >= 0, self.threshold, KEPT)
        return Moments(found.gather(1, kept[..., None].expand(-1, -1, 2)), scores.gather(1, kept), there)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict | None = None
    ) -> dict[str, Tensor]:
        """Foreground, L1 and IoU.  [MATR, losses]

        fg    cross-entropy of being inside, mean over the real clips
        l1    smooth L1 of both offsets, mean over the foreground
        iou   1 - generalised IoU of the span that a clip sees, mean over the foreground
        """
        mask, t = aligned.mask, self._times(aligned.mask)
        inside, truth = targets(batch.labels.spans, batch.labels.span_mask, mask, t)
        weight = torch.where(inside, 1.0, self.background) * mask
        fg = F.binary_cross_entropy_with_logits(
            outputs["logits"].float(), inside.float(), weight=weight, reduction="sum"
        )
        foreground = shared_count(inside.sum())
        distance = torch.stack([t - truth[..., 0], truth[..., 1] - t], -1).clamp(min=0)
        if self.offsets == "raw":
            distance = truth - t[..., None]
        # selected and not weighed: what stands on padding may be anything
        l1 = F.smooth_l1_loss(outputs["offset"].float()[inside], distance[inside], reduction="sum")
        overlap = spans.giou(outputs["spans"].float()[inside].sort(-1).values, truth[inside])
        return {
            "fg": fg / shared_count(mask.sum()),
            "l1": l1 / foreground,
            "iou": (1 - overlap).sum() / foreground,
        }

    def _fused(self, aligned: Aligned) -> tuple[Tensor, Tensor]:
        """What the heads read (B, T + l, d or 2d), target first, and where it is real."""
        target, mask, tokens = aligned.target, aligned.mask, aligned.context
        if tokens is None:
            tokens = target.new_zeros(len(target), 0, target.shape[2])
        count, there = tokens.shape[1], aligned.context_mask
        if self.fusion == "attend" and count:
            return target + self.attend(target, tokens, tokens, there), mask
        there = mask.new_ones(tokens.shape[:2]) if there is None else there
        tokens = tokens * there[..., None]
        if self.fusion == "channel":
            beside = tokens.sum(1, keepdim=True) / there.sum(1).clamp(min=1)[:, None, None]
            return torch.cat([target, beside.expand_as(target)], -1), mask
        if self.fusion == "sequence" and count:
            # directly after the last real clip, so that it does not matter how far a batch is padded
            places = mask.sum(1)[:, None] + torch.arange(count, device=mask.device)
            x = F.pad(target * mask[..., None], (0, 0, 0, count))
            x = x.scatter(1, places[..., None].expand_as(tokens), tokens.to(x.dtype))
            return x, F.pad(mask, (0, count)).scatter(1, places, there)
        return target, mask

    def _times(self, mask: Tensor) -> Tensor:
        """t_i (B, T): where the clips are, fractions of the real ones."""
        t = torch.arange(mask.shape[1], device=mask.device) + (0.5 if self.timestamps == "centre" else 1.0)
        return t / mask.sum(1).clamp(min=1)[:, None]


def targets(windows: Tensor, window_mask: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Which clips are inside a window, and in which.  [MATR, losses]

    A window shorter than a clip is widened to one; if then no clip's time is inside, the clip that it starts in is.
    Of several windows around a clip, the one whose centre is nearest counts.

    windows      (B, W, 2)  fractions of the real clips; window_mask bool (B, W)
    mask, t      bool (B, T), (B, T)  the clips and their times
    returns      bool (B, T) and (B, T, 2) the window, 0 outside
    """
    if windows.shape[1] == 0:
        return torch.zeros_like(mask), windows.new_zeros(*mask.shape, 2)
    n = mask.sum(1).clamp(min=1)[:, None, None].to(windows.dtype)
    centre, half = windows.mean(-1, keepdim=True), (windows[..., 1:] - windows[..., :1]) / 2
    half = half.clamp(min=0.5 / n)
    wide = torch.cat([centre - half, centre + half], -1).clamp(0, 1)
    wide = torch.stack([wide[..., 0], wide[..., 1].maximum(1 / n[..., 0])], -1)
    clip = torch.arange(mask.shape[1], device=mask.device)
    slack = 1e-6  # times on the ends are inside, in float32 too
    around = (t[:, :, None] >= wide[:, None, :, 0] - slack) & (t[:, :, None] <= wide[:, None, :, 1] + slack)
    first = (windows[..., 0] * n[..., 0] + 1e-4).floor().clamp(min=0).minimum(n[..., 0] - 1)
    around = around | (~around.any(1, keepdim=True) & (clip[:, None] == first[:, None]))
    around = around & window_mask[:, None] & mask[..., None]
    distance = (t[:, :, None] - wide.mean(-1)[:, None]).abs().masked_fill(~around, torch.inf)
    nearest = distance.argmin(-1)
    inside = around.any(-1)
    truth = wide.gather(1, nearest[..., None].expand(-1, -1, 2))
    return inside, truth * inside[..., None]
