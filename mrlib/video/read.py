"""Decode a video into one picture per clip, as for the published features: one filter graph, start to end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np

Progress = Callable[[float, float], None]  # (seconds done, seconds in all)


@dataclass(frozen=True)
class Facts:
    """What a video file says about itself, checked against its packets."""

    path: str
    duration_s: float
    width: int  # as shown, after rotation
    height: int
    fps: float  # mean


def probe(path: str | os.PathLike) -> Facts:
    """The facts of a video file."""
    with av.open(os.fspath(path)) as container:
        stream = container.streams.best("video")
        duration = float(stream.duration * stream.time_base) if stream.duration else container.duration / av.time_base
        return Facts(os.fspath(path), duration, stream.width, stream.height, float(stream.average_rate))


def pictures(
    path: str | os.PathLike, clip_s: float = 2.0, side: int = 224, progress: Progress | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Time and picture of every clip, one after the other.

    yields  the clip's middle in seconds; uint8 (side, side, 3) RGB, the centre of the frame
    """
    with av.open(os.fspath(path)) as container:
        stream = container.streams.best("video")
        w, h = stream.width, stream.height
        size = f"{int(w * side / h)}:{side}" if w > h else f"{side}:{int(h * side / w)}"
        graph = av.filter.Graph()
        chain = [graph.add_buffer(template=stream), graph.add("fps", str(1 / clip_s)), graph.add("scale", size)]
        chain += [graph.add("crop", f"{side}:{side}"), graph.add("format", "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*chain).configure()
        n = 0
        for frame in (*container.decode(stream), None):
            graph.push(frame)
            while True:
                try:
                    yield (n + 0.5) * clip_s, graph.pull().to_ndarray()
                    n += 1
                except (av.BlockingIOError, av.EOFError):
                    break


def clips(path: str | os.PathLike, clip_s: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (n, 224, 224, 3) and times (n,) of all clips of a video."""
    times, frames = zip(*pictures(path, clip_s), strict=True)
    return np.stack(frames), np.array(times)
