"""What is shown of a video: its moments, truth and saliency, checked, and the static picture of them.

The picture needs no browser and no kernel, so it stands beside every player of `mrlib.video.show`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mrlib import plots
from mrlib.arguments import require
from mrlib.video.container import exact
from mrlib.video.filters import Filters
from mrlib.video.frames import frames_from
from mrlib.video.probe import Facts, probe

Moment = Mapping[str, Any] | Sequence[float]  # {"start_s", "end_s", "score"}, as of `find`; or start, end (and score)
WIDTH = 9.0  # of the strip of frames, inches
TALL = 0.8  # of a frame in it, about
TALL_PX = 240  # rows of a frame's pixels


@dataclass(frozen=True)
class Scene:
    """A video with what is known about one query, all times in seconds and inside the video."""

    video: str
    query: str
    duration_s: float
    aspect: float  # width / height, as shown
    moments: np.ndarray  # (K, 3) float64: start, end, score, in the order given; the score is NaN where there is none
    truth: np.ndarray  # (W, 3) likewise
    saliency: np.ndarray | None  # (n,) float64, values evenly along the video

    def opacity(self) -> np.ndarray:
        """The opacity (K,) of the predicted moments, between 0.35 for the lowest score and 1 for the highest."""
        scores = self.moments[:, 2]
        known = np.isfinite(scores)
        if not known.any() or np.ptp(scores[known]) == 0:
            return np.ones(len(scores))
        shares = (scores - scores[known].min()) / np.ptp(scores[known])
        return np.where(known, 0.35 + 0.65 * shares, 0.35)


def scene(
    video: str | os.PathLike,
    moments: Sequence[Moment],
    saliency: Sequence[float] | None = None,
    truth: Sequence[Moment] | None = None,
    query: str = "",
) -> Scene:
    """The arguments of `Player`, checked.

    moments   predicted, best first; none: the query is not in the video. What lies partly outside the video is cut off
    saliency  (n,)  any scale
    truth     the annotated windows
    raises    ValueError for a moment that is none, lies outside the video or belongs to another one, and as `probe`
    """
    facts = probe(video)
    require(isinstance(query, str), "query", query, "text")
    by_name = {"moments": moments, "truth": () if truth is None else truth}
    rows = [np.array([*_rows(windows, name, facts)]).reshape(-1, 3) for name, windows in by_name.items()]
    values = None if saliency is None else _curve(saliency)
    aspect = float(facts.width * facts.pixel_aspect / facts.height)
    return Scene(os.fspath(video), " ".join(query.split()), facts.duration_s, aspect, *rows, values)


def _curve(saliency: Sequence[float]) -> np.ndarray:
    """Saliency as float64 (n,), NaN where it is not finite."""
    values = np.array(saliency, np.float64)
    if values.ndim != 1 or not np.isfinite(values).any():
        raise ValueError(
            f"saliency must be a number per clip, (n,), and one of them finite; its shape is {values.shape}"
        )
    return np.where(np.isfinite(values), values, np.nan)


def _rows(moments: Sequence[Moment], name: str, facts: Facts) -> Iterator[tuple[float, float, float]]:
    """Start, end and score of every moment, inside the video."""
    for i, moment in enumerate(moments):
        if isinstance(moment, Mapping):
            other = moment.get("video", facts.path)
            if Path(other).resolve() != Path(facts.path).resolve():
                raise ValueError(f"{name}[{i}] is a moment of {other}, not of {facts.path}")
            moment = moment.get("start_s"), moment.get("end_s"), moment.get("score")
        start, end, score = _numbers(moment, f"{name}[{i}]")
        if start >= facts.duration_s or end <= 0:
            where = f"the video {facts.path} lasts {facts.duration_s:.2f} s"
            raise ValueError(f"{name}[{i}] is {start:g} to {end:g} s, but {where}; times are in seconds of this video")
        yield max(start, 0.0), min(end, facts.duration_s), score


def _numbers(moment: Sequence[float | None], name: str) -> tuple[float, float, float]:
    try:
        start, end, *rest = moment
        score = rest[0] if rest and rest[0] is not None else np.nan
        numbers = float(start), float(end), float(score)
        fits = len(rest) < 2 and -np.inf < numbers[0] < numbers[1] < np.inf and not np.isinf(numbers[2])
    except (TypeError, ValueError):
        fits = False
    require(fits, name, moment, "start < end in seconds, and perhaps a score")
    return numbers


def storyboard(
    video: str | os.PathLike,
    moments: Sequence[Moment],
    saliency: Sequence[float] | None = None,
    truth: Sequence[Moment] | None = None,
    query: str = "",
) -> Figure:
    """Frames of a video along a timeline, the query above, moments, truth and saliency below; arguments as of `scene`.

    returns  an open figure: in a notebook, give it a name, or it is shown twice
    """
    return draw(scene(video, moments, saliency, truth, query))


def draw(shown: Scene) -> Figure:
    """The picture of a scene."""
    count = int(np.clip(round(WIDTH / (TALL * shown.aspect)), 4, 16))
    times = (np.arange(count) + 0.5) * shown.duration_s / count
    frames = [_frame(shown.video, time, shown.aspect) for time in times]
    rows = [len(windows) and 1 + plots.lanes(windows).max() for windows in (shown.moments, shown.truth)]
    tall = WIDTH / count / shown.aspect
    low = 0.03 + 0.2 * sum(rows) + 0.4 * (shown.saliency is not None)
    size = WIDTH + 1, tall + low + 0.9  # inches; names and numbers stand around the axes
    fig, axes = plt.subplots(2, 1, figsize=size, height_ratios=[tall, low], sharex=True, layout="constrained")
    plots.storyboard(
        axes,
        frames,
        shown.duration_s,
        query=shown.query,
        moments_s=shown.moments,
        opacity=shown.opacity(),
        truth_s=shown.truth,
        saliency=shown.saliency,
    )
    return fig


def _frame(video: str, time_s: float, aspect: float) -> np.ndarray:
    """The frame that is shown at a time, uint8 (TALL_PX, W, 3); the last one if those after it cannot be decoded."""
    last = None
    for frame in frames_from(video, exact(time_s)):
        if last is not None and frame.pts * frame.time_base > time_s:
            break
        last = frame
    size = f"{round(TALL_PX * aspect)}:{TALL_PX}"
    return Filters(("scale", size), ("format", "rgb24")).push(last).to_ndarray()
