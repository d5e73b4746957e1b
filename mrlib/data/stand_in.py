"""Stand-in features for real annotations, so that everything runs without the real feature files.

    python -m mrlib.data.stand_in qvhighlights FOLDER OUT --limit train=1000 val=500 --seed 0

The queries, windows and saliency scores in OUT are the real ones. The features are random numbers; inside the windows
of a query its words are added to them, so that a model has something to learn. A score on them shows that everything
runs on real annotations, from the files to the metrics. It says nothing about a method, and is not compared with any
published score.

A word        is a random unit vector, the same in every query and split
A query       has its words as tokens; its sentence vector is their mean, divided by its norm
A video       is noise in every clip plus events that no query is about; inside a query's windows, plus its sentence
`slowfast`    is a fixed projection of the same, with other noise; it is narrower than the published features, since
              readers take the width from the files

All features are a function of (seed, vid, qid, word) and of the annotations that are kept; files are float16.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrlib.arguments import has_terminal, printing
from mrlib.data import Sample
from mrlib.data.annotations import checked_samples
from mrlib.data.clips import count_clips
from mrlib.data.features import words_of
from mrlib.data.layouts import DATASETS, dataset_root, find_annotations, read_samples
from mrlib.files import whole_file, write_whole

NAMES = ("qvhighlights", "charades_sta", "activitynet_captions", "tacos")  # queries are sentences
JOINT, MOTION = 512, 128  # widths of the streams `clip` and `slowfast`
MEANING = (
    "The annotations are real, the features are drawn: scores on them say that everything runs, nothing about a method."
)


def write(
    name: str, root: str | os.PathLike | None, out: str | os.PathLike, *, limit: Mapping[str, int], seed: int = 0
) -> dict[str, int]:
    """Write real annotations with drawn features to a folder that `mrlib.open_dataset` opens.

    name, root  of a dataset with annotation files, as in `open_dataset`; its features are not read
    out         new or empty folder; annotation files are written last, so that an incomplete folder does not open
    limit       the splits to write, and the number of first lines of each
    returns     the number of lines of each split, and the number of "videos"
    raises      ValueError for another dataset, a split that is not there, a limit below 1, a folder that is not empty,
                or a line that the readers refuse
    """
    if name not in NAMES:
        raise ValueError(f"no stand-in features for {name!r}; there are for {', '.join(NAMES)}, queried by sentences")
    dataset, splits = DATASETS[name], find_annotations(name, dataset_root(name, root))
    for split, lines in limit.items():
        if split not in splits:
            raise ValueError(f"limit: {name} has no split {split!r} in {root}; there are {', '.join(splits) or 'none'}")
        if lines < 1:
            raise ValueError(f"limit: {split}={lines}; at least one line")
    out = Path(out)
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise ValueError(f"{out} is a file, or is not empty; give a new or empty folder")
    kept = {split: _first(name, splits[split], lines) for split, lines in limit.items()}
    samples = [sample for of_split, _ in kept.values() for sample in of_split]
    queries: dict[int | str, Sample] = {}
    videos: dict[str, list[Sample]] = {}
    for sample in samples:
        if queries.setdefault(sample.qid, sample).query != sample.query:
            raise ValueError(f"{name}: query {sample.qid} has two sentences in two splits; one qid has one sentence")
        videos.setdefault(sample.vid, []).append(sample)
    for qid, sample in tqdm(queries.items(), desc="queries", leave=False, disable=not has_terminal()):
        words = words_of(sample.query)
        tokens = np.stack([word_vector(word, seed) for word in words])
        file = out / "clip_text_features" / f"{dataset.query.format(qid=qid)}.npz"
        _save(file, last_hidden_state=tokens, pooler_output=sentence(words, seed))
    for vid, video_samples in tqdm(videos.items(), desc="videos", leave=False, disable=not has_terminal()):
        clip, slowfast = video_features(vid, video_samples, dataset.clip_s, seed)
        _save(out / "clip_features" / f"{vid}.npz", features=clip)
        _save(out / "slowfast_features" / f"{vid}.npz", features=slowfast)
    for split, (_, lines) in kept.items():
        text = b"".join(lines)
        file = out / splits[split].name
        write_whole(file, gzip.compress(text, mtime=0) if file.suffix == ".gz" else text)
    return {split: len(of_split) for split, (of_split, _) in kept.items()} | {"videos": len(videos)}


def _first(name: str, file: Path, count: int) -> tuple[list[Sample], list[bytes]]:
    """The samples of the first lines of an annotation file, and these lines unchanged."""
    first = list(islice(read_samples(name, file), count))
    numbers = {number for number, _, _ in first}
    samples = checked_samples(file, DATASETS[name].clip_s, first)
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        return samples, [line.rstrip(b"\r\n") + b"\n" for i, line in enumerate(lines, 1) if i in numbers]


def _random(*names: int | str) -> np.random.Generator:
    """A generator whose numbers are a function of the names."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:16], "little"))


def _unit_rows(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random rows of norm 1, (count, width)."""
    rows = random.standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@cache
def word_vector(word: str, seed: int) -> np.ndarray:
    """The vector of a word in every query, (512,), of norm 1."""
    return _unit_rows(_random(seed, "word", word), 1, JOINT)[0]


def sentence(words: Sequence[str], seed: int) -> np.ndarray:
    """The mean of the vectors of some words, divided by its norm, (512,)."""
    mean = np.mean([word_vector(word, seed) for word in words], axis=0)
    return mean / np.linalg.norm(mean)


@cache
def _projection(seed: int) -> np.ndarray:
    """From `clip` to `slowfast`, (512, 128)."""
    return _random(seed, "slowfast").standard_normal((JOINT, MOTION)) / math.sqrt(MOTION)


def video_features(vid: str, samples: Sequence[Sample], clip_s: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The features of a video, `clip` (T, 512) and `slowfast` (T, 128).

    samples  all samples of this video
    clip_s   seconds per clip
    """
    random = _random(seed, "video", vid)
    clips = count_clips(max(sample.duration for sample in samples), clip_s)
    lengths = random.integers(3, 16, clips)  # clips of each event; more events than the video needs
    events = _unit_rows(random, clips, JOINT)
    content = np.repeat(events, lengths, axis=0)[:clips]  # (T, 512)
    for sample in samples:
        strength = _random(seed, "query", sample.qid).uniform(0.8, 1.2)
        for start, end in sample.relevant_windows or ():
            inside = slice(int(start / clip_s), math.ceil(end / clip_s))
            content[inside] += strength * sentence(words_of(sample.query), seed)
    slowfast = content @ _projection(seed)  # (T, 128)
    return content + _unit_rows(random, clips, JOINT), slowfast + _unit_rows(random, clips, MOTION)


def _save(path: Path, **arrays: np.ndarray) -> None:
    with whole_file(path) as file:
        np.savez(file, **{name: array.astype(np.float16) for name, array in arrays.items()})


def _limit(text: str) -> tuple[str, int]:
    split, _, lines = text.partition("=")
    if not split or not lines.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=LINES, as train=1000")
    return split, int(lines)


@printing()
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a folder of stand-in features, print its counts and what a score on it means; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.data.stand_in", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument("root", help="folder with the real annotation files")
    parser.add_argument("out", help="new or empty folder")
    parser.add_argument(
        "--limit",
        type=_limit,
        nargs="+",
        required=True,
        metavar="SPLIT=LINES",
        help="the splits to write, and the number of first lines of each",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawn features; default 0")
    options = parser.parse_args(arguments)
    try:
        counts = write(options.name, options.root, options.out, limit=dict(options.limit), seed=options.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{', '.join(f'{count} {kind}' for kind, count in counts.items())}: {options.out}")
    print(MEANING)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
