"""A table of datasets, and the one reader for all of them. `mrlib.data.sources` has a table of their features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.annotations import checked_samples, read_annotations
from mrlib.data.bank import Bank
from mrlib.data.cache import cache_folder, cached_bank
from mrlib.data.dataset import MomentDataset
from mrlib.data.ego4d import read_nlq
from mrlib.data.features import Features, Rate, Source, WordVectors
from mrlib.data.lenient import Mode, mode_of
from mrlib.data.lines import Line
from mrlib.data.pairs import SPLITS, read_pairs
from mrlib.data.recipes import read_recipe, usual_options
from mrlib.data.sources import LAYOUTS as LAYOUTS
from mrlib.data.sources import Layout, choose_layout, find_query, find_source, missing, own_settings
from mrlib.data.sportsmoments import read_csv

SHORTEST_CLIP_S, LONGEST_CLIP_S = 0.01, 3600.0


@dataclass(frozen=True)
class Dataset:
    """The annotation files of a dataset, and how to read them."""

    annotations: tuple[str, ...]  # templates with {split}; the first one of which a file exists is read
    clip_s: float  # seconds per row of features
    query: str = "qid{qid}"  # what {query} stands for in a layout
    words: bool = True  # queries are sentences
    classes: str | None = None  # a field of `extra` of which no two splits share a value
    document: Callable[..., Iterator[Line]] | None = None  # the reader of its .json files: (file, clip_s, clamp=...)


DATASETS: dict[str, Dataset] = {
    "qvhighlights": Dataset(
        (
            "highlight_{split}_with_neg_spans.jsonl",  # AMR's training file, with `wrong_spans` beside the windows
            "highlight_{split}_with_gt.jsonl",
            "highlight_{split}_release.jsonl",
        ),
        2.0,
    ),
    "charades_sta": Dataset(("charades_{split}_release.jsonl",), 1.0),
    "activitynet_captions": Dataset(("activitynet_{split}_release.jsonl",), 2.0),
    "tacos": Dataset(("tacos_{split}_release.jsonl",), 2.0, query="{qid}"),
    "tvsum": Dataset(("tvsum_{split}_release.jsonl",), 2.0),
    "youtube_highlights": Dataset(
        ("youtube_highlight_{split}_release.jsonl", "youtube_{split}.jsonl"),
        5 / 3,  # a label is about 100 frames, one every 50 frames, at about 30 frames per second
        query="{qid}",
    ),
    "ego4d_nlq": Dataset(("nlq_{split}.jsonl", "nlq_{split}.json"), 2.0, query="{qid}", document=read_nlq),
    "activitynet_vrl": Dataset(
        ("activitynet_vrl_{split}.jsonl", "{split}.json", "data/{split}.json"),
        2.0,
        words=False,
        classes="label",
        document=lambda file, clip_s, clamp: read_pairs(file, clamp=clamp),
    ),
    "sportsmoments": Dataset(
        ("sportsmoments_{split}.jsonl", "sportsmoments_{split}.csv", "{split}.csv"),
        2.0,
        words=False,
        classes="action_class",
    ),
}
READERS: dict[str, Callable[[Path, Dataset, bool], Iterator[Line]]] = {  # by the ending of an annotation file
    ".jsonl": lambda file, dataset, clamp: read_annotations(file, dataset.clip_s, words=dataset.words, clamp=clamp),
    ".json": lambda file, dataset, clamp: dataset.document(file, dataset.clip_s, clamp=clamp),
    ".csv": lambda file, dataset, clamp: read_csv(file, dataset.clip_s, clamp=clamp),
}


def dataset_root(name: str, root: str | os.PathLike | None) -> Path:
    """The folder of a dataset: `root`, else the one of that name in $MRLIB_DATA."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    if root is None:
        if not os.environ.get("MRLIB_DATA"):
            raise ValueError(f"no folder for {name}: give root=, or set MRLIB_DATA to the folder that holds {name}/")
        root = Path(os.environ["MRLIB_DATA"], name)
    if not Path(root).is_dir():
        raise missing(root, f"no such folder; the annotations and features of {name} are expected there")
    return Path(root)


def find_annotations(name: str, root: Path) -> dict[str, Path]:
    """The annotation file of every split under `root`.

    A file that is named by its split alone, as train.json, counts only if that split is one of `SPLITS`.
    """
    splits: dict[str, Path] = {}
    for template in DATASETS[name].annotations:
        for ending in ("",) if template.endswith(".json") else ("", ".gz"):
            before, after = f"{template}{ending}".split("{split}")
            for file in sorted(root.glob(f"{before}*{after}")):
                split = file.relative_to(root).as_posix()[len(before) : -len(after)]
                if before.rpartition("/")[2] or split in SPLITS:
                    splits.setdefault(split, file)
    return splits


def read_samples(name: str, file: Path, clip_s: float | None = None, *, clamp: bool = False) -> Iterator[Line]:
    """The lines of an annotation file, in whichever format it was published; see `read_annotations`.

    clip_s  seconds per clip; None: that of the dataset
    clamp   windows are brought into their videos, see `mrlib.data.lines.clamped`
    """
    return READERS[Path(file.name.removesuffix(".gz")).suffix](file, dataset_of(name, clip_s), clamp)


def open_files(
    name: str,
    root: str | os.PathLike | None = None,
    split: str = "train",
    *,
    layout: str | None = None,
    streams: str | Iterable[str] | None = None,
    normalize: bool | Iterable[str] = True,
    dtype: torch.dtype | str = torch.float32,
    cache: str | os.PathLike | None = None,
    limit: int | None = None,
    domain: str | None = None,
    clip_s: float | None = None,
    rows_per_s: Rate | Mapping[str, Rate] | None = None,
    files: Mapping[str, str] | None = None,
    query_files: str | None = None,
    bad: Mode = "error",
) -> MomentDataset:
    """A dataset from annotation and feature files.

    name         of DATASETS
    root         folder with the annotations and features; None: $MRLIB_DATA/name
    split        as in the names of the annotation files: "train", "val", "test"
    layout       of LAYOUTS; None: the one whose files are there, else files with the names of videos and queries
    streams      names of the video streams to concatenate, in this order; "joint" for only the one in the joint space;
                 None for all of the layout
    normalize    which vectors are divided by their L2 norm: True for all, as in the official loaders, False for none,
                 or names of streams and "query"; the query's vector in the joint space is treated as the joint stream
    dtype        of the features in the cache, float32 or float16; batches are float32 either way
    cache        folder for the memory-mapped features; None: `.mrlib_cache` under root or, where that cannot be
                 written, `mrlib` under $XDG_CACHE_HOME or ~/.cache, or a folder for temporary files
    limit        only the first samples
    domain       only the samples of this domain; on TVSum the official recipe trains one model per domain
    clip_s       seconds per clip; None: that of the dataset
    rows_per_s   of streams whose rows are no clips, and are averaged over clips: a number of rows per second; "even" if
                 the rows cover each video evenly; "auto" for "even" only where there are not about as many rows as
                 clips; "clips" if rows are clips; or one of these by the name of a stream. None: as the layout says
    files        templates of video files under root by the name of a stream, as {"clip": "my/{vid}.npz:features"}, see
                 `mrlib.data.sources`; beside a layout they replace or add streams. Their rows are taken as "auto"
    query_files  template of query files, as "text/{qid}.npy", or a GloVe file, as "glove.6B.300d.txt"
    bad          what to do with annotated lines that are not right, "error", "skip", "clamp": see `mrlib.data.lenient`
    raises       ValueError, FileNotFoundError or KeyError, naming the file or option, the problem and what to do

    In a folder that says which encoder made it, see `mrlib.data.recipes`, other streams and clips are usual.

    The streams of a video are cut to the shortest and to the video's duration; a query is cut to what the official
    loader reads (32 tokens for Moment-DETR and AMR). How large an array may be is decided before it is read, see
    `mrlib.data.arrays.Limit`.
    """
    dtype, limit = checked_dtype(dtype), checked_limit(limit)
    root = dataset_root(name, root)
    recipe = read_recipe(root)
    row_s, streams = usual_options(recipe, clip_s, streams)
    dataset = dataset_of(name, row_s)
    file = _annotation_file(name, root, split)
    lines = read_samples(name, file, dataset.clip_s, clamp=mode_of(bad) == "clamp")
    samples = checked_samples(file, dataset.clip_s, lines, bad)
    samples = _in_domain(samples, domain, f"{name} {split}")[:limit]
    layout, row = choose_layout(
        root, dataset, samples, layout=layout, files=files, query_files=query_files, rows_per_s=rows_per_s
    )
    features = open_features(name, root, dataset, samples, layout, row, streams, normalize)
    settings = {
        "layout": layout,
        "streams": list(features.video),
        "normalize": sorted(features.normalized),
        "dtype": str(dtype).removeprefix("torch."),
        "limit": limit,
    }
    settings |= {} if domain is None else {"domain": domain}
    settings |= {} if clip_s is None else {"clip_s": dataset.clip_s}
    settings |= {} if bad == "error" else {"bad": bad}
    settings |= {} if recipe is None else {"encoder": recipe}
    settings |= own_settings(layout, row, features.video)
    digest = hashlib.sha256(json.dumps([str(root.resolve()), settings]).encode()).hexdigest()[:8]
    stem = cache_folder(root, cache) / f"{name}-{split}-{digest}"
    return _read_dataset(name, split, samples, features, dtype, stem, settings)


def dataset_of(name: str, clip_s: float | None = None) -> Dataset:
    """A row of DATASETS, with another length of clips if one is given; ValueError for no length."""
    if clip_s is None:
        return DATASETS[name]
    number = type(clip_s) in (int, float) and SHORTEST_CLIP_S <= clip_s <= LONGEST_CLIP_S
    require(number, "clip_s", clip_s, f"a number of seconds from {SHORTEST_CLIP_S} to {LONGEST_CLIP_S}")
    return replace(DATASETS[name], clip_s=float(clip_s))


def checked_limit(limit: int | None) -> int | None:
    """A number of samples, or None for all; ValueError for anything else."""
    number = isinstance(limit, Integral) and not isinstance(limit, bool) and limit >= 1
    require(limit is None or number, "limit", limit, "a whole number of at least 1, or None for all")
    return None if limit is None else int(limit)


def checked_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """torch.float32 or torch.float16, also by name; ValueError for another."""
    kinds = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float16)}
    known = isinstance(dtype, str | torch.dtype) and (dtype in kinds.values() or dtype in kinds)
    require(known, "dtype", dtype, "torch.float32 or torch.float16")
    return kinds.get(dtype, dtype)


def _annotation_file(name: str, root: Path, split: str) -> Path:
    splits = find_annotations(name, root)
    if split not in splits:
        expected = " or ".join(t.replace("{split}", split) for t in DATASETS[name].annotations)
        raise missing(root, f"no split {split!r} of {name}: {expected} is expected; there are {sorted(splits)}")
    return splits[split]


def _in_domain(samples: list[Sample], domain: str | None, dataset: str) -> list[Sample]:
    """The samples of one domain, all if it is None; ValueError for a domain that no sample has."""
    if domain is None:
        return samples
    domains = sorted({d for s in samples if isinstance(d := s.extra.get("domain"), str)})
    if domain not in domains:
        raise ValueError(f"{dataset} has no domain {domain!r}; there are {', '.join(domains) or 'none'}")
    return [s for s in samples if s.extra.get("domain") == domain]


def _read_dataset(
    name: str,
    split: str,
    samples: list[Sample],
    features: Features,
    dtype: torch.dtype,
    stem: Path,
    settings: dict[str, Any],
) -> MomentDataset:
    """The samples with their features, from the cache whose files begin with `stem`."""
    videos: dict[str, Sample] = {}
    queries: dict[int | str, Sample] = {}
    for sample in samples:
        videos.setdefault(sample.vid, sample)
        queries.setdefault(sample.qid, sample)
    identity = {"dataset": name, "split": split, "settings": hashlib.sha256(json.dumps(settings).encode()).hexdigest()}
    target, _ = _bank(f"{stem}-target", identity, features, videos.values(), features.video.values(), dtype)
    query, vectors = _bank(f"{stem}-query", identity, features, queries.values(), [features.query], dtype)
    ends = np.cumsum([features.widths[stream] for stream in features.video]).tolist()
    video_item = {vid: i for i, vid in enumerate(videos)}
    query_item = {qid: i for i, qid in enumerate(queries)}
    return MomentDataset(
        name=name,
        split=split,
        samples=samples,
        target=target,
        video=torch.tensor([video_item[s.vid] for s in samples]),
        query=query,
        query_item=torch.tensor([query_item[s.qid] for s in samples]),
        query_joint=vectors,
        streams={stream: slice(a, b) for stream, a, b in zip(features.video, [0, *ends], ends, strict=False)},
        joint=features.joint,
        clip_s=features.clip_s,
        settings=settings,
    )


def _bank(
    stem: str,
    identity: dict[str, str],
    features: Features,
    samples: Collection[Sample],
    sources: Collection[Source | WordVectors],
    dtype: torch.dtype,
) -> tuple[Bank, Tensor | None]:
    """The bank of the videos or queries of samples, from the cache."""
    record = identity | {"items": features.items(samples), "state": features.state(samples, sources)}
    rows = features.queries(samples) if features.query in sources else features.videos(samples)
    return cached_bank(Path(stem), record, lambda: features.contents(samples, sources), rows, len(samples), dtype)


def open_features(
    name: str,
    root: Path,
    dataset: Dataset,
    samples: Sequence[Sample],
    layout: str,
    row: Layout,
    streams: str | Iterable[str] | None,
    normalize: bool | Iterable[str],
) -> Features:
    """The features that `open_files` reads; only those of the first sample are read here, for their widths."""
    names = stream_names(layout, row, streams)
    normalized = {*names, "query"} if normalize is True else set()
    if not isinstance(normalize, bool):
        normalized = set(_names("normalize", normalize))
    if unknown := normalized - {*names, "query"}:
        raise ValueError(f"normalize names {sorted(unknown)}; there are {[*names, 'query']}")
    video = {stream: find_source(root, row.video[stream], dataset, samples, video=True) for stream in names}
    features = Features(
        video=video,
        query=find_query(root, row.query, dataset, samples),
        sentence=row.sentence,
        tokens=row.tokens,
        joint=row.joint if row.joint in video else None,
        widths={},
        normalized=frozenset(normalized),
        clip_s=dataset.clip_s,
        hint=f"`python -m mrlib.data.check {name} {root}` lists all problems",
    )
    with features.reading(samples[0]):
        widths = {stream: source.rows(samples[0]).shape[1] for stream, source in video.items()}
    return replace(features, widths=widths)


def stream_names(layout: str, row: Layout, streams: str | Iterable[str] | None) -> tuple[str, ...]:
    """The streams of a layout that the option `streams` of `open_files` names; ValueError for other names."""
    if streams == "joint":
        if row.joint is None:
            raise ValueError(f"layout {layout} has no stream in a joint space; its streams are {list(row.video)}")
        return (row.joint,)
    names = tuple(row.video) if streams is None else _names("streams", streams)
    if not names or len(set(names)) < len(names) or set(names) - set(row.video):
        raise ValueError(f"streams {list(names)} of layout {layout}; choose among {list(row.video)}, each once")
    return names


def _names(option: str, names: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several; ValueError naming the option for anything else."""
    if isinstance(names, str):
        return (names,)
    listed = tuple(names) if isinstance(names, Iterable) and not isinstance(names, Mapping) else (None,)
    require(all(isinstance(name, str) for name in listed), option, names, "the name of a stream, or a list of names")
    return listed
