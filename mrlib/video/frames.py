"""The frames of a video file, one after the other, from any time on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain

from mrlib.video.container import av, best_video, container, packets, ticks
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
