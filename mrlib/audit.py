"""Questions to any retriever: does it read what it must not?

A prediction is for one video and one query. It must not depend on the annotation, on the other videos of its batch, or
on how far its own video is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Batch
from mrlib.retriever import MomentRetriever


def reads_labels(retriever: MomentRetriever, batch: Batch, foreign: Batch) -> bool:
    """Whether answers for `batch` change without its annotation, or with that of `foreign`, a batch as large."""
    swapped = [
        replace(s, relevant_windows=f.relevant_windows) for s, f in zip(batch.samples, foreign.samples, strict=True)
    ]
    told = _answers(retriever, batch)
    others = batch.unlabelled(), replace(batch, labels=foreign.labels, samples=swapped)
    each = [x for other in others for x in zip(told, _answers(retriever, other), strict=True)]
    return not all(torch.equal(a, b) for one, another in each for a, b in zip(one, another, strict=True))


def cut(batch: Batch, lengths: Sequence[int], T: int) -> Batch:
    """The first `lengths` clips of every video, padded to T."""
    mask = torch.arange(T, device=batch.target.device) < torch.as_tensor(lengths, device=batch.target.device)[:, None]

    def first(x: Tensor | None) -> Tensor | None:
        return None if x is None else F.pad(x, (0, 0, 0, max(0, T - x.shape[1])))[:, :T] * mask[..., None]

    return replace(batch, target=first(batch.target), target_mask=mask, target_joint=first(batch.target_joint))


def on_its_own(batch: Batch, b: int, length: int) -> Batch:
    """Sample b of a batch, of its video the first clips, without any padding."""
    row, words = batch[b : b + 1], int(batch.query_mask[b].sum())
    return cut(replace(row, query=row.query[:, :words], query_mask=row.query_mask[:, :words]), [length], length)


def padding_shifts(retriever: MomentRetriever, batch: Batch, lengths: Sequence[int], further: int = 10) -> float:
    """The largest difference that batch mates and padding make to a moment's score or to a saliency.

    lengths  to which the videos of the batch are cut; each on its own is compared with all together, padded to the
             longest, and with `further` clips of padding more
    """
    largest = 0.0
    for T in (max(lengths), max(lengths) + further):
        whole = _answers(retriever, cut(batch, lengths, T))
        for b, n in enumerate(lengths):
            for together, alone in zip(whole[b][1:], _answers(retriever, on_its_own(batch, b, n))[0][1:], strict=True):
                if together.shape != alone.shape:  # a moment more, or less
                    return float("inf")
                largest = max([largest, *(together - alone).abs().tolist()])
    return largest


@torch.no_grad()
def _answers(retriever: MomentRetriever, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every sample the spans of its moments, their scores, and its saliency; the batch as it is, labels and all."""
    training = retriever.training
    retriever.eval()
    try:
        batch = batch.to(next(retriever.parameters(), batch.target).device)
        aligned, outputs = retriever(batch)
        moments = retriever.detector.decode(outputs, batch)
    finally:
        retriever.train(training)
    saliency = aligned.mask.float() if aligned.saliency is None else aligned.saliency
    kept = moments.mask
    return [
        (moments.spans[b][kept[b]], moments.scores[b][kept[b]], saliency[b][aligned.mask[b]]) for b in range(len(batch))
    ]
