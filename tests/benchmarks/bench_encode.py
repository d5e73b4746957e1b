"""Pictures per second that CLIP encodes in float32 and in bfloat16, how they differ, and what a sentence takes.

    python tests/benchmarks/bench_encode.py [--threads 1 2] [--batch 32] [--repeats 5]

A small CLIP, of the tests, and one of the size of ViT-B/32 with random weights; nothing is downloaded. The two types
take turns. Medians of the processor's time, so that neighbours count less; the last column is the smallest cosine
between the features of the two types, and of their differences from the mean picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is there: threads wait asleep
import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from mrlib.video.clip import Clip
from tests.support.tiny_clip import write_clip, write_tiny_clip

TYPES = (torch.float32, torch.bfloat16)


def encoders(folder: Path) -> dict[torch.dtype, Clip]:
    return {dtype: Clip(folder, device="cpu", dtype=dtype) for dtype in TYPES}


def rates(ways: dict[torch.dtype, Clip], frames: np.ndarray, repeats: int, threads: int) -> dict[torch.dtype, float]:
    """Pictures per second of each type."""
    seconds = {dtype: [] for dtype in ways}
    for repeat in range(repeats + 1):
        for dtype, encoder in ways.items():
            start = time.process_time()
            encoder.frames(frames)
            if repeat:  # the first warms up
                seconds[dtype].append((time.process_time() - start) / threads)
    return {dtype: len(frames) / statistics.median(each) for dtype, each in seconds.items()}


def closeness(ways: dict[torch.dtype, Clip], frames: np.ndarray) -> str:
    exact, fast = (ways[dtype].frames(frames).double() for dtype in TYPES)
    plain = cosine_similarity(exact, fast).min()
    centred = cosine_similarity(exact - exact.mean(0), fast - exact.mean(0)).min()
    return f"cosine {plain:.6f}, centred {centred:.5f}"


def seconds_of_a_sentence(encoder: Clip, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        encoder.text("a man opens the door and walks slowly into the water")
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    print(f"AMX for bfloat16: {bool(capabilities.get('amx_bf16'))}; pictures per second")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("tiny", write_tiny_clip), ("ViT-B/32", write_clip)):
            ways = encoders(write(Path(folder, name.replace("/", "-"))))
            side = ways[torch.float32].recipe["side"]
            frames = np.random.default_rng(0).integers(0, 256, (args.batch, side, side, 3), dtype=np.uint8)
            for threads in args.threads:
                torch.set_num_threads(threads)
                exact, fast = rates(ways, frames, args.repeats, threads).values()
                print(
                    f"{name:9} {threads} threads  float32 {exact:8.1f}  bfloat16 {fast:8.1f}  "
                    f"ratio {fast / exact:5.2f}  {closeness(ways, frames)}"
                )
            torch.set_num_threads(1)
            print(f"{name:9} a sentence takes {1e3 * seconds_of_a_sentence(ways[torch.float32], args.repeats):.0f} ms")


if __name__ == "__main__":
    main()
