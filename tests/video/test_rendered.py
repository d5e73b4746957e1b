"""Simulated samples as videos, with their truth."""

from dataclasses import replace

import numpy as np
import pytest

from mrlib.data import Sample
from mrlib.sim import open_sim
from mrlib.sim.drawing import Drawing
from mrlib.sim.simulator import CLIP_S
from mrlib.video.read import pictures, probe
from mrlib.video.rendered import another_take, caption, in_a_row, moments, render, render_query, render_sample
from tests.support.simulated import val


def test_a_rendered_video_shows_its_sample(tmp_path):
    """Decoded, every picture is nearest to the frame of its own time."""
    dataset = val()
    listed = render(dataset, 0, tmp_path / "a.mp4", fps=8, width=320, height=180)
    facts = probe(tmp_path / "a.mp4")
    assert (facts.width, facts.height, facts.duration_s) == (320, 180, 64.0)
    assert listed == moments(dataset.samples[0])
    decoded = np.stack([picture for _, picture in pictures(tmp_path / "a.mp4", CLIP_S, 64)]).astype(float)
    drawing = Drawing(dataset.samples[0])
    drawn = np.stack([drawing.frame(2 * n + 0.875, 64, 64) for n in range(32)]).astype(float)
    distance = np.abs(decoded[:, None] - drawn).mean((2, 3, 4))  # (32, 32)
    assert (distance.diagonal() < 10).all()
    different = distance > 12
    assert (distance.diagonal()[:, None] < distance)[different].all() and different.mean() > 0.5


def test_the_truth_is_that_of_the_dataset():
    """The event that a sample asks for is in the list of all its events, with the windows of the sample."""
    for sample in val().samples[:100]:
        windows = {moment["query"]: moment["windows"] for moment in moments(sample)}
        assert windows[caption(sample.extra)] == sample.relevant_windows


def test_an_event_that_happens_twice_is_listed_once():
    def event(start: float, place: str) -> dict:
        words = {"actor": "boy", "action": "kicks", "object": "ball", "place": place}
        return {"start": start, "end": start + 4, "windows": [[start, start + 2]], **words}

    twice = Sample(1, "", 8.0, "v", extra={"script": [event(0.0, "gym"), event(4.0, "park")]})
    assert moments(twice) == [{"query": "A boy kicks the ball.", "windows": [[0.0, 2.0], [4.0, 6.0]]}]


def test_samples_in_a_row_keep_their_events_at_later_times():
    samples = val().samples[:3]
    long = in_a_row(samples)
    assert long.duration == sum(sample.duration for sample in samples)
    drawing, third = Drawing(long), Drawing(samples[2])
    assert [e["windows"] for e in drawing.events[-len(third.events) :]] == [
        [[a + 128.0, b + 128.0] for a, b in e["windows"]] for e in third.events
    ]
    idle = next(t for t in range(64) if not any(a <= t < b for e in third.events for a, b in e["windows"]))
    np.testing.assert_array_equal(drawing.frame(128.0 + idle, 64, 64), third.frame(idle, 64, 64))
    asked = {moment["query"]: moment["windows"] for moment in moments(long)}
    assert asked[caption(samples[0].extra)] == long.relevant_windows
    assert long.relevant_windows[: len(samples[0].relevant_windows)] == samples[0].relevant_windows


def test_an_hour_is_drawn_frame_by_frame():
    """A minute in the middle of an hour, without the minutes before it."""
    samples = open_sim("val", n=57).samples
    hour = in_a_row(samples)
    assert hour.duration > 3600
    drawing = Drawing(hour)
    start = 30 * 64.0
    assert {drawing.frame(start + t, 64, 64).shape for t in range(60)} == {(64, 64, 3)}


@pytest.mark.parametrize("i", range(20))
def test_another_take_shows_the_event_in_another_place_at_another_speed(i):
    dataset = val(query="video")
    sample, take = dataset.samples[i], another_take(dataset, i)
    (event,) = take.extra["script"]
    assert all(event[kind] == sample.extra[kind] for kind in ("actor", "action", "object"))
    assert event["place"] != sample.extra["place"]
    longest = max(b - a for a, b in sample.relevant_windows)
    assert take.relevant_windows == [[0.0, take.duration]] and take.duration % CLIP_S == 0
    clips = np.clip(round(longest / event["rate"] / CLIP_S), 3, 16)
    assert 0.5 <= event["rate"] <= 2 and take.duration == clips * CLIP_S
    assert another_take(dataset, i) == take != another_take(dataset, i, seed=1)


def test_a_query_video_is_rendered(tmp_path):
    take = render_query(val(), 1, tmp_path / "query.mp4", fps=5)
    assert probe(tmp_path / "query.mp4").duration_s == pytest.approx(take.duration)


def test_a_null_query_has_no_window_but_its_video_has_events(tmp_path):
    dataset = open_sim("val", n=8, null=0.9)
    i = next(i for i, sample in enumerate(dataset.samples) if sample.relevant_windows == [])
    assert caption(dataset.samples[i].extra) not in [moment["query"] for moment in moments(dataset.samples[i])]
    assert another_take(dataset, i).duration == 32.0


def real_sample():
    return replace(val(), samples=[Sample(1, "A man talks.", 64.0, "v", [[0, 2]])] * 500)


BAD = {
    "no script": (lambda path: render(real_sample(), 0, path), "sample 1 .* has no script"),
    "absent": (lambda path: render(open_sim("val", n=1, absent=True), 0, path), "absent must be false"),
    "no such sample": (lambda path: render(val(), 500, path), "i must be the number of a sample, from 0 to 499"),
    "negative": (lambda path: render(val(), -1, path), "i must be the number of a sample"),
    "not a number": (lambda path: render(val(), "first", path), "i must be the number of a sample"),
    "odd width": (lambda path: render(val(), 0, path, width=641), "width must be an even number"),
    "no height": (lambda path: render(val(), 0, path, height=0), "height must be an even number"),
    "too wide": (lambda path: render(val(), 0, path, width=1280), "width must be at most 16 / 9 of the height"),
    "no time": (lambda path: render(val(), 0, path, fps=0), "fps must be from 1 to 60"),
    "NaN": (lambda path: render(val(), 0, path, fps=float("nan")), "fps must be from 1 to 60"),
    "nothing in a row": (lambda path: render_sample(in_a_row([]), path), "samples must be one or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(case, tmp_path):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        render(val(), 0, tmp_path / "file" / "a.mp4", fps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
