"""What is shown of a video is checked, and its picture holds frames, moments and truth."""

from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mrlib import plots
from mrlib.video.scene import scene, storyboard
from tests.support.videos import audio_only, frame_number, make_video, no_frames, overwrite, real_video, truncate

NAN = float("nan")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """12 seconds at 10 frames a second; every frame shows its number."""
    return make_video(tmp_path_factory.mktemp("scene") / "numbers.mp4", 12.0, size=(128, 72))


@pytest.fixture(autouse=True)
def no_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_moments_are_rows_or_what_find_returns(video):
    moments = [
        {"video": str(video), "start_s": 2, "end_s": 4.5, "score": 0.8},
        [1, 3],
        (0, 2, 0.1),
        np.array([5, 6, 2]),
    ]
    shown = scene(video, moments, truth=np.array([[2.0, 4.0]]))
    np.testing.assert_array_equal(shown.moments, [[2, 4.5, 0.8], [1, 3, NAN], [0, 2, 0.1], [5, 6, 2]])
    np.testing.assert_array_equal(shown.truth, [[2, 4, NAN]])
    assert (shown.duration_s, shown.aspect) == (pytest.approx(12, abs=0.11), pytest.approx(16 / 9))


def test_what_lies_partly_outside_the_video_is_cut_off(video):
    shown = scene(video, [[-1, 3, 0.5], [10, 99]])
    np.testing.assert_array_equal(shown.moments, [[0, 3, 0.5], [10, shown.duration_s, NAN]])


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ([12.5, 20], "lasts 12.00 s"),
        ([-3, 0], "lasts 12.00 s"),
        ([5, 5], "start < end"),
        ([6, 5, 0.3], "start < end"),
        ([NAN, 5], "start < end"),
        ([1, float("inf")], "start < end"),
        ([1, 2, float("inf")], "start < end"),
        ([1], "start < end"),
        ([1, 2, 3, 4], "start < end"),
        (7, "start < end"),
        ("ab", "start < end"),
        ({"start": 1, "end": 2}, "start < end"),
        ({"video": "other.mp4", "start_s": 1, "end_s": 2}, "a moment of other.mp4"),
    ],
)
def test_what_is_no_moment_of_this_video_is_refused_by_its_place(moment, words, video):
    for name in ("moments", "truth"):
        arguments = {"moments": []} | {name: [[0, 1], moment]}
        with pytest.raises(ValueError, match=rf"^{name}\[1\] .*{words}"):
            scene(video, **arguments)


@pytest.mark.parametrize("saliency", [[], [NAN, NAN], [[1.0, 2.0]]])
def test_saliency_is_a_number_per_clip(saliency, video):
    with pytest.raises(ValueError, match="saliency must be"):
        scene(video, [], saliency)


def test_a_query_is_text_on_one_line(video):
    assert scene(video, [], query=" a dog\n runs ").query == "a dog runs"
    with pytest.raises(ValueError, match="query must be text, not None"):
        scene(video, [], query=None)


def test_a_video_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        storyboard(tmp_path / "none.mp4", [])


def test_higher_scores_are_more_opaque(video):
    assert scene(video, [[0, 1, 0.9], [1, 2, 0.5], [2, 3, 0.1]]).opacity() == pytest.approx([1, 0.675, 0.35])
    assert scene(video, [[0, 1, 0.9], [1, 2], [2, 3, 0.5]]).opacity() == pytest.approx([1, 0.35, 0.35]), "no score"
    assert scene(video, [[0, 1], [1, 2]]).opacity().tolist() == [1, 1]
    assert scene(video, []).opacity().tolist() == []


def test_the_frames_of_the_picture_are_those_in_the_middles_of_equal_parts(video):
    strip, _ = storyboard(video, [[2, 5]]).axes
    parts = [image.get_extent()[:2] for image in strip.images]
    assert parts[0][0] == 0 and parts[-1][1] == pytest.approx(12) and len({round(b - a, 6) for a, b in parts}) == 1
    for (left, right), image in zip(parts, strip.images, strict=True):
        assert abs(frame_number(image.get_array()) / 10 - (left + right) / 2) <= 0.1
        assert image.get_array().shape[1] / image.get_array().shape[0] == pytest.approx(16 / 9, rel=0.03)


def test_the_picture_has_the_sentence_above_and_the_best_moment_beside_it(video):
    fig = storyboard(video, [[2, 4.5, 0.812345], [6, 8, 0.4]], np.arange(6.0), [[2, 5]], 'costs $5 and "$6"\n today')
    strip, rows = fig.axes
    assert (
        strip.get_title("left") == '“costs $5 and "$6" today”' and strip.get_title("right") == "2.0–4.5 s, score 0.812"
    )
    assert [label.get_text() for label in rows.get_yticklabels()] == ["saliency", "predicted", "truth"]
    colours = [to_rgb(bars.get_facecolor()[0]) for bars in rows.collections[1:]]
    assert colours == [plots.PREDICTED, plots.PREDICTED, plots.TRUTH]
    fig.canvas.draw()  # dollars are no formula


def test_the_picture_without_moments_says_so(video):
    fig = storyboard(video, [], query="a dog")
    assert fig.axes[0].get_title("right") == "not here"
    fig.canvas.draw()


@pytest.mark.parametrize("size", [(48, 128), (128, 32)])
def test_tall_and_wide_videos_fill_the_strip(size, tmp_path):
    fig = storyboard(make_video(tmp_path / "v.mp4", 3.0, size=size), [[1, 2]])
    fig.canvas.draw()
    box = fig.axes[0].get_window_extent()
    assert 4 <= len(fig.axes[0].images) <= 16
    assert box.width / len(fig.axes[0].images) / box.height == pytest.approx(size[0] / size[1], rel=0.2)


def test_a_real_video_is_drawn():
    fig = storyboard(real_video(), [[6, 14, 0.8]], query="a person opens the door")
    assert len(fig.axes[0].images) == 6


def test_pixels_that_are_not_square_are_drawn_as_shown(tmp_path):
    file = make_video(tmp_path / "v.mp4", 2.0, size=(64, 64), aspect=Fraction(2))
    assert scene(file, []).aspect == pytest.approx(2)
    frame = storyboard(file, []).axes[0].images[0].get_array()
    assert frame.shape[1] / frame.shape[0] == pytest.approx(2)


def test_a_turned_video_is_upright(tmp_path):
    file = make_video(tmp_path / "v.mp4", 2.0, size=(64, 128), rotation=90)
    assert scene(file, []).aspect == pytest.approx(2)
    assert storyboard(file, []).axes[0].images[0].get_array().shape == (240, 480, 3)


def test_a_file_without_pictures_is_refused_by_name(tmp_path):
    audio_only(tmp_path / "sound.mp4")
    no_frames(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("sound.mp4", "empty.mp4", "text.mp4"):
        with pytest.raises(ValueError, match=name):
            scene(tmp_path / name, [])


@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_what_can_be_read_of_a_damaged_video_is_drawn(damage, tmp_path):
    file = make_video(tmp_path / ("v.mkv" if damage is truncate else "v.mp4"), 8.0, size=(128, 72))
    damage(file)
    fig = storyboard(file, [[0, 1]])
    assert len(fig.axes[0].images) >= 4
