"""An encoder for tests: fast, without weights, a function of a video's bytes and of a sentence's letters."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrlib.video.read import Progress, probe


class FakeEncoder:
    """Random vectors, the same for the same bytes, words and recipe; counts the videos that it encodes."""

    def __init__(self, clip_s: float = 2.0, width: int = 16, version: int = 1):
        self.recipe = {"encoder": "fake", "clip_s": clip_s, "width": width, "joint": width, "version": version}
        self.videos: list[str] = []  # encoded so far

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, width), a row per `clip_s` seconds."""
        self.videos.append(Path(path).name)
        duration_s = probe(path).duration_s
        if progress is not None:
            progress(duration_s, duration_s)
        return self._draw(Path(path).read_bytes(), max(1, round(duration_s / self.recipe["clip_s"])))

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """A token per word and their sum: (N, width), (width,)."""
        tokens = torch.cat([self._draw(word.encode(), 1) for word in query.lower().split()])
        return tokens, tokens.sum(0)

    def _draw(self, data: bytes, rows: int) -> Tensor:
        seed = hashlib.sha256(data + repr(self.recipe).encode()).digest()[:8]
        random = np.random.default_rng(int.from_bytes(seed, "little"))
        return torch.from_numpy(random.standard_normal((rows, self.recipe["width"]), np.float32))


class Wordless(FakeEncoder):
    """A fake encoder that cannot read sentences, as `mrlib.video.Pixels`."""

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        raise ValueError("Wordless cannot read a sentence; ask by clip")
