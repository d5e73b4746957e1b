"""Search in the videos of a whole library: a corpus keeps their features in one file, memory-mapped.

A search has two steps. The coarse one scores every clip of every video, exactly, and takes the best windows; the fine
one finds the moment in each of them, without training or by any retriever.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data.arrays import normalized_rows
from mrlib.data.bank import Bank
from mrlib.data.problems import counted
from mrlib.locks import hold
from mrlib.retriever import MomentRetriever
from mrlib.video import corpus_file, fine
from mrlib.video.coarse import Windows, best_by_clip, best_by_vector, mean_of
from mrlib.video.corpus_file import Entry, Placed
from mrlib.video.encode import Encoder
from mrlib.video.fine import Asked
from mrlib.video.index import Index, index
from mrlib.video.read import Progress

WINDOW_S = 150.0  # as long as the videos of QVHighlights


class Corpus:
    """The features of many videos in one file, and the search in them.

    Several processes may add videos at the same time, one writes while the others wait; a process that is killed leaves
    the videos that it has added. Videos are told apart by their paths: two files of one name are two videos, and so are
    two copies of one file.
    """

    def __init__(self, file: Path, header: corpus_file.Header, encoder: Encoder | None):
        """Use `Corpus.open`."""
        self.file, self.recipe, self.encoder = file, header.recipe, encoder
        self._placed: dict[str, Placed] = {}  # by path, in the order of adding
        self._start = self._end = header.start
        self._bank: Bank | None = None
        self._read_new(header)

    @classmethod
    def open(cls, file: str | os.PathLike, encoder: Encoder | None = None) -> Corpus:
        """Open a corpus file, or make one if there is none.

        encoder  makes the features of videos and queries; None: what is in the file can be listed and removed
        raises   ValueError for a file that is no corpus, is damaged or was made with another encoder;
                 FileNotFoundError if there is no file and no encoder
        """
        file = Path(file)
        if not file.exists():
            if encoder is None:
                raise FileNotFoundError(f"{file}: no such corpus; give encoder= to make a new one")
            with hold(_lock(file), f"the corpus {file}", wait=True):
                if not file.exists():  # no other process was first
                    corpus_file.create(file, encoder.recipe)
        header = corpus_file.read_header(file)
        if encoder is not None:
            _require_recipe(f"the encoder of {file}", header.recipe, encoder.recipe)
        return cls(file, header, encoder)

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[Entry]:
        """The videos: path, duration in seconds, size and time of the file."""
        return (placed.entry for placed in self._placed.values())

    def __contains__(self, path: str | os.PathLike) -> bool:
        return _path(path) in self._placed

    @property
    def hours(self) -> float:
        """Duration of all videos."""
        return sum(entry.duration_s for entry in self) / 3600

    @property
    def bank(self) -> Bank:
        """The features, an item per video: float16 rows of norm 1, memory-mapped."""
        if self._bank is None:
            shape = (self._end - self._start) // (2 * self.recipe["width"]), self.recipe["width"]
            rows = np.memmap(self.file, "<f2", "c", self._start, shape) if shape[0] else np.zeros(shape, "<f2")
            first = np.array([placed.first for placed in self._placed.values()], np.int64)
            counts = np.array([entry.rows for entry in self], np.int64)
            offsets = np.concatenate([[0], counts.cumsum()])
            places = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], counts)
            self._bank = Bank(*map(torch.from_numpy, (rows, offsets, places)))
        return self._bank

    # ---- adding and removing

    def add(self, *videos: str | os.PathLike | Index, progress: Progress | None = None) -> list[str]:
        """Add videos that are not in the corpus, or have changed since.

        Each is kept as soon as it is encoded. If some cannot be read, the others are added before the error is raised.

        videos   files, or what `mrlib.video.index` made of them with the same encoder
        returns  for each video "added", "unchanged" or "replaced"
        raises   ValueError, naming every video that cannot be read; OSError if the corpus cannot be written
        """
        results, problems = [], []
        for video in videos:
            try:
                results.append(self._add(video, progress))
            except (ValueError, FileNotFoundError) as error:
                problems.append(error)
        if len(problems) == len(videos) == 1:
            raise problems[0]
        if problems:
            listed = "\n".join(f"  {error}" for error in problems)
            raise ValueError(f"{len(problems)} of {counted(len(videos), 'video')} could not be added:\n{listed}")
        return results

    def remove(self, path: str | os.PathLike) -> None:
        """Take a video out of the corpus; the file keeps its rows, which no search reads.

        raises  ValueError if there is no such video in the corpus
        """
        with self._writing():
            if path not in self:
                raise ValueError(f"{path} is not in the corpus {self.file}; remove a video that is")
            self._append(Entry(_path(path), 0.0, 0, removed=True), np.zeros((0, self.recipe["width"]), "<f2"))

    def _add(self, video: str | os.PathLike | Index, progress: Progress | None) -> str:
        path = _path(video.path if isinstance(video, Index) else video)
        self._read_new()
        facts = _facts(path)
        before = self._placed.get(path)
        if before is not None and facts != (None, None) and facts == (before.entry.size, before.entry.mtime_ns):
            return "unchanged"
        if not isinstance(video, Index):
            video = index(video, self._encoder(), progress=progress)
        rows = self._rows(video)
        entry = Entry(path, float(video.duration_s), len(rows), *facts)
        with self._writing():
            before = self._placed.get(path)
            if before is not None and before.checksum == corpus_file.checksum(entry, rows):
                return "unchanged"
            self._append(entry, rows)
        if before is None:
            return "added"
        warnings.warn(f"{path} has changed since it was added to {self.file}; it was replaced", stacklevel=3)
        return "replaced"

    def _rows(self, video: Index) -> np.ndarray:
        """The rows of a video as the file has them; ValueError, naming the video, for features that do not fit."""
        _require_recipe(f"the encoder of {self.file}", self.recipe, video.recipe)
        width, shape = self.recipe["width"], tuple(video.features.shape)
        fits = len(shape) == 2 and shape[0] > 0 and shape[1] == width
        require(fits, f"the features of {video.path}", shape, f"one row or more of {width} numbers")
        if not bool(video.features.isfinite().all()):
            raise ValueError(f"the features of {video.path} are not finite; make its index again")
        return _unit(video.features).numpy().astype("<f2")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Nobody else writes to the file while the block runs, and what others have written is known."""
        with hold(_lock(self.file), f"the corpus {self.file}", wait=True):
            self._read_new()
            yield

    def _append(self, entry: Entry, rows: np.ndarray) -> None:
        corpus_file.append(self.file, entry, rows)
        self._read_new()

    def _read_new(self, header: corpus_file.Header | None = None) -> None:
        """Read what has been appended to the file since it was read last."""
        header = corpus_file.read_header(self.file) if header is None else header
        if header.end < self._end:
            raise ValueError(f"{self.file} is not the file that was opened; open it again")
        if header.end == self._end:
            return
        for placed in corpus_file.read_entries(self.file, header, self.recipe["width"], self._end):
            self._placed.pop(placed.entry.path, None)
            if not placed.entry.removed:
                self._placed[placed.entry.path] = placed
        self._end, self._bank = header.end, None

    # ---- searching

    def search(
        self,
        query: str | None = None,
        clip: str | os.PathLike | Index | None = None,
        retriever: MomentRetriever | None = None,
        windows: int = 10,
        top: int | None = None,
    ) -> list[dict[str, Any]]:
        """The moments that answer a sentence or show what a clip shows, best first.

        query      a sentence; or else
        clip       a video, or its index
        retriever  finds the moment in each of the best windows; None: it is found without training
        windows    windows that are looked at closely, each gives one moment
        top        moments to return, at most; None: all
        returns    dicts of "video", "start_s", "end_s", "score", "coarse" and "fine", by coarse score, then fine score;
                   "score" is the coarse one. [] if nothing is found
        raises     ValueError for an argument that does not fit, or a corpus without videos
        """
        if (query is None) == (clip is None):
            raise ValueError("give either query= or clip=, not both and not neither")
        is_sentence = isinstance(query, str) and bool(query.strip())
        require(query is None or is_sentence, "query", query, "a sentence")
        require(type(windows) is int and windows > 0, "windows", windows, "a whole number of at least 1")
        require(top is None or type(top) is int and top > 0, "top", top, "a whole number of at least 1, or None")
        self._read_new()
        if not len(self):
            raise ValueError(f"{self.file} has no videos yet; add some with Corpus.add")
        asked = self._by_clip(clip) if query is None else self._by_sentence(query)
        table = Windows.of(self.bank.lengths, max(round(WINDOW_S / self.recipe["clip_s"]), 1))
        if query is None:
            numbers, coarse = best_by_clip(self.bank, table, asked.tokens, mean_of(self.bank), windows)
        else:
            numbers, coarse = best_by_vector(self.bank, table, asked.vector, windows)
        found = fine.moments(asked, self._windows(table, numbers), self.recipe["clip_s"], retriever)
        answers = []
        entries = list(self)
        for number, score, moments in zip(numbers.tolist(), coarse.tolist(), found, strict=True):
            entry, before = entries[table.video[number]], table.start[number].item() * self.recipe["clip_s"]
            for start, end, fine_score in moments[:1]:
                times = {"start_s": before + start, "end_s": min(before + end, entry.duration_s)}
                scores = {"score": score, "coarse": score, "fine": fine_score}
                answers.append({"video": entry.path, **times, **scores})
        return sorted(answers, key=lambda answer: (-answer["coarse"], -answer["fine"]))[:top]

    def _windows(self, table: Windows, numbers: Tensor) -> list[Tensor]:
        """The features of some windows, float32 (n, D) each."""
        rows = self.bank.places
        starts = self.bank.offsets[table.video[numbers]] + table.start[numbers]
        pairs = zip(starts.tolist(), table.count[numbers].tolist(), strict=True)
        return [self.bank.rows[rows[start : start + count]].float() for start, count in pairs]

    def _by_sentence(self, query: str) -> Asked:
        tokens, vector = self._encoder().text(query)
        width = self.recipe["width"]
        require(len(vector) == width, f"the width of a sentence's vector in {self.file}", len(vector), f"{width}")
        return Asked(query, _unit(tokens), _unit(vector[None])[0], by_clip=False)

    def _by_clip(self, clip: str | os.PathLike | Index) -> Asked:
        if not isinstance(clip, Index):
            clip = index(clip, self._encoder())
        _require_recipe(f"the encoder of {self.file}", self.recipe, clip.recipe)
        rows = _unit(clip.features)
        return Asked(os.fspath(clip.path), rows, _unit(rows.mean(0, keepdim=True))[0], by_clip=True)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            raise ValueError(f"{self.file} was opened without an encoder; give Corpus.open one to add and to search")
        return self.encoder


def _lock(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _path(path: str | os.PathLike) -> str:
    """The name by which a video is known: without symbolic links and dots; of a file that is not there, as it is."""
    return os.path.realpath(path) if os.path.exists(path) else os.fspath(path)


def _unit(rows: Tensor) -> Tensor:
    """Rows (L, D) divided by their norms, as in the official loaders."""
    return torch.from_numpy(normalized_rows(rows.float().numpy()))


def _facts(path: str) -> tuple[int | None, int | None]:
    """Size and time of the last change of a file, (None, None) if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _require_recipe(subject: str, expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError, saying what differs, unless two recipes of encoders are the same."""
    given = json.loads(json.dumps(dict(given)))
    names = sorted(name for name in {*expected, *given} if expected.get(name) != given.get(name))
    if names:
        name = "encoder" if "encoder" in names else names[0]
        wanted = f"{expected.get(name)!r}, as in the file"
        require(
            False, f"{name} of {subject}", given.get(name), f"{wanted}; open it with that encoder, or another file,"
        )
