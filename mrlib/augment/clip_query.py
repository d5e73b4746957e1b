"""A random clip of a video asks where it is from: labels that cost nothing (MATR).

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     [MATR, pre-training] `clip_query` gives every clip twice, as it is and changed in one of `CHANGES`;
         `clip_alone` gives it as it is only; `each_video` is the set of videos they are drawn from
Ours     the paper gives no lengths, factors or noise; they are the constants below. Features are changed, not frames
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Batch, Labels, MomentDataset
from mrlib.ops.draw import Draw

CHANGES = ("reverse", "noise", "fast", "slow")
SHORTEST, LONGEST = 2, 16  # clips of a query before its speed is changed; at most half of the video
SHORTEST_VIDEO = 4  # clips
NOISE = (0.1, 0.5)  # its norm, as a share of the vector's; the cosine falls to 0.995 .. 0.89
FAST, SLOW = (1.25, 2.0), (0.5, 0.8)  # factors of speed


def each_video(dataset: MomentDataset) -> MomentDataset:
    """One sample of every video that is long enough to ask about; a pass over it asks every video once.

    raises  ValueError where no video has four clips
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
    """Every sample's video, asked with a random clip of its own.  [MATR, pre-training]"""
    return _asked(indices, dataset, draw, changed=False)


def clip_query(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """The same twice, 2 B samples: as it is, then backwards, with noise, faster or slower.  [MATR, pre-training]

    What was drawn is in each sample's `extra`: "clip", its first clip and how many; "change"; "factor", of the speed
    or of the noise. The moment stays where it is.
    """
    return _asked(indices, dataset, draw, changed=True)


def _asked(indices: Tensor, dataset: MomentDataset, draw: Draw, changed: bool) -> Batch:
    if dataset.joint is None or dataset.query.width != dataset.widths.joint:
        raise ValueError(
            f"{dataset.name}: a clip can stand for a query only where queries are rows of the joint stream; open the "
            f"dataset with its joint stream (target {dataset.target.width}, query {dataset.query.width} wide)"
        )
    n = dataset.target.lengths[dataset.video[indices]]
    longest = (n // 2).clamp(SHORTEST, LONGEST).minimum(n)
    shortest = longest.clamp(max=SHORTEST)
    u = draw("clip", indices, 4)  # length, start, change, factor
    count = shortest + (u[:, 0] * (longest - shortest + 1)).long()
    start = (u[:, 1] * (n - count + 1)).long()
    change = (u[:, 2] * len(CHANGES)).long()
    factor = torch.ones_like(u[:, 3])
    for name, (low, high) in (("noise", NOISE), ("fast", FAST), ("slow", SLOW)):
        factor = torch.where(change == CHANGES.index(name), low + (high - low) * u[:, 3], factor)
    speed = torch.where(change >= CHANGES.index("fast"), factor, 1.0)
    changed_count = (count / speed).round().long().clamp(min=1)

    batch = dataset.batch(indices)
    plain = _rows(batch.target_joint, start, count, count, torch.zeros_like(change, dtype=torch.bool))
    queries, lengths = [plain], [count]
    if changed:
        rows = _rows(batch.target_joint, start, count, changed_count, change == CHANGES.index("reverse"))
        noisy = change == CHANGES.index("noise")
        rows[noisy] = _noisy(rows[noisy], factor[noisy], indices[noisy], draw)
        queries, lengths = [plain, rows], [count, changed_count]
    longest_query = max(q.shape[1] for q in queries)
    query = torch.cat([F.pad(q, (0, 0, 0, longest_query - q.shape[1])) for q in queries])
    lengths = torch.cat(lengths)
    query_mask = torch.arange(longest_query, device=query.device) < lengths[:, None]
    query = query * query_mask[..., None]
    copies = len(queries)
    spans = (torch.stack([start, start + count], -1) / n[:, None]).float()[:, None].repeat(copies, 1, 1)
    t = torch.arange(batch.target.shape[1], device=query.device)
    relevant = ((t >= start[:, None]) & (t < (start + count)[:, None])).repeat(copies, 1)
    backwards = torch.zeros(len(query), dtype=torch.bool, device=query.device)
    if changed:
        backwards[len(indices) :] = change == CHANGES.index("reverse")
    samples = []
    for copy in range(copies):
        told = zip(batch.samples, start.tolist(), count.tolist(), change.tolist(), factor.tolist(), strict=True)
        for sample, a, length, c, f in told:
            window = [a * dataset.clip_s, min((a + length) * dataset.clip_s, sample.duration)]
            about = {"clip": [a, length]} | ({"change": CHANGES[c], "factor": f} if copy else {})
            samples.append(
                replace(sample, relevant_windows=[window], relevant_clip_ids=None, saliency_scores=None, extra=about)
            )
    twice = {
        name: getattr(batch, name).repeat(copies, *[1] * (getattr(batch, name).dim() - 1))
        for name in ("target", "target_mask", "target_joint", "video", "duration_s", "clip_s")
    }
    return Batch(
        **twice,
        query=query,
        query_mask=query_mask,
        query_joint=F.normalize(F.normalize(query, dim=-1).sum(1), dim=-1),
        labels=Labels(
            spans=spans,
            span_mask=torch.ones_like(spans[..., 0], dtype=torch.bool),
            relevant=relevant,
            saliency=relevant.new_zeros(relevant.shape, dtype=torch.float32),
            saliency_mask=torch.zeros_like(backwards),
            backwards=backwards,
        ),
        samples=samples,
    )


def _rows(video: Tensor, start: Tensor, count: Tensor, wanted: Tensor, turned: Tensor) -> Tensor:
    """`wanted` rows evenly spread over the clips start .. start + count, between two rows their normalised mix.

    video (B, T, J); start, count, wanted int64 (B,); turned bool (B,), the last row first -> (B, N, J)
    """
    k = torch.arange(int(wanted.max()), device=video.device)
    last = (count - 1)[:, None].double()
    at = torch.where(wanted[:, None] > 1, k * last / (wanted[:, None] - 1).clamp(min=1), last / 2).minimum(last)
    at = torch.where(turned[:, None], last - at, at)
    before = at.floor()
    share = (at - before)[..., None].to(video.dtype)
    after = (before + 1).minimum(last)
    first, second = (
        video.gather(
            1, (start[:, None] + i.long()).clamp(0, video.shape[1] - 1)[..., None].expand(-1, -1, video.shape[2])
        )
        for i in (before, after)
    )
    mixed = F.normalize(first + share * (second - first), dim=-1)
    return torch.where(share > 0, mixed, first)


def _noisy(rows: Tensor, factor: Tensor, indices: Tensor, draw: Draw) -> Tensor:
    """Gaussian noise of `factor` (B,) times the norm of every row, then unit length; rows (B, N, J)."""
    u = draw("noise", indices, (2, *rows.shape[1:]))
    normal = (-2 * (1 - u[:, 0]).log()).sqrt() * (2 * math.pi * u[:, 1]).cos()  # Box and Muller
    scale = factor[:, None, None] * rows.norm(dim=-1, keepdim=True) / math.sqrt(rows.shape[-1])
    return F.normalize(rows + (scale * normal).to(rows.dtype), dim=-1)
