r"""Answers from features alone, without a retriever: for a sentence, and for a clip.

Sentence  the clips' cosines with the sentence, smoothed over three clips; candidates are the runs above the mean of
          the 150 s around, and the interval around the anchor [A2FA Eq. 5] of every window of 150 s; windows, because
          the interval's ends are found by comparing the anchor with the first and the last clip. The highest smoothed
          cosine inside ranks them; of those that share their best clip, the one that stands out most is first. On the
          simulator at size "paper" R1@0.5 of the first answer is more than ten points above that of the interval alone
          and of runs above the video's mean + 1 sd (tests/video/test_zero_shot.py)
Clip      the part of the video, at any of nine speeds, that is most like the clip: half by look, the mean cosine of
          clips centred by the video's mean, half by change, the correlation of clips centred by the part's own mean
          with those of the query. What crops, grades or encodes a copy anew shifts all its clips alike, and that
          cancels in the second. Where time is stretched within a clip, `mrlib.ops.alignment` follows it (notebook 02);
          of forty cropped cuts of real videos its free ends with an offset of 0.1 find 27 to 30, this 37 to 40
          (tests/benchmarks/bench_query_by_example.py)
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.baselines import existence
from mrlib.ops.boundary_search import boundaries
from mrlib.ops.runs import runs_of_true
from mrlib.video.windows import USUAL_S, window_starts, without_overlap

SMOOTHED = 3  # clips
SAME = 0.7  # of two candidates with a larger IoU, one is left out
SPREAD = 0.05  # of cosines around the one from which on a clip shows a sentence
SPEEDS = (2.0, 1.75, 1.5, 1.25, 1.0, 0.8, 0.66, 0.57, 0.5)  # of the video, as a multiple of that of the clip
PER_OCTAVE = 0.05  # what half or twice the speed costs
STILL = 0.003  # of the mean energy of a clip, added to how much a part changes, so that noise is no change
CELLS = 4_000_000  # products of a clip of the video and one of the query that are in memory at once
ANCHORS = 64  # windows whose anchors are searched at once


def smoothed(c: np.ndarray, width: int = SMOOTHED) -> np.ndarray:
    """The mean over `width` neighbours of each of the values (n,), over fewer at the ends."""
    window, inside = np.ones(width), slice(width // 2, width // 2 + len(c))
    return (np.convolve(c, window) / np.convolve(np.ones_like(c), window))[inside]


def exists(c: np.ndarray, shown: float | None = None) -> float:
    """The existence score of a sentence with these cosines (n,) with the clips of a video, 0 to 1.

    shown  the cosine from which on a clip shows what a sentence says, where an encoder's recipe has it: then the score
           is above 0.5 if the highest smoothed cosine is above it. None: `mrlib.baselines.existence`, which compares
           the video's clips with one another, since the cosines of an encoder have no scale that is known
    """
    return existence(c) if shown is None else float(1 / (1 + np.exp((shown - smoothed(c).max()) / SPREAD)))


def by_vector(
    rows: Tensor, vector: Tensor, clip_s: float, duration_s: float, most: int, shown: float | None = None
) -> tuple[list[list[float]], float]:
    """The moments [start, end, score], in seconds, that are like a sentence, best first, and whether there is one.

    rows     (n, J)  clips in the joint space
    vector   (J,)    the sentence in the joint space
    most     moments
    returns  the score of a moment is its highest smoothed cosine; the second number is `exists`
    """
    c = F.cosine_similarity(rows.double(), vector.double(), dim=-1).numpy()
    smooth, length = smoothed(c), max(1, round(USUAL_S / clip_s))
    around = smoothed(c, length) if len(c) > length else np.full_like(c, c.mean())
    peaks = [
        (float(smooth[start:end].max()), float((c - around)[start:end].sum() / math.sqrt(end - start)), start, end)
        for start, end in [*runs_of_true(smooth > around), *_anchor_intervals(rows, vector, length)]
    ]
    best = sorted(peaks, key=lambda peak: (-peak[0], -peak[1]))
    moments = [[start * clip_s, min(end * clip_s, duration_s), score] for score, _, start, end in best]
    return without_overlap(moments, most, SAME), exists(c, shown)


def _anchor_intervals(rows: Tensor, vector: Tensor, length: int) -> list[list[int]]:
    """First clip of the interval around every window's anchor, and one past the last."""
    starts, length = window_starts(len(rows), length), min(length, len(rows))
    intervals = []
    for i in range(0, len(starts), ANCHORS):
        some = starts[i : i + ANCHORS]
        target = torch.stack([rows[start : start + length] for start in some])  # (B, T, J)
        mask = torch.ones(target.shape[:2], dtype=torch.bool)
        ends = boundaries(target, mask, vector.expand(len(some), -1))
        edges = (x.tolist() for x in ends[1:])
        intervals += [[start + left, start + right + 1] for start, left, right in zip(some, *edges, strict=True)]
    return intervals


def by_rows(
    rows: Tensor, query: Tensor, clip_s: float, duration_s: float, most: int
) -> tuple[list[list[float]], float]:
    """The moments [start, end, score], in seconds, that show what a clip shows, best first, and whether there is one.

    rows     (n, D)  clips of the video
    query    (m, D)  clips of the query, from the same encoder
    most     moments, of which no two overlap
    returns  the score of a moment is at most 1; the second number, 0 to 1, is the score of the best moment
    """
    lengths = {max(1, round(len(query) / speed)) for speed in SPEEDS}
    lengths = sorted(length for length in lengths if length <= len(rows)) or [len(rows)]
    candidates = [
        _likeness(rows, query, length) - PER_OCTAVE * abs(math.log2(length / len(query))) for length in lengths
    ]
    moments: list[list[float]] = []
    while len(moments) < most:
        best = max(range(len(lengths)), key=lambda i: candidates[i].max())
        start, score = int(candidates[best].argmax()), float(candidates[best].max())
        if score == -math.inf:
            break
        end = start + lengths[best]
        moments.append([start * clip_s, min(end * clip_s, duration_s), score])
        for length, scores in zip(lengths, candidates, strict=True):
            scores[max(0, start - length + 1) : end] = -math.inf  # they overlap with this moment
    return moments, min(1.0, max(0.0, moments[0][2]))


def _likeness(rows: Tensor, query: Tensor, length: int) -> Tensor:
    """How like a query, played in `length` clips, every part of that length of a video is; (n - length + 1,)."""
    centred = (rows - rows.mean(0)).double()  # (n, D)
    played = (_played(query, length) - rows.mean(0)).double()  # (length, D)
    look = _diagonal_sums(F.normalize(centred, dim=-1), F.normalize(played, dim=-1)) / length
    moving = played - played.mean(0)
    sums = F.pad(centred.cumsum(0), (0, 0, 1, 0))  # (n + 1, D)
    squares = F.pad(centred.square().sum(1).cumsum(0), (1, 0))  # (n + 1,)
    around = (sums[length:] - sums[:-length]).square().sum(1) / length
    moved = (squares[length:] - squares[:-length] - around).clamp(min=0).sqrt() * moving.norm()
    still = STILL * length * centred.square().sum(1).mean()  # keeps what hardly moves from counting
    change = _diagonal_sums(centred, moving) / (moved + still + 1e-12)
    return (look + change) / 2


def _played(query: Tensor, length: int) -> Tensor:
    """A query (m, D) played in `length` clips, by linear interpolation; (length, D)."""
    return F.interpolate(query.T[None], size=length, mode="linear", align_corners=length > 1)[0].T


def _diagonal_sums(rows: Tensor, query: Tensor) -> Tensor:
    """The sums of rows[a + j] . query[j] over j for every start a; (n, D), (m, D) -> (n - m + 1,)."""
    m, sums = len(query), []
    size = max(1, CELLS // m)
    for start in range(0, len(rows) - m + 1, size):
        products = rows[start : start + size + m - 1] @ query.T  # (some starts + m - 1, m)
        sums.append(products.as_strided((len(products) - m + 1, m), (m, m + 1)).sum(1))
    return torch.cat(sums)
