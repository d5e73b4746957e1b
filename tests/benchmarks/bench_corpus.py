"""How well and how fast a corpus of simulated videos is searched; writes figures/07_corpus.csv and its picture.

    python -m tests.benchmarks.bench_corpus [--hours 200] [--size paper] [--queries 100] [--out figures/07_corpus]

By sentence and by clip, each in a corpus of its own: recall of the coarse step, and of the moments found without
training; by sentence also by a small UniVTG that is trained here on other videos of the same world. What a
query costs is that of a fresh process with one thread, for the coarse step and with `ANSWERED` windows looked at
closely; beside it numpy with all features as float32 in memory, one product and a whole sort.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch and numpy; before they are there
import matplotlib
import numpy as np
import pandas as pd

import mrlib
from mrlib import papers, plots
from mrlib.data import open_dataset
from mrlib.retriever import MomentRetriever
from mrlib.video import Corpus
from mrlib.video.corpus_trial import ANSWERED, Simulated, ask_with, measure, simulate

TRAINED = {"paper": (2000, 8), "small": (1024, 16)}  # samples and epochs by size
REPEATS = 10  # queries whose times are compared


def trained(size: str) -> MomentRetriever:
    """A small UniVTG for the appearance of simulated videos."""
    samples, epochs = TRAINED[size]
    paper = papers.get("univtg", "small", epochs=epochs)
    train = open_dataset("sim", size=size, n=samples, streams="joint")
    retriever = papers.build(paper, train)
    mrlib.fit(retriever, train, None, paper, device="cpu", progress=False)
    normalize = "appearance", "query"  # simulated features have norm 1 as they are
    retriever.training_data = replace(retriever.training_data, normalize=normalize)
    return retriever


def costs(file: Path, size: str, query: str) -> list[dict[str, float | str]]:
    """What a query costs, each way in a fresh process: medians of the clock's and the processor's seconds after the
    first query, the seconds of the first, and the growth of memory without the pages of files.
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(_cost, (way, file, size, query)) for way in ("window", "zero-shot", "numpy")]


def _cost(way: str, file: Path, size: str, query: str) -> dict[str, float | str]:
    dataset = open_dataset("sim", n=REPEATS, size=size, query=query, split="val", streams="joint")
    corpus = Corpus.open(file, Simulated(dataset))
    before, ask = _own_mb(), _numpy(corpus, dataset) if way == "numpy" else _ways(corpus, dataset)[way]
    seconds, cpu_s = [], []
    for i in range(REPEATS):
        start, cpu_start = time.perf_counter(), time.process_time()
        ask(i)
        seconds.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - cpu_start)
    most, done = [before], threading.Event()
    watcher = threading.Thread(target=lambda: [most.append(_own_mb()) for _ in iter(done.is_set, True)])
    watcher.start()
    ask(0)
    done.set()
    watcher.join()
    own_mb = max(most) - before
    times = {"seconds": statistics.median(seconds[1:]), "cpu_s": statistics.median(cpu_s[1:]), "first_s": seconds[0]}
    return {"answer": way} | times | {"own_mb": own_mb}


def _ways(corpus: Corpus, dataset) -> dict[str, Callable[[int], object]]:
    return {
        "window": lambda i: corpus.windows(**ask_with(corpus, dataset, i), most=ANSWERED),
        "zero-shot": lambda i: corpus.search(**ask_with(corpus, dataset, i), windows=ANSWERED, here=0),
    }


def _numpy(corpus: Corpus, dataset) -> Callable[[int], object]:
    rows = corpus.bank.rows[corpus.bank.places].float().numpy()
    return lambda i: np.argsort(-(rows @ dataset.query_joint[i].numpy()))


def _own_mb() -> float:
    """Megabytes of this process without pages of files, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def trial(hours: float, size: str, query: str, queries: int) -> pd.DataFrame:
    """The table of one kind of query."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        corpus, dataset = simulate(Path(folder, "sim.corpus"), hours, size=size, query=query)
        made = time.perf_counter()
        retrievers = {"univtg": trained(size)} if query == "text" else {}
        took = f"corpus made in {made - start:.0f} s, trained in {time.perf_counter() - made:.0f} s"
        print(f"{query}: {took}", flush=True)
        table = measure(corpus, dataset, queries, retrievers).drop(columns="seconds")
        spent = pd.DataFrame(costs(corpus.file, size, query)).round(4)
        settings = table.iloc[:1, :5].assign(file_mb=round(corpus.file.stat().st_size / 2**20, 1))
        spent = settings.merge(spent, how="cross")
        print(spent.to_string(), flush=True)
        return pd.concat([table, spent])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=200)
    parser.add_argument("--size", default="paper", choices=sorted(TRAINED))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("figures/07_corpus"))
    arguments = parser.parse_args()
    matplotlib.use("agg")
    kinds = ("text", "video")
    table = pd.concat([trial(arguments.hours, arguments.size, query, arguments.queries) for query in kinds])
    plots.setup()
    fig, axes = plots.figure(12, 3.4, ncols=3)
    plots.corpus(axes[0], table)
    plots.save(fig, arguments.out, table)
    print(table.to_string())


if __name__ == "__main__":
    main()
