"""What a training step of every paper costs: its time against UniVTG's in the same run, and memory, a process each.

    python tests/benchmarks/bench_papers.py --out figures/06_cost.csv

Each network is built at the small size, and each paper's at the paper's too, and takes training steps of 32 samples of
the simulated world. Time is the median step's; memory is the most that the process held beyond what it held before the
network was built: weights, the optimiser's state, one batch and what its gradients need (on a GPU: the most that was
allocated).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from mrlib import papers
from mrlib.files import write_whole
from mrlib.ops.draw import Draw
from mrlib.train import predict_all

BATCH = 32
# name in notebooks/06_compare -> a paper and what is changed; TD-DETR makes two videos of each sample
MODELS: dict[str, tuple[str, dict]] = {
    "F²SGD": ("f2sgd", {}),
    "MATR": ("matr", {"query": "text"}),
    "AMR": ("amr", {}),
    "TD-DETR": ("td_detr", {"batch_size": 11}),
    "UniVTG": ("univtg", {}),
    "Moment-DETR": ("moment_detr", {}),
    "QD-DETR": ("qd_detr", {}),
    "SnAG": ("snag", {}),
}
COMBINED = {
    "words + 2D-TAN": ("f2sgd", {"detector": "tan", "aligner": "text_to_video", "streams": None}),
    "A²FA + 2D-TAN": ("f2sgd", {"detector": "tan"}),
    "A²FA + DETR": ("moment_detr", {"aligner": "anchor"}),
    "UniVTG, appearance only": ("univtg", {"streams": "joint"}),
    "A²FA + regression": ("univtg", {"aligner": "anchor"}),
    "QD-DETR + F²SGD": ("qd_detr", {"detector": "similarity_map"}),
    "QD-DETR + F²SGD, appearance only": ("qd_detr", {"detector": "similarity_map", "streams": "joint"}),
}
for _name, _aligner in (("UVCOM", "uvcom"), ("CG-DETR", "cg_detr"), ("TaskWeave", "taskweave")):
    COMBINED[_name] = ("qd_detr", {"aligner": _aligner})
    COMBINED[f"{_name} + F²SGD"] = ("qd_detr", {"aligner": _aligner, "detector": "similarity_map"})


def forget_peak() -> float:
    """MiB that the process holds now, from where on the most that it holds is counted (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most MiB that the process held."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(name: str, size: str, steps: int, threads: int, device: str) -> dict[str, float]:
    """A model in this process; its last stage's training step."""
    torch.set_num_threads(threads)
    paper, settings = (MODELS | COMBINED)[name]
    paper = papers.get(paper, size, **{"batch_size": BATCH} | settings)
    stage = paper.stages[-1]
    train = papers.open_split(paper, "sim", n=64).to(device)
    cuda = torch.device(device).type == "cuda"
    before = forget_peak()
    retriever = papers.build(paper, train).to(device).train()
    teacher = None
    if stage.prepare is not None:
        papers.prepare(retriever, stage.prepare)
    if stage.teacher is not None:
        teacher = papers.build(paper, train).to(device).eval()
        papers.prepare(teacher, stage.prepare, teacher=True)
    optimiser = torch.optim.AdamW(retriever.parameters(), stage.optimiser.lr)
    indices, times = torch.arange(stage.batch_size, device=device), []
    for step in range(steps + 1):
        started = time.perf_counter()
        batch = papers.AUGMENTERS[stage.augment](indices, train, Draw(0, step), **stage.augment_options)
        aligned, outputs = retriever(batch)
        with torch.no_grad():
            taught = None if teacher is None else teacher(batch)[1]
        terms = retriever.losses(aligned, outputs, batch, taught)
        optimiser.zero_grad(set_to_none=True)
        sum(stage.weights.get(term, 1.0) * x for term, x in terms.items()).backward()
        optimiser.step()
        if cuda:
            torch.cuda.synchronize()
        if step:  # the first is for warming up
            times.append(1e3 * (time.perf_counter() - started))
    most = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak() - before
    started = time.perf_counter()
    predict_all(retriever.eval(), train, BATCH)
    return {
        "model": name,
        "size": size,
        "parameters": sum(p.numel() for p in retriever.parameters()),
        "step_ms": round(statistics.median(times), 1),
        "predict_ms": round(1e3 * (time.perf_counter() - started) / len(train), 2),
        "memory_mib": round(most),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", default=["small", "paper"])
    parser.add_argument("--model", nargs="+", default=[*MODELS, *COMBINED], choices=[*MODELS, *COMBINED])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="CSV file for the table")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.steps, args.threads, args.device)))
        return
    rows = []
    for size in args.size:
        for name in args.model if size == "small" else [name for name in args.model if name in MODELS]:
            words = ["--one", name, size, "--steps", str(args.steps), "--threads", str(args.threads)]
            done = subprocess.run(
                [sys.executable, __file__, *words, "--device", args.device], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(done.stdout) | {"threads": args.threads, "device": args.device})
            print(rows[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    table = pd.DataFrame(rows)
    yardstick = table[table["model"] == "UniVTG"].set_index("size")["step_ms"]
    if len(yardstick):
        table.insert(4, "step_to_univtg", (table["step_ms"] / table["size"].map(yardstick)).round(2))
    print(table.to_string(index=False))
    if args.out:
        write_whole(args.out, table.to_csv(index=False))


if __name__ == "__main__":
    main()
