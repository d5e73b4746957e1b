"""Write videos that browsers play: H.264 in MP4, the index first. The same frames give the same bytes."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mrlib.arguments import require
from mrlib.files import shown_path, whole_file
from mrlib.video.container import av, exact, ticks
from mrlib.video.filters import Filters, at_rate
from mrlib.video.frames import frames_from, held, inside
from mrlib.video.probe import probe

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
QUALITY = {"preset": "veryfast", "crf": "20"}
SMALL = {"preset": "veryfast", "crf": "30"}  # 9 to 23 kB per second at 360p, of four real videos
X264 = {"x264-params": "force-cfr=1:no-mbtree=1"}  # the stream tells the frame rate, though times may vary; macroblock
# trees of narrow frames depend on memory that was never written


def write(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames as a video, complete or not at all; an existing file is replaced only by a whole one.

    frames  uint8 (H, W, 3) RGB of one size, at least one; an odd side gets a black line more
    raises  ValueError for other frames, OSError that names the file if it cannot be written
    """
    require(0 < fps < math.inf, "fps", fps, "a number of frames per second above 0")
    frames, rate = iter(frames), Fraction(fps).limit_denominator(1001)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{shown_path(os.fspath(path))}: a video has at least one frame")
    with writing(path) as file:
        stream = None
        for n, array in enumerate(chain([first], frames)):
            _check_frame(array, first, n)
            stream = stream or H264(file, rate, first.shape[1::-1])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "rgb24")
            frame.pts, frame.time_base = n, 1 / rate
            stream.write(frame)
        stream.end()


def proxy(path: str | os.PathLike, start_s: float, end_s: float, height: int = 360, fps: float = 15) -> bytes:
    """A part of a video as a small MP4 without sound, for a browser.

    end_s   may lie behind the end of the video
    height  of the frames; a smaller video is not enlarged
    raises  ValueError for times that are no part of the video
    """
    facts = probe(path)
    start, end = inside(facts, start_s, end_s)
    height, rate = min(height, facts.height), exact(fps)
    data = io.BytesIO()
    with _container(data, "mp4", lambda: io.BytesIO(data.getvalue())) as file:
        size = max(2, round(facts.width * height / facts.height)), height
        stream = H264(file, rate, size, aspect=facts.pixel_aspect, quality=SMALL)
        frames = takewhile(lambda frame: frame.pts * frame.time_base < end, frames_from(facts.path, start))
        for frame in at_rate(_moved(held(frames, end), -start), rate):
            if frame.pts >= 0:
                stream.write(frame)
        stream.end()
    return data.getvalue()


class H264:
    """A stream of H.264 in an open file.

    size       width and height as shown; frames are turned upright and scaled to it
    time_base  of the frames; None: one tick a frame
    """

    def __init__(
        self,
        file: av.container.OutputContainer,
        rate: Fraction,
        size: tuple[int, int],
        time_base: Fraction | None = None,
        aspect: Fraction = Fraction(1),
        quality: Mapping[str, str] = QUALITY,
    ):
        width, height = (side + side % 2 for side in size)
        self._file, self._stream = file, file.add_stream("libx264", rate=rate, options={**quality, **X264})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = time_base or 1 / rate, aspect
        context.thread_count = 1  # or the bytes would depend on the number of cores
        scale, pad = f"{size[0]}:{size[1]}", f"{width}:{height}"
        self._filters = Filters(("scale", scale), ("pad", pad), ("format", "yuv420p"))

    def write(self, frame: av.VideoFrame) -> None:
        """Add a frame; `pts` is its time."""
        frame = self._filters.push(frame)
        context = self._stream.codec_context
        if not context.is_open:
            context.color_range, context.colorspace = frame.color_range, frame.colorspace
            context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        frame.pict_type = 0  # the encoder chooses its key frames
        self._file.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Write what the encoder still holds."""
        self._file.mux(self._stream.encode())


class Aac:
    """A stream of sound in an open file, 48 kHz stereo."""

    def __init__(self, file: av.container.OutputContainer):
        self._file, self._stream = file, file.add_stream("aac", rate=48_000, layout="stereo")

    def write(self, frame: av.AudioFrame) -> None:
        """Add samples; `pts` is their time."""
        self._file.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Write what the encoder still holds."""
        self._file.mux(self._stream.encode())


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[av.container.OutputContainer]:
    """A new video file, complete at the end of the block or not written at all; the suffix tells the format.

    raises  ValueError for another suffix, or what the format cannot hold; OSError that names the file if there is no
            space
    """
    path = os.fsdecode(path)
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{shown_path(path)}: the name of a video ends in {', '.join(FORMATS)}")
    with whole_file(path) as file:
        try:
            with _container(file.raw, FORMATS[suffix], lambda: open(file.raw.temporary, "rb")) as container:
                yield container
        except av.FFmpegError as error:
            raise ValueError(f"{shown_path(path)}: this video cannot be written so, {error.strerror}") from None


@contextmanager
def _container(file: BinaryIO, name: str, read: Callable[[], BinaryIO]) -> Iterator[av.container.OutputContainer]:
    """A container that is written to a file. An MP4 is read again at its end, to move the index to its beginning."""
    options = {} if name == "matroska" else {"movflags": "faststart"}
    container = av.open(file, "w", name, options=options, io_open=lambda url, flags, options: read())
    try:
        yield container
    except BaseException:
        file.close()  # then nothing more is written
        container.close()
        raise
    container.close()


def _moved(frames: Iterable[av.VideoFrame], by_s: Fraction) -> Iterator[av.VideoFrame]:
    """The frames at other times."""
    for frame in frames:
        frame.pts += ticks(by_s, frame.time_base)
        yield frame


def _check_frame(array: np.ndarray, first: np.ndarray, n: int) -> None:
    fits = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    if not fits or 0 in array.shape:
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"frame {n} must be uint8 (height, width, 3), not {shown}")
    if array.shape != first.shape:
        raise ValueError(f"frame {n} has the shape {array.shape}, the first one {first.shape}")
