"""From feature files to the rows of a bank: find the vectors of a sample, read, check, cut and normalise them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrlib.data import Sample
from mrlib.data.annotations import is_plain_name
from mrlib.data.arrays import as_rows, normalized_rows, read_array, read_glove, same_width
from mrlib.data.clips import count_clips
from mrlib.data.problems import DataError, MissingFile, Problem


@dataclass(frozen=True)
class Source:
    """The files of one kind of vectors, and how to read those of a sample."""

    root: Path
    template: str  # "folder/{vid}.npz:key"; for "a + b" the rows of both are concatenated
    qid: str  # what {query} stands for, a template of {qid}
    parts: int  # vectors per row, each normalised by itself
    clip_s: float | None = None  # rows have another rate; average them over clips of this length.  None: rows are clips

    def files(self, sample: Sample) -> list[tuple[Path, str]]:
        """The files of a sample, each with the key of its array; ValueError for an id that is not a plain name."""
        for name, value in (("vid", sample.vid), ("qid", str(sample.qid))):
            if not is_plain_name(value):
                raise DataError(Problem(str(self.root), None, name, f"{value!r} is not a plain name; rename it"))
        ids = {"vid": sample.vid, "qid": sample.qid, "query": self.qid.format(qid=sample.qid)}
        parts = [part.partition(":") for part in self.template.split(" + ")]
        return [(self.root / file.format(**ids), key.format(**ids)) for file, _, key in parts]

    def rows(self, sample: Sample) -> np.ndarray:
        """The rows of a sample, not normalised, float32 (L, D)."""
        files = self.files(sample)
        arrays = [as_rows(read_array(file, key), file, parts=self.parts) for file, key in files]
        lengths = {file.name: len(array) for (file, _), array in zip(files, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            message = f"rows differ, {lengths}; extract the two together"
            raise DataError(Problem(str(files[0][0]), None, "length", message))
        rows = np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
        return rows if self.clip_s is None else averaged(rows, sample.duration / self.clip_s)

    def vector(self, sample: Sample, key: str) -> np.ndarray:
        """The vector in the array `key` of the same file, as a row: float32 (1, J)."""
        file, _ = self.files(sample)[0]
        array = read_array(file, key)
        return as_rows(array[None] if array.ndim == 1 else array, file)[:1]  # (J,) or (1, J) -> (1, J)


class WordVectors:
    """A `Source` of queries that looks up their lower-case words in a GloVe text file; unknown words are zeros."""

    parts = 1

    def __init__(self, file: Path, samples: Iterable[Sample]):
        self.file, self._samples = file, samples

    @cached_property
    def _vectors(self) -> dict[str, np.ndarray]:
        words = Counter(word for s in self._samples for word in words_of(s.query))
        vectors = read_glove(self.file, words)
        if unknown := [word for word, _ in words.most_common() if word not in vectors]:
            examples = ", ".join(unknown[:5])
            warnings.warn(
                f"{self.file}: {len(unknown)} of {len(words)} words have no vector and become zeros: {examples}, ...",
                stacklevel=2,
            )
        return vectors

    def files(self, sample: Sample) -> list[tuple[Path, str]]:
        """The GloVe file, as `Source.files` gives files."""
        return [(self.file, "")]

    def rows(self, sample: Sample) -> np.ndarray:
        """The vector of every word of a query, float32 (N, D); ValueError if no word has one."""
        words = words_of(sample.query)
        known = [self._vectors[w] for w in words if w in self._vectors]
        if not known:
            raise DataError(Problem(str(self.file), None, "words", f"no vector for any word of {sample.query!r}"))
        return np.stack([self._vectors.get(w, np.zeros_like(known[0])) for w in words])


def words_of(query: str) -> list[str]:
    """Lower-case words as GloVe splits them: "the man's" is the, man, 's."""
    return re.findall(r"[^\W_]+|'[a-z]+", query.lower())


def averaged(rows: np.ndarray, duration: float) -> np.ndarray:
    """One row per clip: the mean of the rows that begin in the clip, or the one row that covers it.

    rows      (R, D)  rows that cover the video evenly
    duration  of the video, in clips
    returns   (ceil(duration), D)
    """
    clips = count_clips(duration, 1)
    first = np.minimum(np.arange(clips) * len(rows) / duration, len(rows) - 1).astype(int)
    counts = np.maximum(np.diff(first, append=len(rows)), 1)
    return np.add.reduceat(rows, first) / counts[:, None].astype(np.float32)


def agreed_length(lengths: dict[Path, int], sample: Sample, clip_s: float) -> int:
    """The number of clips of a video: the rows of its shortest stream, but none beyond the video's end.

    lengths  rows of every stream, by file
    raises   ValueError if streams differ by more than two rows, or differ from the duration by more than two rows and
             by more than a twentieth of it; then something has another rate
    """
    counts = ", ".join(f"{n} in {file.parent.name}/{file.name}" for file, n in lengths.items())
    expected = count_clips(sample.duration, clip_s)
    file = str(max(lengths, key=lambda f: abs(lengths[f] - expected)))
    if max(lengths.values()) - min(lengths.values()) > 2:
        message = f"streams of one video differ by more than two rows: {counts}; extract them at one rate"
        raise DataError(Problem(file, None, "length", message))
    if any(abs(n - expected) > max(2, expected // 20) for n in lengths.values()):
        message = f"rows: {counts}; the video is {sample.duration:g} s, {expected} clips of {clip_s:g} s"
        raise DataError(Problem(file, None, "length", f"{message}; extract them at that rate or correct the duration"))
    return min(expected, *lengths.values())


@dataclass(frozen=True)
class Features:
    """The features of samples: the files to read, and how to prepare their rows for a bank."""

    video: dict[str, Source]
    query: Source | WordVectors
    sentence: str | None  # the array beside a query's rows that is the whole query in the joint space; "mean" of rows
    tokens: int | None  # a query is cut to this many rows
    joint: str | None  # the stream of `video` in the joint space
    widths: dict[str, int]  # width of every stream
    normalized: frozenset[str]  # names of streams and "query"
    clip_s: float
    hint: str  # what an error message ends with: how to list all problems

    def videos(self, samples: Collection[Sample]) -> Iterator[tuple[np.ndarray, None]]:
        """For every sample the rows of its video, all streams concatenated, (L, D), and None."""
        for sample in tqdm(samples, desc="videos", leave=False, disable=None):
            with self.reading(sample):
                rows = {name: source.rows(sample) for name, source in self.video.items()}
                files = {name: source.files(sample)[0][0] for name, source in self.video.items()}
                for name, width in self.widths.items():
                    same_width(rows[name].shape, width, files[name])
                n = agreed_length({files[name]: len(x) for name, x in rows.items()}, sample, self.clip_s)
            streams = [self._normalized(name, x[:n], self.video[name].parts) for name, x in rows.items()]
            yield np.concatenate(streams, 1), None  # (n, D)

    def queries(self, samples: Collection[Sample]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """For every sample the rows of its query (N, D') and, if the video has a joint stream, one vector (J,)."""
        width = None
        for sample in tqdm(samples, desc="queries", leave=False, disable=None):
            with self.reading(sample):
                rows, file = self.query.rows(sample), self.query.files(sample)[0][0]
                width = same_width(rows.shape, width, file)
                vector = self._vector(sample, rows)
                if vector is not None:
                    same_width(vector.shape, self.widths[self.joint], file)
            rows = self._normalized("query", rows[: self.tokens], self.query.parts)
            yield rows, None if vector is None else vector[0]

    def _vector(self, sample: Sample, rows: np.ndarray) -> np.ndarray | None:
        """The whole query in the joint space, (1, J); None if no stream is in it."""
        if self.joint is None:
            return None
        if self.sentence == "mean":
            return normalized_rows(normalized_rows(rows).mean(0, keepdims=True))
        return self._normalized(self.joint, self.query.vector(sample, self.sentence))

    def _normalized(self, name: str, rows: np.ndarray, parts: int = 1) -> np.ndarray:
        return normalized_rows(rows, parts) if name in self.normalized else rows

    def state(self, samples: Iterable[Sample], sources: Iterable[Source | WordVectors]) -> str:
        """A digest of the files that hold the samples' features, and of their sizes and times."""
        stamps, digest = {}, hashlib.sha256()
        for sample in samples:
            with self.reading(sample):
                digest.update(f"{sample.vid} {sample.qid} {sample.duration}\n".encode())
                for source in sources:
                    for file, key in source.files(sample):
                        if file not in stamps:
                            stamps[file] = _stamp(file)
                        digest.update(f"{file} {key} {stamps[file]}\n".encode())
        return digest.hexdigest()[:16]

    @contextmanager
    def reading(self, sample: Sample) -> Iterator[None]:
        """Add to errors inside the block which sample was read."""
        try:
            yield
        except DataError as error:
            need = f"needed by query {sample.qid} {sample.query!r} on video {sample.vid}"
            message = f"{error.problem.message}; {need}; {self.hint}"
            raise type(error)(replace(error.problem, message=message)) from error


def _stamp(file: Path) -> str:
    """Size and time of a file."""
    try:
        stat = file.stat()
    except OSError as error:
        problem = Problem(str(file), None, "missing file", f"no such feature file ({error.strerror})")
        raise MissingFile(problem) from error
    return f"{stat.st_size} {stat.st_mtime_ns}"
