r"""Points of a pyramid of clips predict whether they are in the moment and the distances to its ends (SnAG).

Paper    Mu et al., "SnAG: Scalable and Accurate Video Grounding", CVPR 2024 (arXiv 2404.02257)
Here     `PyramidDetector` has the video encoder, in which every level is half as long as the one below, the fusion with
         the words on each level, and both heads  [SnAG]; `window_of_point` assigns windows to points, `.losses` are
         focal and distance-IoU terms, `.decode` is soft suppression and voting  [SnAG]. With `beta`, dynamics, the
         changes from point to point of a level, are mixed in before the first fusion  [TD-DETR Eq. 6]
Levels   are concatenated to (B, P, d), so that all go through the shared layers at once. One padded place behind each
         level keeps convolutions from reading the next one
Lengths  can be any: the level above n places has n / 2, rounded up. Padding is hidden from convolution, pooling and
         local attention
Ours     of several windows around a point the shortest counts; moments are clamped to the video before they suppress
         one another, not after; where none is left, the best point answers. Branches have dropout instead of the
         released code's stochastic depth
Departs  fmu2/snag_release divides the losses by a running mean of the number of positive points; here it is the number
         in the batch: no state to keep, the same on every rank and after a resume. It evaluates a running mean of the
         weights, which is left out
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.dynamics import Dynamics, dynamic_tokens
from mrlib.align.words import Words
from mrlib.arguments import require
from mrlib.data import Batch
from mrlib.detect import Moments
from mrlib.detect.span_length import in_video
from mrlib.layers import Attention, AttentionWeights, Dropout, FeedForward, full_precision, waves
from mrlib.ops import spans
from mrlib.ops.counts import shared_count
from mrlib.ops.neighbours import channel_convs, local_attention
from mrlib.ops.time_conv import time_conv

NEAR = 2  # places on either side that a clip attends to
LAYER_SCALE = 1e-4  # initial factor of a branch of a block
FUSION_LAYERS = 2  # layers of fusion
RADIUS = 1.5  # strides around the middle of a window in which points are positive
RANGE = 8.0  # largest distance in strides from a point to an end of its window
ALPHA, GAMMA, SMOOTHING = 0.5, 2.0, 0.2  # of the focal loss
CANDIDATES = 2000  # moments that enter the suppression
LEAST_SCORE = 0.001  # moments with this score or a lower one are dropped
SHORTEST = 0.1  # moments of this many clips or fewer are dropped
SIGMA, VOTES = 0.9, 0.95  # of the soft suppression; the IoU from which moments vote for one another
KEPT = 10  # moments that remain


def _conv(layer: nn.Conv1d, x: Tensor, mask: Tensor) -> Tensor:
    """A convolution of 3 over the places of x (B, L, d) with padding set to 0, mask bool (B, L)."""
    return time_conv(x * mask[..., None], layer.weight, layer.bias)


class Trunk(nn.Module):
    """Two convolutions of 3, each with norm and ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, d), mask bool (B, L) -> (B, L, d)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(_conv(conv, x, mask)).relu()
        return x


class LocalAttention(AttentionWeights):
    """Every place attends to itself and the `NEAR` places on either side; the cost is linear in the length."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v (B, L, d), mask bool (B, L) -> (B, L, d)."""
        return self.out_proj(local_attention(*self.project_qkv(q, k, v), mask, self.heads, NEAR))


class Block(nn.Module):
    """Convolution with local attention, then feed-forward, each after a norm and with a learned scale.  [SnAG]

    stride  2: the output has every second place, and the residual is the maximum of three neighbours
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, stride: int):
        super().__init__()
        self.stride, self.dropout = stride, Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 3 * width, 3, stride, padding=1, groups=width, bias=False)  # channel to q, k, v
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.local_attn = LocalAttention(width, heads)
        self.feed_forward = FeedForward(width, hidden, dropout, "gelu")
        self.scale = nn.Parameter(torch.full((2, width), LAYER_SCALE))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, d), mask bool (B, L) -> (B, L', d), bool (B, L'); L' is L / stride, rounded up."""
        convolved = channel_convs(self.norm1(x), mask, self.conv.weight, self.stride)  # three (B, L', d)
        q, k, v = (norm(each) for norm, each in zip(self.norms, convolved, strict=True))
        if self.stride > 1:
            x = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
            x, mask = F.max_pool1d(x.mT, 3, self.stride, padding=1).mT, mask[:, :: self.stride]  # (B, L', d)
            x = x.masked_fill(~mask[..., None], 0)
        x = x + self.dropout(self.scale[0] * self.local_attn(q, k, v, mask))
        return x + self.dropout(self.scale[1] * self.feed_forward(self.norm2(x))), mask


class Fusion(nn.Module):
    r"""Attention to the words gives a scale and a shift of every place; then feed-forward.  [SnAG]

    $$x \leftarrow x \odot a + b, \quad
    (a, b) = \mathrm{MHA}(\mathrm{conv}(\mathrm{LN}(x)), \mathrm{LN}(Y), \mathrm{LN}(Y)) \text{ with the words } Y$$
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2, self.norm_words = (nn.LayerNorm(width) for _ in range(3))
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        self.cross_attn = Attention(width, heads)
        self.cross_attn.out_proj = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.cross_attn.out_proj.bias)
        self.feed_forward, self.dropout = FeedForward(width, hidden, dropout, "gelu"), Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, words: Words) -> Tensor:
        """x (B, L, d), mask bool (B, L), words of N vectors (B, N, d) -> (B, L, d)."""
        values = self.norm_words(words.values)
        (q,) = channel_convs(self.norm1(x), mask, self.conv.weight)  # (B, L, d)
        scale, shift = self.cross_attn(q, values, values, words.mask).chunk(2, -1)  # (B, L, d) each
        x = x * scale + shift
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class PyramidDetector(nn.Module):
    """A logit and two offsets at every point of every level.  [SnAG]"""

    def __init__(
        self,
        width: int,
        *,
        levels: int = 6,
        heads: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
        beta: float | None = None,
    ):
        """A pyramid for an aligner of this width, which is even.

        levels  their number; the strides are 1, 2, 4, ... 2^(levels - 1)
        beta    weight of the points, 1 - beta that of their dynamics; None: no dynamics
        """
        require(type(levels) is int and levels >= 1, "levels", levels, "1 or more")
        super().__init__()
        self.levels, sizes = levels, (width, heads, hidden, dropout)
        self.stem = Trunk(width)
        self.stem_block = Block(*sizes, stride=1)
        self.blocks = nn.ModuleList(Block(*sizes, stride=2 if level else 1) for level in range(levels))
        self.start = None if beta is None else nn.Embedding(levels, width)
        self.mix = None if beta is None else Dynamics(width, heads, dropout, beta, self.start)
        self.fusion = nn.ModuleList(Fusion(*sizes) for _ in range(FUSION_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.foreground, self.boundary = Trunk(width), Trunk(width)
        self.logit, self.offset = nn.Conv1d(width, 1, 3, padding=1), nn.Conv1d(width, 2, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))

    def pyramid(self, x: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The levels of clips x (B, T, d) before the words are read: each (B, L, d), and its mask bool (B, L)."""
        x = self.stem(x, mask)  # (B, T, d)
        x = x + waves(torch.arange(x.shape[1], device=x.device), x.shape[2]).to(x.dtype) / x.shape[2] ** 0.5
        level, level_features = self.stem_block(x, mask), []
        for block in self.blocks:
            level = block(*level)
            level_features.append(level)
        return level_features

    def forward(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Outputs of every point.

        logits  (B, P)     of being in the middle of a moment
        spans   (B, P, 2)  the moment that the point predicts, fractions of the real clips; it contains the point
        mask    bool (B, P)  real points
        """
        level_features = self.pyramid(aligned.target, aligned.mask)
        x = _joined([x for x, _ in level_features])  # (B, P, d)
        mask = _joined([m[..., None] for _, m in level_features])[..., 0]  # (B, P)
        words = Words(aligned.query, aligned.query, aligned.query_mask)
        if self.mix is not None:
            starts = self.start.weight
            # (B, L, d) each
            tokens = [dynamic_tokens(x, start, m) for (x, m), start in zip(level_features, starts, strict=True)]
            x = self.mix.flow(x, _joined(tokens), words)  # (B, P, d)
        for layer in self.fusion:
            x = layer(x, mask, words)  # (B, P, d)
        x = self.norm(x)
        logits = _conv(self.logit, self.foreground(x, mask), mask)[..., 0]  # (B, P)
        offset = _conv(self.offset, self.boundary(x, mask), mask)  # (B, P, 2)
        level, point = points(aligned.mask.shape[1], self.levels, x.device)  # (P,), (P,)
        distance = full_precision((self.scales[level][:, None] * offset).relu()) * 2.0 ** level[:, None]  # (B, P, 2)
        ends = point[:, None] + 0.5 + torch.stack([-distance[..., 0], distance[..., 1]], -1)  # (B, P, 2) in clips
        return {"logits": logits, "spans": ends / _clip_counts(aligned.mask)[:, None, None], "mask": mask}

    def losses(
        self, outputs: dict[str, Tensor], aligned: Aligned, batch: Batch, teacher: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        r"""Sums over the points, divided by the number of positive points, at least 1; a null query has none.  [SnAG]

        focal  $-\alpha (1 - p_y)^2 (y \log p + (1 - y) \log(1 - p))$ with y = 0.9 or 0.1, $p_y = yp + (1 - y)(1 - p)$
        diou   1 - distance IoU of the moment that a positive point predicts
        """
        labels, mask = batch.labels, outputs["mask"]
        grid = points(aligned.mask.shape[1], self.levels, mask.device)
        counts = _clip_counts(aligned.mask)
        positive, truth = window_of_point(
            labels.spans, labels.span_mask, counts, *grid, self.levels
        )  # (B, P), (B, P, 2)
        positive = positive & mask
        count = shared_count(positive.sum())
        # selected and not weighted by 0, since padding may hold anything
        focal = focal_loss(full_precision(outputs["logits"])[mask], positive[mask])
        overlap = spans.diou(full_precision(outputs["spans"])[positive], truth[positive])
        return {"focal": focal.sum() / count, "diou": (1 - overlap).sum() / count}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> Moments:
        """Sort the points by score, clamp their spans to the video, apply soft NMS and voting; (B, KEPT, 2).  [SnAG]

        Where no moment is long enough or scores enough, the point that scores most gives its moment, or its clip.
        """
        n = _clip_counts(batch.target_mask)  # (B,)
        predicted = in_video(full_precision(outputs["spans"]), batch.duration_s, n * batch.clip_s)  # (B, P, 2)
        long = (predicted[..., 1] - predicted[..., 0]) * n[:, None] > SHORTEST  # (B, P)
        scores = full_precision(outputs["logits"]).sigmoid()  # (B, P)
        usable = outputs["mask"] & long & (scores > LEAST_SCORE)  # (B, P)
        best_score, best = scores.masked_fill(~outputs["mask"], 0).max(1)  # (B,)
        fallback = predicted.gather(1, best[:, None, None].expand(-1, 1, 2))  # (B, 1, 2)
        clip = in_video(_clip_around(fallback, n), batch.duration_s, n * batch.clip_s)  # (B, 1, 2)
        fallback = torch.where(long.gather(1, best[:, None])[..., None], fallback, clip)
        scores = scores.masked_fill(~usable, 0)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)  # (B, P) each
        scores, order = scores[:, :CANDIDATES], order[:, :CANDIDATES]  # (B, C)
        predicted = predicted.gather(1, order[..., None].expand(-1, -1, 2))  # (B, C, 2)
        # (B, KEPT) each
        kept, lowered, mask = spans.soft_nms(predicted, scores, scores > 0, sigma=SIGMA, least=LEAST_SCORE, most=KEPT)
        chosen = predicted.gather(1, kept[..., None].expand(-1, -1, 2))  # (B, KEPT, 2)
        moments = spans.vote(chosen, predicted, scores, VOTES)  # (B, KEPT, 2)
        none = (outputs["mask"].any(1) & ~usable.any(1) & (best_score >= 0))[:, None]  # (B, 1), False for NaN
        only = none & (torch.arange(mask.shape[1], device=mask.device) == 0)  # (B, KEPT)
        moments = torch.where(only[..., None], fallback, moments)
        return Moments(moments, torch.where(only, best_score[:, None], lowered), mask | only)


def points(T: int, levels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The points of T clips, level after level: int64 (P,) the level, (P,) the index of the clip in whose middle it is.

    A padded point follows the points of every level.
    """
    counts = [-(-T // 2**level) + 1 for level in range(levels)]
    level = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(counts)])  # (P,)
    place = torch.cat([torch.arange(n, device=device) for n in counts])  # (P,)
    return level, (place * 2**level).float()


def window_of_point(
    windows: Tensor, window_mask: Tensor, lengths: Tensor, level: Tensor, point: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Which points are positive, and the window of each.  [SnAG]

    A point is positive for a window if it is inside the window, less than 1.5 strides from the window's middle, and 0
    to 8, 4 to 16, 8 to 32, ... clips from the window's farther end on level 0, 1, 2, ...; on the last level without an
    upper limit. Of several such windows the shortest counts.

    windows       (B, W, 2)  fractions of the real clips; window_mask bool (B, W)
    lengths       (B,)  real clips
    level, point  (P,), (P,) from `points`, for so many `levels`
    returns       bool (B, P), and the windows (B, P, 2) as fractions, arbitrary where a point is not positive
    """
    if windows.shape[1] == 0:
        shape = (len(windows), len(point))
        return window_mask.new_zeros(shape), windows.new_zeros(*shape, 2)
    ends = windows * lengths[:, None, None] - 0.5  # (B, W, 2) clips from the middle of clip 0
    start, end = ends[:, None, :, 0], ends[:, None, :, 1]  # (B, 1, W)
    x, stride = point[:, None], 2.0 ** level[:, None]  # (P, 1)
    slack = 1e-4  # clips; a point on a border is outside, also in float32
    inside = (x - start > slack) & (end - x > slack)  # (B, P, W)
    inside = inside & ((x - (start + end) / 2).abs() < RADIUS * stride - slack)
    low = torch.where(level[:, None] > 0, RANGE / 4 * stride, 0.0)  # (P, 1)
    high = torch.where(level[:, None] < levels - 1, RANGE * stride, torch.inf)  # (P, 1)
    far = torch.maximum(x - start, end - x)  # (B, P, W)
    fits = inside & (far >= low) & (far < high) & window_mask[:, None]  # (B, P, W)
    shortest = (end - start).expand_as(fits).masked_fill(~fits, torch.inf).argmin(-1)  # (B, P)
    return fits.any(-1), windows.gather(1, shortest[..., None].expand(-1, -1, 2))


def _clip_around(moments: Tensor, lengths: Tensor) -> Tensor:
    """The clip that contains the middle of each moment; (B, M, 2) in fractions of the lengths (B,)."""
    n = lengths[:, None]  # (B, 1)
    clip = (moments.mean(-1) * n).floor().minimum(n - 1)  # (B, M)
    return torch.stack([clip, clip + 1], -1) / n[..., None]


def focal_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels, times the squared error of the probability; (...), bool (...) -> (...)."""
    y = torch.where(positive, 1 - SMOOTHING / 2, SMOOTHING / 2).to(logits.dtype)
    p = logits.sigmoid()
    error = 1 - (p * y + (1 - p) * (1 - y))
    weight = torch.where(positive, ALPHA, 1 - ALPHA)
    return weight * error**GAMMA * F.binary_cross_entropy_with_logits(logits, y, reduction="none")


def _joined(level_features: list[Tensor]) -> Tensor:
    """Levels (B, L, d) concatenated, with one place of zeros behind each; (B, P, d)."""
    return torch.cat([F.pad(x, (0, 0, 0, 1)) for x in level_features], 1)


def _clip_counts(mask: Tensor) -> Tensor:
    """The number of real clips of each target, at least 1; float32 (B,)."""
    return mask.sum(1).clamp(min=1).float()
