r"""Answers from features alone, without a retriever: for a sentence, and for a clip.

Sentence  the clips' cosines with the sentence, smoothed over three clips; candidates are the interval around the anchor
          [A2FA Eq. 5] and the runs above the video's mean + 1 sd, ranked by the highest smoothed cosine inside. In a
          long video every window of 150 s has an anchor, since the search compares it with the ends of the video
Clip      the part of the video that aligns best with the clip, by `hard_alignment` with free ends. Both are centred by
          the video's mean, and a match gains where its cost $1 - \cos$ is below $\delta$, see notebook 02. Further
          answers are the best parts of what is left
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.align.dual_stage import cosine_cost
from mrlib.baselines import above_usual, existence
from mrlib.ops.alignment import hard_alignment, span_of
from mrlib.ops.boundary_search import boundaries
from mrlib.ops.runs import runs_of_true
from mrlib.video.windows import USUAL_S, window_starts, without_overlap

SMOOTHED = 3  # clips
SAME = 0.7  # of two candidates with a larger IoU, one is left out
DELTA = 1.5  # what a match may cost, in units of the median cost of the query's rows with their most similar rows
ANCHORS = 64  # windows whose anchors are searched at once


def smoothed(c: np.ndarray, width: int = SMOOTHED) -> np.ndarray:
    """The mean over `width` neighbours of each of the values (n,), over fewer at the ends."""
    window, inside = np.ones(width), slice(width // 2, width // 2 + len(c))
    return (np.convolve(c, window) / np.convolve(np.ones_like(c), window))[inside]


def by_vector(
    rows: Tensor, vector: Tensor, clip_s: float, duration_s: float, most: int
) -> tuple[list[list[float]], float]:
    """The moments [start, end, score], in seconds, that are like a sentence, best first, and whether there is one.

    rows     (n, J)  clips in the joint space
    vector   (J,)    the sentence in the joint space
    most     moments
    returns  the score of a moment is its highest smoothed cosine; the second number, 0 to 1, is
             `mrlib.baselines.existence`
    """
    c = F.cosine_similarity(rows.double(), vector.double(), dim=-1).numpy()
    smooth = smoothed(c)
    candidates = _anchor_intervals(rows, vector, max(1, round(USUAL_S / clip_s)))
    candidates += runs_of_true(above_usual(smooth))
    moments = [
        [start * clip_s, min(end * clip_s, duration_s), float(smooth[start:end].max())] for start, end in candidates
    ]
    return without_overlap(moments, most, SAME), existence(c)


def _anchor_intervals(rows: Tensor, vector: Tensor, length: int) -> list[list[int]]:
    """First clip of the interval around every window's anchor, and one past the last; central anchors first."""
    starts, length = window_starts(len(rows), length), min(length, len(rows))
    found = []
    for i in range(0, len(starts), ANCHORS):
        some = starts[i : i + ANCHORS]
        target = torch.stack([rows[start : start + length] for start in some])  # (B, T, J)
        mask = torch.ones(target.shape[:2], dtype=torch.bool)
        ends = boundaries(target, mask, vector.expand(len(some), -1))
        found += [
            (abs(anchor - length / 2), start + left, start + right + 1)
            for start, anchor, left, right in zip(some, *(x.tolist() for x in ends), strict=True)
        ]
    return [[start, end] for _, start, end in sorted(found)]


def by_rows(
    rows: Tensor, query: Tensor, clip_s: float, duration_s: float, most: int
) -> tuple[list[list[float]], float]:
    """The moments [start, end, score] in seconds that show what a clip shows, best first, and whether there is one.

    rows     (n, D)  clips of the video
    query    (m, D)  clips of the query, from the same encoder
    most     moments
    returns  the score of a moment is the mean cosine of what is matched, of centred features; the second number, 0 to
             1, is the score of the best moment
    """
    mean = rows.mean(0)
    cost = cosine_cost((rows - mean)[None], (query - mean)[None])  # (1, n, m)
    gain = cost - DELTA * cost[0].amin(0).median()
    moments: list[list[float]] = []
    while len(moments) < most and bool((path := hard_alignment(gain, topology="subsequence")).any()):
        start, end = (int(x) for x in span_of(path))
        score = 1 - float(cost[path].mean())
        moments.append([start * clip_s, min(end * clip_s, duration_s), score])
        gain[:, start:end] = torch.inf  # this part cannot be found again
    moments.sort(key=lambda moment: -moment[2])
    return moments, min(1.0, max(0.0, moments[0][2]))
