"""Predict a whole dataset and score the predictions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrlib import metrics, parallel
from mrlib.data import MomentDataset
from mrlib.data.agreement import require_sound
from mrlib.retriever import MomentRetriever


def predict_all(retriever: MomentRetriever, dataset: MomentDataset, batch_size: int = 128) -> list[dict[str, Any]]:
    """The predictions for a whole dataset, in its order; with several ranks, each predicts a share of the batches.

    One warning, if the dataset has videos that are longer than those of the training.
    """
    message = retriever.too_long(longest_video(dataset))
    if message is not None and parallel.rank_and_world()[0] == 0:
        warnings.warn(message, stacklevel=2)
    return lines_of_all(retriever, dataset, batch_size)


def lines_of_all(retriever: MomentRetriever, dataset: MomentDataset, batch_size: int) -> list[dict[str, Any]]:
    """`predict_all` without the warning, for a training run, whose scores show what long videos do."""
    rank, world = parallel.rank_and_world()
    batches = list(torch.arange(len(dataset)).split(batch_size))
    parts = [retriever.lines_of(dataset.batch(indices)) for indices in batches[rank::world]]
    return [line for part in parallel.gather(parts) for line in part]


def longest_video(dataset: MomentDataset) -> int:
    """The number of clips of the longest video that the samples search in."""
    return int(dataset.target.lengths[dataset.video].max())


def scores_of(lines: Sequence[Mapping[str, Any]], dataset: MomentDataset) -> dict[str, Any]:
    """Scores of predictions for a dataset: those of `mrlib.metrics.evaluate`, and as "moments" more of them.

    lines    predictions as `predict_all` gives them
    returns  "moments" is the row of all queries of `mrlib.metrics.moment_scores`; it is missing if no query of
             the dataset has windows
    """
    truth = [s.as_line() for s in dataset.samples]
    scores = metrics.evaluate(lines, truth, dataset.clip_s)
    moments = metrics.moment_scores(lines, truth, dataset.clip_s)
    return scores | ({"moments": moments["all"]} if moments else {})


def require_annotations(name: str, dataset: MomentDataset, *, scored: bool) -> None:
    """ValueError, naming the data, the query and the field, for annotations that cannot be trained on or scored.

    name    of the dataset in the run: "train", "val", ...
    scored  predictions for it will be scored
    """
    data = f"the {name} data, {dataset.name} {dataset.split}"
    if scored and not dataset.labelled:
        raise ValueError(f"{data}, has no annotated samples to score")
    try:
        require_sound(dataset.samples, dataset.clip_s, scored=scored)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from None


def score_names(dataset: MomentDataset) -> list[str]:
    """The scores of `headline` that a model of windows and saliency gets on a dataset."""
    lines = [
        {"qid": s.qid, "vid": s.vid, "pred_relevant_windows": [[0, s.duration, 1]], "pred_saliency_scores": [0]}
        for s in dataset.samples
    ]
    return list(headline(scores_of(lines, dataset)))


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that a row of a history or grid holds: "brief" of `scores_of` and, if there are moments, the mIoU.

    If the dataset has null queries, "brief" has AUROC, G-mIoU and the other scores of `mrlib.metrics.generalized`, too.
    """
    return scores["brief"] | ({"mIoU": scores["moments"]["mIoU"]} if "moments" in scores else {})
