"""Samples per second from a warm bank against reading and stacking .npz files, in one process.

    python tests/benchmarks/bench_bank.py

QVHighlights-sized: 75 clips of 2304 + 514 numbers in float32, batches of 32; minima over interleaved repeats.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mrlib.data import MomentDataset, open_dataset
from tests.support.files import line, random, save_npz, write_lines

VIDEOS, BATCH, REPEATS = 256, 32, 5
CLIPS, WIDTHS = 75, {"slowfast_features": 2304, "clip_features": 514}


def write(root: Path) -> None:
    """One query per video; every second video is a few clips short, so that batches have padding."""
    lines = []
    for i in range(VIDEOS):
        clips = CLIPS - i % 2 * 5
        lines.append(line(i, vid=f"v{i}", duration=2 * clips))
        for folder, width in WIDTHS.items():
            save_npz(root / folder / f"v{i}.npz", features=random(i, clips, width))
        text = {"last_hidden_state": random(i, 12, 512), "pooler_output": random(i, 514)}
        save_npz(root / "clip_text_features" / f"qid{i}.npz", **text)
    write_lines(root / "highlight_train_release.jsonl", lines)


def stacked(root: Path, dataset: MomentDataset, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tensors of a batch, read from the files sample by sample, normalised and padded."""
    targets, queries = [], []
    for sample in (dataset.samples[i] for i in indices):
        streams = [np.load(root / folder / f"{sample.vid}.npz")["features"] for folder in WIDTHS]
        targets.append(torch.from_numpy(np.concatenate([unit(x) for x in streams], 1)))
        words = np.load(root / "clip_text_features" / f"qid{sample.qid}.npz")["last_hidden_state"]
        queries.append(torch.from_numpy(unit(words)))
    return pad_sequence(targets, batch_first=True), pad_sequence(queries, batch_first=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root)
        banks = {dtype: open_dataset("qvhighlights", root, dtype=dtype) for dtype in (torch.float32, torch.float16)}
        batches = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(0)).view(-1, BATCH).tolist()
        ways = {"npz": lambda indices: stacked(root, banks[torch.float32], indices)}
        ways |= {f"bank {str(d).removeprefix('torch.')}": data.batch for d, data in banks.items()}
        batch, (target, query) = banks[torch.float32].batch(batches[0]), ways["npz"](batches[0])
        torch.testing.assert_close(batch.target, target)
        torch.testing.assert_close(batch.query, query)
        seconds = defaultdict(list)
        for _ in range(REPEATS):
            for name, way in ways.items():
                start = time.perf_counter()
                for indices in batches:
                    way(indices)
                seconds[name].append(time.perf_counter() - start)
        print(f"{torch.get_num_threads()} threads, {VIDEOS} videos, batches of {BATCH}")
        for name, times in seconds.items():
            print(f"{name:13} {VIDEOS / min(times):8.0f} samples/s  {min(seconds['npz']) / min(times):6.1f} x")


if __name__ == "__main__":
    main()
