"""The features of a video, kept beside it so that it is encoded once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mrlib.video.encode import Encoder
from mrlib.video.read import Progress, probe


@dataclass(frozen=True)
class Index:
    """The features of one video and how they were made."""

    path: str
    duration_s: float
    features: Tensor  # (n, D) float32, not normalised
    recipe: Mapping[str, Any]  # of the encoder

    @property
    def clip_s(self) -> float:
        """Seconds per row."""
        return self.recipe["clip_s"]


def index(
    path: str | os.PathLike,
    encoder: Encoder,
    cache: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Index:
    """The features of a video, from the cache if it has them.

    cache  folder for cache files; None: as `mrlib.data.cache.cache_folder` chooses
    """
    return Index(os.fspath(path), probe(path).duration_s, encoder.video(path, progress), encoder.recipe)
