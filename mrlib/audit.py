"""Audit a retriever: check that its predictions depend on nothing but one video and one query.

A prediction must not depend on the annotation, on the other samples of the batch, or on how far the video is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Batch
from mrlib.retriever import MomentRetriever


def reads_labels(retriever: MomentRetriever, batch: Batch, other: Batch) -> bool:
    """Whether predictions for a batch change when its annotation is removed or replaced.

    other  a batch of the same size, whose annotation replaces the one of `batch`
    """
    swapped = [
        replace(s, relevant_windows=f.relevant_windows) for s, f in zip(batch.samples, other.samples, strict=True)
    ]
    expected = _predictions(retriever, batch)
    variants = batch.unlabelled(), replace(batch, labels=other.labels, samples=swapped)
    pairs = [pair for variant in variants for pair in zip(expected, _predictions(retriever, variant), strict=True)]
    return not all(torch.equal(a, b) for before, after in pairs for a, b in zip(before, after, strict=True))


def cut(batch: Batch, lengths: Sequence[int], T: int) -> Batch:
    """The batch with every video cut to its first `lengths` clips and padded to T."""
    mask = torch.arange(T, device=batch.target.device) < torch.as_tensor(lengths, device=batch.target.device)[:, None]

    def first(x: Tensor | None) -> Tensor | None:
        return None if x is None else F.pad(x, (0, 0, 0, max(0, T - x.shape[1])))[:, :T] * mask[..., None]

    return replace(batch, target=first(batch.target), target_mask=mask, target_joint=first(batch.target_joint))


def on_its_own(batch: Batch, b: int, length: int) -> Batch:
    """Sample b as a batch of its own, its video cut to the first `length` clips, without padding."""
    row, words = batch[b : b + 1], int(batch.query_mask[b].sum())
    return cut(replace(row, query=row.query[:, :words], query_mask=row.query_mask[:, :words]), [length], length)


def padding_shifts(retriever: MomentRetriever, batch: Batch, lengths: Sequence[int], further: int = 10) -> float:
    """How much batch mates and padding change a moment's score or a saliency score, at most.

    lengths  clips to which the videos of the batch are cut; each sample alone is compared with the whole batch, padded
             to the longest video, and again with `further` more clips of padding
    returns  the largest absolute difference; infinity if the number of moments differs
    """
    largest = 0.0
    for T in (max(lengths), max(lengths) + further):
        batch_predictions = _predictions(retriever, cut(batch, lengths, T))
        for b, n in enumerate(lengths):
            sample_predictions = _predictions(retriever, on_its_own(batch, b, n))[0]
            for in_batch, by_itself in zip(batch_predictions[b][1:], sample_predictions[1:], strict=True):
                if in_batch.shape != by_itself.shape:
                    return float("inf")
                largest = max([largest, *(in_batch - by_itself).abs().tolist()])
    return largest


@torch.no_grad()
def _predictions(retriever: MomentRetriever, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For every sample: spans of its moments, their scores, its saliency. The model gets the batch with its labels."""
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
