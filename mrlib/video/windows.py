"""A retriever on videos of any length: windows of the length that it was trained on, their moments put together.

Windows overlap by half, so that a moment of up to half their length lies whole in one of them. A video that is no
longer than one window is answered as `MomentRetriever.predict` answers it, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mrlib.data import Batch, Sample
from mrlib.memory import OutOfMemory
from mrlib.ops.spans import nms
from mrlib.retriever import MomentRetriever

USUAL_S = 150.0  # length of a window where the length of the training's videos is unknown: that of QVHighlights
CHUNK = 2400  # clips that a retriever is given at once, 32 windows of 75
OVERLAP = 0.5  # two moments with a larger IoU are one


@dataclass(frozen=True)
class Query:
    """What is searched for, as a retriever reads it."""

    text: str  # the sentence, or the name of the query video
    rows: Tensor  # (N, D') tokens of the sentence, or clips of the query video
    vector: Tensor | None  # (J,) the whole in the joint space; None if there is no such space


@dataclass(frozen=True)
class Window:
    """A part of a video, as a retriever reads it."""

    video: str
    rows: Tensor  # (n, D)
    start_s: float  # in the video
    duration_s: float


def window_starts(n: int, length: int) -> list[int]:
    """The first clips of half-overlapping windows over n clips; the last one ends with the video."""
    return [*range(0, n - length, max(1, length // 2)), n - length] if n > length else [0]


def windows_of(video: str, rows: Tensor, duration_s: float, clip_s: float, length: int) -> list[Window]:
    """The windows of a video.

    rows    (n, D)  features of its clips
    length  clips of a window
    """
    starts = window_starts(len(rows), length)
    parts = [(start * clip_s, rows[start : start + length]) for start in starts]
    last = len(parts) - 1
    return [
        Window(video, part, start_s, duration_s - start_s if i == last else len(part) * clip_s)
        for i, (start_s, part) in enumerate(parts)
    ]


def moments_in(
    retriever: MomentRetriever, windows: Sequence[Window], query: Query, clip_s: float
) -> list[list[list[float]]]:
    """The moments of every window as [start, end, score], in seconds of its video, best first.

    windows  of one video or of several; they go through the retriever together, up to `CHUNK` clips at once, and
             fewer if the device has no memory for them
    raises   OutOfMemory if it has none for a single window
    """
    answers, size = [], max(1, CHUNK // max((len(window.rows) for window in windows), default=1))
    while len(answers) < len(windows):
        chunk = windows[len(answers) : len(answers) + size]
        try:
            lines = retriever.lines_of(batch_of(chunk, query, clip_s))
        except OutOfMemory as error:
            size = len(chunk) // 2
            if size == 0:
                clips = f"out of memory: a window of {len(chunk[0].rows)} clips, as long as the videos of the training"
                raise OutOfMemory(f"{clips}, does not fit; move the retriever to a device with more") from error
            continue
        answers += [_shifted(line["pred_relevant_windows"], window) for window, line in zip(chunk, lines, strict=True)]
    return answers


def _shifted(moments: list[list[float]], window: Window) -> list[list[float]]:
    """Moments of a window in seconds of its video."""
    if window.start_s == 0:
        return moments
    end_s = window.start_s + window.duration_s
    return [[start + window.start_s, min(end + window.start_s, end_s), score] for start, end, score in moments]


def batch_of(windows: Sequence[Window], query: Query, clip_s: float) -> Batch:
    """A batch with a sample per window; `target_joint` is the target if the query has a vector."""
    B, lengths = len(windows), torch.tensor([len(window.rows) for window in windows])
    target = pad_sequence([window.rows for window in windows], batch_first=True)  # (B, T, D)
    joint = query.vector is not None
    return Batch(
        target=target,
        target_mask=torch.arange(target.shape[1]) < lengths[:, None],
        query=query.rows.expand(B, -1, -1),
        query_mask=torch.ones(B, len(query.rows), dtype=torch.bool),
        target_joint=target if joint else None,
        query_joint=query.vector.expand(B, -1) if joint else None,
        video=torch.arange(B),
        duration_s=torch.tensor([window.duration_s for window in windows], dtype=torch.float32),
        clip_s=torch.full((B,), float(clip_s)),
        labels=None,
        samples=[Sample(i, query.text, window.duration_s, window.video) for i, window in enumerate(windows)],
    )


def together(answers: Sequence[Sequence[Sequence[float]]], most: int) -> list[list[float]]:
    """The best moments of the windows of one video; those of overlapping windows that are the same count once."""
    if len(answers) == 1:
        return [list(moment) for moment in answers[0][:most]]
    return without_overlap([moment for moments in answers for moment in moments], most)


def without_overlap(moments: Sequence[Sequence[float]], most: int, overlap: float = OVERLAP) -> list[list[float]]:
    """The best of some moments [start, end, score], best first, none with an IoU above `overlap` with a better one."""
    if not moments:
        return []
    best = sorted(moments, key=lambda moment: -moment[2])
    spans = torch.tensor([[moment[:2] for moment in best]], dtype=torch.float64)  # (1, K, 2)
    positions, kept = nms(spans, torch.ones(spans.shape[:2], dtype=torch.bool), overlap, most)
    return [list(best[i]) for i in positions[0][kept[0]].tolist()]
