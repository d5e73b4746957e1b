"""Filters on frames."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mrlib.video.filters import Filters, at_rate, is_turned
from tests.support.videos import ffmpeg_program, frame_number, make_video, numbered


def frames(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def turned(path: Path, rotation: int, hflip: bool = False, vflip: bool = False) -> Path:
    """A video of one lossless frame of 64 x 48, to be turned and mirrored by the player."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.set_display_rotation(rotation, hflip=hflip, vflip=vflip)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(37, (64, 48)), "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3)])
def test_frames_are_turned_upright(rotation, turns, tmp_path):
    """A display matrix turns counter-clockwise, as `np.rot90`."""
    (frame,) = frames(turned(tmp_path / "a.mp4", rotation))
    shown = Filters(("format", "rgb24")).push(frame).to_ndarray()
    np.testing.assert_array_equal(shown, np.rot90(numbered(37, (64, 48)), turns))
    assert is_turned(frame) == (turns % 2 == 1)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, 30])
@pytest.mark.parametrize(("hflip", "vflip"), [(False, False), (True, False), (False, True), (True, True)])
def test_frames_are_turned_as_by_the_ffmpeg_program(rotation, hflip, vflip, tmp_path):
    path = turned(tmp_path / "a.mp4", rotation, hflip, vflip)
    command = [ffmpeg_program(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    run = subprocess.run(command, capture_output=True, check=True)
    shown = Filters(("format", "rgb24")).push(frames(path)[0]).to_ndarray()
    np.testing.assert_array_equal(shown.reshape(-1), np.frombuffer(run.stdout, np.uint8))


def test_frames_of_another_size_are_filtered_as_well(tmp_path):
    small, large = (frames(make_video(tmp_path / f"{side}.mp4", 0.1, size=(side, side)))[0] for side in (64, 128))
    filters = Filters(("scale", "32:32"), ("format", "rgb24"))
    assert [filters.push(frame).to_ndarray().shape for frame in (small, large, small)] == [(32, 32, 3)] * 3


def test_a_constant_rate_shows_the_last_frame_before_the_middle(tmp_path):
    """Frames at 0, 0.3, 1.2, 1.6 and 3 s, one a second: before 0.5, 1.5, 2.5 s and until the end, 3.1 s."""
    video = frames(make_video(tmp_path / "a.mkv", times=[0, 0.3, 1.2, 1.6, 3], fps=10))
    shown = list(at_rate(video, Fraction(1)))
    assert [(frame.pts, frame_number(frame.to_ndarray(format="rgb24"))) for frame in shown] == [(0, 1), (1, 2), (2, 3)]
    assert list(at_rate([], Fraction(1))) == []
