"""Encoders: what turns the pictures of a video, and sentences, into vectors of one space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mrlib.video.clip import Clip
from mrlib.video.read import Progress, pictures


class Encoder(Protocol):
    """What turns a video into a row of features per clip, and a sentence into vectors of the same space.

    An encoder may also have `notes`, texts by name that an index keeps and that do not tell encoders apart.
    """

    recipe: Mapping[str, Any]
    """Plain JSON, equal for two encoders exactly if their features can be compared:

    encoder   name of the kind
    clip_s    seconds per row
    width     D, numbers per row
    joint     J, width of the space that rows and sentences share; None if there is none
    """

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, D), a row per `recipe["clip_s"]` seconds, not normalised."""

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """The tokens (N, D') of a sentence and its vector (J,) in the joint space, float32, not normalised."""


class Pixels:
    """Thumbnails twice a second: no weights, for query by example.

    A row is the centre square of a frame in 8 x 8 pixels, RGB from 0 to 1, row by row: `mrlib.video.read.pictures` at
    side 8. Whole frames pressed into a square find no more, and fewer cuts whose margins are cropped.
    """

    recipe = {"encoder": "pixels", "clip_s": 0.5, "width": 192, "joint": 192, "side": 8}

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, 192)."""
        rows = [row.ravel() for _, row in pictures(path, self.recipe["clip_s"], self.recipe["side"], progress)]
        return torch.from_numpy(np.stack(rows)).float() / 255

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """ValueError: thumbnails know no words."""
        raise ValueError("Pixels cannot read a sentence; ask by clip, or give an encoder with words")


def open_encoder(name: str | None = None) -> Encoder:
    """The encoder of a word of the command line.

    name    "pixels"; a folder that `mrlib.video.toy.Toy` saved; a folder or hub name of CLIP; None: what the
            environment's MRLIB_CLIP says
    raises  ValueError if there is no name, and what opening the encoder raises
    """
    name = name or os.environ.get("MRLIB_CLIP")
    if not name:
        ways = "a folder or hub name of CLIP, a folder that Toy.save wrote, or pixels (by clip only)"
        raise ValueError(f"no encoder is given and MRLIB_CLIP is not set; give one as --encoder or encoder=: {ways}")
    if name == "pixels":
        return Pixels()
    if Path(name, "toy.json").is_file():
        from mrlib.video.toy import Toy

        return Toy.load(name)
    return Clip(name)
