"""The frames of a video file, one after the other, from any time on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from numbers import Real

from mrlib.arguments import require
from mrlib.files import shown_path
from mrlib.video.container import JOINED, av, best_audio, best_video, container, exact, packets, ticks
from mrlib.video.probe import Facts, probe

SEEK_S = (1, 10)  # how long before a wanted time to look for a key frame, because frames are not decoded in their order


@dataclass
class Source:
    """An open video file."""

    facts: Facts
    file: av.container.InputContainer
    video: av.VideoStream
    lost_s: list[float] = field(default_factory=list)  # times of the packets that could not be decoded

    def frames(self, stream: av.stream.Stream) -> Iterator[av.VideoFrame | av.AudioFrame]:
        """The frames of a stream from where the file is read to its end; their `pts` count from the file's zero."""
        zero, expected, time_s = ticks(self.facts.zero, stream.time_base), None, 0.0
        usual = ticks(1 / Fraction(self.facts.fps), stream.time_base)
        for packet in chain(packets(self.file, stream), [None]):  # None: what the decoder holds
            if packet is not None and packet.dts is not None:
                time_s = float(packet.dts * stream.time_base - self.facts.zero)
            try:
                decoded = stream.codec_context.decode(packet)
            except av.FFmpegError:
                self.lost_s.append(time_s)
                continue
            for frame in decoded:
                if frame.pts is None:
                    frame.pts = next(x for x in (frame.dts, expected, zero) if x is not None)
                expected = frame.pts + usual
                frame.pts, frame.time_base = frame.pts - zero, stream.time_base
                yield frame


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Source]:
    """A video file, to be read from its beginning; errors as of `probe`."""
    facts = probe(path)
    with container(facts.path) as file:
        stream = best_video(file, facts.path)
        stream.thread_type = "AUTO"
        yield Source(facts, file, stream)


def frames_from(
    path: str | os.PathLike, start_s: Fraction, kind: str = "video"
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """The frames of a file from the last one at or before a time; earlier ones may come first.

    kind  "video" or "audio"
    """
    for source, is_beginning in positions(path, start_s):
        frames = source.frames(source.video if kind == "video" else best_audio(source.file, source.video))
        first = next(frames, None)
        if first is not None and (is_beginning or first.pts * first.time_base <= start_s):
            yield from chain([first], frames)
            return


def positions(path: str | os.PathLike, time_s: Fraction) -> Iterator[tuple[Source, bool]]:
    """A file at key frames before a time, further and further away, and at last at its beginning.

    yields  the file, open until the next one is asked for; whether this is the beginning
    """
    for back_s in SEEK_S:
        with opened(path) as source:
            wanted = time_s - back_s
            if wanted <= 0 or source.file.format.name in JOINED:
                break
            with suppress(av.FFmpegError):
                source.file.seek(ticks(wanted + source.facts.zero, source.video.time_base), stream=source.video)
                yield source, False
    with opened(path) as source:
        yield source, True


def held(frames: Iterator[av.VideoFrame], end_s: Fraction) -> Iterator[av.VideoFrame]:
    """The frames; the last one lasts until `end_s`."""
    last = None
    for frame in frames:
        if last is not None:
            yield last
        last = frame
    if last is not None:
        last.duration = max(1, math.ceil(end_s / last.time_base) - last.pts)
        yield last


def inside(facts: Facts, start_s: float, end_s: float) -> tuple[Fraction, Fraction]:
    """A part of a video, which may end with it; ValueError if it is none, or begins behind the video."""
    for name, value in ("start_s", start_s), ("end_s", end_s):
        require(isinstance(value, Real) and math.isfinite(value), name, value, "a number of seconds")
    require(start_s >= 0, "start_s", start_s, "0 or more")
    require(end_s > start_s, "end_s", end_s, f"greater than start_s, {start_s}")
    if start_s >= facts.duration_s:
        raise ValueError(f"{shown_path(facts.path)} ends at {facts.duration_s:.2f} s, before {start_s} s")
    return exact(start_s), exact(min(end_s, facts.duration_s))
