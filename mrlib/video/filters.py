"""FFmpeg's filters on the frames of a video, which are turned upright first, as the ffmpeg program does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from mrlib.video.container import av

Filter = tuple[str, str | None]  # name and options, as in `ffmpeg -vf name=options`


class Filters:
    """Filters in a row, set up for the first frame, and anew when frames of another size or format follow."""

    def __init__(self, *filters: Filter):
        self._filters, self._kind, self._graph = filters, None, None

    def push(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame, upright and filtered."""
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            self._kind, self._graph = kind, graph_for(frame, *_upright(frame), *self._filters)
        self._graph.push(frame)
        return self._graph.pull()


def at_rate(frames: Iterable[av.VideoFrame], rate: Fraction) -> Iterator[av.VideoFrame]:
    """Frames at a constant rate: at time t, the last one before t + half a frame; `pts` counts them from time 0."""
    graph = None
    for frame in frames:
        graph = graph or graph_for(frame, ("fps", str(rate)))
        graph.push(frame)
        yield from ready(graph)
    if graph is not None:
        graph.push(None)
        yield from ready(graph)


def graph_for(frame: av.VideoFrame, *filters: Filter) -> av.filter.Graph:
    """A graph for frames like this one."""
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    graph.link_nodes(source, *(graph.add(*step) for step in filters), graph.add("buffersink")).configure()
    return graph


def ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    """The frames that a graph has ready."""
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def is_turned(frame: av.VideoFrame) -> bool:
    """Whether a frame is shown with its sides exchanged."""
    return any(name == "transpose" for name, _ in _upright(frame))


def _upright(frame: av.VideoFrame) -> list[Filter]:
    """The filters that turn and mirror a frame as its display matrix says."""
    data = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return []
    a, b, _, c, d, *_ = (int(x) for x in np.frombuffer(bytes(data), np.int32))  # x' = a x + c y, y' = b x + d y
    if not math.hypot(a, c) or not math.hypot(b, d):
        return []
    angle = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360  # clockwise
    if angle == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if angle == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if angle == 180:
        return [("hflip", None)] * (a < 0) + [("vflip", None)] * (d < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip", None)] * (d < 0)
