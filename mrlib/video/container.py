"""Open a video file: check it, choose its streams, and give their packets."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from mrlib.files import shown_path

try:
    import av
except ImportError:

    class _Missing:
        """Stands for PyAV where it is not installed: what opens a video says how to install it, the rest works."""

        def __getattr__(self, name: str):
            raise ImportError('videos are read with PyAV; install it with: pip install -e ".[video]"')

    av = _Missing()

JOINED = ("mpegts", "mpeg")  # formats that are joined by concatenation: the time stamps begin anew in each part
LONGEST_GAP_S = 10  # between the time stamps of such a file; a longer one is the beginning of a part


@contextmanager
def container(path: str) -> Iterator[av.container.InputContainer]:
    """An open video file. Playlists cannot lead into the network.

    raises  FileNotFoundError, or ValueError for what is no video, naming the file and saying what to do
    """
    check_file(path)
    with open(path, "rb") as file:
        try:
            opened = av.open(file, container_options={"protocol_whitelist": "file"}, metadata_errors="replace")
        except av.FFmpegError as error:
            hint = "it is none, or was cut off before its index; convert or copy it again"
            raise ValueError(f"{shown_path(path)} cannot be read as a video, {error.strerror}: {hint}") from None
        with opened:
            yield opened


def check_file(path: str) -> os.stat_result:
    """What the system knows about a file; errors as of `container` unless it is a file that is not empty."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{shown_path(path)}: no such file") from None
    except ValueError:
        raise ValueError(f"{shown_path(path)} is no name that a file can have; give the path of a video") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{shown_path(path)} is a folder; give one video file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown_path(path)} is a pipe or a device; save the video to a file first")
    if not status.st_size:
        raise ValueError(f"{shown_path(path)} is empty; copy or download it again")
    return status


def best_video(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """The video stream that a player would show; the cover picture of a song is none. ValueError if there is none."""

    def is_cover(stream: av.VideoStream) -> bool:
        return bool(stream.disposition & av.stream.Disposition.attached_pic)

    best = container.streams.best("video")
    if best is None or is_cover(best):
        best = next((stream for stream in container.streams.video if not is_cover(stream)), None)
    if best is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams} - {"video"})) or "nothing"
        raise ValueError(f"{shown_path(path)} has no video stream, only {kinds}; give a file with pictures")
    if best.codec_context is None:
        hint = "convert it to H.264, or copy it again"
        raise ValueError(f"{shown_path(path)}: the coding of its video is unknown or lost; {hint}")
    return best


def best_audio(container: av.container.InputContainer, video: av.VideoStream) -> av.AudioStream | None:
    """The audio stream that belongs to a video stream, if there is one that can be decoded."""
    stream = container.streams.best("audio", video)
    return stream if stream is not None and stream.codec_context is not None else None


def packets(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of some streams, or of all, until the end or until the file cannot be read any further.

    The parts of a joined file follow each other without a gap. The frame at which an MP4 was cut off is left out.
    """
    shift, ends, is_mp4 = Fraction(0), {}, container.format.name.startswith("mov,mp4")
    try:
        for packet in container.demux(*streams):
            if not packet.size or (packet.is_corrupt and is_mp4):
                continue
            if container.format.name in JOINED and packet.dts is not None:
                time = packet.dts * packet.time_base + shift
                end = ends.get(packet.stream.index, time)
                if not end - Fraction(1, 10) <= time <= end + LONGEST_GAP_S:
                    shift, time = shift + end - time, end
                ends[packet.stream.index] = time + (packet.duration or 0) * packet.time_base
                if shift:
                    moved = ticks(shift, packet.time_base)
                    packet.dts, packet.pts = packet.dts + moved, packet.pts and packet.pts + moved
            yield packet
    except av.FFmpegError:
        return


def half_up(x: Fraction) -> int:
    """The nearest whole number, the greater one of two."""
    return math.floor(x + Fraction(1, 2))


def ticks(time_s: Fraction, time_base: Fraction) -> int:
    """A time in a time base, rounded as ffmpeg does."""
    return half_up(time_s / time_base)


def exact(time_s: float) -> Fraction:
    """The simple fraction that a number of seconds stands for: 1.1 is 11 / 10."""
    return Fraction(time_s).limit_denominator(1_000_000)
