"""A table of the layouts of feature files, and the search for the files of a dataset.

A layout names its feature files, as templates under the dataset's root,

    clip_features/{vid}.npz:features          file of a video : array in it
    vgg_rgb_features.hdf5:{vid}               one file of all videos : array of a video; .h5 is the same
    {vid}_rgb.npy + {vid}_opt.npy             two files side by side

with {vid} a video, {qid} a query, {query} a query as the dataset spells it. Of several templates one applies. Features
in no known layout are looked for by name: a folder or HDF5 file that has the first video, and one that has the first
query, or a GloVe file. `files` and `query_files` of `open_files` name them instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.annotations import is_plain_name
from mrlib.data.features import Rate, Source, WordVectors
from mrlib.data.problems import DataError, MissingFile, Problem
from mrlib.data.search import ENDINGS, folders, has_key, matching, templates_of
from mrlib.data.stored import HDF5, is_file

OWN = "own"  # the name of a layout that is in no table
MOST_ROWS_PER_S = 1000
_TEMPLATE = re.compile(r"(?:[^{}\x00-\x1f]|{(?:vid|qid|query)}){1,1000}")


class Spelling(Protocol):
    """What a dataset says about its features, see `mrlib.data.layouts.Dataset`."""

    clip_s: float
    query: str


@dataclass(frozen=True)
class Stream:
    """One kind of feature vectors."""

    templates: tuple[str, ...]
    parts: int = 1  # vectors per row, each normalised by itself
    rate: Rate = "clips"  # "clips": a row is a clip; else rows are averaged over clips, see `clip_starts`


@dataclass(frozen=True)
class Layout:
    """The features of an official release, and their files."""

    video: dict[str, Stream]  # in the order in which they are concatenated
    query: Stream
    joint: str | None = None  # the stream whose space the query's vector shares
    sentence: str | None = None  # the query's vector: an array beside `query`, or "mean" of its normalised rows
    tokens: int | None = None  # the most rows of a query that the official loader reads


_GLOVE = Stream(("glove*.txt",))
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
    # InternVideo2 and LLaMA, as TD-DETR, SG-DETR and FlashVTG read them; in no joint space
    "internvideo2": Layout(
        {
            "internvideo2": Stream(
                (
                    "qvhighlight_internvideo2_videoclip_6b_w2s/{vid}.pt",
                    "charade_sta_internvideo2_videoclip_6b_w1s/{vid}.pt",
                    "qvhighlight_6b/{vid}.pt",
                    "internvideo2/{vid}.pt",
                )
            )
        },
        Stream(
            tuple(
                f"{folder}/{name}.pt"
                for folder in (
                    "qvhighlight_internvideo2_llama_text_feature",
                    "charade_sta_internvideo2_llama_text_feature",
                    "qvhighlight_llama_text_feature",
                    "llama_text_feature",
                    "llama",
                )
                for name in ("qid{qid}", "{qid}")
            )
        ),
    ),
    # 2D-TAN; a word is its GloVe vector
    "tan_vgg": Layout({"vgg": Stream(("vgg_rgb_features.hdf5:{vid}",), rate="even")}, _GLOVE),
    "tan_c3d": Layout({"c3d": Stream(("sub_activitynet_v1-3.c3d.hdf5:{vid}/c3d_features",), rate="even")}, _GLOVE),
    "tan_tall": Layout(
        {"c3d": Stream(("tall_c3d_features.hdf5:{vid}", "tall_c3d_features.hdf5:{vid}.avi"), rate="even")}, _GLOVE
    ),
}


def missing(folder: str | os.PathLike, message: str) -> MissingFile:
    """The error for files that are not in a folder."""
    return MissingFile(Problem(str(folder), None, "missing file", message))


# ---- which layout ----


def choose_layout(
    root: Path,
    dataset: Spelling,
    samples: Sequence[Sample],
    *,
    layout: str | None = None,
    files: Mapping[str, str] | None = None,
    query_files: str | None = None,
    rows_per_s: Rate | Mapping[str, Rate] | None = None,
) -> tuple[str, Layout]:
    """The name of a layout, and the layout with the files and rates that are given in place of its own.

    samples  the first of them tells which files are there
    layout, files, query_files, rows_per_s  as in `mrlib.data.layouts.open_files`
    raises   ValueError naming the option; FileNotFoundError if no layout is there, ValueError if several are
    """
    require_layout(layout)
    templates = {} if files is None else _checked_files(files)
    if query_files is not None:
        _check_template("query_files", query_files, ("qid", "query"))
    name = layout or (None if templates else _known_layout(root, dataset)) or OWN
    if name == OWN:
        if not samples:
            raise missing(root, f"no sample whose features could be looked for; of known layouts,\n{_table()}")
        row = Layout({stream: Stream((each,), rate="auto") for stream, each in templates.items()}, Stream(()))
        if not templates:
            row = replace(row, video=_search_video(root, dataset, samples[0]))
        query_files = query_files or _search_query(root, samples[0])
    else:
        row = LAYOUTS[name]
        usual = {stream: row.video.get(stream, Stream((), rate="auto")) for stream in templates}
        row = replace(row, video=row.video | {s: replace(usual[s], templates=(each,)) for s, each in templates.items()})
    if query_files is not None:
        row = replace(row, query=replace(row.query, templates=(query_files,)))
    return name, replace(row, video=_with_rates(row.video, rows_per_s))


def require_layout(layout: str | None) -> None:
    """ValueError unless a layout of that name is known; None is."""
    if layout not in (None, OWN, *LAYOUTS):
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")


def _checked_files(files: Any) -> dict[str, str]:
    """The option `files`; ValueError for anything but templates of videos by the names of streams."""
    named = isinstance(files, Mapping) and len(files) > 0 and all(isinstance(stream, str) for stream in files)
    require(named, "files", files, '{"STREAM": "template"}, as {"clip": "features/{vid}.npy"}')
    for stream, template in files.items():
        require(
            is_plain_name(stream) and stream not in ("joint", "query"), "files", stream, "by plain names of streams"
        )
        _check_template(f"files[{stream!r}]", template, ("vid",))
    return dict(files)


def _check_template(option: str, template: Any, ids: tuple[str, ...]) -> None:
    """ValueError naming the option unless the template has one of these ids, and files of a known ending."""
    example = " or ".join(f"features/{{{each}}}.npy" for each in ids)
    wanted = f"a template as {example}, ending in {', '.join(ENDINGS)}, with an array's name after a colon"
    require(isinstance(template, str) and _TEMPLATE.fullmatch(template) is not None, option, template, wanted)
    if template.endswith(".txt"):
        require("vid" not in ids, option, template, wanted)
        return
    endings = [Path(part.partition(":")[0]).suffix for part in template.split(" + ")]
    has_id = all(any(f"{{{each}}}" in part for each in ids) for part in template.split(" + "))
    require(has_id and set(endings) <= set(ENDINGS), option, template, wanted)


def _with_rates(video: dict[str, Stream], rows_per_s: Any) -> dict[str, Stream]:
    """The streams of a layout with the option `rows_per_s`."""
    if rows_per_s is None:
        return video
    rates = rows_per_s if isinstance(rows_per_s, Mapping) else dict.fromkeys(video, rows_per_s)
    require(set(rates) <= set(video), "rows_per_s", rows_per_s, f"for streams among {', '.join(video)}")
    for rate in rates.values():
        number = type(rate) in (int, float) and 0 < rate <= MOST_ROWS_PER_S
        wanted = (
            f'a number of rows per second up to {MOST_ROWS_PER_S}, "even", "auto" or "clips", or one for each stream'
        )
        require(number or rate in ("even", "auto", "clips"), "rows_per_s", rate, wanted)
    given = {name: rate if isinstance(rate, str) else float(rate) for name, rate in rates.items()}
    return {name: replace(stream, rate=given.get(name, stream.rate)) for name, stream in video.items()}


def own_settings(layout: str, row: Layout, streams: Iterable[str]) -> dict[str, Any]:
    """The options of `choose_layout` that say where a layout differs from the table."""
    usual = LAYOUTS.get(layout, Layout({}, Stream(())))
    settings: dict[str, Any] = {"files": {}, "rows_per_s": {}}
    for name in streams:
        before = usual.video.get(name, Stream((), rate="auto"))
        if row.video[name].templates != before.templates:
            settings["files"][name] = row.video[name].templates[0]
        if row.video[name].rate != before.rate:
            settings["rows_per_s"][name] = row.video[name].rate
    if row.query.templates != usual.query.templates:
        settings["query_files"] = row.query.templates[0]
    return {option: value for option, value in settings.items() if value}


def _known_layout(root: Path, dataset: Spelling) -> str | None:
    """The one layout of the table of which query features and video features are there; None if there is none.

    raises  ValueError if there are several
    """
    names = [
        name
        for name, layout in LAYOUTS.items()
        if _are_there(root, layout.query, dataset)
        and any(_are_there(root, stream, dataset) for stream in layout.video.values())
    ]
    if len(names) > 1:
        message = f"features in the layouts {', '.join(names)}; say which by layout="
        raise DataError(Problem(str(root), None, "ambiguous", message))
    return names[0] if names else None


# ---- the files of a layout ----


def find_source(root: Path, stream: Stream, dataset: Spelling, samples: Sequence[Sample], *, video: bool) -> Source:
    """The source of a stream of videos, or of the queries: its feature files under `root`.

    samples  of two spellings in one folder, the files of the first sample have one
    raises   FileNotFoundError if none of its templates has files, ValueError if two have
    """
    templates = _are_there(root, stream, dataset)
    if not templates:
        way_out = "streams= chooses among the streams that are there, files=" if video else "query_files="
        raise missing(root, f"no {' or '.join(stream.templates)}; {way_out} says where others are")
    clip_s, rate = (dataset.clip_s, stream.rate) if video else (None, "clips")
    sources = [Source(root, template, dataset.query, stream.parts, clip_s, rate) for template in templates]
    if len({os.path.dirname(template.partition(":")[0]) for template in templates}) == 1:
        sources = [source for source in sources if _has_sample(source, samples[0])] or sources[:1]
    if len(sources) > 1:
        names = " and ".join(source.template for source in sources)
        raise DataError(Problem(str(root), None, "ambiguous", f"{names} are there; keep one of them"))
    return sources[0]


def find_query(root: Path, stream: Stream, dataset: Spelling, samples: Sequence[Sample]) -> Source | WordVectors:
    """The source of the query vectors of samples: feature files or a GloVe file under `root`."""
    source = find_source(root, stream, dataset, samples, video=False)
    if not source.template.endswith(".txt"):
        return source
    files = sorted(matching(root, source.template))
    if len(files) > 1:
        raise DataError(Problem(str(root), None, "ambiguous", f"{[f.name for f in files]} are there; keep one of them"))
    return WordVectors(files[0], samples)


def _spellings(template: str) -> Iterator[str]:
    """A template with each ending that its HDF5 files may have."""
    yield template
    if ".hdf5" in template:
        yield template.replace(".hdf5", ".h5")


def _are_there(root: Path, stream: Stream, dataset: Spelling) -> list[str]:
    """The templates of a stream, with one of their endings, of which files are there."""
    return [t for each in stream.templates for t in _spellings(each) if _has_files(root, t, dataset)]


def _has_files(root: Path, template: str, dataset: Spelling) -> bool:
    """Whether each part of a template matches a file."""
    files = [part.partition(":")[0].replace("{query}", dataset.query) for part in template.split(" + ")]
    return all(next(matching(root, re.sub(r"{\w+}", "*", file)), None) for file in files)


def _has_sample(source: Source, sample: Sample) -> bool:
    """Whether the files of a sample are there; in an HDF5 file, with its key."""
    return all(is_file(file) and (file.suffix not in HDF5 or has_key(file, key)) for file, key in source.files(sample))


# ---- features in no known layout ----


def _search_video(root: Path, dataset: Spelling, sample: Sample) -> dict[str, Stream]:
    """The one stream of a video whose files have the video's name; FileNotFoundError if there is none."""
    templates = templates_of(root, {"{vid}": sample.vid})
    if not templates:
        raise missing(root, f"features in no known layout, and no files named {sample.vid}; looked for\n{_table()}")
    if len(templates) > 1:
        options = " or ".join(f'files={{"{_stream_name(t)}": "{t}"}}' for t in templates)
        raise DataError(Problem(str(root), None, "ambiguous", f"features in no known layout; say which by {options}"))
    return {_stream_name(templates[0]): Stream((templates[0],), rate="auto")}


def _search_query(root: Path, sample: Sample) -> str:
    """The template of queries whose files have the query's name, else of a GloVe file."""
    templates = templates_of(root, {"qid{qid}": f"qid{sample.qid}", "{qid}": str(sample.qid)})
    templates = templates or [
        f"{folder}glove*.txt" for folder in folders(root) if next(matching(root, f"{folder}glove*.txt"), None)
    ]
    if not templates:
        message = f"no features of queries: no file is named qid{sample.qid} or {sample.qid}, and none glove*.txt"
        raise missing(root, f"{message}; say where they are by query_files=")
    if len(templates) > 1:
        options = " or ".join(f'query_files="{t}"' for t in templates)
        raise DataError(Problem(str(root), None, "ambiguous", f"features in no known layout; say which by {options}"))
    return templates[0]


def _stream_name(template: str) -> str:
    """A name for the stream of a template: that of its folder, or of its HDF5 file."""
    file = Path(template.partition(":")[0])
    name = file.stem if "{" not in file.name else file.parent.name
    return name if name not in ("", "joint", "query") else "features"


def _table() -> str:
    """The layouts of the table, each in a line."""
    return "\n".join(
        f"  {name}: {'; '.join(' or '.join(s.templates) for s in layout.video.values())}"
        f"; query: {' or '.join(layout.query.templates)}"
        for name, layout in LAYOUTS.items()
    )
