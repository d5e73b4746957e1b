"""The frames of a video from any time on."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mrlib.video.frames import frames_from, held, inside, opened
from mrlib.video.probe import probe
from tests.support.videos import frame_number, make_video, overwrite

NAMES = ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "a.h264"]


def numbers(frames) -> list[int]:
    return [frame_number(frame.to_ndarray(format="rgb24")) for frame in frames]


@pytest.mark.parametrize("start_s", [0, 0.05, 3, 3.14, 11.9])
@pytest.mark.parametrize("name", NAMES)
def test_frames_from_a_time_on_include_the_one_that_is_shown_then(name, start_s, tmp_path):
    """Against all frames from the beginning; B-frames, a key frame every 2.5 s."""
    path, start = make_video(tmp_path / name, seconds=12, gop=25, b_frames=3), Fraction(str(start_s))
    with opened(path) as source:
        everything = [(f.pts * f.time_base, *numbers([f])) for f in source.frames(source.video)]
    part = [(f.pts * f.time_base, *numbers([f])) for f in frames_from(path, start)]
    assert len(everything) == 120 and part == everything[-len(part) :]
    assert part[0][0] <= max(start, everything[0][0])


def test_few_frames_are_decoded_before_a_late_start(tmp_path):
    """A key frame each second: the search begins 1 s early, so at most 2 s are decoded before the start."""
    path = make_video(tmp_path / "a.mp4", seconds=60)
    assert 550 - 20 <= numbers(frames_from(path, Fraction(55)))[0] <= 550


def test_frames_of_joined_files_count_on(tmp_path):
    part = make_video(tmp_path / "a.ts", seconds=20).read_bytes()
    (tmp_path / "b.ts").write_bytes(part + part)
    frames = [f for f in frames_from(tmp_path / "b.ts", Fraction(25)) if f.pts * f.time_base >= 25]
    assert numbers(frames) == list(range(50, 200))


def test_damage_is_noted_with_its_time(tmp_path):
    path = overwrite(make_video(tmp_path / "a.mp4", seconds=20, size=(160, 120)), 0.5, 0.55)
    with opened(path) as source:
        count = len(list(source.frames(source.video)))
    assert 150 < count < 200 and source.lost_s and all(8 < time < 13 for time in source.lost_s)


def test_the_last_frame_is_held_until_the_end(tmp_path):
    path = make_video(tmp_path / "a.mkv", seconds=1)
    with opened(path) as source:
        *_, last = held(source.frames(source.video), Fraction(5))
    assert (last.pts + last.duration) * last.time_base == 5


def test_a_part_ends_with_the_video(tmp_path):
    facts = probe(make_video(tmp_path / "a.mp4", seconds=8))
    assert inside(facts, 1.1, 3) == (Fraction(11, 10), 3)
    assert inside(facts, 7, 100) == (7, 8)


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (8, 9, "a.mp4 ends at 8.00 s, before 8 s"),
        (3, 3, "end_s must be greater than start_s, 3, not 3"),
        (-1, 3, "start_s must be 0 or more, not -1"),
        (float("nan"), 3, "start_s must be a number of seconds, not nan"),
        (1, float("inf"), "end_s must be a number of seconds, not inf"),
    ],
)
def test_what_is_no_part_of_a_video_is_refused(start_s, end_s, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        inside(probe(make_video(tmp_path / "a.mp4", seconds=8)), start_s, end_s)
