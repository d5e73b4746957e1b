"""What is wrong with the files of a dataset, all of it at once: `python -m mrlib.data.check NAME [ROOT]`.

It reads with the readers that `open_files` uses, so what passes here opens. One bad line or file stops nothing.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from mrlib.data import Sample
from mrlib.data.annotations import shared_classes
from mrlib.data.arrays import same_width
from mrlib.data.features import Source, agreed_length
from mrlib.data.layouts import (
    DATASETS,
    LAYOUTS,
    dataset_root,
    find_annotations,
    find_layout,
    find_query,
    find_source,
    read_samples,
)
from mrlib.data.problems import DataError, Problem


@dataclass
class Part:
    """How one stream of one split fares."""

    split: str
    stream: str
    wanted: int = 0  # videos or queries in the annotations, lines for the annotations themselves
    shapes: list[tuple[int, int]] = field(default_factory=list)  # of those that could be read
    files: list[Path] = field(default_factory=list)  # of each shape

    @property
    def width(self) -> int | None:
        """The most common one."""
        widths = Counter(width for _, width in self.shapes)
        return widths.most_common(1)[0][0] if widths else None

    def __str__(self) -> str:
        text = f"{self.split:8} {self.stream:12} {len(self.shapes)} of {self.wanted} read"
        rows = [rows for rows, _ in self.shapes]
        return f"{text}, {min(rows)} to {max(rows)} rows of {self.width}" if self.files else text


def check(name: str, root: str | os.PathLike | None = None, layout: str | None = None) -> list[Problem]:
    """Every problem of a dataset's annotations and features; those that are not fatal do not stop `open_files`.

    name, root, layout  as in `mrlib.data.layouts.open_files`; ValueError for a name or folder that is not there
    """
    return _examine(name, dataset_root(name, root), layout)[1]


def _examine(name: str, root: Path, layout: str | None) -> tuple[list[Part], list[Problem]]:
    parts: list[Part] = []
    problems: list[Problem] = []

    @contextmanager
    def noting(where: str = "") -> Iterator[None]:
        try:
            yield
        except DataError as error:
            problems.append(replace(error.problem, message=error.problem.message + where))

    with noting():
        layout = layout or find_layout(root, DATASETS[name])
    splits = find_annotations(name, root)
    if not splits:
        expected = " or ".join(DATASETS[name].annotations)
        problems.append(Problem(str(root), None, "missing file", f"no annotations, {expected}"))
    field, classes = DATASETS[name].classes, {}
    for split, file in splits.items():
        samples = _annotations(name, split, file, parts, problems)
        values = (sample.extra.get(field) for _, sample in samples)
        classes[file] = {value for value in values if isinstance(value, int | str)}
        if layout is not None and samples:
            _features(name, root, layout, split, file, samples, parts, noting)
    problems += shared_classes(field, classes)
    return parts, list(dict.fromkeys(problems))  # what every split lacks, once


def _annotations(
    name: str, split: str, file: Path, parts: list[Part], problems: list[Problem]
) -> list[tuple[int, Sample]]:
    """The sound lines of a file with their numbers."""
    part, samples = Part(split, "annotations"), []
    for number, sample, found in read_samples(name, file):
        part.wanted += number is not None
        problems += found
        if sample is not None:
            samples.append((number, sample))
            part.shapes.append((1, 1))
    parts.append(part)
    return samples


def _features(
    name: str,
    root: Path,
    layout: str,
    split: str,
    annotations: Path,
    samples: list[tuple[int, Sample]],
    parts: list[Part],
    noting: Callable,
) -> None:
    """Read every feature that the samples of a split need."""
    dataset, row = DATASETS[name], LAYOUTS[layout]
    unit = "item" if annotations.suffix == ".json" else "line"
    videos, queries = {}, {}
    for number, sample in samples:
        videos.setdefault(sample.vid, (number, sample))
        queries.setdefault(sample.qid, (number, sample))
    sources: dict[str, Source] = {}
    for stream in row.video:
        with noting():
            sources[stream] = find_source(root, row.video[stream], dataset)
    of_stream = {stream: Part(split, stream, len(videos)) for stream in sources}
    for number, sample in _progress(videos.values(), split):
        needed = f"; needed by {unit} {number} of {annotations.name}"
        lengths = {}
        for stream, source in sources.items():
            with noting(needed):
                file, rows = source.files(sample)[0][0], source.rows(sample)
                lengths[file] = len(rows)
                of_stream[stream].shapes.append(rows.shape)
                of_stream[stream].files.append(file)
        with noting(needed):
            if lengths:
                agreed_length(lengths, sample, dataset.clip_s)
    query, of_query, vectors = None, Part(split, "query", len(queries)), Part(split, "sentence", len(queries))
    with noting():
        query = find_query(root, layout, dataset, [sample for _, sample in samples])
    for number, sample in _progress(queries.values() if query else (), split):
        with noting(f"; needed by {unit} {number} of {annotations.name}"):
            file, rows = query.files(sample)[0][0], query.rows(sample)
            of_query.shapes.append(rows.shape)
            of_query.files.append(file)
            if row.joint in sources:
                vector = rows if row.sentence == "mean" else query.vector(sample, row.sentence)
                vectors.shapes.append((1, vector.shape[1]))
                vectors.files.append(file)
    parts += [*of_stream.values(), of_query]
    expected = [(part, part.width) for part in (*of_stream.values(), of_query)]
    if row.joint in sources:
        expected.append((vectors, of_stream[row.joint].width or vectors.width))
    for part, width in expected:
        for file, shape in zip(part.files, part.shapes, strict=True):
            with noting():
                same_width(shape, width, file)


def _progress(items: Iterable[tuple[int, Sample]], split: str) -> Iterable[tuple[int, Sample]]:
    return tqdm(items, desc=split, leave=False, disable=None)


def main(arguments: list[str] | None = None) -> int:
    """Print the report; 0 if nothing is wrong, 1 if something is, 2 if there is nothing to look at."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.data.check", description=__doc__.split(":")[0])
    parser.add_argument("name", help=", ".join(DATASETS))
    parser.add_argument("root", nargs="?", help="folder with annotations and features; default $MRLIB_DATA/NAME")
    parser.add_argument("--layout", help=f"{', '.join(LAYOUTS)}; default the one that is there")
    given = parser.parse_args(arguments)
    try:
        root = dataset_root(given.name, given.root)
    except ValueError as error:
        parser.error(str(error))
    if given.layout not in (None, *LAYOUTS):
        parser.error(f"unknown layout {given.layout!r}; known: {', '.join(LAYOUTS)}")
    parts, problems = _examine(given.name, root, given.layout)
    for part in parts:
        print(part)
    for problem in problems:
        print(problem if problem.fatal else f"{problem} (not fatal)")
    fatal = sum(problem.fatal for problem in problems)
    print(f"{fatal} problems" + (f", {len(problems) - fatal} notes" if len(problems) > fatal else ""))
    return 1 if fatal else 0


if __name__ == "__main__":
    raise SystemExit(main())
