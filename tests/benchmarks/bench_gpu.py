"""Everything that a GPU should be asked, in at most eight minutes: is it right, and how fast is it.

    python -m tests.benchmarks.bench_gpu --out gpu.json
    python -m tests.benchmarks.bench_gpu --dry --out dry.json    # on the CPU, in small sizes, with Triton's interpreter

right    every paper's model and every kernel in float32 (and the models in bf16) against float64 on the CPU
recipe   F²SGD as published: 7,218 queries of the simulated world of paper size, 10 epochs, 75 clips, kernel 21
kernels  soft-DTW, Drop-DTW and the large-kernel layer beside their alternatives, value and gradient
steps    a training step of every paper at paper size and with its own batch size, with augmentation: in fp32, in bf16,
         and in bf16 through torch.compile; time, memory, and the share of the peak: FLOPs of the step's products per
         second over those of a large product that was measured in the same run

The file is written after every row, so that a run that is stopped leaves what it measured. A part that fails becomes a
row with its error, and the exit status is 1; what there was no time for is a row that says so. Each part has a process
of its own, so that one cannot spoil the next.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mrlib import papers
from mrlib.files import write_whole
from mrlib.ops import alignment, alignment_plain, conv
from mrlib.ops.alignment_variants import drop_dtw
from mrlib.ops.draw import Draw
from mrlib.train import experiment, headline
from tests.support import on_device
from tests.support.trainers import make_trainer

Rows = Iterator[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"kernels": 1e-4, "dropout": 1e-2, "fp32": 2e-3, "bf16": math.inf}  # largest error; bf16 is only printed
STEPS = {"fp32": ("fp32", False), "bf16": ("bf16", False), "compiled": ("bf16", True)}
GAMMA = 0.1


class Bench:
    """The device, the sizes, and the time that is left."""

    def __init__(self, dry: bool, minutes: float):
        self.dry, self.device = dry, "cpu" if dry else "cuda"
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds until the run must have ended."""
        return self.end - time.monotonic()

    def wait(self) -> None:
        """Let the device finish what it was given."""
        if not self.dry:
            torch.cuda.synchronize()

    def cost(self, action: Callable[[], object], repeats: int = 10) -> dict[str, float]:
        """Median milliseconds of an action after a first call, and on a GPU the MiB that it needs beyond its inputs."""
        action()
        self.wait()
        before = 0 if self.dry else torch.cuda.memory_allocated()
        if not self.dry:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(1 if self.dry else repeats):
            started = time.perf_counter()
            action()
            self.wait()
            times.append(1e3 * (time.perf_counter() - started))
        most = {} if self.dry else {"mib": round((torch.cuda.max_memory_allocated() - before) / 2**20)}
        return {"ms": round(statistics.median(times), 3)} | most

    def product_rate(self, precision: str) -> float:
        """FLOPs per second of a large matrix product."""
        size = 256 if self.dry else 8192
        kind = torch.float32 if precision == "fp32" else torch.bfloat16
        a, b = (torch.randn(size, size, device=self.device, dtype=kind) for _ in range(2))
        return 2 * size**3 / (1e-3 * self.cost(lambda: a @ b)["ms"])


# ---- parts


def right(bench: Bench) -> Rows:
    """Errors against float64."""
    checks = {
        "kernels": on_device.kernels(bench.device, large=not bench.dry),
        "dropout": on_device.dropouts(bench.device),
    }
    checks |= {precision: on_device.models(bench.device, precision) for precision in ("fp32", "bf16")}
    for kind, errors in checks.items():
        if bench.dry and kind == "kernels":
            interpret()
        for what, error in errors:
            wrong = {} if error < LIMITS[kind] else {"failed": f"the error is above {LIMITS[kind]}"}
            yield {"what": what, "error": float(f"{error:.1e}")} | wrong


def recipe(bench: Bench) -> Rows:
    """The training of F²SGD, in both precisions."""
    size, epochs, data = ("small", 1, {"n": 64}) if bench.dry else ("paper", 10, {"n_train": 7218})
    for precision in ("fp32", "bf16"):
        started = time.perf_counter()
        scores, history, _ = experiment(
            "f2sgd",
            size=size,
            settings={"epochs": epochs},
            data=data,
            precision=precision,
            device=bench.device,
        )
        times = {name: round(sum(row[name] for row in history.times), 1) for name in ("train_s", "val_s")}
        kept = {name: headline(scores)[name] for name in ("MR-full-R1@0.7", "MR-full-mAP")}
        whole = round(time.perf_counter() - started, 1)
        yield {
            "what": f"{epochs} epochs, {precision}",
            **times,
            "with_data_s": whole,
            "steps": history.rows[-1]["step"],
            **kept,
        }


def kernels(bench: Bench) -> Rows:
    """Soft-DTW, Drop-DTW and the large-kernel layer, value and gradient."""
    sizes = [(2, 9, 6)] if bench.dry else [(128, 75, 75), (32, 512, 512), (8, 2048, 300)]
    for shape in sizes:
        cost = torch.rand(shape, device=bench.device)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "soft_dtw": lambda cost: alignment.soft_dtw(cost, GAMMA),
            "soft-DTW by anti-diagonals, autograd": by_diagonals,
            "soft_dtw on the CPU": lambda cost: on_the_cpu(alignment.soft_dtw, cost, GAMMA),
            "drop_dtw": lambda cost: drop_dtw(cost, 0.4, GAMMA),
            "drop_dtw on the CPU": lambda cost: on_the_cpu(drop_dtw, cost, 0.4, GAMMA),
        }
        for name, way in ways.items():
            step = bench.cost(lambda way=way, cost=cost: on_device.with_gradients(way, [cost]))
            yield {"what": f"{name}, {shape}", **step}
    yield from _from_features(bench)
    yield from _large_kernels(bench)


def _from_features(bench: Bench) -> Rows:
    """Squared distances and soft-DTW of two sets of videos; 42 ms and 257 MB are published for the first size."""
    B, N, D = (2, 8, 4) if bench.dry else (32, 512, 64)
    x, y = (torch.randn(B, N, D, device=bench.device) / D**0.5 for _ in range(2))

    def way(x: Tensor, y: Tensor) -> Tensor:
        return alignment.soft_dtw(torch.cdist(x, y).square(), 1.0)

    yield {"what": f"soft_dtw of distances, {(B, N, N, D)}"} | bench.cost(lambda: on_device.with_gradients(way, [x, y]))


def _large_kernels(bench: Bench) -> Rows:
    """Batch, channels in and out, side, kernel; with the gradients of map and kernel."""
    sizes = [(1, 2, 2, 12, 5)] if bench.dry else [(128, 1, 32, 75, 21), (128, 32, 32, 75, 21), (1, 32, 32, 300, 21)]
    for size in sizes:
        batch, inputs, outputs, side, kernel = size
        x = torch.randn(batch, inputs, side, side, device=bench.device)
        weight = torch.randn(outputs, inputs, kernel, kernel, device=bench.device)
        for way in (conv.direct, conv.fourier, conv.conv2d):
            step = bench.cost(lambda way=way, x=x, w=weight: on_device.with_gradients(way, [x, w]), repeats=5)
            yield {"what": f"{way.__name__}, {size}", **step}


def by_diagonals(cost: Tensor) -> Tensor:
    """Soft-DTW as anti-diagonals of tensors that autograd differentiates."""
    U = -alignment_plain.skew(cost, torch.inf) / GAMMA  # (T + N - 1, N, B)
    none = torch.full_like(U[0], -1e30)
    before, last = none, U[0]
    for diagonal in U[1:]:
        aside, corner = (torch.cat([none[:1], x[:-1]]) for x in (last, before))
        before, last = last, torch.logaddexp(torch.logaddexp(last, aside), corner) + diagonal
    return -GAMMA * last[-1]


def on_the_cpu(way: Callable[..., Tensor], cost: Tensor, *options: float) -> Tensor:
    """A function of the cost computed on the CPU, the transfers included."""
    return way(cost.cpu(), *options).to(cost.device)


def steps(bench: Bench, kind: str) -> Rows:
    """A training step of every paper."""
    rate = bench.product_rate(STEPS[kind][0])
    yield {"what": f"a large product, {kind}", "tflops": float(f"{1e-12 * rate:.3g}")}
    for name in ("f2sgd",) if bench.dry and kind == "compiled" else papers.PAPERS:
        try:
            row = one_step(bench, name, kind, rate)
        except Exception as error:  # the other papers may work
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {error}"[:300]}
        yield {"what": f"{name}, {kind}", **row}


def one_step(bench: Bench, name: str, kind: str, rate: float) -> dict[str, float]:
    """A training step of a paper, with its FLOPs and their share of `rate`, the FLOPs per second of a product."""
    precision, compiled = STEPS[kind]
    paper = papers.get(name, **({"size": "small", "batch_size": 4} if bench.dry else {"size": "paper"}))
    data = papers.open_split(paper, "sim", n=max(64, paper.stages[-1].batch_size)).to(bench.device)
    trainer = make_trainer(paper, data, device=bench.device, precision=precision, compile=compiled)
    stage = trainer.stage
    indices = torch.arange(stage.batch_size, device=bench.device)

    def step(number: int = 0) -> None:
        batch = papers.AUGMENTERS[stage.augment](indices, data, Draw(0, number), **stage.augment_options)
        trainer._train_step(batch, "the benchmark")

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    cost = bench.cost(step)
    share = {"of_peak": round(flops / (1e-3 * cost["ms"]) / rate, 3)}
    return {"samples": stage.batch_size, "gflop": round(1e-9 * flops, 1)} | cost | share


PARTS: dict[str, Callable[[Bench], Rows]] = {"right": right, "recipe": recipe, "kernels": kernels}
PARTS |= {f"steps in {kind}": partial(steps, kind=kind) for kind in STEPS}


def environment(bench: Bench) -> dict[str, Any]:
    """The machine, for the file."""
    facts = {"torch": torch.__version__, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "dry": bench.dry}
    if bench.dry:
        return facts
    gpu = torch.cuda.get_device_properties(0)
    facts |= {"gpu": gpu.name, "gib": round(gpu.total_memory / 2**30, 1), "capability": f"{gpu.major}.{gpu.minor}"}
    return facts | {"cuda": torch.version.cuda}


def rows_of(part: str, dry: bool, seconds: float) -> Rows:
    """The rows of a part, from a process of its own that is killed when the time is over."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--rows", part, *(["--dry"] if dry else [])]
    environment = os.environ | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if dry else {})
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(max(seconds, 0), process.kill)
        timer.start()
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        status, late = process.wait(), timer.finished.is_set()
        timer.cancel()
    if late:
        yield {"what": "the rest", "left_out": "no time"}
    elif status:
        yield {"what": "the rest", "failed": f"the process ended with status {status}"}


def measure(bench: Bench, chosen: list[str], out: str | None) -> list[dict[str, Any]]:
    """The rows of the chosen parts; each is printed and written as soon as it is known."""
    facts, table = environment(bench), []
    print(json.dumps(facts), flush=True)
    for part in chosen:
        started = time.monotonic()
        for row in rows_of(part, bench.dry, bench.left()):
            table.append({"part": part, **row})
            print(json.dumps(table[-1], ensure_ascii=False), flush=True)
            if out:
                write_whole(out, json.dumps({"machine": facts, "rows": table}, indent=1, ensure_ascii=False) + "\n")
        print(f"{part}: {time.monotonic() - started:.0f} s, {bench.left():.0f} s left", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="small sizes, on the CPU, with Triton's interpreter")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", help="JSON file for the rows")
    parser.add_argument("--rows", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        parser.error("this PyTorch finds no CUDA device; give --dry to try the script on the CPU")
    bench = Bench(args.dry, args.minutes)
    if args.rows:
        print_rows(bench, args.rows)
        return
    table = measure(bench, args.part, args.out)
    for part, rows in pd.DataFrame(table).groupby("part", sort=False):
        print(f"\n{part}\n{rows.drop(columns='part').dropna(axis=1, how='all').to_string(index=False, na_rep='')}")
    sys.exit(any("failed" in row for row in table))


def interpret() -> None:
    """Let soft-DTW's GPU kernel run on the CPU, in the interpreter that `rows_of` has chosen."""
    from mrlib.ops import alignment_gpu

    alignment._kernels = lambda cost: alignment_gpu


def print_rows(bench: Bench, part: str) -> None:
    """Print the rows of a part, a line of JSON each."""
    if bench.dry and part == "kernels":
        interpret()
    for row in PARTS[part](bench):
        print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
