"""Frames of a simulated sample."""

from dataclasses import replace

import numpy as np
import pytest

from mrlib.data import Sample
from mrlib.sim import open_sim
from mrlib.sim.drawing import Drawing, script_of
from mrlib.sim.motions import MOTIONS
from mrlib.sim.props import FIGURES, OBJECTS, PLACES


def event(**words) -> dict:
    usual = {"actor": "man", "action": "throws", "object": "ball", "place": "gym"}
    return {"start": 0.0, "end": 8.0, "windows": [[2.0, 6.0]]} | usual | words


def sample(*events: dict, **changes) -> Sample:
    return replace(
        Sample(7, "A man throws the ball.", 8.0, "v", [[2.0, 6.0]], extra={"script": list(events)}), **changes
    )


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_a_frame_is_a_function_of_sample_time_and_seed():
    one = sample(event())
    first = Drawing(one, seed=1).frame(3.3)
    assert first.shape == (360, 640, 3) and first.dtype == np.uint8
    drawing = Drawing(one, seed=1)
    for _ in drawing.frames(2, 128, 72):
        pass  # other frames, and another size, between
    np.testing.assert_array_equal(drawing.frame(3.3), first)
    assert difference(Drawing(one, seed=2).frame(3.3), first) > 0.5


def test_frames_are_those_at_their_times():
    drawing = Drawing(sample(event()))
    frames = list(drawing.frames(4, 64, 64))
    assert len(frames) == 32
    np.testing.assert_array_equal(frames[13], drawing.frame(13 / 4, 64, 64))


def test_outside_its_windows_an_event_shows_its_place_and_nobody():
    drawing = Drawing(sample(event()))
    empty = drawing.frame(0.0)
    for time in (1.9, 6.0, 7.5, 8.0):
        np.testing.assert_array_equal(drawing.frame(time), empty)
    for time in (2.0, 4.0, 5.9):
        assert difference(drawing.frame(time), empty) > 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [("actor", FIGURES), ("action", MOTIONS), ("object", OBJECTS), ("place", PLACES)],
    ids=["actor", "action", "object", "place"],
)
def test_another_word_gives_another_picture(kind, words):
    """Over one cycle, at the size that `Toy` sees."""
    strips = [
        np.stack([Drawing(sample(event(**{kind: word}))).frame(t, 64, 64) for t in (2.25, 2.75, 3.25, 3.75)])
        for word in words
    ]
    closest = min(difference(a, b) for i, a in enumerate(strips) for b in strips[:i])
    assert closest > 0.2


def test_the_middle_of_a_frame_is_the_frame_of_a_square():
    """So small pictures can be drawn directly: they are what is left of a video after the crop."""
    drawing = Drawing(sample(event()))
    assert difference(drawing.frame(3.0, 128, 72)[:, 28:100], drawing.frame(3.0, 72, 72)) < 0.1
    large = drawing.frame(3.0, 640, 360)[:, 140:500].reshape(72, 5, 72, 5, 3).mean((1, 3))
    assert difference(large, drawing.frame(3.0, 72, 72)) < 4


def test_nothing_shows_which_event_is_queried():
    """The frames of a sample whose query, windows and labels are those of another event are the same."""
    original = next(s for s in open_sim("val", n=8).samples if len(s.extra["script"]) > 2)
    other = next(e for e in original.extra["script"] if e["windows"] != original.relevant_windows)
    words = {kind: other[kind] for kind in ("actor", "action", "object", "place")}
    asked = replace(original, query="x", relevant_windows=other["windows"], extra=original.extra | words)
    for a, b in zip(Drawing(original).frames(1, 64, 64), Drawing(asked).frames(1, 64, 64), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_rate_shows_the_same_course_faster():
    slow, fast = Drawing(sample(event())), Drawing(sample(event(rate=2.0)))
    np.testing.assert_array_equal(slow.frame(2.0 + 1.0), fast.frame(2.0 + 0.5))
    assert difference(slow.frame(3.3), fast.frame(3.3)) > 0.5


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("options", [{}, {"query": "video"}, {"preset": "context"}, {"null": 0.5}], ids=str)
def test_every_world_can_be_drawn(size, options):
    for one in open_sim("test", size=size, n=2, **options).samples:
        drawing = Drawing(one)
        assert {drawing.frame(e["start"], 32, 32).shape for e in drawing.events} == {(32, 32, 3)}


@pytest.mark.parametrize("time", [-0.1, 8.1, float("nan")])
def test_a_time_outside_the_video_is_refused(time):
    with pytest.raises(ValueError, match="time_s must be from 0 to 8.0"):
        Drawing(sample(event())).frame(time)


def test_a_sample_without_a_script_is_refused():
    real = Sample(2579, "Man in gray top walks.", 150.0, "NUsG9BgSes0_210.0_360.0", [[82, 150]])
    with pytest.raises(ValueError, match="sample 2579 .* has no script"):
        script_of(real)


@pytest.mark.parametrize("kind", ["actor", "action", "object", "place"])
def test_a_word_without_a_picture_is_refused(kind):
    with pytest.raises(ValueError, match=f"sample 7: no picture of the {kind} 'astronaut'; known: "):
        Drawing(sample(event(**{kind: "astronaut"})))


@pytest.mark.parametrize("missing", ["start", "end", "windows", "everything"])
def test_an_event_without_times_is_refused(missing):
    broken = {name: value for name, value in event().items() if missing not in (name, "everything")}
    with pytest.raises(ValueError, match="sample 7: an event of its script has no start, end and windows"):
        Drawing(sample(broken))
