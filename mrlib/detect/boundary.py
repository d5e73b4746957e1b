r"""Every clip predicts whether it is inside the moment and the distances to the moment's ends (UniVTG, MATR).

Paper    Lin et al., "UniVTG", ICCV 2023, and Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025
Here     [MATR §3.2] `BoundaryDetector.forward` has the two convolutional heads, which read the `context` of an aligner
         through a `fusion`; foreground, L1 and IoU terms are `.losses`  [MATR, losses], [UniVTG]
Ours     the paper draws the decoder's l tokens behind the T clips; three convolutions of 3 then carry them into the
         last three clips only. `FUSIONS` has that ("sequence") and ways that reach every clip
Departs  vl2g/MATR leaves the offsets unbounded and signed, `RawOffsets`, puts the time of a clip at its right edge,
         weighs the background with 0.1, lets padding into the convolutions, and its heads never read the decoder: each
         is an option. Its scoring script adds 6 points to the mIoU and 7 to R@5, which is not reproduced here
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.arguments import require
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.span_length import in_video, of_clips, span_length
from mrlib.layers import Attention, full_precision
from mrlib.ops import alignment, spans
from mrlib.ops.counts import shared_count
from mrlib.ops.time_conv import time_convs

CANDIDATES = 1000  # spans that enter the suppression
KEPT = 10  # moments that remain after it
LAYERS = 3  # of each head
CENTRE, EDGE = 0.5, 1.0  # position of a clip's time within the clip


class ConvHead(nn.Module):
    """Convolutions of 3 over time, with ReLU between them."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        widths = [inputs, *[width] * (LAYERS - 1), outputs]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, inputs) -> (B, L, outputs); mask bool (B, L), if given, sets padding to 0 before every layer."""
        return outputs_of([self], x, mask)[0]


def outputs_of(heads: Sequence[ConvHead], x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The outputs of heads that read the same x, arguments as in `ConvHead.forward`; the first layers share work."""

    def convolved(x: Tensor, layers: Sequence[nn.Conv1d]) -> list[Tensor]:
        x = x if mask is None else x * mask[..., None]
        return time_convs(x, [layer.weight for layer in layers], [layer.bias for layer in layers])

    outputs = convolved(x, [head.layers[0] for head in heads])  # (B, L, width) each
    for i in range(1, LAYERS):
        outputs = [convolved(y.relu(), [head.layers[i]])[0] for head, y in zip(heads, outputs, strict=True)]
    return outputs


class BoundedOffsets:
    """Distances, 0 to 1, from the clip's time back to the start and on to the end."""

    def spans(self, t: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets and spans, (B, T, 2) each, from the times (B, T) and the head's outputs (B, T, 2)."""
        offset = outputs.sigmoid()
        return offset, torch.stack([t - offset[..., 0], t + offset[..., 1]], -1)

    def offsets_to(self, t: Tensor, windows: Tensor) -> Tensor:
        """The offsets (B, T, 2) from the times (B, T) to the ends of the windows (B, T, 2)."""
        return torch.stack([t - windows[..., 0], windows[..., 1] - t], -1).clamp(min=0)


class RawOffsets:
    """Signed and unbounded offsets, added to the clip's time, as released. Methods as in `BoundedOffsets`."""

    def spans(self, t: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs, t[..., None] + outputs

    def offsets_to(self, t: Tensor, windows: Tensor) -> Tensor:
        return windows - t[..., None]


def mask_padding(mask: Tensor) -> Tensor:
    """The mask for `ConvHead` that sets padding to 0 in the convolutions."""
    return mask


def keep_padding(mask: Tensor) -> None:
    """No mask for `ConvHead`: padding enters the convolutions, as released."""
    return None


class BoundaryDetector(nn.Module):
    """Foreground and offsets at every clip.  [MATR §3.2]"""

    def __init__(
        self,
        width: int,
        *,
        fusion: str = "sequence",
        heads: int = 8,
        offsets: BoundedOffsets | RawOffsets,
        timestamps: float = CENTRE,
        length: Callable[[Tensor, Tensor], Tensor] = of_clips,
        background: float = 1.0,
        padding: Callable[[Tensor], Tensor | None] = mask_padding,
        nms: float,
        answer: str | None = None,
    ):
        """Two convolutional heads for an aligner of this width.

        fusion       one of `FUSIONS`: how the convolutional heads read the aligner's `context` (B, l, d), if it has one
        heads        attention heads of the fusion "attend"
        offsets      what the boundary head predicts
        timestamps   position of a clip's time within the clip: `CENTRE`, or `EDGE` as in the official code for clips of
                     2 s
        length       what a predicted span is a fraction of, see `mrlib.detect.span_length`
        background   weight of clips outside the moment
        padding      `mask_padding` from the convolutions, or `keep_padding`
        nms          IoU above which the worse of two moments is dropped
        answer       decode the aligner's path of this name, "pre" or "post"; None: decode the heads
        """
        require(fusion in FUSIONS, "fusion", fusion, f"one of {', '.join(FUSIONS)}")
        require(0 <= nms <= 1, "nms", nms, "from 0 to 1")
        super().__init__()
        self.offsets, self.timestamps, self.length = offsets, timestamps, length
        self.background, self.padding, self.nms, self.answer = background, padding, nms, answer
        self.fusion, inputs = FUSIONS[fusion], 2 * width if fusion == "channel" else width
        self.attend = Attention(width, heads) if fusion == "attend" else None
        self.foreground = ConvHead(inputs, width, 1)
        self.boundary = ConvHead(inputs, width, 2)

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Outputs of every clip; undefined on padding.

        logits  (B, T)     of being inside the moment
        offset  (B, T, 2)  to the start and to the end, see `BoundedOffsets` and `RawOffsets`
        spans   (B, T, 2)  the moment that the clip predicts
        path    (B, 1, 2)  the span of the aligner's path, if that is decoded
        """
        x, mask = self._fuse(aligned)  # (B, L, d or 2 d), (B, L); L is T or T + l
        mask, T = self.padding(mask), aligned.mask.shape[1]  # (B, L) or None
        logits, offset = (y[:, :T] for y in outputs_of([self.foreground, self.boundary], x, mask))  # (B, T, 1 or 2)
        offset, predicted = self.offsets.spans(self._times(aligned.mask), offset)  # (B, T, 2) each
        outputs = {"logits": logits[..., 0], "offset": offset, "spans": predicted}
        if self.answer is not None:
            outputs["path"] = self._span_of_path(aligned)
        return outputs

    def _fuse(self, aligned: Aligned) -> tuple[Tensor, Tensor]:
        """The input of the heads (B, L, d or 2 d), which starts with the clips, and its mask (B, L)."""
        target, tokens, token_mask = aligned.target, aligned.context, aligned.context_mask
        if tokens is None:
            tokens = target.new_zeros(len(target), 0, target.shape[2])  # (B, 0, d)
        return self.fusion(self, target, aligned.mask, tokens, token_mask)

    def _span_of_path(self, aligned: Aligned) -> Tensor:
        """The span from the first clip of the aligner's path to the last, (B, 1, 2)."""
        if self.answer not in aligned.paths:
            raise ValueError(f"answer={self.answer!r}: the aligner has no such path; it has {sorted(aligned.paths)}")
        edges = torch.stack(alignment.span_of(aligned.paths[self.answer]), -1)  # (B, 2) in clips
        return (edges / aligned.mask.sum(1).clamp(min=1)[:, None])[:, None]

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """Sort the clips by foreground probability, clamp their spans to the video, apply NMS; (B, KEPT, 2)."""
        if "path" in outputs:
            path = outputs["path"]
            return Moments(path, path.new_ones(path.shape[:2]), batch.target_mask.any(1, keepdim=True))
        predicted = full_precision(outputs["spans"]).sort(-1).values  # (B, T, 2)
        predicted = in_video(predicted, batch.duration_s, batch.lengths * batch.clip_s, self.length)
        scores = full_precision(outputs["logits"]).sigmoid().masked_fill(~batch.target_mask, -1)  # (B, T)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)  # (B, T) each
        scores, order = scores[:, :CANDIDATES], order[:, :CANDIDATES]  # (B, C)
        predicted = predicted.gather(1, order[..., None].expand(-1, -1, 2))  # (B, C, 2)
        kept, mask = spans.nms(predicted, scores >= 0, self.nms, KEPT)  # (B, KEPT)
        return Moments(predicted.gather(1, kept[..., None].expand(-1, -1, 2)), scores.gather(1, kept), mask)

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Foreground, L1 and IoU.  [MATR, losses]

        fg    cross-entropy of being inside, mean over the real clips
        l1    smooth L1 of both offsets, mean over the foreground
        iou   1 - generalised IoU of the span that a clip predicts, mean over the foreground

        No clip of a null query is foreground.
        """
        mask, t = aligned.mask, self._times(aligned.mask)
        inside, truth = window_of_clip(batch.labels.spans, batch.labels.span_mask, mask, t)  # (B, T), (B, T, 2)
        weight = torch.where(inside, 1.0, self.background) * mask  # (B, T)
        logits, offset, predicted = (full_precision(outputs[name]) for name in ("logits", "offset", "spans"))
        fg = F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype), weight=weight, reduction="sum")
        foreground = shared_count(inside.sum())
        expected = self.offsets.offsets_to(t, truth)  # (B, T, 2)
        # selected and not weighted by 0, since padding may hold anything
        l1 = F.smooth_l1_loss(offset[inside], expected[inside], reduction="sum")
        overlap = spans.giou(predicted[inside].sort(-1).values, truth[inside])  # (number of foreground clips,)
        return {
            "fg": fg / shared_count(mask.sum()),
            "l1": l1 / foreground,
            "iou": (1 - overlap).sum() / foreground,
        }

    def _times(self, mask: Tensor) -> Tensor:
        """t_i (B, T): the times of the clips as fractions of the real clips."""
        t = torch.arange(mask.shape[1], device=mask.device) + self.timestamps
        return t / mask.sum(1).clamp(min=1)[:, None]


# ---- fusions: from the detector, target (B, T, d), mask bool (B, T), tokens (B, l, d) and token mask bool (B, l), or
# None if all tokens are real, to the input of the heads and its mask


def _in_sequence(
    detector: BoundaryDetector, target: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tokens as l further places behind the clips; (B, T + l, d)."""
    count = tokens.shape[1]
    if not count:
        return target, mask
    tokens, token_mask = _masked(tokens, token_mask, mask)
    # directly after the last real clip, so that the padding of the batch makes no difference
    places = mask.sum(1)[:, None] + torch.arange(count, device=mask.device)  # (B, l)
    x = F.pad(target * mask[..., None], (0, 0, 0, count))  # (B, T + l, d)
    x = x.scatter(1, places[..., None].expand_as(tokens), tokens.to(x.dtype))
    return x, F.pad(mask, (0, count)).scatter(1, places, token_mask)


def _in_channels(
    detector: BoundaryDetector, target: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean token concatenated to every clip; (B, T, 2 d)."""
    tokens, token_mask = _masked(tokens, token_mask, mask)
    mean = tokens.sum(1, keepdim=True) / token_mask.sum(1).clamp(min=1)[:, None, None]  # (B, 1, d)
    return torch.cat([target, mean.expand_as(target)], -1), mask


def _by_attention(
    detector: BoundaryDetector, target: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every clip attends to the tokens; (B, T, d)."""
    return (target + detector.attend(target, tokens, tokens, token_mask), mask) if tokens.shape[1] else (target, mask)


def _without(
    detector: BoundaryDetector, target: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The clips without the tokens; (B, T, d)."""
    return target, mask


def _masked(tokens: Tensor, token_mask: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (B, l, d) with padding set to 0, and their mask bool (B, l)."""
    token_mask = mask.new_ones(tokens.shape[:2]) if token_mask is None else token_mask  # (B, l)
    return tokens * token_mask[..., None], token_mask


FUSIONS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "sequence": _in_sequence,
    "channel": _in_channels,
    "attend": _by_attention,
    "none": _without,
}


def window_of_clip(windows: Tensor, window_mask: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Which clips are inside a window, and which window each is inside.  [MATR, losses]

    A clip is inside a window if its time is. A window shorter than a clip is first widened to one clip; a window behind
    the time of the last clip has that clip. Of several windows that a clip is inside, the one with the nearest centre
    counts.

    windows      (B, W, 2)  fractions of the real clips; window_mask bool (B, W)
    mask, t      bool (B, T), (B, T)  the clips and their times
    returns      bool (B, T) and (B, T, 2) the window, 0 outside
    """
    if windows.shape[1] == 0:
        return torch.zeros_like(mask), windows.new_zeros(*mask.shape, 2)
    n = mask.sum(1).clamp(min=1)[:, None, None].to(windows.dtype)  # (B, 1, 1)
    centre, half = windows.mean(-1, keepdim=True), (windows[..., 1:] - windows[..., :1]) / 2  # (B, W, 1) each
    half = half.clamp(min=0.5 / n)
    wide = torch.cat([centre - half, centre + half], -1).clamp(0, 1)  # (B, W, 2)
    wide = torch.stack([wide[..., 0], wide[..., 1].maximum(1 / n[..., 0])], -1)  # (B, W, 2)
    last = torch.arange(mask.shape[1], device=mask.device)[:, None] == n - 1  # (B, T, 1)
    slack = 1e-6  # times on the ends are inside, also in float32
    covers = (t[:, :, None] >= wide[:, None, :, 0] - slack) & (
        t[:, :, None] <= wide[:, None, :, 1] + slack
    )  # (B, T, W)
    covers = covers | (~covers.any(1, keepdim=True) & last)  # (B, T, W); a window without a clip gets the last
    covers = covers & window_mask[:, None] & mask[..., None]
    distance = (t[:, :, None] - wide.mean(-1)[:, None]).abs().masked_fill(~covers, torch.inf)  # (B, T, W)
    nearest = distance.argmin(-1)  # (B, T)
    inside = covers.any(-1)  # (B, T)
    truth = wide.gather(1, nearest[..., None].expand(-1, -1, 2))  # (B, T, 2)
    return inside, truth * inside[..., None]


def build_boundary(
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
) -> BoundaryDetector:
    """The detector "boundary".

    fusion      one of `FUSIONS`: "sequence", "channel", "attend" or "none"
    offsets     "bounded", see `BoundedOffsets`, or "raw", see `RawOffsets`
    timestamps  a clip's time is its "centre", or its right "edge"
    length      a predicted span is a fraction of the real "clips", as in training, or of the "duration", as in the
                official inference
    padding     "hidden" from the convolutions, or "seen"
    answer      decode the "heads", or the aligner's path "pre" or "post"
    heads, background, nms  as in `BoundaryDetector`
    """
    require(offsets in ("bounded", "raw"), "offsets", offsets, "bounded or raw")
    require(timestamps in ("centre", "edge"), "timestamps", timestamps, "centre or edge")
    require(padding in ("hidden", "seen"), "padding", padding, "hidden or seen")
    require(answer in ("heads", "pre", "post"), "answer", answer, "heads, pre or post")
    return BoundaryDetector(
        width,
        fusion=fusion,
        heads=heads,
        offsets=BoundedOffsets() if offsets == "bounded" else RawOffsets(),
        timestamps=CENTRE if timestamps == "centre" else EDGE,
        length=span_length(length),
        background=background,
        padding=mask_padding if padding == "hidden" else keep_padding,
        nms=nms,
        answer=None if answer == "heads" else answer,
    )
