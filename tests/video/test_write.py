"""Writing videos: whole files, the same bytes for the same frames, and short ones for browsers."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest

from mrlib.video.probe import probe
from mrlib.video.read import pictures
from mrlib.video.write import proxy, write
from tests.support.videos import every_frame, frame_number, make_video, numbered


def frames(count: int = 20, size: tuple[int, int] = (64, 48)):
    return (numbered(n, size) for n in range(count))


def boxes(data: bytes) -> list[str]:
    """The names of the outermost boxes of an MP4, in their order."""
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names


@pytest.mark.parametrize("name", ["a.mp4", "a.MP4", "a.mov", "a.mkv"])
def test_a_written_video_has_the_frames_at_their_rate(name, tmp_path):
    write(tmp_path / name, frames(), 12.5)
    facts = probe(tmp_path / name)
    assert [frame_number(frame) for frame in every_frame(tmp_path / name)] == list(range(20))
    assert (facts.duration_s, facts.width, facts.height) == pytest.approx((1.6, 64, 48), abs=0.001)


def test_a_written_video_is_one_that_browsers_play(tmp_path):
    """H.264 in yuv420p, the index before the pictures."""
    write(tmp_path / "a.mp4", frames(), 10)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert (file.streams[0].codec_context.name, file.streams[0].pix_fmt) == ("h264", "yuv420p")
    names = boxes((tmp_path / "a.mp4").read_bytes())
    assert names.index("moov") < names.index("mdat")


@pytest.mark.parametrize("size", [(64, 48), (640, 360), (34, 48), (33, 41), (2, 2)])
def test_the_same_frames_give_the_same_bytes(size, tmp_path):
    written = set()
    for _ in range(5):
        write(tmp_path / "a.mp4", frames(size=size), 25)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_odd_sides_get_a_black_line(tmp_path):
    write(tmp_path / "a.mp4", (np.full((47, 65, 3), 200, np.uint8) for _ in range(3)), 10)
    frame = every_frame(tmp_path / "a.mp4")[-1]
    assert frame.shape == (48, 66, 3) and frame[47].max() < 60 and frame[:, 65].max() < 60
    assert abs(frame[:46, :64].astype(int) - 200).max() < 4


def failing(count: int):
    yield from frames(count)
    raise RuntimeError("no more frames")


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="no more frames"):
        write(path, failing(200), 10)
    assert path.read_text() == "old" and [x.name for x in tmp_path.iterdir()] == ["a.mp4"]


def test_no_space_is_said_with_the_name(tmp_path, capfd):
    """A device that is always full, from the tenth frame on."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")

    def filling():
        for n, frame in enumerate(frames(50)):
            if n == 10:
                (handle,) = (int(x) for x in os.listdir("/proc/self/fd") if _is_partial(x))
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, handle)
                os.close(full)
            yield frame

    with pytest.raises(OSError, match=r"cannot write .*a.mp4: No space left on device; free some space") as error:
        write(tmp_path / "a.mp4", filling(), 10)
    assert error.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == [] and capfd.readouterr().err == ""


def _is_partial(handle: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{handle}").endswith(".partial")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a.mp4: a video has at least one frame"),
        ([np.zeros((4, 4), np.uint8)], r"frame 0 must be uint8 \(height, width, 3\), not uint8 \(4, 4\)"),
        ([np.zeros((4, 4, 3))], "frame 0 must be uint8 .*, not float64"),
        ([np.zeros((0, 4, 3), np.uint8)], "frame 0 must be uint8"),
        (["a"], "frame 0 must be uint8 .*, not str"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)], r"frame 1 has the shape \(6, 4, 3\)"),
    ],
)
def test_what_are_no_frames_is_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.mp4", given, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_wrong_rate_is_refused(fps, tmp_path):
    with pytest.raises(ValueError, match="fps must be a number of frames per second above 0"):
        write(tmp_path / "a.mp4", frames(), fps)


def test_a_wrong_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a.gif: the name of a video ends in .mp4, .m4v, .mov, .mkv"):
        write(tmp_path / "a.gif", frames(), 10)


def test_frames_that_h264_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a.mp4: this video cannot be written so"):
        write(tmp_path / "a.mp4", [np.zeros((2, 40_000, 3), np.uint8)], 10)
    assert list(tmp_path.iterdir()) == []


# ---- proxies


def opened(data: bytes) -> list[tuple[float, int]]:
    with av.open(io.BytesIO(data)) as file:
        return [(round(f.time, 3), frame_number(f.to_ndarray(format="rgb24"))) for f in file.decode(video=0)]


def test_a_proxy_shows_a_part_at_its_own_rate(tmp_path):
    """From 30 frames a second to 10: frame k of the proxy is the last one before k / 10 + 1 / 20 s after the start."""
    path = make_video(tmp_path / "a.mp4", seconds=8, fps=30, gop=60)
    shown = opened(proxy(path, 2, 3.5, fps=10))
    assert shown == [(k / 10, 60 + 3 * k + 1) for k in range(15)]


def test_a_proxy_is_small_and_browsers_play_it(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=2, size=(1280, 720), audio=True, rotation=90)
    data = proxy(path, 0, 2)
    with av.open(io.BytesIO(data)) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.pix_fmt, stream.height) == ("h264", "yuv420p", 360)
        assert stream.width == 202  # 360 * 720 / 1280 = 202.5
        assert float(stream.duration * stream.time_base) == pytest.approx(2, abs=0.05)
    assert boxes(data).index("moov") < boxes(data).index("mdat")


def test_a_proxy_does_not_enlarge_and_ends_with_the_video(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=3, size=(65, 47))
    with av.open(io.BytesIO(proxy(path, 2.5, 30))) as file:
        assert (file.streams[0].width, file.streams[0].height) == (66, 48)
        assert float(file.duration / 1e6) == pytest.approx(0.5, abs=0.07)
    with pytest.raises(ValueError, match="a.mp4 ends at 3.00 s, before 3 s"):
        proxy(path, 3, 4)


def test_the_pictures_of_a_written_video_are_its_frames(tmp_path):
    write(tmp_path / "a.mp4", frames(40, (224, 224)), 10)
    assert [frame_number(picture) for _, picture in pictures(tmp_path / "a.mp4")] == [9, 29]
