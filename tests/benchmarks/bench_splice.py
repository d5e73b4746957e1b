"""What splicing costs beside looking the same samples up, and of a training step.

    python tests/benchmarks/bench_splice.py [--step-s SECONDS]

As AMR trains: 75 clips of 5376 numbers and ten times 7,218 samples, here of 300 videos. Processor time of one thread,
so that neighbours do not count; minima over interleaved repeats. Without --step-s a step is taken to be AMR's for 32
samples on two cores, 1.2 s, and to grow with the batch.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict

import torch

from mrlib.augment import identity
from mrlib.augment.splice import splice, splice_official
from mrlib.data import Bank, MomentDataset, Sample
from mrlib.ops.draw import Draw

VIDEOS, SAMPLES, CLIPS, WIDTH, CLIP_S, REPEATS = 300, 7218, 75, 5376, 2.0, 30
STEP_S = 1.2 / 32  # of a sample


def dataset(dtype: torch.dtype) -> MomentDataset:
    """Ten passes over as many samples as QVHighlights train has, some with many windows, all with a mined one."""
    dice = random.Random(0)
    samples = []
    for i in range(SAMPLES):
        count = dice.choice([1, 1, 1, 1, 2, 2, 3, 5, 24 if i % 100 == 0 else 1])
        ends = sorted(dice.sample(range(CLIPS + 1), 2 * count + 2))
        windows = [[a * CLIP_S, b * CLIP_S] for a, b in zip(ends[::2], ends[1::2], strict=True)]
        ids = [t for a, b in zip(ends[:-2:2], ends[1:-2:2], strict=True) for t in range(a, b)]
        samples.append(
            Sample(
                i,
                "a query",
                CLIPS * CLIP_S,
                f"v{i % VIDEOS}",
                relevant_windows=windows[:-1],
                relevant_clip_ids=ids,
                saliency_scores=[[1, 2, 3]] * len(ids),
                extra={"wrong_spans": windows[-1:]},
            )
        )
    once = MomentDataset(
        name="bench",
        split="train",
        samples=samples,
        target=Bank(torch.randn(VIDEOS * CLIPS, WIDTH).to(dtype), torch.arange(VIDEOS + 1) * CLIPS),
        video=torch.arange(SAMPLES) % VIDEOS,
        query=Bank(torch.randn(SAMPLES * 12, 64).to(dtype), torch.arange(SAMPLES + 1) * 12),
        query_item=torch.arange(SAMPLES),
        query_joint=None,
        streams={"all": slice(0, WIDTH)},
        joint=None,
        clip_s=CLIP_S,
    )
    return once.subset(list(range(SAMPLES)) * 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step-s", type=float, help="seconds of a training step, of whatever batch")
    given = parser.parse_args().step_s
    torch.set_num_threads(1)
    ways = {"identity": identity, "splice": splice, "splice_official": splice_official}
    print(f"{CLIPS} clips of {WIDTH} numbers; milliseconds per batch")
    for dtype in (torch.float32, torch.float16):
        data = dataset(dtype)
        for size in (32, 128):
            step_s = given or STEP_S * size
            batches = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(size)[:REPEATS]
            seconds = defaultdict(list)
            for epoch, indices in enumerate(batches):
                for name, way in ways.items():
                    start = time.process_time()
                    way(indices, data, Draw(0, "bench", epoch))
                    seconds[name].append(time.process_time() - start)
            plain = min(seconds["identity"])
            for name, times in seconds.items():
                more = min(times) - plain
                print(
                    f"{str(dtype).removeprefix('torch.')}  {size:3} samples  {name:15} {1e3 * min(times):7.1f}  "
                    f"{min(times) / plain:5.2f} x  {100 * more / step_s:5.2f} % of a step more"
                )


if __name__ == "__main__":
    main()
