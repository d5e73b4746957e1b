"""Decode a video into one picture per clip, byte for byte as for the published features.

The published recipe is ffmpeg's `fps=1/clip_s, scale, crop` to raw RGB. Clip n is shown by the last frame before its
middle, and there are round(duration / clip_s) clips, halves up. One picture at a time is in memory.

Departs  a video shorter than half a clip has one clip, shown by its last frame; the recipe gives none
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import numpy as np

from mrlib.arguments import require
from mrlib.data.problems import counted
from mrlib.files import shown_path
from mrlib.video.container import exact, half_up
from mrlib.video.cut import cut as cut
from mrlib.video.filters import Filter, Filters, at_rate
from mrlib.video.frames import Source, held, opened
from mrlib.video.probe import Facts, probe

Progress = Callable[[float, float], None]  # (seconds done, seconds in all)
SIDE = 224  # pixels of a picture
SHORTEST_S = 0.001  # of a clip
UNNOTICED_S = 1.0  # by which a header may differ from the packets


def pictures(
    path: str | os.PathLike, clip_s: float = 2.0, side: int = SIDE, progress: Progress | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Time and picture of every clip, one after the other.

    yields  the clip's middle in seconds; uint8 (side, side, 3) RGB, the centre of the frame
    raises  FileNotFoundError, or ValueError for what is no video; damaged places are skipped with a warning
    """
    facts = probe(path)
    _check(clip_s, side)
    w, h = facts.width, facts.height
    size = f"{int(w * side / h)}:{side}" if w > h else f"{side}:{int(h * side / w)}"
    return _sampled(facts, clip_s, progress, ("scale", size), ("crop", f"{side}:{side}"))


def clips(path: str | os.PathLike, clip_s: float = 2.0) -> tuple[Pictures, np.ndarray]:
    """The pictures of all clips of a video, which are decoded when they are asked for, and their times.

    returns  uint8 (n, 224, 224, 3), a sequence to go through or to turn into an array; float64 (n,), middles in seconds
    """
    _check(clip_s, SIDE)
    pictures = Pictures(os.fsdecode(path), clip_s, _count(probe(path), clip_s))
    return pictures, (np.arange(len(pictures)) + 0.5) * clip_s


@dataclass(frozen=True)
class Pictures:
    """The pictures of all clips of a video; they are decoded each time that one goes through them."""

    path: str
    clip_s: float
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        return (picture for _, picture in pictures(self.path, self.clip_s))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack(list(self)).astype(dtype or np.uint8, copy=False)


def thumbnails(
    path: str | os.PathLike, rows_per_s: float = 2, side: int = 8, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Whole frames, reduced to a few pixels: uint8 (n, side, side, 3) RGB, and their times in seconds, float64 (n,)."""
    facts = probe(path)
    fits = isinstance(rows_per_s, Real) and math.isfinite(rows_per_s) and rows_per_s > 0
    require(fits, "rows_per_s", rows_per_s, "a number above 0")
    _check(1 / rows_per_s, side)
    size = f"{side}:{side}:flags=area"
    times, rows = zip(*_sampled(facts, 1 / rows_per_s, progress, ("scale", size)), strict=True)
    return np.stack(rows), np.array(times)


def _check(clip_s: float, side: int) -> None:
    fits = isinstance(clip_s, Real) and math.isfinite(clip_s) and clip_s >= SHORTEST_S
    require(fits, "clip_s", clip_s, f"{SHORTEST_S} seconds or more")
    require(isinstance(side, int) and side > 0, "side", side, "a whole number of pixels above 0")


def _sampled(
    facts: Facts, clip_s: float, progress: Progress | None, *filters: Filter
) -> Iterator[tuple[float, np.ndarray]]:
    """Time and filtered frame of every clip."""
    n, chain = 0, Filters(*filters, ("format", "rgb24"))
    end_s = max(exact(facts.duration_s), (_count(facts, clip_s) - Fraction(1, 2)) * exact(clip_s))
    with opened(facts.path) as source:
        _warn_if_cut_off(facts)
        for frame in at_rate(held(source.frames(source.video), end_s), 1 / exact(clip_s)):
            picture = chain.push(frame).to_ndarray()
            while n <= frame.pts:  # the first frame also stands for the clips before it
                yield (n + 0.5) * clip_s, picture
                n += 1
                if progress is not None:
                    progress(min(n * clip_s, facts.duration_s), facts.duration_s)
        if not n:
            raise ValueError(f"{shown_path(facts.path)}: its frames cannot be decoded; record or convert it again")
        _warn_of_losses(source)


def _count(facts: Facts, clip_s: float) -> int:
    """The number of clips, at least one with the first frame."""
    first, last = (half_up(exact(x) / exact(clip_s)) for x in (facts.first_s, facts.duration_s))
    return max(first + 1, last)


def _warn_if_cut_off(facts: Facts) -> None:
    if facts.header_s > facts.readable_s + UNNOTICED_S:
        says = f"its header says {facts.header_s:.1f} s, but {facts.readable_s:.1f} s can be read and are used"
        warnings.warn(f"{shown_path(facts.path)}: {says}; it may have been cut off", stacklevel=2)


def _warn_of_losses(source: Source) -> None:
    if source.lost_s:
        lost = f"{counted(len(source.lost_s), 'packet')} could not be decoded, the first at {source.lost_s[0]:.1f} s"
        warnings.warn(f"{shown_path(source.facts.path)}: {lost}; other frames stand in", stacklevel=2)
