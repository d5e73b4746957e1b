"""Small corpora for tests: an encoder of made-up features, and indexes of videos that do not exist."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor

from mrlib.video import Corpus
from mrlib.video.index import Index

WIDTH = 16


class Invented:
    """An encoder for tests: the vector of a sentence is random and always the same."""

    recipe = {"encoder": "invented", "clip_s": 2.0, "width": WIDTH, "joint": WIDTH}

    def video(self, path, progress=None) -> Tensor:
        raise AssertionError("tests give indexes, not files")

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(query.encode())))
        return vector.expand(3, -1), 5 * vector


def invented(path: str, clips: int, seed: int = 0, **shown: tuple[int, int]) -> Index:
    """The index of a video of noise.

    shown  sentence -> first and last clip + 1 of the moment that shows it
    """
    generator = torch.Generator().manual_seed(zlib.crc32(path.encode()) + seed)
    rows = torch.randn(clips, WIDTH, generator=generator)
    for sentence, (start, end) in shown.items():
        rows[start:end] += 4 * Invented().text(sentence)[1] / 5
    return Index(path, 2.0 * clips, rows, Invented.recipe)


def new_corpus(folder: Path, *videos: Index) -> Corpus:
    """A corpus of some videos in a new file."""
    corpus = Corpus.open(folder / "videos.corpus", Invented())
    corpus.add(*videos)
    return corpus
