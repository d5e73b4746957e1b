"""Self-supervised pre-training: a random segment of a video is the query, its position the label (MATR).

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     [MATR, pre-training] `clip_query` gives every segment twice, unchanged and changed in one of `CHANGES`;
         `clip_alone` gives it unchanged only; `each_video` is the set of videos that segments are drawn from
Ours     the paper gives no lengths, factors or noise; they are the constants below. Features are changed, not frames
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Batch, Labels, MomentDataset, Sample
from mrlib.ops.draw import Draw

CHANGES = ("reverse", "noise", "fast", "slow")
SHORTEST, LONGEST = 2, 16  # clips of a segment before its speed is changed; at most half of the video
SHORTEST_VIDEO = 4  # clips
NOISE = (0.1, 0.5)  # norm of the noise as a share of the vector's norm; the cosine falls to 0.995 .. 0.89
FAST, SLOW = (1.25, 2.0), (0.5, 0.8)  # factors of speed


def each_video(dataset: MomentDataset) -> MomentDataset:
    """The first sample of every video that is long enough for a segment, so that a pass shows every video once.

    raises  ValueError if no video has `SHORTEST_VIDEO` clips
    """
    lengths = dataset.target.lengths[dataset.video].tolist()
    first: dict[int, int] = {}
    for i, (video, n) in enumerate(zip(dataset.video.tolist(), lengths, strict=True)):
        if n >= SHORTEST_VIDEO:
            first.setdefault(video, i)
    if not first:
        raise ValueError(f"no video of {dataset.name} {dataset.split} has {SHORTEST_VIDEO} clips to cut a query from")
    return dataset.subset(list(first.values()))


def clip_alone(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """Every sample's video with a random segment of it as the query.  [MATR, pre-training]

    raises  ValueError if the queries of the dataset are not rows of the joint stream
    """
    videos = _open_videos(indices, dataset)
    segments = _drawn_segments(videos, indices, draw)
    return _batch(videos, segments, [_unchanged_query(videos, segments)], dataset.clip_s)


def clip_query(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """Every sample twice: a segment of its video is the query, first unchanged, then changed.  [MATR, pre-training]

    The first B samples are those of `clip_alone`, the next B have the changed queries: played backwards, with noise,
    faster or slower; the label is unchanged. Each sample's `extra` records what was drawn: "clip", the segment's first
    clip and number of clips; "change"; "factor", of the speed or of the noise.

    raises  ValueError if the queries of the dataset are not rows of the joint stream
    """
    videos = _open_videos(indices, dataset)
    segments = _drawn_segments(videos, indices, draw)
    changes = _drawn_changes(indices, draw)
    queries = [_unchanged_query(videos, segments), _changed_query(videos, segments, changes, indices, draw)]
    return _batch(videos, segments, queries, dataset.clip_s)


def _open_videos(indices: Tensor, dataset: MomentDataset) -> Batch:
    """The samples unchanged; ValueError if their queries are not rows of the joint stream."""
    if dataset.joint is None or dataset.query.width != dataset.widths.joint:
        raise ValueError(
            f"{dataset.name}: a segment can be a query only where queries are rows of the joint stream; open the "
            f"dataset with its joint stream (target {dataset.target.width}, query {dataset.query.width} wide)"
        )
    return dataset.batch(indices)


# ---- what is drawn


@dataclass(frozen=True)
class _Segments:
    """A segment of every video."""

    start: Tensor  # int64 (B,) first clip
    count: Tensor  # int64 (B,) clips


@dataclass(frozen=True)
class _Changes:
    """How the query of every sample is changed."""

    kind: Tensor  # int64 (B,) index in `CHANGES`
    factor: Tensor  # float64 (B,) of the speed or of the noise; 1 for a reversed query


@dataclass(frozen=True)
class _Query:
    """The query of every sample, with its record."""

    clips: Tensor  # (B, N, J) features; any values on padding
    count: Tensor  # int64 (B,) clips of each
    backwards: Tensor  # bool (B,)
    records: list[dict[str, Any]]  # B of them, added to the `extra` of the samples


def _drawn_segments(videos: Batch, indices: Tensor, draw: Draw) -> _Segments:
    n = videos.lengths
    longest = (n // 2).clamp(SHORTEST, LONGEST).minimum(n)
    shortest = longest.clamp(max=SHORTEST)
    u = draw("clip", indices, 2)  # (B, 2) length, start
    count = shortest + (u[:, 0] * (longest - shortest + 1)).long()
    return _Segments((u[:, 1] * (n - count + 1)).long(), count)


def _drawn_changes(indices: Tensor, draw: Draw) -> _Changes:
    u = draw("clip", indices, 4)[:, 2:]  # (B, 2) change, factor; the two numbers before them chose the segment
    kind = (u[:, 0] * len(CHANGES)).long()
    factor = torch.ones_like(u[:, 1])
    for name, (low, high) in (("noise", NOISE), ("fast", FAST), ("slow", SLOW)):
        factor = torch.where(kind == CHANGES.index(name), low + (high - low) * u[:, 1], factor)
    return _Changes(kind, factor)


# ---- queries


def _unchanged_query(videos: Batch, segments: _Segments) -> _Query:
    positions = _even_positions(segments.count, segments.count)
    forwards = torch.zeros_like(segments.start, dtype=torch.bool)
    records = [{} for _ in videos.samples]
    return _Query(_interpolated(videos.target_joint, segments.start, positions), segments.count, forwards, records)


def _changed_query(videos: Batch, segments: _Segments, changes: _Changes, indices: Tensor, draw: Draw) -> _Query:
    speed = torch.where(changes.kind >= CHANGES.index("fast"), changes.factor, 1.0)
    count = (segments.count / speed).round().long().clamp(min=1)
    positions = _even_positions(segments.count, count)  # (B, N)
    backwards = changes.kind == CHANGES.index("reverse")
    positions = torch.where(backwards[:, None], (segments.count - 1)[:, None] - positions, positions)
    clips = _interpolated(videos.target_joint, segments.start, positions)  # (B, N, J)
    noisy = changes.kind == CHANGES.index("noise")
    clips[noisy] = _with_noise(clips[noisy], changes.factor[noisy], indices[noisy], draw)
    pairs = zip(changes.kind.tolist(), changes.factor.tolist(), strict=True)
    return _Query(clips, count, backwards, [{"change": CHANGES[kind], "factor": factor} for kind, factor in pairs])


def _even_positions(count: Tensor, wanted: Tensor) -> Tensor:
    """`wanted` positions spread evenly over `count` clips, from the first clip to the last; one position is the middle.

    count, wanted  int64 (B,)
    returns        float64 (B, N)  from 0 to count - 1, in clips; the last position on padding
    """
    k = torch.arange(int(wanted.max()), device=count.device)
    last = (count - 1)[:, None].double()  # (B, 1)
    steps = (wanted[:, None] - 1).clamp(min=1)
    return torch.where(wanted[:, None] > 1, k * last / steps, last / 2).minimum(last)  # (B, N)


def _interpolated(video: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    """Clips at fractional positions; between two clips, their linear mix at unit length.

    video      (B, T, J)
    start      int64 (B,)  the clip that positions count from
    positions  float64 (B, N)
    returns    (B, N, J)
    """
    before = positions.floor()
    share = (positions - before)[..., None].to(video.dtype)  # (B, N, 1)
    left = start[:, None] + before.long()  # (B, N)
    right = (left + 1).clamp(max=video.shape[1] - 1)
    first, second = (video.gather(1, t[..., None].expand(-1, -1, video.shape[2])) for t in (left, right))  # (B, N, J)
    mixed = F.normalize(first + share * (second - first), dim=-1)
    return torch.where(share > 0, mixed, first)


def _with_noise(clips: Tensor, factor: Tensor, indices: Tensor, draw: Draw) -> Tensor:
    """Add Gaussian noise whose norm is about `factor` (B,) times the norm of each clip (B, N, J); unit length after."""
    u = draw("noise", indices, (2, *clips.shape[1:]))  # (B, 2, N, J)
    normal = (-2 * (1 - u[:, 0]).log()).sqrt() * (2 * math.pi * u[:, 1]).cos()  # (B, N, J) [Box & Muller 1958]
    scale = factor[:, None, None] * clips.norm(dim=-1, keepdim=True) / math.sqrt(clips.shape[-1])  # (B, N, 1)
    return F.normalize(clips + (scale * normal).to(clips.dtype), dim=-1)


# ---- the batch


def _batch(videos: Batch, segments: _Segments, queries: list[_Query], clip_s: float) -> Batch:
    """All videos with the first query, then all with the second, and so on; Q queries give Q B samples."""
    longest = max(query.clips.shape[1] for query in queries)
    clips = torch.cat([F.pad(q.clips, (0, 0, 0, longest - q.clips.shape[1])) for q in queries])  # (Q B, N, J)
    count = torch.cat([q.count for q in queries])  # (Q B,)
    query_mask = torch.arange(longest, device=count.device) < count[:, None]  # (Q B, N)
    clips = clips * query_mask[..., None]

    def repeated(x: Tensor) -> Tensor:  # (B, ...) -> (Q B, ...)
        return x.repeat(len(queries), *[1] * (x.dim() - 1))

    return Batch(
        target=repeated(videos.target),
        target_mask=repeated(videos.target_mask),
        target_joint=repeated(videos.target_joint),
        video=repeated(videos.video),
        duration_s=repeated(videos.duration_s),
        clip_s=repeated(videos.clip_s),
        query=clips,
        query_mask=query_mask,
        query_joint=F.normalize(F.normalize(clips, dim=-1).sum(1), dim=-1),  # (Q B, J)
        labels=_labels(videos, segments, queries),
        samples=[sample for query in queries for sample in _samples(videos, segments, query, clip_s)],
    )


def _labels(videos: Batch, segments: _Segments, queries: list[_Query]) -> Labels:
    """The segment is the only window, (Q B, ...)."""
    start, end = segments.start[:, None], (segments.start + segments.count)[:, None]  # (B, 1)
    spans = (torch.cat([start, end], 1) / videos.lengths[:, None]).float()[:, None]  # (B, 1, 2)
    t = torch.arange(videos.target.shape[1], device=start.device)
    relevant = ((t >= start) & (t < end)).repeat(len(queries), 1)  # (Q B, T)
    spans = spans.repeat(len(queries), 1, 1)  # (Q B, 1, 2)
    backwards = torch.cat([query.backwards for query in queries])  # (Q B,)
    return Labels(
        spans=spans,
        span_mask=torch.ones_like(spans[..., 0], dtype=torch.bool),
        relevant=relevant,
        saliency=torch.zeros_like(relevant, dtype=torch.float32),
        saliency_mask=torch.zeros_like(backwards),
        backwards=backwards,
    )


def _samples(videos: Batch, segments: _Segments, query: _Query, clip_s: float) -> list[Sample]:
    """The samples with the segment as their window, and with the record of the query."""
    samples = []
    starts, counts = segments.start.tolist(), segments.count.tolist()
    for sample, start, count, record in zip(videos.samples, starts, counts, query.records, strict=True):
        window_s = [start * clip_s, min((start + count) * clip_s, sample.duration)]
        extra = {"clip": [start, count]} | record
        samples.append(
            replace(sample, relevant_windows=[window_s], relevant_clip_ids=None, saliency_scores=None, extra=extra)
        )
    return samples
