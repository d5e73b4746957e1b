"""From a paper to its model: `build` and `prepare`."""

from __future__ import annotations

from dataclasses import asdict

import torch

from mrlib.data import Widths
from mrlib.data.dataset import MomentDataset
from mrlib.papers.limits import at_most
from mrlib.papers.schema import Paper
from mrlib.papers.slots import ALIGNERS, DETECTORS, PREPARATIONS
from mrlib.retriever import MomentRetriever

MOST_PARTS, MOST_NUMBERS = 20_000, 10**11


def build(paper: Paper, dataset: MomentDataset | Widths, seed: int = 0) -> MomentRetriever:
    """A model of a paper for the widths of a dataset; its weights are a function of `seed`.

    raises  ValueError for settings that make no model, or one larger than any machine's memory
    """
    widths = dataset if isinstance(dataset, Widths) else dataset.widths
    with torch.random.fork_rng(devices=[]), at_most(MOST_PARTS, MOST_NUMBERS):
        torch.manual_seed(seed)
        aligner = ALIGNERS[paper.aligner.name](widths, **paper.aligner.options)
        detector = DETECTORS[paper.detector.name](aligner.width, **paper.detector.options)
    recipe = {"paper": dict(paper.given), "widths": asdict(widths), "seed": seed} if paper.given else None
    return MomentRetriever(aligner, detector, round_s=paper.round_s, max_windows=paper.max_windows, recipe=recipe)


def prepare(retriever: MomentRetriever, name: str, seed: int = 0, teacher: bool = False) -> None:
    """Change a retriever by one of `PREPARATIONS`; new weights are a function of `seed`.

    The recipe of the retriever lists its preparations, so that `checkpoint.load` repeats them; a teacher is not saved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        PREPARATIONS[name](retriever, teacher=teacher)
    if retriever.recipe is not None and not teacher:
        retriever.recipe = {**retriever.recipe, "prepared": [*retriever.recipe.get("prepared", ()), name]}
