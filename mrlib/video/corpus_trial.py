"""Measure the search in a corpus on simulated videos, whose scripts say where every queried event happens.

An answer is right if it overlaps enough with any moment of the whole corpus that shows the queried actor, action and
object; "strict" counts only those of the video that the query was written for. `mrlib.sim` says what scores on
simulated videos are worth.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import MomentDataset, Sample, open_dataset
from mrlib.ops.spans import iou
from mrlib.retriever import MomentRetriever
from mrlib.video.corpus import Corpus
from mrlib.video.index import Index

RANKS = 1, 3, 10, 30, 100, 300, 1000
IOUS = 0.5, 0.7
ANSWERED = 100  # windows that are looked at closely
Occurrences = dict[tuple[str, ...], list[tuple[str, float, float]]]  # event -> video, start, end in seconds


class Simulated:
    """The encoder of a simulated dataset: the features of its queries are known by their sentences."""

    def __init__(self, dataset: MomentDataset):
        """Encode the queries of `dataset`."""
        settings, width = dataset.settings, dataset.widths.joint
        world = {name: settings[name] for name in ("size", "seed", "query")}
        self.recipe = {"encoder": "appearance", "clip_s": dataset.clip_s, "width": width, "joint": width, **world}
        self.dataset = dataset
        self._numbers = {sample.query: i for i, sample in enumerate(dataset.samples)}

    def video(self, path: str | os.PathLike, progress: Any = None) -> Tensor:
        """ValueError: no file shows a simulated video."""
        raise ValueError(f"{path}: simulated features are not made from files; give an index")

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """The words (N, J) and the vector (J,) of a sentence of the dataset."""
        require(query in self._numbers, "query", query, "a sentence of the dataset")
        i = self._numbers[query]
        return query_rows(self.dataset, i), self.dataset.query_joint[i]


def simulate(
    file: str | os.PathLike, hours: float, *, size: str = "small", query: str = "text", seed: int = 0
) -> tuple[Corpus, MomentDataset]:
    """A corpus of simulated videos in a new file, and the dataset whose videos and queries they are.

    hours  of video
    size   "small", videos of 64 s with 864 events; or "paper", videos of 150 s with 9,600
    query  "text", or "video": a query is another rendition of the event
    """
    options = {"size": size, "query": query, "seed": seed, "split": "val", "streams": "joint"}
    duration_s = open_dataset("sim", n=1, **options).samples[0].duration
    dataset = open_dataset("sim", n=math.ceil(hours * 3600 / duration_s), **options)
    encoder = Simulated(dataset)
    corpus = Corpus.open(file, encoder)
    rows = dataset.target.rows.split(dataset.target.lengths.tolist())
    corpus.add(*(Index(s.vid, s.duration, x, encoder.recipe) for s, x in zip(dataset.samples, rows, strict=True)))
    return corpus, dataset


def query_rows(dataset: MomentDataset, i: int) -> Tensor:
    """The words or clips of query i, (N, J)."""
    return dataset.query.rows[dataset.query.index(torch.tensor([i]))[0]]


def ask_with(corpus: Corpus, dataset: MomentDataset, i: int) -> dict[str, str | Index]:
    """The arguments of `Corpus.search` for query i: its sentence, or its clip."""
    if dataset.settings["query"] == "text":
        return {"query": dataset.samples[i].query}
    rows = query_rows(dataset, i)
    return {"clip": Index(f"query {dataset.samples[i].qid}", len(rows) * dataset.clip_s, rows, corpus.recipe)}


def occurrences(samples: Iterable[Sample]) -> Occurrences:
    """Every moment of every event in simulated videos."""
    moments = defaultdict(list)
    for sample in samples:
        for event in sample.extra["script"]:
            moments[_event(event)] += [(sample.vid, *window) for window in event["windows"]]
    return moments


def _event(words: dict[str, Any]) -> tuple[str, ...]:
    return words["actor"], words["action"], words["object"]


def measure(
    corpus: Corpus,
    dataset: MomentDataset,
    queries: int,
    retrievers: dict[str, MomentRetriever] | None = None,
    windows: int = ANSWERED,
) -> pd.DataFrame:
    """Recall and time of a search, for several numbers of answers.

    queries     how many of the dataset's are asked, evenly spread
    retrievers  name -> retriever, for the fine step beside the one without training
    windows     that are looked at closely
    returns     a row per kind of answer, truth and k:
                answer         "window" of the coarse step alone, "zero-shot", or the name of a retriever
                truth          "any" occurrence, or "strict"
                k              answers that are looked at, at most
                overlap        percent of queries with an answer that overlaps a moment at all among the k best: for
                               windows, the recall of the true window
                R@0.5, R@0.7   percent of queries with an answer of that IoU among the k best
                seconds        per query
    """
    ways: dict[str, Callable[..., list[dict]]] = {"window": lambda **request: corpus.windows(**request, most=RANKS[-1])}
    for name, retriever in {"zero-shot": None, **(retrievers or {})}.items():
        ways[name] = lambda model=retriever, **request: corpus.search(
            **request, retriever=model, windows=windows, here=0
        )
    truths, rows = occurrences(dataset.samples), []
    chosen = np.linspace(0, len(dataset) - 1, queries).astype(int).tolist()
    for name, way in ways.items():
        ranks, seconds = defaultdict(list), 0.0
        for i in chosen:
            sample = dataset.samples[i]
            request = ask_with(corpus, dataset, i)
            start = time.perf_counter()
            answers = way(**request)
            seconds += time.perf_counter() - start
            moments = truths[_event(sample.extra)]
            for truth, counted in (("any", moments), ("strict", [m for m in moments if m[0] == sample.vid])):
                ranks[truth].append([_rank(answers, counted, least) for least in (0, *IOUS)])
        rows += _rows(name, ranks, seconds / queries, RANKS[-1] if name == "window" else windows)
    settings = {"hours": round(corpus.hours, 2), "videos": len(corpus), "size": dataset.settings["size"]}
    return pd.DataFrame([settings | {"query": dataset.settings["query"], "queries": queries} | row for row in rows])


def _rank(answers: list[dict], moments: list[tuple[str, float, float]], least: float) -> float:
    """The number, from 0, of the first answer whose IoU with a moment is at least this, and above 0; else inf."""
    by_video = defaultdict(list)
    for video, start, end in moments:
        by_video[video].append((start, end))
    for rank, answer in enumerate(answers):
        if windows := by_video.get(answer["video"]):
            span = torch.tensor([answer["start_s"], answer["end_s"]]).double()
            best = iou(span, torch.tensor(windows).double()).max()
            if best > 0 and best >= least - 1e-9:
                return rank
    return math.inf


def _rows(answer: str, ranks: dict[str, list[list[float]]], seconds: float, most: int) -> list[dict[str, Any]]:
    rows = []
    for truth, values in ranks.items():
        for k in RANKS:
            if k <= most:
                overlap, *recalls = (100 * (np.array(values) < k).mean(0)).round(2).tolist()
                scores = {f"R@{iou}": recall for iou, recall in zip(IOUS, recalls, strict=True)}
                rows.append({"answer": answer, "truth": truth, "k": k, "overlap": overlap, **scores})
    return [row | {"seconds": round(seconds, 4)} for row in rows]
