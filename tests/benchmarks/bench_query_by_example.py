"""Query by example on real videos: how often a changed cut is found where it was cut.

    MRLIB_DATA=... python tests/benchmarks/bench_query_by_example.py [--videos FILE ...] [--cuts 40] [--encoder NAME]

Cuts of 4 to 9 s are encoded anew, cropped to 85 % and retimed, and searched in the video that they are from, and in all
videos, one after the other in one. Ways to find them, on the same features:

    mean vector    the window of the query's length whose mean is most similar to the query's mean
    alignment      free ends, on 1 - cos
    notebook 02    free ends, features centred by the video's mean, on 1 - cos - 0.1
    find           `mrlib.video.zero_shot.by_rows`
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.align.dual_stage import cosine_cost
from mrlib.ops.alignment import hard_alignment, span_of
from mrlib.video.encode import open_encoder
from mrlib.video.zero_shot import by_rows
from tests.support.copies import copies

FILES = ("univtg_example/video.mp4", "videos/mmaction_demo.mp4", "videos/mmaction_test.mp4", "videos/nasa_13013.mp4")
SPEEDS = (1.0, 1.5, 0.67)
Way = Callable[[Tensor, Tensor], tuple[float, float]]  # rows of the video and of the query -> start and end, in rows


def mean_vector(rows: Tensor, query: Tensor) -> tuple[float, float]:
    length = min(len(query), len(rows))
    means = F.normalize(rows, dim=1).unfold(0, length, 1).mean(-1)  # (n - length + 1, D)
    start = int(F.cosine_similarity(means, F.normalize(query, dim=1).mean(0), dim=1).argmax())
    return start, start + length


def aligned(rows: Tensor, query: Tensor, delta: float = 0.0) -> tuple[float, float]:
    start, end = span_of(hard_alignment(cosine_cost(rows[None], query[None]) - delta, topology="subsequence"))
    return int(start), int(end)


def notebook_02(rows: Tensor, query: Tensor) -> tuple[float, float]:
    return aligned(rows - rows.mean(0), query - rows.mean(0), 0.1)


def find(rows: Tensor, query: Tensor) -> tuple[float, float]:
    return tuple(by_rows(rows, query, 1.0, float(len(rows)), 1)[0][0][:2])


WAYS: dict[str, Way] = {"mean vector": mean_vector, "alignment": aligned, "notebook 02": notebook_02, "find": find}


def share(overlaps: list[float], threshold: float) -> float:
    return sum(o >= threshold for o in overlaps) / len(overlaps)


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, nargs="+", help="default: those of $MRLIB_DATA/real")
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--crop", type=float, default=0.85)
    parser.add_argument("--encoder", default="pixels")
    args = parser.parse_args()
    videos = args.videos or [Path(os.environ["MRLIB_DATA"], "real", name) for name in FILES]
    encoder = open_encoder(args.encoder)
    features = {video: encoder.video(video) for video in videos}
    starts = dict(zip(videos, [0, *torch.tensor([len(x) for x in features.values()]).cumsum(0)], strict=False))
    places = {
        "in its video": lambda v: (features[v], 0),
        "in all": lambda v: (torch.cat([*features.values()]), starts[v]),
    }
    overlaps: dict[tuple[str, str, float], list[float]] = {}
    for speed in SPEEDS:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for cut in copies(videos, Path(folder), args.cuts, speed=speed, crop=args.crop):
                query = encoder.video(cut.file)
                truth = cut.start_s / encoder.recipe["clip_s"], cut.end_s / encoder.recipe["clip_s"]
                for place, rows_of in places.items():
                    rows, first = rows_of(cut.video)
                    for name, way in WAYS.items():
                        start, end = way(rows, query)
                        overlaps.setdefault((place, name, speed), []).append(iou((start - first, end - first), truth))
    print(f"R1@0.5 / R1@0.7 of {args.cuts} cuts, cropped to {args.crop:.0%}, {args.encoder}")
    print(" " * 28 + "".join(f"x{speed:<14}" for speed in SPEEDS))
    for place in places:
        for name in WAYS:
            found = [overlaps[place, name, speed] for speed in SPEEDS]
            print(f"{place:13}  {name:13}" + "".join(f"{share(x, 0.5):.2f} / {share(x, 0.7):.2f}    " for x in found))


if __name__ == "__main__":
    main()
