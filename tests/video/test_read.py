"""Decoding a video into pictures of its clips, against the ffmpeg program and against frames that show their number."""

from __future__ import annotations

import subprocess
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mrlib.video.cut import cut
from mrlib.video.read import clips, pictures, probe, thumbnails
from tests.support.memory import costs
from tests.support.videos import (
    av,
    black,
    ffmpeg_program,
    frame_number,
    make_video,
    overwrite,
    real_video,
    repeat,
    set_header_duration,
    set_last_duration,
    truncate,
)

REAL = ["univtg_example/video.mp4", "videos/mmaction_demo.mp4", "videos/mmaction_test.mp4", "videos/nasa_13013.mp4"]


def published(path: Path, clip_s: float = 2.0, side: int = 224) -> np.ndarray:
    """The recipe of the published features, by the ffmpeg program on the stream that we choose."""
    with av.open(str(path)) as file:
        stream = file.streams.best("video").index
    facts = probe(path)
    w, h = facts.width, facts.height
    size = f"{int(w * side / h)}:{side}" if w > h else f"{side}:{int(h * side / w)}"
    recipe = f"fps={1 / clip_s},scale={size},crop={side}:{side}"
    command = [ffmpeg_program(), "-v", "quiet", "-nostdin", "-i", str(path), "-map", f"0:{stream}", "-vf", recipe]
    run = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(run.stdout, np.uint8).reshape(-1, side, side, 3)


@pytest.mark.parametrize("clip_s", [2.0, 0.5, 1 / 3])
@pytest.mark.parametrize("name", REAL)
def test_pictures_of_real_videos_are_those_of_the_ffmpeg_program(name, clip_s):
    path = real_video(name)
    ours = np.stack([picture for _, picture in pictures(path, clip_s)])
    np.testing.assert_array_equal(ours, published(path, clip_s))


VARIABLE = [0, 0.1, 0.15, 0.9, 2, 2.05, 3.7, 5]
ODD = {
    "rate 29.97": ("a.mp4", {"fps": Fraction(30000, 1001), "seconds": 21.0}),
    "rate 23.976": ("a.mp4", {"fps": Fraction(24000, 1001), "seconds": 6.9}),
    "rate 5": ("a.mkv", {"fps": 5, "seconds": 7.0}),
    "20.8 s are 10 clips": ("a.mp4", {"seconds": 20.8}),
    "21 s are 11 clips": ("a.mp4", {"seconds": 21.0}),
    "variable rate": ("a.mp4", {"times": VARIABLE, "b_frames": 0}),
    "variable rate with B-frames": ("a.mp4", {"times": VARIABLE}),
    "variable rate, mkv": ("a.mkv", {"times": VARIABLE}),
    "portrait": ("a.mp4", {"size": (48, 96)}),
    "square": ("a.mp4", {"size": (64, 64)}),
    "odd sides": ("a.mp4", {"size": (65, 47)}),
    "turned by 90": ("a.mp4", {"rotation": 90}),
    "turned by 180": ("a.mp4", {"rotation": 180}),
    "turned by 270": ("a.mov", {"rotation": 270}),
    "two streams": ("a.mp4", {"second": (96, 64)}),
    "with sound": ("a.mp4", {"audio": True}),
    "begins late": ("a.mp4", {"start": 3.2, "audio": True, "seconds": 5.3}),
    "time stamps begin late": ("a.ts", {"start": 3.2}),
    "Opus begins before time 0": ("a.webm", {"audio": True, "seconds": 9, "fps": Fraction(30000, 1001)}),
    "interlaced": ("a.mp4", {"options": {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}}),
    "pixels are not square": ("a.mp4", {"aspect": Fraction(4, 3)}),
    "black": ("a.mp4", {"picture": black}),
    "in fragments": ("a.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "mkv": ("a.mkv", {"fps": 25}),
    "webm": ("a.webm", {"fps": 25}),
    "avi": ("a.avi", {"fps": 25}),
    "mov": ("a.mov", {"fps": 25}),
    "ts": ("a.ts", {"fps": 25}),
    "mpg": ("a.mpg", {"fps": 25}),
    "gif": ("a.gif", {}),
    "bare H.264": ("a.h264", {"fps": 25}),
}


@pytest.mark.parametrize("case", ODD)
def test_pictures_of_odd_videos_are_those_of_the_ffmpeg_program(case, tmp_path):
    name, options = ODD[case]
    path = make_video(tmp_path / name, **options)
    for clip_s in (2.0, 0.5):
        ours = np.stack([picture for _, picture in pictures(path, clip_s)])
        np.testing.assert_array_equal(ours, published(path, clip_s))


@pytest.mark.parametrize("start_s", [1.3, 2.0])
def test_an_edit_list_is_followed_as_by_the_ffmpeg_program(start_s, tmp_path):
    """Copied cuts with B-frames and sound: their lists hide what comes before time 0."""
    path = make_video(tmp_path / "a.mp4", seconds=9, b_frames=3, gop=25, audio=True)
    cut(path, start_s, 8, tmp_path / "ours.mp4", copy=True)
    command = [ffmpeg_program(), "-v", "error", "-ss", str(start_s), "-i", str(path), "-t", "5", "-c", "copy"]
    subprocess.run([*command, str(tmp_path / "theirs.mp4")], check=True)
    for name in "ours.mp4", "theirs.mp4":
        for clip_s in (2.0, 0.5):
            np.testing.assert_array_equal(clips(tmp_path / name, clip_s)[0], published(tmp_path / name, clip_s))


@pytest.mark.parametrize("colours", ["bt709", "bt470bg"])
@pytest.mark.parametrize("layout", ["yuv420p", "yuvj420p", "yuv422p", "yuv420p10le"])
def test_pictures_of_other_colours_are_those_of_the_ffmpeg_program(layout, colours, tmp_path):
    path, source = tmp_path / "a.mp4", "testsrc2=size=180x100:rate=5:duration=3"
    command = [ffmpeg_program(), "-v", "error", "-nostdin", "-f", "lavfi", "-i", source, "-c:v", "libx264"]
    subprocess.run([*command, "-pix_fmt", layout, "-colorspace", colours, str(path)], check=True)
    np.testing.assert_array_equal(clips(path)[0], published(path))


def test_clip_n_is_shown_by_the_last_frame_before_its_middle(tmp_path):
    """Ten frames a second, clips of 2 s: the frame before 2 n + 1 s is number 20 n + 9."""
    path = make_video(tmp_path / "a.mp4", seconds=20.8, size=(224, 224))
    numbers = [frame_number(picture) for _, picture in pictures(path)]
    assert numbers == [20 * n + 9 for n in range(10)]


@pytest.mark.parametrize(("seconds", "count"), [(20.8, 10), (20.9, 10), (21.0, 11), (21.1, 11), (3.0, 2), (0.1, 1)])
def test_the_number_of_clips_is_the_rounded_duration(seconds, count, tmp_path):
    """Halves up; a picture at least."""
    frames, times = clips(make_video(tmp_path / "a.mp4", seconds=seconds, size=(16, 16)))
    assert len(frames) == len(list(frames)) == count == len(times)
    np.testing.assert_array_equal(times, np.arange(count) * 2 + 1)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.9])
def test_a_video_shorter_than_half_a_clip_is_shown_by_its_last_frame(seconds, tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=seconds, size=(224, 224))
    ((time, picture),) = pictures(path)
    assert (time, frame_number(picture)) == (1.0, round(10 * seconds) - 1)


def test_the_first_picture_also_stands_for_clips_before_the_video_begins(tmp_path):
    """The first frame comes at 5 s, in clip 2, which goes on until 6 s; ffmpeg counts 2.5 as 3."""
    path = make_video(tmp_path / "a.mp4", seconds=4, start=5, audio=True, size=(224, 224))
    assert [frame_number(picture) for _, picture in pictures(path)] == [19, 19, 19, 19, 39]


def test_clips_can_be_gone_through_again_and_turned_into_an_array(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=6)
    frames, _ = clips(path)
    array = np.asarray(frames)
    assert array.shape == (3, 224, 224, 3) and array.dtype == np.uint8
    np.testing.assert_array_equal(np.stack(list(frames)), array)


@pytest.mark.parametrize("value", ["2", None, 0, float("nan")])
def test_what_is_no_number_of_seconds_is_refused_by_name(value, tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=1)
    with pytest.raises(ValueError, match="clip_s must be"):
        clips(path, value)
    with pytest.raises(ValueError, match="rows_per_s must be"):
        thumbnails(path, value)
    with pytest.raises(ValueError, match="end_s must be"):
        cut(path, 0, value, tmp_path / "b.mp4")


def ramp(n: int, size: tuple[int, int]) -> np.ndarray:
    """Grey that grows to the right and downwards, and with time."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    return np.repeat((rows + columns + n)[..., None], 3, -1).astype(np.uint8)


def test_thumbnails_are_means_over_the_whole_frame(tmp_path):
    """64 x 64 pixels become 8 x 8, each the mean of 8 x 8; the frames before 0.25, 0.75, … s are 2, 7, ..."""
    rows, times = thumbnails(make_video(tmp_path / "a.mkv", seconds=2, size=(64, 64), codec="ffv1", picture=ramp))
    np.testing.assert_array_equal(times, [0.25, 0.75, 1.25, 1.75])
    means = [ramp(n, (64, 64)).reshape(8, 8, 8, 8, 3).mean((1, 3)) for n in (2, 7, 12, 17)]
    assert rows.dtype == np.uint8
    np.testing.assert_allclose(rows, means, atol=2)


def test_progress_goes_by_time_and_ends_with_the_video(tmp_path):
    seen = []
    list(pictures(make_video(tmp_path / "a.mp4", seconds=5.2), progress=lambda *x: seen.append(x)))
    assert seen == [(2.0, 5.2), (4.0, 5.2), (5.2, 5.2)]


def test_memory_does_not_grow_with_the_video(tmp_path):
    """One and four minutes of 640 x 360; pictures of four minutes would add 18 MB to those of one."""
    short = make_video(tmp_path / "a.mp4", seconds=2, fps=25, size=(640, 360))
    videos = [repeat(short, tmp_path / f"{seconds}.mp4", seconds) for seconds in (60, 240)]
    calls = [f"for _ in pictures({str(path)!r}): pass" for path in videos]
    one, four = costs("from mrlib.video.read import pictures", calls)
    assert one.said == four.said == "done"
    assert four.size < one.size + 5e6 and four.size < 100e6


# ---- damage


def test_what_is_left_of_a_truncated_video_is_used(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=20, size=(224, 224), gop=10)
    whole = [frame_number(picture) for _, picture in pictures(path)]
    truncate(path, 0.6)
    with pytest.warns(UserWarning, match=r"a.mp4: its header says 20.0 s, but \d+.\d s can be read and are used"):
        part = [frame_number(picture) for _, picture in pictures(path)]
    assert 4 < len(part) < 9 and part[:-1] == whole[: len(part) - 1]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_truncated_video_has_the_pictures_it_had_before(name, tmp_path):
    path = make_video(tmp_path / name, seconds=20, size=(64, 48), gop=5)
    whole = np.asarray(clips(path)[0])
    truncate(path, 0.7)
    with pytest.warns(UserWarning, match="its header says 20.0 s"):
        part = np.asarray(clips(path)[0])
    assert len(part) >= 5
    np.testing.assert_array_equal(part[:-1], whole[: len(part) - 1])


def test_damage_in_the_middle_is_skipped_and_counted(tmp_path):
    path = overwrite(make_video(tmp_path / "a.mp4", seconds=20, size=(160, 120), gop=10), 0.5, 0.55)
    with pytest.warns(UserWarning, match=r"a.mp4: \d+ packets? could not be decoded, the first at \d+.\d s"):
        assert len(list(pictures(path))) == 10


def test_a_header_of_ten_hours_is_not_believed(tmp_path):
    path = set_header_duration(make_video(tmp_path / "a.mkv", seconds=6), 36_000)
    with pytest.warns(UserWarning, match="its header says 36000.0 s, but 6.0 s can be read"):
        assert len(np.asarray(clips(path)[0])) == 3


def test_a_last_frame_of_ten_hours_is_not_believed(tmp_path):
    times = [n / 10 for n in range(59)] + [5.91]
    path = make_video(tmp_path / "a.mp4", times=times, b_frames=0)
    assert len(np.asarray(clips(set_last_duration(path, 36_000))[0])) == 3


@pytest.mark.parametrize(("name", "seconds"), [("a.mp4", 0), ("a.mkv", 0), ("a.mp4", 36_000)])
def test_a_header_that_ffmpeg_corrects_goes_unnoticed(name, seconds, tmp_path):
    """Of zero seconds, and in an MP4 of any."""
    path = set_header_duration(make_video(tmp_path / name, seconds=6), seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(np.asarray(clips(path)[0])) == 3


def test_joined_streams_follow_each_other(tmp_path):
    """As `cat a.ts a.ts` joins them: the time stamps begin anew, and the size may change."""
    one = make_video(tmp_path / "a.ts", seconds=6, size=(224, 224), audio=True).read_bytes()
    two = make_video(tmp_path / "b.ts", seconds=6, size=(448, 448), audio=True).read_bytes()
    (tmp_path / "c.ts").write_bytes(one + two)
    assert [frame_number(picture) for _, picture in pictures(tmp_path / "c.ts")] == [9, 29, 49] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_s": 0}, "clip_s must be 0.001 seconds or more, not 0"),
        ({"clip_s": float("nan")}, "clip_s must be"),
        ({"side": 0}, "side must be a whole number of pixels above 0, not 0"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message, tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=1)
    with pytest.raises(ValueError, match=message):
        pictures(path, **options)


def test_a_missing_video_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.mp4: no such file"):
        pictures(tmp_path / "a.mp4")
