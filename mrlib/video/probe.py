"""Facts of a video file, measured on its packets, for a header may be wrong.

Times are those of the ffmpeg program: seconds since the first time stamp of the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from mrlib.files import shown_path
from mrlib.video.container import av, best_audio, best_video, check_file, container, packets, ticks
from mrlib.video.filters import is_turned

HEADED = ("mov,mp4", "matroska", "avi", "flv", "asf")  # formats whose header says how long the video is
LONGEST_LAST_S = 60  # of a last frame that is shown longer than all others together; a longer one is not believed
TIMED = ("mov,mp4", "matroska", "gif")  # formats that say how long each frame is shown


@dataclass(frozen=True)
class Facts:
    """What the packets of a video file say about it."""

    path: str
    duration_s: float  # until the end of the last frame
    width: int  # as shown, after rotation
    height: int
    pixel_aspect: Fraction  # width : height of a pixel, as shown
    fps: float  # mean
    has_audio: bool
    first_s: float  # time of the first frame
    readable_s: float  # end of the longest stream
    header_s: float  # the same as the header says; 0 if it does not
    zero: Fraction  # time stamp of time 0, in seconds


def probe(path: str | os.PathLike) -> Facts:
    """The facts of a video file; it is read once without decoding, and again only if it has changed.

    raises  FileNotFoundError, or ValueError for what is no video, naming the file and saying what to do
    """
    path = os.fsdecode(path)
    status = check_file(path)
    return _probe(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _probe(path: str, size: int, changed_ns: int) -> Facts:
    """See `probe`. Size and time of change tell one state of the file from another."""
    with container(path) as file:
        stream = best_video(file, path)
        picture, extents = None, [Extent(stream) for stream in file.streams]
        for packet in packets(file):
            extents[packet.stream_index].add(packet)
            if picture is None and packet.stream_index == stream.index:
                picture = _decoded(stream, packet)
        picture, seen = picture or _decoded(stream, None), extents[stream.index]
        if picture is None:
            problem = "its frames cannot be decoded" if seen.packets else "its video has no frames"
            raise ValueError(f"{shown_path(path)}: {problem}; record or convert it again")
        zero = _zero(file, extents)
        first, end = _shown(file, seen, zero)
        longest = max([end, *(extent.end_s for extent in extents if extent.stream.type != "data")])
        size, aspect = (picture.width, picture.height), stream.sample_aspect_ratio or Fraction(1)
        if is_turned(picture):
            size, aspect = size[::-1], 1 / aspect
        return Facts(
            path,
            float(end - zero),
            *size,
            aspect,
            float(seen.packets / (end - first)),
            best_audio(file, stream) is not None,
            float(first - zero),
            float(max(longest, longest - zero)),
            (file.duration or 0) / av.time_base if file.format.name.startswith(HEADED) else 0.0,
            zero,
        )


@dataclass
class Extent:
    """The packets of one stream; times in ticks of the stream."""

    stream: av.stream.Stream
    packets: int = 0
    first: int | None = None  # time stamp
    last: int | None = None  # the greatest time stamp
    last_duration: int = 0
    end: int = 0  # of the packet that ends last

    def add(self, packet: av.Packet) -> None:
        """Take a packet into account, unless an edit list hides it."""
        if packet.is_discard:
            return
        self.packets += 1
        time, duration = packet.dts if packet.pts is None else packet.pts, packet.duration or 0
        if time is None:
            return
        self.first = time if self.first is None else min(self.first, time)
        self.end = max(self.end, time + duration)
        if self.last is None or time >= self.last:
            self.last, self.last_duration = time, duration

    @property
    def end_s(self) -> Fraction:
        """End of the packet that ends last."""
        return self.end * (self.stream.time_base or Fraction(0))


def _decoded(stream: av.VideoStream, packet: av.Packet | None) -> av.VideoFrame | None:
    """The first frame that a packet completes, if it does; None as packet: what the decoder holds."""
    try:
        return next(iter(stream.codec_context.decode(packet)), None)
    except av.FFmpegError:
        return None


def _shown(file: av.container.InputContainer, seen: Extent, zero: Fraction) -> tuple[Fraction, Fraction]:
    """From when to when a video is shown, in time stamps.

    A packet says how long its frame is shown in some formats; with B-frames, an MP4 says when the next is decoded.
    """
    stream, name = seen.stream, file.format.name
    rate = stream.codec_context.framerate or stream.base_rate or stream.average_rate or Fraction(25)
    step = max(1, ticks(1 / rate, stream.time_base))
    if seen.last is None:  # a bare stream without time stamps
        return zero, zero + seen.packets * step * stream.time_base
    is_told = name.startswith(TIMED) and not (name.startswith("mov,mp4") and stream.codec_context.has_b_frames)
    duration = seen.last_duration if is_told else 0  # of the last frame
    if duration * stream.time_base > LONGEST_LAST_S and duration > seen.last - seen.first:
        duration = 0  # broken
    end = seen.last + (duration or step)
    return seen.first * stream.time_base, end * stream.time_base


def _zero(file: av.container.InputContainer, extents: list[Extent]) -> Fraction:
    """The first time stamp of all streams.

    In a WebM, Opus begins before time 0 by the delay of its encoder. The ffmpeg program counts that (version 5.1), the
    library behind PyAV does not (8.1).
    """
    zero = Fraction(file.start_time or 0, av.time_base)
    if not file.format.name.startswith("matroska"):
        return zero
    audio = [e.first * e.stream.time_base for e in extents if e.stream.type == "audio" and e.first is not None]
    return min([zero, *audio])
