"""Search in the videos of a whole library: a corpus keeps their features in one file, memory-mapped.

A search has two steps. The coarse one scores every clip of every video, exactly, and takes the best windows; the fine
one finds the moment in each of them, without training or by any retriever.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mrlib.arguments import require
from mrlib.data.bank import Bank
from mrlib.data.problems import counted
from mrlib.data.recipes import differing
from mrlib.locks import hold
from mrlib.retriever import MomentRetriever
from mrlib.video import corpus_file, retrievers
from mrlib.video.asked import Asked
from mrlib.video.coarse import Windows
from mrlib.video.corpus_file import Entry, Placed
from mrlib.video.encode import Encoder, open_encoder
from mrlib.video.index import Index, index, plain_recipe
from mrlib.video.read import Progress
from mrlib.video.retrievers import normalised
from mrlib.video.search import require_query, usually_here
from mrlib.video.windows import Window, moments_in, without_overlap


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
        self._windows: dict[int, Windows] = {}  # of the bank's videos, by their length in clips
        self._read_new(header)

    @classmethod
    def open(cls, file: str | os.PathLike, encoder: Encoder | str | None = None) -> Corpus:
        """Open a corpus file, or make one if there is none.

        encoder  makes the features of videos and queries, or its name, see `mrlib.video.encode.open_encoder`; None:
                 what is in the file can be listed and removed
        raises   ValueError for a file that is no corpus, is damaged or was made with another encoder;
                 FileNotFoundError if there is no file and no encoder
        """
        file = Path(file)
        if isinstance(encoder, str):
            encoder = open_encoder(encoder)
        if not file.exists():
            if encoder is None:
                raise FileNotFoundError(f"{file}: no such corpus; give encoder= to make a new one")
            with hold(_lock(file), f"the corpus {file}", wait=True):
                if not file.exists():  # no other process was first
                    corpus_file.create(file, plain_recipe(encoder))
        header = corpus_file.read_header(file)
        if encoder is not None:
            _require_recipe(f"the encoder of {file}", header.recipe, plain_recipe(encoder))
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
        require(isinstance(video, str | os.PathLike | Index), "video", video, "the path of a video, or its index")
        path = _path(video.path if isinstance(video, Index) else video)
        self._read_new()
        facts = _facts(path)
        before = self._placed.get(path)
        if before is not None and facts != (None, None) and facts == (before.entry.size, before.entry.mtime_ns):
            return "unchanged"
        if not isinstance(video, Index):
            video = index(path, self._encoder(), progress=progress)
        rows = self._rows(video)
        entry = Entry(path, float(video.duration_s), len(rows), *facts)
        with self._writing():
            before = self._placed.get(path)
            if before is not None and self._same(before, entry, rows):
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
        return normalised(video.features).numpy().astype("<f2")

    def _same(self, placed: Placed, entry: Entry, rows: np.ndarray) -> bool:
        """Whether a video has the rows that are in the file, as after a copy."""
        kept = self.bank.rows[placed.first : placed.first + placed.entry.rows]
        return placed.entry.duration_s == entry.duration_s and np.array_equal(kept.numpy(), rows)

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
        self._end, self._bank, self._windows = header.end, None, {}

    # ---- searching

    def search(
        self,
        query: str | None = None,
        clip: str | os.PathLike | Index | None = None,
        retriever: str | os.PathLike | nn.Module | None = None,
        windows: int = 10,
        *,
        top: int | None = None,
        here: float | None = None,
    ) -> list[dict[str, Any]]:
        """The moments that answer a sentence, or show what a clip shows, best first.

        query      a sentence; or else
        clip       a video, or its index
        retriever  finds the moment in each of the best windows, see `mrlib.video.retrievers.open_retriever`; None: it
                   is found without training, see `mrlib.video.zero_shot`
        windows    windows that are looked at closely; each gives its best moment
        top        moments to return, at most; None: all
        here       the existence score, 0 to 1, from which something is here; 0: always answer. None: as `find` has it
        returns    dicts of "video", "start_s", "end_s", "score", "coarse" and "fine", by coarse score, then fine score;
                   "score" is the coarse one. [] if nothing is here
        raises     ValueError for an argument that does not fit, or a corpus without videos
        """
        require_query(query, clip, here)
        require(top is None or type(top) is int and top > 0, "top", top, "a whole number of at least 1, or None")
        model = None if retriever is None else retrievers.open_retriever(retriever)
        request = self._asked(query, clip)
        length = request.window if model is None else self._require_fit(model, request.by_clip)
        chosen, exists = self._coarse(request, length, windows)
        if model is None or request.by_clip:
            moments = [request.moment_in(window) for window, _ in chosen]
        if request.by_clip:
            exists = max(score for _, _, score in moments)
        if exists < (usually_here(self.recipe, request.by_clip) if here is None else here):
            return []
        if model is not None:
            in_windows = moments_in(model, [window for window, _ in chosen], request.of(model), self.recipe["clip_s"])
            chosen = [pair for pair, best_first in zip(chosen, in_windows, strict=True) if best_first]
            moments = [best_first[0] for best_first in in_windows if best_first]
        answers = [
            {"video": window.video, "start_s": start, "end_s": end, "score": coarse, "coarse": coarse, "fine": fine}
            for (window, coarse), (start, end, fine) in zip(chosen, moments, strict=True)
        ]
        return _once(sorted(answers, key=lambda answer: (-answer["coarse"], -answer["fine"])))[:top]

    def windows(
        self, query: str | None = None, clip: str | os.PathLike | Index | None = None, most: int = 10
    ) -> list[dict[str, Any]]:
        """The coarse step alone: windows of 150 s as dicts of "video", "start_s", "end_s", "score", best first.

        query, clip  as in `search`
        most         windows, at most
        """
        request = self._asked(query, clip)
        return [
            {
                "video": window.video,
                "start_s": window.start_s,
                "end_s": window.start_s + window.duration_s,
                "score": score,
            }
            for window, score in self._coarse(request, request.window, most)[0]
        ]

    def _asked(self, query: str | None, clip: str | os.PathLike | Index | None) -> Asked:
        """What is asked, as features of the encoder."""
        require_query(query, clip)
        if query is not None:
            tokens, vector = self._encoder().text(query)
            width = self.recipe["width"]
            require(len(vector) == width, f"the width of a sentence's vector in {self.file}", len(vector), f"{width}")
            return Asked(query, tokens, vector, self.recipe["clip_s"], self.recipe.get("shown"))
        if not isinstance(clip, Index):
            clip = index(clip, self._encoder())
        self._rows(clip)  # which checks it
        return Asked(os.fspath(clip.path), clip.features, None, self.recipe["clip_s"])

    def _require_fit(self, model: MomentRetriever, by_clip: bool) -> int:
        """Clips of a window for a retriever; ValueError unless it was trained on such features and such queries."""
        training = retrievers.facts_of(model)
        retrievers.require_fit(training, self.recipe, by_clip)
        if not set(training.streams) <= set(training.normalize):
            raise ValueError(
                f"the retriever was trained on features as they are, and {self.file} has them divided by their norms; "
                "give a retriever that was trained with normalize="
            )
        return retrievers.window_clips(training, self.recipe["clip_s"])

    def _coarse(self, request: Asked, length: int, most: int) -> tuple[list[tuple[Window, float]], float]:
        """The best windows with their scores, and the existence score, see `Asked.best_windows`."""
        require(type(most) is int and most > 0, "windows", most, "a whole number of at least 1")
        self._read_new()
        if not len(self):
            raise ValueError(f"{self.file} has no videos yet; add some with Corpus.add")
        if length not in self._windows:
            self._windows[length] = Windows.of(self.bank.lengths, length)
        table = self._windows[length]
        numbers, scores, exists = request.best_windows(self.bank, table, most)
        entries, chosen, clip_s = list(self), [], self.recipe["clip_s"]
        for number, score in zip(numbers.tolist(), scores.tolist(), strict=True):
            start, count, video = (int(column[number]) for column in (table.start, table.count, table.video))
            entry, first = entries[video], self.bank.offsets[video] + start
            rows = self.bank.rows[self.bank.places[first : first + count]].float()
            is_last = start + count == entry.rows
            duration_s = entry.duration_s - start * clip_s if is_last else count * clip_s
            chosen.append((Window(entry.path, rows, start * clip_s, duration_s), score))
        return chosen, exists

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            raise ValueError(f"{self.file} was opened without an encoder; give Corpus.open one to add and to search")
        return self.encoder


def _once(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers, best first, without those that overlapping windows of one video have in common with a better one."""
    spans = defaultdict(list)
    for rank, answer in enumerate(answers):
        spans[answer["video"]].append([answer["start_s"], answer["end_s"], -rank])
    kept = {-moment[2] for moments in spans.values() for moment in without_overlap(moments, len(moments))}
    return [answer for rank, answer in enumerate(answers) if rank in kept]


def _lock(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _path(path: str | os.PathLike) -> str:
    """The name by which a video is known: without symbolic links and dots; of a file that is not there, as it is."""
    return os.path.realpath(path) if os.path.exists(path) else os.fspath(path)


def _facts(path: str) -> tuple[int | None, int | None]:
    """Size and time of the last change of a file, (None, None) if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _require_recipe(subject: str, expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError, saying what differs, unless two recipes of encoders are the same."""
    if names := differing(expected, given):
        name = "encoder" if "encoder" in names else names[0]
        differs = f"has {name} {given.get(name)!r}, and its features were made with {expected.get(name)!r}"
        raise ValueError(f"{subject} {differs}; give that encoder, or another file")
