"""How much faster `evaluate` is than one query at a time: `python tests/benchmarks/bench_metrics.py`.

On the official sample of predictions where MRLIB_DATA is set, else on random files of the same size.
"""

import os
import time
from pathlib import Path

import numpy as np

from mrlib.metrics import evaluate, read_jsonl
from tests.reference import reference_metrics


def random_files(n_queries: int = 1550, clips: int = 75) -> tuple[list[dict], list[dict]]:
    rng = np.random.default_rng(0)
    predictions, truth = [], []
    for qid in range(n_queries):
        edges = np.sort(rng.permutation(clips + 1)[: 2 * min(rng.geometric(0.6), 25)]) * 2
        windows = edges.reshape(-1, 2)
        moments = windows[rng.integers(len(windows), size=10)] + rng.integers(-3, 4, (10, 2))
        ranked = np.column_stack([moments, rng.random(10)])
        relevant = np.arange(*windows[0] // 2)
        predictions.append({"qid": qid, "pred_relevant_windows": ranked.tolist()})
        predictions[-1]["pred_saliency_scores"] = rng.standard_normal(clips).tolist()
        truth.append({"qid": qid, "duration": 2 * clips, "relevant_windows": windows.tolist()})
        truth[-1]["relevant_clip_ids"] = relevant.tolist()
        truth[-1]["saliency_scores"] = rng.integers(0, 5, (len(relevant), 3)).tolist()
    return predictions, truth


def main() -> None:
    if root := os.environ.get("MRLIB_DATA"):
        folder = Path(root) / "qvhighlights"
        predictions = read_jsonl(folder / "official_eval" / "sample_val_preds.jsonl")
        files = predictions, read_jsonl(folder / "highlight_val_release.jsonl")
    else:
        files = random_files()
    fastest_s = {evaluate: np.inf, reference_metrics.evaluate: np.inf}
    for _ in range(5):
        for function in fastest_s:
            start = time.perf_counter()
            function(*files)
            fastest_s[function] = min(fastest_s[function], time.perf_counter() - start)
    fast_s, slow_s = fastest_s.values()
    print(f"{len(files[0])} queries: {fast_s:.3f} s, one at a time {slow_s:.2f} s, ratio {slow_s / fast_s:.0f}")


if __name__ == "__main__":
    main()
