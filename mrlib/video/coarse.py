"""The coarse step of a search in a corpus: every clip is compared with the query, the best windows are kept.

By sentence, a clip's score is its cosine with the query's vector, smoothed over three clips, and a window's score is
that of its best clip. By clip, both are centred by the mean of the corpus, and a window's score is the mean, over the
clips of the query, of the best cosine in the window, in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data.bank import Bank

ROWS = 4096  # rows that become float32 at a time; larger pieces leave the processor's cache


@dataclass(frozen=True)
class Windows:
    """Windows over all videos that overlap by half, (W,) each; a video that is shorter than a window has one."""

    video: Tensor  # int64, number of the video
    start: Tensor  # int64, first clip, counted from the start of the video
    count: Tensor  # int64, clips
    owner: Tensor  # int64 (P,) for every clip of the videos in their order, the window in whose middle it is most
    cell: Tensor  # int64 (P,) for every clip, its half window
    halves: Tensor  # int64 (W, 2) the two half windows of every window

    @classmethod
    def of(cls, lengths: Tensor, length: int) -> Windows:
        """The windows of `length` clips over videos of these lengths; the last one of a video ends with it."""
        n, stride = lengths, max(1, length // 2)
        per_video = 1 + ((n - length).clamp(min=0) + stride - 1) // stride  # (V,)
        base = per_video.cumsum(0) - per_video
        video = torch.repeat_interleave(torch.arange(len(n)), per_video)
        nth = torch.arange(len(video)) - base[video]
        start = (nth * stride).minimum((n - length).clamp(min=0)[video])

        of_clip = torch.repeat_interleave(torch.arange(len(n)), n)  # (P,)
        clip = torch.arange(len(of_clip)) - (n.cumsum(0) - n)[of_clip]  # counted in its video
        several = (per_video > 1).long()
        owner = (clip - (length - stride) // 2).div(stride, rounding_mode="floor").clamp(min=0)
        owner = owner.minimum((per_video - 1)[of_clip]) + base[of_clip]
        cells = per_video + several
        first = cells.cumsum(0) - cells
        cell = (clip // stride).minimum((cells - 1)[of_clip]) + first[of_clip]
        half = first[video] + nth
        return cls(video, start, n[video].clamp(max=length), owner, cell, torch.stack([half, half + several[video]], 1))


def cosines_with(bank: Bank, vector: Tensor) -> Tensor:
    """The cosines of all clips with a vector (D,), float32 (P,)."""
    cosines = torch.empty(len(bank.rows))
    for rows, part in products(bank.rows, F.normalize(vector.float(), dim=0)[:, None]):
        cosines[rows] = part[:, 0]
    return cosines[bank.places]


def best_by_cosine(windows: Windows, scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The windows with the best clips, one window for each clip: that in whose middle it is most.

    scores   (P,)  smoothed cosines of all clips with the query
    most     windows to return, at most
    returns  int64 (K,) numbers of windows, best first; (K,) their scores
    """
    best = torch.full((len(windows.video),), -torch.inf).scatter_reduce_(0, windows.owner, scores, "amax")  # (W,)
    values, numbers = best.topk(min(most, len(best)))
    return numbers, values


def best_by_clip(bank: Bank, windows: Windows, clip: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The windows that show most of a clip, without those that overlap a better one.

    clip     (N, D)  features of the query video, of norm 1
    most     windows to return, at most
    returns  int64 (K,) numbers of windows, best first; (K,) their scores
    """
    mean = mean_of(bank)
    query = F.normalize(clip - mean, dim=1).T  # (D, N)
    shift, square = mean @ query, mean @ mean  # (N,), ()
    cells = int(windows.cell.max()) + 1
    of_row = np.full(len(bank.rows), cells)  # rows that belong to no video fall into one more cell
    of_row[bank.places.numpy()] = windows.cell.numpy()
    best = torch.full((cells + 1, query.shape[1]), -torch.inf)
    for rows, part in products(bank.rows, torch.cat([query, mean[:, None]], 1)):
        norm = (1 - 2 * part[:, -1:] + square).clamp(min=1e-6).sqrt()  # of rows of norm 1 minus the mean
        cosines = ((part[:, :-1] - shift) / norm).numpy()
        runs = np.flatnonzero(np.diff(of_row[rows], prepend=-1))  # a cell's rows follow one another, as a rule
        highest = torch.from_numpy(np.maximum.reduceat(cosines, runs))
        index = torch.from_numpy(of_row[rows][runs])[:, None].expand_as(highest)
        best.scatter_reduce_(0, index, highest, "amax")
    scores = best[windows.halves].amax(1).mean(1)  # (W, 2, N) -> (W,)
    values, numbers = scores.topk(min(3 * most, len(scores)))
    kept: list[int] = []
    taken, video = set(), windows.video.tolist()
    for i, number in enumerate(numbers.tolist()):
        beside = {(video[number], number - 1), (video[number], number + 1)}
        if len(kept) < most and not taken & beside:
            kept.append(i)
            taken.add((video[number], number))
    return numbers[kept], values[kept]


def mean_of(bank: Bank) -> Tensor:
    """The mean of all rows of a bank, (D,)."""
    total = torch.zeros(bank.width, dtype=torch.float64)
    for places in bank.places.split(ROWS):
        total += bank.rows[places].float().sum(0)
    return (total / len(bank.places)).float()


def products(rows: Tensor, vectors: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The inner products of every row with some vectors, piece by piece, in float32 and a few megabytes of memory.

    rows     (R, D)  float16, as a rule memory-mapped
    vectors  (D, N)
    yields   a slice of rows, and (its length, N)
    """
    buffer = torch.empty(min(ROWS, len(rows)), rows.shape[1])  # one for all, so that the heap does not fall to pieces
    for start in range(0, len(rows), ROWS):
        part = buffer[: len(rows) - start].copy_(rows[start : start + ROWS])
        yield slice(start, start + len(part)), part @ vectors


def smoothed(scores: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each clip's score and those of its neighbours in the same video.

    scores   (P,)
    lengths  int64 (V,)  clips of the videos in their order, 1 at least
    returns  (P,)
    """
    ends = lengths.cumsum(0)
    first, last = torch.zeros(len(scores), dtype=torch.bool), torch.zeros(len(scores), dtype=torch.bool)
    first[ends - lengths], last[ends - 1] = True, True
    before, after = scores.roll(1).masked_fill(first, 0), scores.roll(-1).masked_fill(last, 0)
    return (before + scores + after) / (3 - first.float() - last.float())
