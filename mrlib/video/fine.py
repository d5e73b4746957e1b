"""The fine step of a search in a corpus: the moments in some windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mrlib.data import Batch, Sample
from mrlib.ops.alignment import hard_alignment, span_of
from mrlib.ops.runs import runs_of_true
from mrlib.retriever import MomentRetriever
from mrlib.video.coarse import smoothed

DELTA = 0.1  # what a matched pair of clips is worth, see notebook 02


@dataclass(frozen=True)
class Asked:
    """What is searched for, as features."""

    text: str  # the sentence, or the path of the query video
    tokens: Tensor  # (N, D') of the words, or of the clips of the query video, of norm 1
    vector: Tensor  # (J,) of the whole, of norm 1
    by_clip: bool


def moments(
    asked: Asked, windows: list[Tensor], clip_s: float, retriever: MomentRetriever | None = None
) -> list[list[tuple[float, float, float]]]:
    """Start, end in seconds from the window's start, and score of the moments in each window, best first.

    windows    features (n, D) of each, float32, of norm 1
    retriever  None: runs of similar clips, or for a query video the cheapest alignment
    """
    if retriever is not None:
        lines = retriever.predict(_batch(asked, windows, clip_s))
        return [[tuple(window) for window in line["pred_relevant_windows"]] for line in lines]
    found = [_aligned(asked, window) if asked.by_clip else _runs(asked, window) for window in windows]
    return [[(start * clip_s, end * clip_s, score) for start, end, score in spans] for spans in found]


def _runs(asked: Asked, window: Tensor) -> list[tuple[int, int, float]]:
    """Runs of clips whose smoothed cosine is above the mean + 1 sd of the window, by their mean cosine."""
    c = smoothed(window @ asked.vector, torch.tensor([len(window)]))
    above = c > c.mean() + c.std(correction=0)
    above[c.argmax()] = True
    spans = [(start, end, c[start:end].mean().item()) for start, end in runs_of_true(above.numpy())]
    return sorted(spans, key=lambda span: -span[2])


def _aligned(asked: Asked, window: Tensor) -> list[tuple[int, int, float]]:
    """The span that aligns best with the query video; both are centred by the window's mean."""
    mean = window.mean(0)
    cosine = F.normalize(window - mean, dim=1) @ F.normalize(asked.tokens - mean, dim=1).T  # (n, N)
    path = hard_alignment(1 - cosine[None] - DELTA, topology="subsequence")  # (1, n, N)
    start, end = (int(x) for x in span_of(path))
    return [(start, end, cosine[path[0]].mean().item())]


def _batch(asked: Asked, windows: list[Tensor], clip_s: float) -> Batch:
    """A batch with a row per window."""
    B, lengths = len(windows), torch.tensor([len(window) for window in windows])
    target = pad_sequence(windows, batch_first=True)  # (B, T, D)
    return Batch(
        target=target,
        target_mask=torch.arange(target.shape[1]) < lengths[:, None],
        query=asked.tokens.expand(B, -1, -1),
        query_mask=torch.ones(B, len(asked.tokens), dtype=torch.bool),
        target_joint=target,
        query_joint=asked.vector.expand(B, -1),
        video=torch.arange(B),
        duration_s=lengths * clip_s,
        clip_s=torch.full((B,), float(clip_s)),
        labels=None,
        samples=[Sample(i, asked.text, n * clip_s, str(i)) for i, n in enumerate(lengths.tolist())],
    )
