"""What synthesis costs, its choice of pairs with it, of a training step on what it makes.

    python tests/benchmarks/bench_synthesize.py [--threads 1 2] [--repeats 5]

QD-DETR at its paper's size, 75 clips of 2816 numbers and 20 words of 512. Of 32 samples come 96 videos with the
originals, of 16 come 48, as the released batches have on average. A step is forward, losses, backward, clipping, AdamW.
Both take turns; medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections import defaultdict

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is there: threads that wait take no one's time

import torch
from torch import nn

from mrlib import papers
from mrlib.augment.synthesize import PARTNERS, synthesize, synthesize_official
from mrlib.data import Bank, Batch, MomentDataset, Sample
from mrlib.ops.draw import Draw
from mrlib.retriever import MomentRetriever

VIDEOS, CLIPS, WIDTH, WORDS, WORD, CLIP_S = 400, 75, 2816, 20, 512, 2.0
SIZES = (32, 16)


def dataset() -> MomentDataset:
    """As many windows of a sample as in QVHighlights, scored by three annotators; of each video one sample."""
    dice = random.Random(0)
    samples = []
    for i in range(VIDEOS):
        ends = sorted(dice.sample(range(CLIPS + 1), 2 * dice.choice([1, 1, 1, 1, 2, 2, 3, 5])))
        windows = list(zip(ends[::2], ends[1::2], strict=True))
        ids = [t for a, b in windows for t in range(a, b)]
        samples.append(
            Sample(
                i,
                "a query",
                CLIPS * CLIP_S,
                f"v{i}",
                relevant_windows=[[a * CLIP_S, b * CLIP_S] for a, b in windows],
                relevant_clip_ids=ids,
                saliency_scores=[[1, 2, 3]] * len(ids),
            )
        )
    each = torch.arange(VIDEOS)
    return MomentDataset(
        name="bench",
        split="train",
        samples=samples,
        target=Bank(torch.randn(VIDEOS * CLIPS, WIDTH), torch.arange(VIDEOS + 1) * CLIPS),
        video=each,
        query=Bank(torch.randn(VIDEOS * WORDS, WORD), torch.arange(VIDEOS + 1) * WORDS),
        query_item=each,
        query_joint=None,
        streams={"all": slice(0, WIDTH)},
        joint=None,
        clip_s=CLIP_S,
    )


def step(retriever: MomentRetriever, optimiser: torch.optim.Optimizer, stage: papers.Stage, batch: Batch) -> None:
    terms = retriever.losses(*retriever(batch), batch)
    loss = sum(stage.weights.get(name, 1.0) * term for name, term in terms.items())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(retriever.parameters(), stage.optimiser.clip)
    optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    data, paper = dataset(), papers.get("qd_detr")
    retriever, stage = papers.build(paper, data).train(), paper.stages[0]
    optimiser = torch.optim.AdamW(retriever.parameters(), 1e-4, weight_decay=1e-4)
    ways = {how: (synthesize, {"partners": how}) for how in PARTNERS} | {"official": (synthesize_official, {})}
    synthesize(torch.arange(2), data, Draw(0), partners="table")  # the table is made once for a training
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in SIZES:
            seconds = defaultdict(list)
            for epoch in range(args.repeats + 1):
                indices = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(epoch))[:size]
                for name, (way, options) in ways.items():
                    start = time.perf_counter()
                    batch = way(indices, data, Draw(0, "bench", epoch), **options)
                    if epoch:  # the first is for warming up
                        seconds[name].append(time.perf_counter() - start)
                start = time.perf_counter()
                step(retriever, optimiser, stage, batch)
                if epoch:
                    seconds["step"].append(time.perf_counter() - start)
            shown = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
            whole = shown.pop("step")
            print(f"{threads} threads, {size} samples, {len(batch)} videos: a step {whole:7.0f} ms", end="")
            for name, ms in shown.items():
                print(f"   {name} {ms:6.1f} ms, {100 * ms / whole:4.2f} %", end="")
            print(f"   load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
