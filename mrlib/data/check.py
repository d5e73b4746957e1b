"""List all problems of the files of a dataset at once: `python -m mrlib.data.check NAME [ROOT]`.

It reads with the readers of `open_files`, so a dataset that passes here opens with the same options, and one that opens
passes. It continues after a bad line or file, and says what `bad="skip"` and `bad="clamp"` would change.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from mrlib.arguments import has_terminal, printing
from mrlib.data import Sample
from mrlib.data.annotations import examined, shared_classes
from mrlib.data.arrays import same_width
from mrlib.data.features import Source, WordVectors, agreed_length
from mrlib.data.layouts import (
    DATASETS,
    LAYOUTS,
    Dataset,
    dataset_of,
    dataset_root,
    find_annotations,
    read_samples,
    stream_names,
)
from mrlib.data.lenient import Mode, mode_of, refusals, summary
from mrlib.data.lines import Line
from mrlib.data.problems import DataError, Problem, counted
from mrlib.data.recipes import read_recipe, usual_options
from mrlib.data.sources import Layout, choose_layout, find_query, find_source, require_layout


@dataclass
class Part:
    """Shapes and files of the vectors read from one stream of one split."""

    split: str
    stream: str
    wanted: int = 0  # videos or queries in the annotations; of the annotations themselves, lines
    shapes: list[tuple[int, int]] = field(default_factory=list)  # of those that could be read
    files: list[Path] = field(default_factory=list)  # of each shape

    @property
    def width(self) -> int | None:
        """The most common feature width; None if nothing was read."""
        widths = Counter(width for _, width in self.shapes)
        return widths.most_common(1)[0][0] if widths else None

    def add(self, shape: tuple[int, int], file: Path) -> None:
        self.shapes.append(shape)
        self.files.append(file)

    def __str__(self) -> str:
        text = f"{self.split:8} {self.stream:12} {len(self.shapes)} of {self.wanted} read"
        rows = [rows for rows, _ in self.shapes]
        return f"{text}, {min(rows)} to {max(rows)} rows of {self.width}" if self.files else text


@dataclass
class _Report:
    """The parts that were read, and all problems."""

    parts: list[Part] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ways_out: list[str] = field(default_factory=list)  # what the other modes of `bad` make of each file with problems

    @contextmanager
    def collecting(self, need: str = "") -> Iterator[None]:
        """Collect the problem that the block raises, with `need` at the end of its message."""
        try:
            yield
        except DataError as error:
            self.problems.append(replace(error.problem, message=error.problem.message + need))


def check(name: str, root: str | os.PathLike | None = None, layout: str | None = None, **options) -> list[Problem]:
    """Every problem of a dataset's annotations and features; those that are not fatal do not stop `open_files`.

    name, root, layout  as in `mrlib.data.layouts.open_files`; ValueError for a name or folder that is not there
    options             of `open_files`: streams, clip_s, rows_per_s, files, query_files, bad
    raises              ValueError for a wrong option
    """
    return _check(name, dataset_root(name, root), {"layout": layout} | options).problems


def _check(name: str, root: Path, options: dict[str, Any]) -> _Report:
    report, found = _Report(), _Report()
    row_s, streams = usual_options(read_recipe(root), options.pop("clip_s", None), options.pop("streams", None))
    dataset = dataset_of(name, row_s)
    bad = mode_of(options.pop("bad", "error"))
    splits = find_annotations(name, root)
    if not splits:
        expected = " or ".join(DATASETS[name].annotations)
        report.problems.append(Problem(str(root), None, "missing file", f"no annotations, {expected}"))
    classes = {}
    for split, file in splits.items():
        samples = _check_annotations(report, name, dataset, bad, split, file)
        values = (sample.extra.get(dataset.classes) for _, sample in samples)
        classes[file] = {value for value in values if isinstance(value, int | str)}
        if not samples:
            continue
        with found.collecting():
            layout, row = choose_layout(root, dataset, [sample for _, sample in samples], **options)
            row = replace(row, video={stream: row.video[stream] for stream in stream_names(layout, row, streams)})
            _check_features(report, root, dataset, row, split, file, samples)
    report.problems += [replace(problem, fatal=False) for problem in shared_classes(dataset.classes, classes)]
    # a problem that several splits have is listed once
    report.problems = list(dict.fromkeys(found.problems + report.problems))
    return report


def _check_annotations(
    report: _Report, name: str, dataset: Dataset, bad: Mode, split: str, file: Path
) -> list[tuple[int, Sample]]:
    """The lines of a file that have no fatal problem, each with its number."""

    def lines_in(mode: Mode) -> list[Line]:
        return examined(file, read_samples(name, file, dataset.clip_s, clamp=mode == "clamp"))

    lines = lines_in(bad)
    report.problems += [replace(p, fatal=False) if bad == "skip" else p for _, _, problems in lines for p in problems]
    report.problems += refusals(file, lines, bad) if bad == "skip" else []
    if bad == "error" and any(problem.fatal for _, _, problems in lines for problem in problems):
        report.ways_out.append(_way_out(file, lines, "skip", dataset.clip_s))
        report.ways_out.append(_way_out(file, lines_in("clamp"), "clamp", dataset.clip_s))
    samples = [(number, sample) for number, sample, _ in lines if sample is not None]
    numbers = {number for number, _, _ in lines if number is not None}
    part = Part(split, "annotations", len(numbers), shapes=[(1, 1)] * len({number for number, _ in samples}))
    report.parts.append(part)
    return samples


def _way_out(file: Path, lines: list[Line], bad: Mode, clip_s: float) -> str:
    """What a mode makes of a file whose lines have fatal problems."""
    refused = len(refusals(file, lines, bad))
    text = summary(lines, bad, clip_s) or f'bad="{bad}" changes nothing'
    return f"{file}: {text}" + (f"; it still refuses {counted(refused, 'problem')}" if refused else "")


def _check_features(
    report: _Report,
    root: Path,
    dataset: Dataset,
    row: Layout,
    split: str,
    annotations: Path,
    samples: list[tuple[int, Sample]],
) -> None:
    """Read every feature that the samples of a split need, and compare their widths."""
    unit = "item" if annotations.suffix == ".json" else "line"
    videos: dict[str, tuple[Sample, str]] = {}  # the first sample of each, and the end of its error messages
    queries: dict[int | str, tuple[Sample, str]] = {}
    for number, sample in samples:
        need = f"; needed by {unit} {number} of {annotations.name}"
        videos.setdefault(sample.vid, (sample, need))
        queries.setdefault(sample.qid, (sample, need))
    streams = _check_videos(report, root, dataset, row, split, videos.values())
    query = None
    with report.collecting():
        query = find_query(root, row.query, dataset, [sample for _, sample in samples])
    joint = streams.get(row.joint)
    sentence = row.sentence if joint is not None else None
    rows, vectors = _check_queries(report, query, sentence, split, queries.values())
    report.parts += [*streams.values(), rows]
    widths = [(part, part.width) for part in (*streams.values(), rows)]
    if joint is not None:
        widths.append((vectors, joint.width or vectors.width))
    for part, width in widths:
        for file, shape in zip(part.files, part.shapes, strict=True):
            with report.collecting():
                same_width(shape, width, file)


def _check_videos(
    report: _Report, root: Path, dataset: Dataset, row: Layout, split: str, videos: Collection[tuple[Sample, str]]
) -> dict[str, Part]:
    """Read all streams of some videos, and compare their lengths."""
    sources, samples = {}, [sample for sample, _ in videos]
    for stream, files in row.video.items():
        with report.collecting():
            sources[stream] = find_source(root, files, dataset, samples, video=True)
    parts = {stream: Part(split, stream, len(videos)) for stream in sources}
    for sample, need in _progress(videos, split):
        lengths = {}
        for stream, source in sources.items():
            with report.collecting(need):
                file, rows = source.files(sample)[0][0], source.rows(sample)
                lengths[file] = len(rows)
                parts[stream].add(rows.shape, file)
        with report.collecting(need):
            if lengths:
                agreed_length(lengths, sample, dataset.clip_s)
    return parts


def _check_queries(
    report: _Report,
    source: Source | WordVectors | None,
    sentence: str | None,
    split: str,
    queries: Collection[tuple[Sample, str]],
) -> tuple[Part, Part]:
    """Read the rows of some queries and, with `sentence` as in `Layout`, their vectors in the joint space."""
    rows_part, vectors_part = Part(split, "query", len(queries)), Part(split, "sentence", len(queries))
    for sample, need in _progress(queries if source else (), split):
        with report.collecting(need):
            file, rows = source.files(sample)[0][0], source.rows(sample)
            rows_part.add(rows.shape, file)
            if sentence is not None:
                vector = rows if sentence == "mean" else source.vector(sample, sentence)
                vectors_part.add((1, vector.shape[1]), file)
    return rows_part, vectors_part


def _progress(items: Iterable[tuple[Sample, str]], split: str) -> Iterable[tuple[Sample, str]]:
    return tqdm(items, desc=split, leave=False, disable=not has_terminal())


def _json(text: str) -> Any:
    """A value in JSON, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@printing()
def main(arguments: list[str] | None = None) -> int:
    """Print the report; returns 0 without problems and 1 with any, and exits with 2 if there is nothing to check."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.data.check", description=(__doc__ or "").split(":")[0])
    parser.add_argument("name", help=", ".join(DATASETS))
    parser.add_argument("root", nargs="?", help="folder with annotations and features; default $MRLIB_DATA/NAME")
    parser.add_argument("--layout", help=f"{', '.join(LAYOUTS)}; default the one whose files are there")
    parser.add_argument("--streams", nargs="+", metavar="STREAM", help="of the layout, or joint; default all")
    parser.add_argument("--clip-s", type=float, help="seconds per clip; default that of the dataset")
    parser.add_argument("--bad", choices=get_args(Mode), default="error", help="as for opening; default error")
    parser.add_argument("--rows-per-s", type=_json, help='a number, "even", or JSON by the name of a stream')
    parser.add_argument("--files", type=_json, help="""JSON of templates, as '{"clip": "my/{vid}.npy"}'""")
    parser.add_argument("--query-files", help="a template, as text/{qid}.npy, or glove.6B.300d.txt")
    given = parser.parse_args(arguments)
    streams = "joint" if given.streams == ["joint"] else given.streams
    names = ("layout", "clip_s", "bad", "rows_per_s", "files", "query_files")
    options = {"streams": streams} | {name: getattr(given, name) for name in names}
    try:
        root = dataset_root(given.name, given.root)
        require_layout(given.layout)
        report = _check(given.name, root, options)
    except ValueError as error:
        parser.error(str(error))
    for part in report.parts:
        print(part)
    for problem in report.problems:
        print(problem if problem.fatal else f"{problem} (not fatal)")
    for text in report.ways_out:
        print(text)
    fatal = sum(problem.fatal for problem in report.problems)
    notes = len(report.problems) - fatal
    print(counted(fatal, "problem") + (f", {counted(notes, 'note')}" if notes else ""))
    return 1 if fatal else 0


if __name__ == "__main__":
    raise SystemExit(main())
