"""Facts of videos, against what they were made of."""

from __future__ import annotations

import os
from fractions import Fraction

import pytest

from mrlib.video.probe import probe
from tests.support.videos import make_video, no_frames, real_video, set_header_duration, truncate


@pytest.mark.parametrize(
    ("name", "duration_s", "size", "fps"),
    [
        ("univtg_example/video.mp4", 460 * 1001 / 15000, (480, 270), 15000 / 1001),
        ("videos/mmaction_demo.mp4", 10, (340, 256), 28),
        ("videos/nasa_13013.mp4", 390 * 1001 / 30000, (480, 270), 30000 / 1001),
    ],
)
def test_facts_of_real_videos(name, duration_s, size, fps):
    """Frames times their duration."""
    facts = probe(real_video(name))
    assert (facts.duration_s, facts.width, facts.height, facts.fps) == pytest.approx((duration_s, *size, fps), rel=1e-5)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.mov", "a.ts", "a.flv", "a.gif", "a.h264"])
def test_every_container_tells_the_same(name, tmp_path):
    facts = probe(make_video(tmp_path / name, seconds=4.2, b_frames=0))
    assert (facts.duration_s, facts.fps) == pytest.approx((4.2, 10), abs=0.02)
    assert (facts.width, facts.height, facts.has_audio, facts.first_s) == (64, 48, False, 0)


@pytest.mark.parametrize(("rotation", "size"), [(0, (64, 48)), (90, (48, 64)), (180, (64, 48)), (270, (48, 64))])
def test_the_size_is_that_of_the_upright_picture(rotation, size, tmp_path):
    facts = probe(make_video(tmp_path / "a.mp4", seconds=1, rotation=rotation, aspect=Fraction(4, 3)))
    assert (facts.width, facts.height) == size
    assert facts.pixel_aspect == (Fraction(3, 4) if rotation in (90, 270) else Fraction(4, 3))


def test_a_variable_rate_ends_with_its_last_frame(tmp_path):
    """Its last time is 5 s. An MP4 with B-frames gives the frame no duration; the stream says 30 frames a second."""
    times = [0, 0.1, 0.15, 0.9, 2, 2.05, 3.7, 5]
    for name, b_frames in ("a.mp4", 0), ("b.mp4", 2), ("c.mkv", 2):
        facts = probe(make_video(tmp_path / name, times=times, fps=30, b_frames=b_frames))
        assert 5 <= facts.duration_s < 5.2
        assert facts.fps == pytest.approx(8 / 5, rel=0.05)


def test_times_count_from_the_first_time_stamp(tmp_path):
    late = probe(make_video(tmp_path / "a.mp4", seconds=2, start=1.5, audio=True))
    alone = probe(make_video(tmp_path / "b.ts", seconds=2, start=1.5))
    assert (late.first_s, late.duration_s, late.has_audio) == (1.5, 3.5, True)
    assert (alone.first_s, alone.duration_s) == (0, 2)


@pytest.mark.parametrize(("name", "header_s"), [("a.mkv", 36_000), ("a.mkv", 0), ("a.mp4", 36_000), ("a.mp4", 0)])
def test_a_wrong_header_does_not_change_the_duration(name, header_s, tmp_path):
    facts = probe(set_header_duration(make_video(tmp_path / name, seconds=6), header_s))
    assert facts.duration_s == facts.readable_s == 6


def test_one_frame_is_a_video(tmp_path):
    facts = probe(make_video(tmp_path / "a.mp4", seconds=0.1))
    assert (facts.duration_s, facts.fps) == pytest.approx((0.1, 10))


def test_a_truncated_video_is_as_long_as_what_is_left(tmp_path):
    facts = probe(truncate(make_video(tmp_path / "a.mp4", seconds=10, b_frames=0), 0.5))
    assert 2 < facts.duration_s < 8 and facts.header_s == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_frames, "a.mp4: its video has no frames"),
        (lambda path: truncate(make_video(path, gop=40), 0.33), "a.mp4: its video has no frames"),
    ],
)
def test_a_video_without_frames_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        probe(make(tmp_path / "a.mp4"))


def test_a_file_that_changes_is_measured_again(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=2)
    assert probe(path) is probe(os.fsencode(path)) and probe(path).duration_s == 2
    assert probe(make_video(path, seconds=3)).duration_s == 3
