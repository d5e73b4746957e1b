"""Encoders: pictures and sentences to vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mrlib.video.read import Progress, pictures


class Encoder(Protocol):
    """What turns a video into a row of features per clip, and a sentence into vectors of the same space."""

    recipe: Mapping[
        str, Any
    ]  # plain JSON: "encoder", "clip_s", "width", "joint" (width of the joint space, or None), …

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, D), a row per `recipe["clip_s"]` seconds, not normalised."""

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """The tokens (N, D') of a sentence and its vector (J,) in the joint space, float32, not normalised."""


class Pixels:
    """Thumbnails of 8 x 8 pixels, twice a second: no weights, for query by example."""

    recipe = {"encoder": "pixels", "clip_s": 0.5, "width": 192, "joint": 192}

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, 192)."""
        rows = [picture.reshape(-1) for _, picture in pictures(path, 0.5, 8, progress)]
        return torch.from_numpy(np.stack(rows)).float() / 255

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """ValueError: thumbnails know no words."""
        raise ValueError("Pixels cannot read a sentence; ask by clip, or give an encoder with words")
