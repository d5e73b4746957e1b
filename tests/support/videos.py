"""Videos for tests: real ones, and odd ones that are made here.

A made video shows the number of each frame in its upper half, see `numbered` and `frame_number`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

CODECS = {".webm": "libvpx", ".avi": "mpeg4", ".mpg": "mpeg2video", ".gif": "gif"}  # else H.264
TICKS = 90_000  # a second in the time base of a video of variable frame rate; a container may round it
BITS = 16  # of a frame's number, in 2 rows of 8 blocks


def real_video(name: str = "univtg_example/video.mp4") -> Path:
    """A file of `real/` in $MRLIB_DATA; skips the test where it is not there."""
    file = Path(os.environ.get("MRLIB_DATA", "."), "real", name)
    if not file.is_file():
        pytest.skip(f"MRLIB_DATA has no real/{name}")
    return file


def ffmpeg_program() -> str:
    """The ffmpeg program; skips the test where it is not installed."""
    return shutil.which("ffmpeg") or pytest.skip("the ffmpeg program is not installed")


# ---- what a frame shows


def numbered(n: int, size: tuple[int, int]) -> np.ndarray:
    """Frame n: its number as white and black blocks above, and colours below that move with n.

    size     width and height
    returns  uint8 (height, width, 3)
    """
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    colours = [rows * 255 // height, (columns * 255 // width + 8 * n) % 256, np.full((height, width), 5 * n % 256)]
    picture = np.stack(colours, -1).astype(np.uint8)
    bits = (n >> np.arange(BITS) & 1).reshape(2, -1)
    picture[: height // 2] = 255 * bits[rows * 4 // height % 2, columns * 8 // width, None][: height // 2]
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number that a frame of `numbered` shows, uint8 (H, W, 3), after any coding and scaling; 32 x 16 or larger."""
    height, width = picture.shape[:2]
    middles = picture[np.ix_([height // 8, height * 3 // 8], [(2 * k + 1) * width // 16 for k in range(8)])]
    return int((middles.mean(-1) > 127).reshape(-1) @ (1 << np.arange(BITS)))


def black(n: int, size: tuple[int, int]) -> np.ndarray:
    """A black frame."""
    return np.zeros((size[1], size[0], 3), np.uint8)


# ---- videos


def make_video(
    path: Path,
    seconds: float = 4.0,
    fps: float | Fraction = 10,
    size: tuple[int, int] = (64, 48),
    *,
    picture: Callable[[int, tuple[int, int]], np.ndarray] = numbered,
    times: Sequence[float] | None = None,
    start: float = 0.0,
    audio: bool = False,
    second: tuple[int, int] | None = None,
    rotation: int = 0,
    gop: int = 10,
    b_frames: int = 2,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a video; the suffix of `path` chooses the container and, unless `codec` is given, the codec.

    size      of the frames as coded, before rotation
    picture   draws frame n
    times     of the frames in seconds, increasing: a variable frame rate, `seconds` and `fps` are not used
    start     time of the first frame
    audio     whether to add a tone, from time 0 to the end of the video
    second    size of a second video stream
    rotation  degrees that a player turns the frames clockwise: 90, 180 or 270
    gop       frames from one key frame to the next
    options   of the encoder
    muxer     options of the container
    aspect    of a pixel, width : height
    """
    fps, codec = Fraction(fps).limit_denominator(1001), codec or CODECS.get(path.suffix, "libx264")
    tick_s = 1 / fps if times is None else Fraction(1, TICKS)
    times = [n / fps for n in range(round(seconds * fps))] if times is None else times
    if path.suffix in (".mp4", ".mov"):
        muxer = {"movflags": "faststart"} | (muxer or {})
    with av.open(os.fspath(path), "w", options=muxer or {}) as file:
        streams = [_add_stream(file, codec, fps, each) for each in (size, second) if each]
        for stream in streams:
            stream.options, stream.gop_size, stream.codec_context.max_b_frames = options or {}, gop, b_frames
            stream.codec_context.time_base = tick_s
        if rotation:
            streams[0].set_display_rotation(rotation)
        if aspect:
            streams[0].codec_context.sample_aspect_ratio = aspect
        tone = _Tone(file, path) if audio else None
        for n, time in enumerate(times):
            for stream, each in zip(streams, (size, second), strict=False):
                frame = av.VideoFrame.from_ndarray(picture(n, each), "rgb24")
                frame.time_base, frame.pts = tick_s, round(time / tick_s) + round(start / tick_s)
                file.mux(stream.encode(frame))
            if tone is not None:
                tone.write(float(start + time))
        for stream in streams:
            file.mux(stream.encode())
        if tone is not None:
            tone.write(float(start + times[-1] + 1 / fps), last=True)
    return path


def _add_stream(file, codec: str, fps: Fraction, size: tuple[int, int]):
    stream = file.add_stream(codec, rate=fps)
    stream.width, stream.height = size
    stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p")
    stream.codec_context.thread_count = 1
    return stream


class _Tone:
    """An audio stream with a tone of 440 Hz, from time 0 on."""

    def __init__(self, file, path: Path):
        self.file, self.samples = file, 0
        self.stream = file.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48_000, layout="mono")

    def write(self, until_s: float, last: bool = False) -> None:
        while self.samples < until_s * 48_000:
            wave = np.sin(2 * np.pi * 440 * np.arange(self.samples, self.samples + 960) / 48_000)
            frame = av.AudioFrame.from_ndarray((wave * 8_000).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, self.samples, Fraction(1, 48_000)
            self.samples += 960
            self.file.mux(self.stream.encode(frame))
        if last:
            self.file.mux(self.stream.encode())


def audio_only(path: Path, seconds: float = 2.0) -> Path:
    """A file with a tone and no video."""
    with av.open(os.fspath(path), "w") as file:
        _Tone(file, path).write(seconds, last=True)
    return path


def no_frames(path: Path) -> Path:
    """An .mp4 with a video stream in which there is no frame, as of a recording that was killed at once."""
    make_video(path, muxer={"movflags": "frag_keyframe+empty_moov"})
    os.truncate(path, path.read_bytes().index(b"moof") - 4)
    return path


def repeat(source: Path, path: Path, seconds: float) -> Path:
    """A video of at least `seconds`: the packets of a short one, over and over, without decoding them."""
    with av.open(os.fspath(source)) as old, av.open(os.fspath(path), "w") as new:
        stream = old.streams.best("video")
        copy = new.add_stream_from_template(stream)
        packets = [p for p in old.demux(stream) if p.size]
        data = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in packets]
        length = sum(p.duration for p in packets)
        for offset in range(0, round(seconds / stream.time_base), length):
            for content, pts, dts, duration, is_key in data:
                packet = av.Packet(content)
                packet.time_base, packet.duration, packet.is_keyframe = stream.time_base, duration, is_key
                packet.pts, packet.dts, packet.stream = pts + offset, dts + offset, copy
                new.mux(packet)
    return path


def every_frame(path: Path) -> list[np.ndarray]:
    """The frames of a video as they are coded, uint8 (H, W, 3), without rotation."""
    with av.open(os.fspath(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(file.streams.best("video"))]


# ---- damage


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cut off a file behind this share of its bytes; an .mp4 of `make_video` begins with its index, which stays."""
    os.truncate(path, int(share * path.stat().st_size))
    return path


def overwrite(path: Path, start: float = 0.5, end: float = 0.55) -> Path:
    """Replace the bytes between two shares of a file by noise."""
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(end * len(data))
    data[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(data)
    return path


def set_header_duration(path: Path, seconds: float) -> Path:
    """Let the header of an .mp4 or .mkv of `make_video` claim another duration; the packets stay as they are."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".mkv":
        at = data.index(b"\x44\x89\x88") + 3
        data[at : at + 8] = struct.pack(">d", 1000 * seconds)
    else:
        movie, media = data.index(b"mvhd"), data.index(b"mdhd")
        for box, place, scale in ((movie, 20, movie), (data.index(b"tkhd"), 24, movie), (media, 20, media)):
            claimed = round(seconds * _scale(data, scale))
            data[box + place : box + place + 4] = claimed.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def set_last_duration(path: Path, seconds: float) -> Path:
    """Let an .mp4 of `make_video` without B-frames claim that its last frame is shown for so long."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8  # entries of frame count and duration
    count, scale = int.from_bytes(data[at : at + 4], "big"), _scale(data, data.index(b"mdhd"))
    assert count > 1, "the last frame of this video has no entry of its own; give it other times"
    last = at + 8 * count
    data[last : last + 4] = round(seconds * scale).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def _scale(data: bytearray, place: int) -> int:
    """Ticks per second of a movie's or a track's header."""
    return int.from_bytes(data[place + 16 : place + 20], "big")
