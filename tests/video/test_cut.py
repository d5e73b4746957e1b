"""Cuts of videos whose frames show their number."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mrlib.video.cut import Cut, cut
from mrlib.video.probe import probe
from tests.support.videos import every_frame, frame_number, make_video, overwrite


def shown(path: Path) -> list[tuple[float, int]]:
    """Time and number of every frame of a video."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [(round(f.time, 3), frame_number(f.to_ndarray(format="rgb24"))) for f in file.decode(stream)]


def numbers(path: Path) -> list[int]:
    return [number for _, number in shown(path)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mov", "a.ts"])
@pytest.mark.parametrize(("start_s", "end_s"), [(0, 1), (1, 2), (2.03, 3.55), (5.91, 5.99), (7.5, 8)])
def test_a_cut_has_the_frames_whose_times_are_inside(name, start_s, end_s, tmp_path):
    """Frame n comes at n / 25 s; key frames every 2 s, so that most cuts begin between two."""
    path = make_video(tmp_path / name, seconds=8, fps=25, gop=50, b_frames=3)
    inside = [n for n in range(200) if start_s <= n / 25 < end_s]
    made = cut(path, start_s, end_s, tmp_path / "cut.mp4")
    assert shown(tmp_path / "cut.mp4") == [(round((n - inside[0]) / 25, 3), n) for n in inside]
    assert made == Cut(inside[0] / 25, end_s, "")


def test_a_cut_keeps_a_variable_rate(tmp_path):
    path = make_video(tmp_path / "a.mp4", times=[0, 0.1, 0.15, 0.9, 2, 2.05, 3, 3.5, 5])
    cut(path, 0.12, 3.2, tmp_path / "cut.mp4")
    assert shown(tmp_path / "cut.mp4") == [(0, 2), (0.75, 3), (1.85, 4), (1.9, 5), (2.85, 6)]


def test_a_moment_between_two_frames_shows_the_frame_before(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=4, fps=2)
    assert cut(path, 1.6, 1.9, tmp_path / "cut.mp4") == Cut(1.6, 1.9, "")
    assert shown(tmp_path / "cut.mp4") == [(0, 3)]


def test_a_cut_is_upright_and_keeps_the_shape_of_its_pixels(tmp_path):
    path = make_video(tmp_path / "a.mp4", size=(96, 64), rotation=90, aspect=Fraction(4, 3))
    cut(path, 1, 2, tmp_path / "cut.mp4")
    facts, frame = probe(tmp_path / "cut.mp4"), every_frame(tmp_path / "cut.mp4")[0]
    assert frame.shape == (96, 64, 3) and frame_number(np.rot90(frame, -1)) == 10
    assert facts.pixel_aspect == Fraction(3, 4)


def test_odd_sides_are_made_even(tmp_path):
    cut(make_video(tmp_path / "a.mp4", size=(65, 47)), 1, 2, tmp_path / "cut.mp4")
    assert every_frame(tmp_path / "cut.mp4")[0].shape == (48, 66, 3)


def sound(path: Path) -> np.ndarray:
    """The samples of a file's sound from the time of its first frame on, 48 kHz."""
    with av.open(str(path)) as file:
        frames = [f for f in file.decode(audio=0)]
    skip = max(0, -frames[0].pts) if frames[0].pts else 0
    return np.concatenate([f.to_ndarray()[0] for f in frames])[skip:]


@pytest.mark.parametrize("copy", [False, True])
def test_a_cut_keeps_the_sound(copy, tmp_path):
    """As long as the pictures, and the tone is still there: 440 periods a second."""
    path = make_video(tmp_path / "a.mp4", seconds=8, audio=True, b_frames=0)
    made = cut(path, 3, 5, tmp_path / "cut.mp4", copy=copy)
    heard = sound(tmp_path / "cut.mp4")
    crossings = np.count_nonzero(np.diff(np.signbit(heard[4800:-4800])))
    assert len(heard) / 48_000 == pytest.approx(made.end_s - made.start_s, abs=0.12)
    assert crossings / 2 / (len(heard) - 9600) * 48_000 == pytest.approx(440, rel=0.02)
    assert probe(tmp_path / "cut.mp4").has_audio


def test_the_sound_is_cut_to_the_sample(tmp_path):
    """Silence, and from 3 s on a tone: a cut from 2.5 s on hears it after half a second."""
    path = make_video(tmp_path / "a.mp4", seconds=6)
    with av.open(str(path)) as old, av.open(str(tmp_path / "b.mkv"), "w") as file:
        copy = file.add_stream_from_template(old.streams.video[0])
        tone = file.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                file.mux(packet)
        samples = np.zeros((1, 6 * 48_000), np.int16)
        samples[:, 3 * 48_000 :] = 8_000 * np.sign(np.sin(np.arange(3 * 48_000) / 10))
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = 48_000
        file.mux(tone.encode(frame))
        file.mux(tone.encode())
    cut(tmp_path / "b.mkv", 2.5, 4, tmp_path / "cut.mp4")
    begins = np.flatnonzero(np.abs(sound(tmp_path / "cut.mp4")) > 0.1)[0]
    assert begins / 48_000 == pytest.approx(0.5, abs=0.025)  # AAC smears over 1024 samples


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
def test_a_copy_begins_with_the_key_frame_at_or_before_the_start(name, tmp_path):
    """Key frames every 2 s."""
    path = make_video(tmp_path / name, seconds=8, gop=20, b_frames=0)
    made = cut(path, 5.3, 6.2, tmp_path / f"cut.{'mp4' if name == 'a.ts' else name[2:]}", copy=True)
    out = tmp_path / f"cut.{'mp4' if name == 'a.ts' else name[2:]}"
    assert numbers(out) == list(range(40, 62))
    assert made == Cut(4, 6.2, "begins with the key frame at 4.00 s, 1.30 s early")
    assert cut(path, 4, 6.2, out, copy=True) == Cut(4, 6.2, "")


def test_a_copy_with_b_frames_has_every_frame_inside(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=8, gop=20, b_frames=3)
    made = cut(path, 5.3, 6.2, tmp_path / "cut.mp4", copy=True)
    assert set(range(40, 62)) <= set(numbers(tmp_path / "cut.mp4")) and made.start_s == 4 and made.end_s >= 6.2


def test_a_copy_is_turned_as_before(tmp_path):
    path = make_video(tmp_path / "a.mp4", rotation=90)
    cut(path, 1, 2, tmp_path / "cut.mp4", copy=True)
    assert (probe(tmp_path / "cut.mp4").width, probe(path).width) == (48, 48)


def test_what_a_container_cannot_hold_is_refused(tmp_path):
    path = make_video(tmp_path / "a.webm")
    with pytest.raises(ValueError, match=r"cut.mp4 cannot hold vp8 as it is; choose a name that ends in .mkv, or copy"):
        cut(path, 1, 2, tmp_path / "cut.mp4", copy=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.webm"]


@pytest.mark.parametrize("copy", [False, True])
def test_an_end_behind_the_video_is_said(copy, tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=8)
    assert cut(path, 7, 20, tmp_path / "cut.mp4", copy=copy) == Cut(7, 8, "the video ends at 8.00 s")
    assert numbers(tmp_path / "cut.mp4") == list(range(70, 80))


@pytest.mark.parametrize("copy", [False, True])
def test_an_existing_file_is_replaced_only_by_a_whole_one(copy, tmp_path):
    path, out = make_video(tmp_path / "a.mp4", seconds=8, b_frames=0), tmp_path / "cut.mp4"
    out.write_text("old")
    with pytest.raises(ValueError, match="a.mp4 ends at 8.00 s, before 9 s"):
        cut(path, 9, 10, out, copy=copy)
    assert out.read_text() == "old"
    cut(path, 1, 2, out, copy=copy)
    assert numbers(out) == list(range(10, 20))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.mp4", "cut.mp4"]


def test_a_video_is_not_cut_into_itself(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to(path)
    before = path.read_bytes()
    for out in path, tmp_path / "link.mp4", os.path.join(tmp_path, ".", "a.mp4"):
        with pytest.raises(ValueError, match="a.mp4 cannot be cut into itself; give another name for the cut"):
            cut(path, 1, 2, out)
    assert path.read_bytes() == before


def test_damage_is_cut_as_far_as_it_can_be_decoded(tmp_path):
    path = overwrite(make_video(tmp_path / "a.mp4", seconds=20, size=(160, 120)), 0.5, 0.55)
    cut(path, 5, 15, tmp_path / "cut.mp4")
    inside = numbers(tmp_path / "cut.mp4")
    assert set(range(50, 80)) | set(range(130, 150)) <= set(inside)
