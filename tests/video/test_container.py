"""Opening video files, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mrlib.video.container import best_video, check_file, container, exact, half_up, packets, ticks
from tests.support.videos import audio_only, make_video, numbered, truncate


def opened(path: Path) -> None:
    with container(str(path)) as file:
        best_video(file, str(path))


def text(path: Path) -> Path:
    path.write_text("Not a video.\n" * 100)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def without_index(path: Path) -> Path:
    """An MP4 whose index would have come at its end."""
    return truncate(make_video(path, muxer={"movflags": "-faststart"}), 0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "a.mp4 cannot be read as a video, .*: it is none, or was cut off"),
        (without_index, "a.mp4 cannot be read as a video.*was cut off before its index"),
        (empty, "a.mp4 is empty; copy or download it again"),
        (folder, "a.mp4 is a folder; give one video file"),
        (fifo, "a.mp4 is a pipe or a device; save the video to a file first"),
        (audio_only, "a.mp4 has no video stream, only audio"),
    ],
)
def test_what_is_no_video_is_refused_by_name(make, message, tmp_path):
    path = make(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=message) as error:
        opened(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.mp4", "missing/a.mp4"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        opened(tmp_path / name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=1)
    path.chmod(0)
    with pytest.raises(PermissionError, match="a.mp4"):
        opened(path)


def test_a_name_that_no_file_can_have_is_named():
    with pytest.raises(ValueError, match=re.escape(r"'a\x00b' is no name that a file can have")):
        check_file("a\0b")
    with pytest.raises(FileNotFoundError, match="^'': no such file"):
        check_file("")


@pytest.mark.parametrize("name", ['a "b"\nc.mp4', "file:a.mp4", "http:a.mp4", "-", os.fsdecode(b"\xff.mp4")])
def test_any_name_will_do_and_messages_have_one_line(name, tmp_path):
    opened(make_video(tmp_path / "a.mp4", seconds=1).rename(tmp_path / name))
    text(tmp_path / name)
    with pytest.raises(ValueError) as error:
        opened(tmp_path / name)
    assert str(error.value).isprintable()


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        tone, cover = file.add_stream("aac", rate=48_000), file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1, (64, 48)), "rgb24")))
        file.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 96_000), np.int16), "s16", "mono")
        silence.sample_rate = 48_000
        file.mux(tone.encode(silence))
        file.mux(tone.encode())
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(ValueError, match="a.mp4 has no video stream, only audio"):
        opened(path)


def test_packets_of_joined_files_follow_each_other(tmp_path):
    """Two parts of 2 s; each begins at the same time stamp."""
    part = make_video(tmp_path / "a.ts", seconds=2, b_frames=0, start=3).read_bytes()
    (tmp_path / "b.ts").write_bytes(part + part)
    with container(str(tmp_path / "b.ts")) as file:
        times = [packet.dts * packet.time_base for packet in packets(file, file.streams.video[0])]
    steps = {round(float(b - a), 3) for a, b in zip(times, times[1:], strict=False)}
    assert len(times) == 40 and steps == {0.1}


def test_halves_are_rounded_up():
    assert [half_up(Fraction(x, 4)) for x in (0, 1, 2, 3, 6)] == [0, 0, 1, 1, 2]
    assert ticks(Fraction(1, 2), Fraction(1, 25)) == 13
    assert exact(1.1) == Fraction(11, 10) and exact(1 / 3) == Fraction(1, 3)


def test_without_pyav_the_message_says_how_to_install_it():
    program = "import sys; sys.modules['av'] = None; from mrlib.video.read import probe; probe(sys.executable)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == (
        'ImportError: videos are read with PyAV; install it with: pip install -e ".[video]"'
    )
