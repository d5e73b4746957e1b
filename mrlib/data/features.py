"""From feature files to the rows of a bank: find the vectors of a sample, read, check, cut and normalise them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from mrlib.arguments import has_terminal
from mrlib.data import Sample
from mrlib.data.annotations import is_plain_name
from mrlib.data.arrays import Limit, normalized_rows, read_rows, read_vector, same_width
from mrlib.data.clips import count_clips
from mrlib.data.digests import content_digest, stamp
from mrlib.data.glove import read_glove
from mrlib.data.problems import DataError, Problem

_AVERAGE = 'average them over clips, by rows_per_s= or rows_per_s="even"'
Rate = float | Literal["clips", "even", "auto"]  # of the rows of a stream, see `clip_starts`


@dataclass(frozen=True)
class Source:
    """The files of one kind of vectors, and how to read those of a sample."""

    root: Path
    template: str  # "folder/{vid}.npz:key"; for "a + b" the rows of both are concatenated
    qid: str  # what {query} stands for, a template of {qid}
    parts: int  # vectors per row, each normalised by itself
    clip_s: float | None = None  # seconds per clip of a video searched in; None: the vectors are of queries
    rate: Rate = "clips"

    def files(self, sample: Sample) -> list[tuple[Path, str]]:
        """The files of a sample, each with the key of its array; ValueError for an id that is not a plain name."""
        for name, value in (("vid", sample.vid), ("qid", str(sample.qid))):
            if not is_plain_name(value):
                raise DataError(Problem(str(self.root), None, name, f"{value!r} is not a plain name; rename it"))
        ids = {"vid": sample.vid, "qid": sample.qid, "query": self.qid.format(qid=sample.qid)}
        parts = [part.partition(":") for part in self.template.split(" + ")]
        return [(self.root / file.format(**ids), key.format(**ids)) for file, _, key in parts]

    def rows(self, sample: Sample) -> np.ndarray:
        """The rows of a sample, not normalised, float32 (L, D); of a video, a row per clip."""
        files, limit, counts = self.files(sample), None, {}
        if self.clip_s is not None:
            clips = count_clips(sample.duration, self.clip_s)
            limit = Limit.of_video(clips, max(clips, sample.duration * _most_rows_per_s(self.rate)))
        arrays = []
        for file, key in files:
            starts = partial(self._starts, sample, file)
            rows, counts[file.name] = read_rows(file, key, parts=self.parts, limit=limit, starts=starts)
            arrays.append(rows)
        if len(set(counts.values())) > 1:
            message = f"rows differ, {counts}; extract the two together"
            raise DataError(Problem(str(files[0][0]), None, "length", message))
        return np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]

    def vector(self, sample: Sample, key: str) -> np.ndarray:
        """The vector in the array `key` of the same file, as a row: float32 (1, J)."""
        return read_vector(self.files(sample)[0][0], key)

    def _starts(self, sample: Sample, file: Path, rows: int) -> np.ndarray | None:
        """`clip_starts` of a file; ValueError if its rows are far too few, or at the given rate last another time."""
        if self.clip_s is None or self.rate == "clips":
            return None
        clips = count_clips(sample.duration, self.clip_s)
        if clips > 4 * rows + 64:
            message = f"{rows} rows for {clips} clips of {self.clip_s:g} s; correct the duration, {sample.duration:g} s"
            raise DataError(Problem(str(file), None, "length", message))
        if isinstance(self.rate, float) and abs(rows / self.rate / self.clip_s - clips) > tolerance(clips):
            message = (
                f"{rows} rows at {self.rate:g} a second last {rows / self.rate:g} s, the video {sample.duration:g} s; "
                'correct rows_per_s, or say rows_per_s="even" if they are spread evenly over the video'
            )
            raise DataError(Problem(str(file), None, "length", message))
        return clip_starts(rows, sample.duration / self.clip_s, self.rate, self.clip_s)


def _most_rows_per_s(rate: Rate) -> float:
    """The most rows per second that are expected, for `Limit`."""
    return rate if isinstance(rate, float) else 0 if rate == "clips" else 25


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


def clip_starts(rows: int, duration: float, rate: Rate, clip_s: float) -> np.ndarray | None:
    """The first row of every clip of a video, and the end of the last one; None if rows are clips.

    duration  of the video, in clips
    rate      "clips"  a row is a clip
              "even"   the rows cover the video evenly
              "auto"   the first if there are about as many rows as clips, else the second
              number   rows per second, from the beginning of the video; clips after the last row are left out
    returns   int64 (L + 1,). A clip is the mean of the rows from the one that covers its beginning up to the one that
              covers the beginning of the next clip, which is left out unless it is the same row
    """
    clips = count_clips(duration)
    if rate == "clips" or (rate == "auto" and abs(rows - clips) <= tolerance(clips)):
        return None
    if not isinstance(rate, float):
        first = np.minimum(np.arange(clips) * rows / duration, rows - 1).astype(int)
        return np.append(first, rows)
    per_clip = rate * clip_s
    clips = min(clips, count_clips(rows / per_clip))
    first = np.minimum(np.arange(clips) * per_clip + 1e-6, rows - 1).astype(int)
    return np.append(first, min(rows, max(first[-1] + 1, count_clips(clips * per_clip))))


def tolerance(clips: int) -> int:
    """How many rows more or less than clips a video may have: two, or a twentieth."""
    return max(2, clips // 20)


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
        message = (
            f"streams of one video differ by more than two rows: {counts}; extract them at one rate, or {_AVERAGE}"
        )
        raise DataError(Problem(file, None, "length", message))
    if any(abs(n - expected) > tolerance(expected) for n in lengths.values()):
        message = f"rows: {counts}; the video is {sample.duration:g} s, {expected} clips of {clip_s:g} s"
        advice = f"extract them at that rate, correct the duration, or {_AVERAGE}"
        raise DataError(Problem(file, None, "length", f"{message}; {advice}"))
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
        for sample in tqdm(samples, desc="videos", leave=False, disable=not has_terminal()):
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
        for sample in tqdm(samples, desc="queries", leave=False, disable=not has_terminal()):
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

    def items(self, samples: Iterable[Sample]) -> str:
        """A digest of what samples say about their videos and queries."""
        digest = hashlib.sha256()
        for sample in samples:
            digest.update(f"{sample.vid} {sample.qid} {sample.duration} {sample.query!r}\n".encode())
        return digest.hexdigest()[:16]

    def state(self, samples: Iterable[Sample], sources: Collection[Source | WordVectors]) -> str:
        """A digest of the samples and of the marks of their files, see `stamp`; it tells when files have changed."""
        return self._digest(samples, sources, stamp)

    def contents(self, samples: Iterable[Sample], sources: Collection[Source | WordVectors]) -> str:
        """A digest of the samples and of the contents of their files."""
        return self._digest(samples, sources, content_digest)

    def _digest(self, samples: Iterable[Sample], sources: Collection[Source | WordVectors], of_file: Callable) -> str:
        marks, digest = {}, hashlib.sha256(self.items(samples).encode())
        for sample in samples:
            with self.reading(sample):
                for source in sources:
                    for file, key in source.files(sample):
                        if file not in marks:
                            marks[file] = of_file(file)
                        digest.update(f"{key} {marks[file]}\n".encode())
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
