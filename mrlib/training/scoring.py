"""Predict a whole dataset and score the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrlib import metrics, parallel
from mrlib.data import MomentDataset
from mrlib.retriever import MomentRetriever


def predict_all(retriever: MomentRetriever, dataset: MomentDataset, batch_size: int = 128) -> list[dict[str, Any]]:
    """The predictions for a whole dataset, in its order; with several ranks, each predicts a share of the batches."""
    rank, world = parallel.rank_and_world()
    batches = list(torch.arange(len(dataset)).split(batch_size))
    parts = [retriever.predict(dataset.batch(indices)) for indices in batches[rank::world]]
    return [line for part in parallel.gather(parts) for line in part]


def scores_of(lines: Sequence[Mapping[str, Any]], dataset: MomentDataset) -> dict[str, Any]:
    """Scores of predictions for a dataset: those of `mrlib.metrics.evaluate`, and as "moments" more of them.

    lines    predictions as `predict_all` gives them
    returns  "moments" is the row of all queries of `mrlib.metrics.moment_scores`; it is missing if the dataset is
             labelled for highlights only
    """
    truth = [s.as_line() for s in dataset.samples]
    scores, moments = metrics.evaluate(lines, truth), metrics.moment_scores(lines, truth)
    return scores | ({"moments": moments["all"]} if moments else {})


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that a row of a history or grid holds: "brief" of `scores_of` and, if there are moments, the mIoU.

    If the dataset has null queries, "brief" has AUROC, G-mIoU and the other scores of `mrlib.generalized`, too.
    """
    return scores["brief"] | ({"mIoU": scores["moments"]["mIoU"]} if "moments" in scores else {})
