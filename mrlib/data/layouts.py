"""A table of datasets, a table of the layouts of their feature files, and the one reader for all of them.

A dataset names its annotation files; a layout names its feature files, as templates under the dataset's root,

    clip_features/{vid}.npz:features          file of a video : array in it
    vgg_rgb_features.hdf5:{vid}               one file of all videos : array of a video
    {vid}_rgb.npy + {vid}_opt.npy             two files side by side

with {vid} a video, {qid} a query, {query} a query as the dataset spells it. Of several templates one applies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrlib.data import Sample
from mrlib.data.annotations import Line, checked_samples, read_annotations
from mrlib.data.bank import Bank, load_bank, save_bank
from mrlib.data.dataset import MomentDataset
from mrlib.data.ego4d import read_nlq
from mrlib.data.features import Features, Source, WordVectors
from mrlib.data.lenient import Mode, mode_of
from mrlib.data.pairs import SPLITS, read_pairs
from mrlib.data.problems import DataError, MissingFile, Problem
from mrlib.data.sportsmoments import read_csv


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
        (
            "youtube_highlight_{split}_release.jsonl",
            "youtube_{split}.jsonl",
        ),
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


@dataclass(frozen=True)
class Stream:
    """One kind of feature vectors."""

    templates: tuple[str, ...]
    parts: int = 1  # vectors per row, each normalised by itself
    per_clip: bool = True  # a row is a clip; False: rows have another rate and are averaged over each clip


@dataclass(frozen=True)
class Layout:
    """The features of an official release, and their files."""

    video: dict[str, Stream]  # in the order in which they are concatenated
    query: Stream
    joint: str | None = None  # the stream whose space the query's vector shares
    sentence: str | None = None  # the query's vector: an array beside `query`, or "mean" of its normalised rows
    tokens: int | None = None  # the most rows of a query that the official loader reads


LAYOUTS: dict[str, Layout] = {
    # Moment-DETR, QD-DETR, CG-DETR, TD-DETR, lighthouse
    "moment_detr": Layout(
        {
            "slowfast": Stream(("slowfast_features/{vid}.npz:features", "slowfast/{vid}.npz:features")),
            "clip": Stream(("clip_features/{vid}.npz:features", "clip/{vid}.npz:features")),
        },
        Stream(("clip_text_features/{query}.npz:last_hidden_state", "clip_text/{query}.npz:last_hidden_state")),
        joint="clip",
        sentence="pooler_output",
        tokens=32,
    ),
    # AMR: [CLS] of the last four CLIP blocks, before the projection, so they are in no joint space
    "amr": Layout(
        {
            "slowfast": Stream(("slowfast_features/{vid}.npz:features",)),
            "clip_k4": Stream(("clip_b32_vid_k4/{vid}.npy",), parts=4),
        },
        Stream(("clip_b32_txt_k4/{qid}.npy",), parts=4),
        tokens=32,
    ),
    "univtg": Layout(
        {
            "slowfast": Stream(("vid_slowfast/{vid}.npz:features", "h5py/vid_slowfast.hdf5:{vid}")),
            "clip": Stream(("vid_clip/{vid}.npz:features", "h5py/vid_clip.hdf5:{vid}")),
        },
        Stream(("txt_clip/{qid}.npz:last_hidden_state", "h5py/txt_clip.hdf5:{qid}")),
    ),
    # MATR: the query is a video
    "matr": Layout(
        {"clip": Stream(("target_vid_clip/{vid}.npz:features", "vid_clip/{vid}.npz:features"))},
        Stream(("query_vid_clip/qid{qid}.npz:last_hidden_state", "vid_clip_query/qid{qid}.npz:last_hidden_state")),
        joint="clip",
        sentence="mean",
    ),
    # lighthouse and QD-DETR on TVSum; they do not normalise the tokens: normalize=["i3d"]
    "tvsum": Layout(
        {
            "i3d": Stream(
                (
                    "i3d/{vid}_rgb.npy + i3d/{vid}_opt.npy",
                    "video_features/{vid}_rgb.npy + video_features/{vid}_opt.npy",
                    "{vid}_rgb.npy + {vid}_opt.npy",
                )
            )
        },
        Stream(("clip_text/{qid}.npz:token", "query_features/{qid}.npz:token", "{qid}.npz:token")),
    ),
    # 2D-TAN; a word is its GloVe vector
    "tan_vgg": Layout({"vgg": Stream(("vgg_rgb_features.hdf5:{vid}",), per_clip=False)}, Stream(("glove*.txt",))),
    "tan_c3d": Layout(
        {"c3d": Stream(("sub_activitynet_v1-3.c3d.hdf5:{vid}/c3d_features",), per_clip=False)}, Stream(("glove*.txt",))
    ),
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
        raise _missing(root, f"no such folder; the annotations and features of {name} are expected there")
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


def read_samples(name: str, file: Path, *, clamp: bool = False) -> Iterator[Line]:
    """The lines of an annotation file, in whichever format it was published; see `read_annotations`."""
    return READERS[Path(file.name.removesuffix(".gz")).suffix](file, DATASETS[name], clamp)


def find_source(root: Path, stream: Stream, dataset: Dataset) -> Source:
    """The source of a stream: its feature files under `root`.

    raises  FileNotFoundError if none of its templates has files, ValueError if two have
    """
    templates = [t for t in stream.templates if _has_files(root, t, dataset)]
    if not templates:
        raise _missing(root, f"no {' or '.join(stream.templates)}; streams= chooses among the streams that are there")
    if len(templates) > 1:
        raise DataError(Problem(str(root), None, "ambiguous", f"{' and '.join(templates)} are there; keep one of them"))
    return Source(root, templates[0], dataset.query, stream.parts, None if stream.per_clip else dataset.clip_s)


def find_query(root: Path, layout: str, dataset: Dataset, samples: Collection[Sample]) -> Source | WordVectors:
    """The source of the query vectors of samples: feature files or a GloVe file under `root`."""
    source = find_source(root, LAYOUTS[layout].query, dataset)
    if not source.template.endswith(".txt"):
        return source
    files = sorted(root.glob(source.template))
    if len(files) > 1:
        raise DataError(Problem(str(root), None, "ambiguous", f"{[f.name for f in files]} are there; keep one of them"))
    return WordVectors(files[0], samples)


def _has_files(root: Path, template: str, dataset: Dataset) -> bool:
    """Whether each part of a template matches a file."""
    files = [part.partition(":")[0].replace("{query}", dataset.query) for part in template.split(" + ")]
    patterns = [re.sub(r"{\w+}", "*", file) for file in files]
    return all(next(root.glob(pattern), None) for pattern in patterns)


def find_layout(root: Path, dataset: Dataset) -> str:
    """The one layout of which query features and video features are under `root`.

    raises  FileNotFoundError if there is none, ValueError if there are several
    """
    names = [
        name
        for name, layout in LAYOUTS.items()
        if any(_has_files(root, t, dataset) for t in layout.query.templates)
        and any(_has_files(root, t, dataset) for stream in layout.video.values() for t in stream.templates)
    ]
    if len(names) > 1:
        message = f"features in the layouts {', '.join(names)}; say which by layout="
        raise DataError(Problem(str(root), None, "ambiguous", message))
    if not names:
        templates = (
            f"  {name}: {'; '.join(' or '.join(s.templates) for s in layout.video.values())}"
            f"; query: {' or '.join(layout.query.templates)}"
            for name, layout in LAYOUTS.items()
        )
        raise _missing(root, "features in no known layout; looked for\n" + "\n".join(templates))
    return names[0]


def _missing(folder: str | os.PathLike, message: str) -> MissingFile:
    return MissingFile(Problem(str(folder), None, "missing file", message))


def open_files(
    name: str,
    root: str | os.PathLike | None = None,
    split: str = "train",
    *,
    layout: str | None = None,
    streams: str | Iterable[str] | None = None,
    normalize: bool | Iterable[str] = True,
    dtype: torch.dtype = torch.float32,
    cache: str | os.PathLike | None = None,
    limit: int | None = None,
    domain: str | None = None,
    bad: Mode = "error",
) -> MomentDataset:
    """A dataset from annotation and feature files.

    name       of DATASETS
    root       folder with the annotations and features; None: $MRLIB_DATA/name
    split      as in the names of the annotation files: "train", "val", "test"
    layout     of LAYOUTS; None: the one whose files are there
    streams    names of the video streams to concatenate, in this order; "joint" for only the one in the joint space;
               None for all of the layout
    normalize  which vectors are divided by their L2 norm: True for all, as in the official loaders, False for none, or
               names of streams and "query"; the query's vector in the joint space is treated as the joint stream is
    dtype      of the features in the cache, float32 or float16; batches are float32 either way
    cache      folder for the memory-mapped features; None: `.mrlib_cache` under root or, where that cannot be written,
               `mrlib` under $XDG_CACHE_HOME
    limit      only the first samples
    domain     only the samples of this domain; on TVSum the official recipe trains one model per domain
    bad        what to do with annotated lines that are not right, "error", "skip" or "clamp": see `mrlib.data.lenient`
    raises     ValueError, FileNotFoundError or KeyError, naming the file, the problem and what to do

    The streams of a video are cut to the shortest and to the video's duration; a query is cut to what the official
    loader reads (32 tokens for Moment-DETR and AMR).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; at least one sample, or None for all")
    root = dataset_root(name, root)
    file = _annotation_file(name, root, split)
    lines = read_samples(name, file, clamp=mode_of(bad) == "clamp")
    samples = checked_samples(file, DATASETS[name].clip_s, lines, bad)
    samples = _in_domain(samples, domain, f"{name} {split}")[:limit]
    layout = layout or find_layout(root, DATASETS[name])
    features = open_features(name, root, samples, layout, streams, normalize)
    settings = {
        "layout": layout,
        "streams": list(features.video),
        "normalize": sorted(features.normalized),
        "dtype": str(dtype).removeprefix("torch."),
        "limit": limit,
    } | ({} if domain is None else {"domain": domain})
    settings |= {} if bad == "error" else {"bad": bad}
    digest = hashlib.sha256(json.dumps([str(root.resolve()), settings]).encode()).hexdigest()[:8]
    stem = _cache_folder(root, cache) / f"{name}-{split}-{digest}"
    return _read_dataset(name, split, samples, features, dtype, stem, settings)


def _annotation_file(name: str, root: Path, split: str) -> Path:
    splits = find_annotations(name, root)
    if split not in splits:
        expected = " or ".join(t.replace("{split}", split) for t in DATASETS[name].annotations)
        raise _missing(root, f"no split {split!r} of {name}: {expected} is expected; there are {sorted(splits)}")
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
    state = features.state(videos.values(), features.video.values())
    target, _ = _cached_bank(f"{stem}-target", state, features.videos(videos.values()), len(videos), dtype)
    state = features.state(queries.values(), [features.query])
    query, vectors = _cached_bank(f"{stem}-query", state, features.queries(queries.values()), len(queries), dtype)
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


def _cached_bank(
    stem: str, state: str, items: Iterable[tuple[np.ndarray, np.ndarray | None]], count: int, dtype: torch.dtype
) -> tuple[Bank, Tensor | None]:
    """The bank in the file `{stem}-{state}.safetensors`, written first if it is not there; other states are removed.

    state        digest of the feature files
    items, count  as in `save_bank`; not read if the file is there
    """
    file = Path(f"{stem}-{state}.safetensors")
    bank = load_bank(file)
    if bank is None:
        save_bank(file, items, count, dtype)
        for stale in set(file.parent.glob(f"{Path(stem).name}-*.safetensors")) - {file}:
            stale.unlink(missing_ok=True)
        bank = load_bank(file)
    return bank


def open_features(
    name: str,
    root: Path,
    samples: Sequence[Sample],
    layout: str,
    streams: str | Iterable[str] | None,
    normalize: bool | Iterable[str],
) -> Features:
    """The features that `open_files` reads; only those of the first sample are read here, for their widths."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    row, dataset = LAYOUTS[layout], DATASETS[name]
    names = stream_names(layout, streams)
    normalized = {*names, "query"} if normalize is True else set() if normalize is False else set(normalize)
    if unknown := normalized - {*names, "query"}:
        raise ValueError(f"normalize names {sorted(unknown)}; there are {[*names, 'query']}")
    video = {stream: find_source(root, row.video[stream], dataset) for stream in names}
    features = Features(
        video=video,
        query=find_query(root, layout, dataset, samples),
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


def stream_names(layout: str, streams: str | Iterable[str] | None) -> tuple[str, ...]:
    """The streams of a layout that `streams` of `open_files` means; ValueError for one that it lacks."""
    video, joint = LAYOUTS[layout].video, LAYOUTS[layout].joint
    if streams == "joint":
        if joint is None:
            raise ValueError(f"layout {layout} has no stream in a joint space; its streams are {list(video)}")
        return (joint,)
    names = tuple(video) if streams is None else (streams,) if isinstance(streams, str) else tuple(streams)
    if not names or len(set(names)) < len(names) or set(names) - set(video):
        raise ValueError(f"streams {list(names)} of layout {layout}; choose among {list(video)}, each once")
    return names


def _cache_folder(root: Path, cache: str | os.PathLike | None) -> Path:
    if cache is not None:
        return Path(cache)
    if os.access(root, os.W_OK):
        return root / ".mrlib_cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mrlib"
