"""An encoder whose features a test writes down, and indexes of such features."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from mrlib.video.encode import Encoder
from mrlib.video.index import Index
from mrlib.video.read import Progress

JOINT = 8


class Fixed:
    """Gives the features of every video, and one token and vector per sentence, from two tables."""

    def __init__(self, videos: Mapping[str, Tensor] | None = None, words: Mapping[str, Tensor] | None = None, **recipe):
        """videos: features (n, D) by file name; words: tokens (N, D') by sentence, whose mean is the vector."""
        self.videos, self.words = dict(videos or {}), dict(words or {})
        self.recipe = {"encoder": "fixed", "clip_s": 2.0, "width": JOINT, "joint": JOINT} | recipe

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video."""
        return self.videos[os.path.basename(path)]

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """Tokens (N, D') and vector (J,); ValueError without words."""
        if not self.words:
            raise ValueError("Fixed cannot read a sentence; ask by clip")
        return self.words[query], self.words[query].mean(0)


def indexed(encoder: Encoder, features: Tensor, path: str = "video.mp4", duration_s: float | None = None) -> Index:
    """The index of a video that is nowhere; its duration is that of its clips, or as given."""
    duration_s = len(features) * encoder.recipe["clip_s"] if duration_s is None else duration_s
    return Index(path, duration_s, features, encoder.recipe)


def scene(*events: tuple[int, int], width: int = JOINT, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Features (n, width) of a video of events, one after the other: (number of a direction, clips)."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.eye(width)[direction].expand(clips, -1) for direction, clips in events])
    return rows + noise * torch.randn(rows.shape, generator=g)
