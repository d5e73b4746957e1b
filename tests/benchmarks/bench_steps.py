"""What a training step and a prediction cost at growing numbers of clips, here and in another checkout, in turn.

    git worktree add ../before COMMIT
    python -m tests.benchmarks.bench_steps --against ../before --paper univtg amr --clips 75 300 1200
    python -m tests.benchmarks.bench_steps --forward --paper f2sgd --clips 1800 --batch 1 --threads 2

Each paper has its paper's size and the step of its last stage, with random features; --stage takes another stage. A
process for each checkout takes a step in turn, so that both see the same machine. Printed are the median processor
milliseconds of a step, the most MiB that the process held, imports included, and the ratio to the other checkout: the
median over the pairs. The floor is the time that a step's matrix products and convolutions would take at the
speed of a plain product of 2400 x 1024 x 1024, measured before every step; attention is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from mrlib import papers
from mrlib.data import Batch, Widths
from tests.support.batches import make_batch
from tests.support.trainers import make_trainer

WORDS, JOINT, MOTION = 20, 512, 2304  # as in QVHighlights
PAPERS = ("qd_detr", "amr", "td_detr", "snag", "univtg", "f2sgd", "moment_detr", "matr")
ROOT = Path(__file__).resolve().parents[2]


def random_batch(paper: papers.Paper, samples: int, clips: int) -> Batch:
    """A batch of random features for a paper, all videos of the same length; TD-DETR trains on three of each sample."""
    samples *= 3 if paper.name == "td_detr" else 1
    motion = 0 if paper.streams == "joint" else MOTION
    return make_batch([clips] * samples, joint=JOINT, motion=motion, words=WORDS, query=JOINT)


def make_step(
    name: str, stage_name: str | None, samples: int | None, clips: int, forward: bool
) -> Callable[[], object]:
    """A training step of a paper, or with `forward` a prediction, on the same random batch each time.

    samples  of the batch; None: as many as the stage has
    """
    paper = papers.get(name, "paper", **({"query": "text"} if name == "matr" else {}))
    trained = [stage for stage in paper.stages if stage.mine is None]
    stage = next(s for s in trained if s.name == stage_name) if stage_name else trained[-1]
    samples = samples or stage.batch_size
    batch = random_batch(paper, samples, clips)
    widths = Widths(batch.target.shape[2], JOINT, JOINT)
    if forward:
        retriever = papers.build(paper, widths).eval()
        return lambda: retriever.predict(batch)
    trainer = make_trainer(paper, widths, stage=stage_name, samples=range(samples))
    return lambda: trainer._train_step(batch, "the benchmark")


def peak() -> float:
    """The most MiB that the process held (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def product_ms(a: torch.Tensor, b: torch.Tensor, times: int = 3) -> float:
    """Mean processor milliseconds of a matrix product."""
    processor = time.process_time()
    for _ in range(times):
        a @ b
    return 1e3 * (time.process_time() - processor) / times


def serve(step: Callable[[], object]) -> None:
    """Take a step for every line of the standard input and answer with what it cost."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(2400, 1024), torch.randn(1024, 1024)
    products = counter.get_total_flops() / (2 * a.numel() * b.shape[1])  # as many of a with b
    print("ready", flush=True)
    for _ in sys.stdin:
        floor = products * product_ms(a, b)
        processor, wall = time.process_time(), time.perf_counter()
        step()
        cost = {"ms": 1e3 * (time.process_time() - processor), "wall_ms": 1e3 * (time.perf_counter() - wall)}
        print(json.dumps(cost | {"mib": peak(), "floor_ms": floor}), flush=True)


class Worker:
    """A process that takes steps in one checkout."""

    def __init__(self, root: Path, words: list[str]):
        self.folder = tempfile.TemporaryDirectory()  # mrlib is the checkout's, tests are those beside this file
        (Path(self.folder.name) / "mrlib").symlink_to(root / "mrlib", target_is_directory=True)
        path = os.pathsep.join((self.folder.name, str(ROOT)))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": words[words.index("--threads") + 1]}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=self.folder.name, env=environment, **pipes)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the step failed in {root}")

    def step(self) -> dict[str, float]:
        """Take a step; returns its cost."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def compare(words: list[str], against: Path | None, steps: int) -> dict[str, float]:
    """The cost of a step here, and its ratio to that in another checkout."""
    workers = [Worker(root, words) for root in [ROOT, *([against] if against else [])]]
    costs = [[worker.step() for worker in workers] for _ in range(steps)]
    for worker in workers:
        worker.end()
    here = [pair[0] for pair in costs]
    row = {name: round(statistics.median(cost[name] for cost in here)) for name in ("ms", "wall_ms", "mib", "floor_ms")}
    row["ms/floor"] = round(statistics.median(cost["ms"] / cost["floor_ms"] for cost in here), 2)
    for name in ("ms", "mib") if against else ():
        row[f"{name}/before"] = round(statistics.median(pair[0][name] / pair[1][name] for pair in costs), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--paper", nargs="+", default=list(PAPERS), choices=PAPERS)
    parser.add_argument("--stage", help="of the paper, default: its last")
    parser.add_argument("--clips", type=int, nargs="+", default=[75, 300, 1200])
    parser.add_argument("--batch", type=int, default=4, help="samples of a step; 0: as many as the paper's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="predict instead of training")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        torch.set_num_threads(args.threads)
        serve(make_step(args.paper[0], args.stage, args.batch, args.clips[0], args.forward))
        return
    rows = []
    for name in args.paper:
        for clips in args.clips:
            words = ["--paper", name, "--clips", str(clips), "--batch", str(args.batch), "--threads", str(args.threads)]
            words += ["--forward"] if args.forward else []
            words += ["--stage", args.stage] if args.stage else []
            rows.append({"paper": name, "clips": clips} | compare(words, args.against, args.steps))
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
