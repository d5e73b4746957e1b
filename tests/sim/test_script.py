"""Scripts: windows, the queried event, places and how long they are seen, the speed of query videos."""

from __future__ import annotations

import numpy as np
import pytest

from mrlib.data import Labels
from mrlib.sim.script import SHOWN, correlate, draw_script, rendition, saliency, shots, visibility
from mrlib.sim.world import Dice, World, parameters
from tests.support.simulated import homes, val


def test_annotations_have_the_official_form():
    for s in val().samples:
        clips = [i for a, b in s.relevant_windows for i in range(int(a / 2), int(b / 2))]
        assert s.relevant_clip_ids == clips == sorted(set(clips)) and clips[-1] < s.duration / 2
        assert all(a[1] < b[0] for a, b in zip(s.relevant_windows, s.relevant_windows[1:], strict=False))
        assert len(s.saliency_scores) == len(clips) and {len(x) for x in s.saliency_scores} == {3}
    assert isinstance(val().batch([0, 1]).labels, Labels)


def test_the_windows_are_those_of_the_only_event_that_the_query_names():
    for s in val(irrelevant=0.8).samples:
        queried = [s.extra[k] for k in ("actor", "action", "object")]
        events = [e for e in s.extra["script"] if [e[k] for k in ("actor", "action", "object")] == queried]
        assert [w for e in events for w in e["windows"]] == s.relevant_windows and len(events) == 1


def test_the_queried_event_is_drawn_uniformly_among_the_events_of_a_video():
    """It is not longer or earlier than the other events, and has no more windows."""
    chosen, mean = [], []
    for s in val("paper", seed=0, streams="joint").samples:
        present = [e for e in s.extra["script"] if e["windows"]]
        facts = np.array([[sum(b - a for a, b in e["windows"]), e["start"], len(e["windows"])] for e in present])
        chosen.append(facts[[e["windows"] == s.relevant_windows for e in present]][0])
        mean.append(facts.mean(0))
    difference = np.array(chosen) - np.array(mean)
    error = difference.std(0) / np.sqrt(len(difference))
    assert (abs(difference.mean(0)) < 3 * error).all()


def test_spurious_is_the_chance_that_an_action_happens_in_its_home_place():
    """Otherwise its place is drawn among eight, of which one is the home."""
    home = {a: c.most_common(1)[0][0] for a, c in homes(val(spurious=1.0)).items()}
    for chance in (0.0, 0.5, 1.0):
        share = np.mean([s.extra["place"] == home[s.extra["action"]] for s in val(spurious=chance).samples])
        assert abs(share - (chance + (1 - chance) / 8)) < 0.06


def test_in_the_spurious_preset_a_place_is_seen_four_clips_beyond_its_event_on_both_sides():
    for s in val(preset="spurious", spurious=1.0).samples:
        for e in (e for e in s.extra["script"] if e["windows"]):
            assert e["start"] == 0 or e["windows"][0][0] - e["start"] >= 8
            assert e["end"] == s.duration or e["end"] - e["windows"][-1][1] >= 8


def test_speed_is_the_largest_rate_of_a_query_video():
    def rates(speed: float) -> np.ndarray:
        dataset = val(query="video", speed=speed)
        pairs = zip(dataset.samples, dataset.query.lengths.tolist(), strict=True)
        lengths = [(b - a, 2 * n, a, b, s.duration) for s, n in pairs for a, b in s.relevant_windows]
        return np.array([x / y for x, y, a, b, whole in lengths if a > 0 and b < whole and 6 < y < whole / 2])

    assert set(rates(1.0)) == {1.0}
    assert 2.2 < rates(3.0).max() <= 3.5 and 0.25 <= rates(3.0).min() < 0.45


# --- arrays of the script --------------------------------------------------------------------------------------------


def script_of(videos=64, query="text", seed=0, **knobs):
    world = World(parameters("small", query, None, knobs), seed)
    dice = Dice((seed, "script"))
    actions = np.arange(world.p.families * world.p.members)
    return world, dice, draw_script(world, dice, actions, False, videos)


def test_the_relevant_clips_are_the_windows_of_the_queried_event():
    """Every video has relevant clips, and its timeline shows the queried concepts in them."""
    _, _, script = script_of()
    timeline = script.timeline
    assert len(timeline) == 64 and script.relevant.shape == (64, 32)
    assert script.relevant.any(1).all() and (timeline.inside | ~script.relevant).all()
    for b, row in enumerate(script.relevant):
        (event,) = set(timeline.event[b, row].tolist())
        np.testing.assert_array_equal(row, timeline.inside[b] & (timeline.event[b] == event))
        for name in ("actor", "action", "object", "place"):
            assert set(getattr(timeline, name)[b, row].tolist()) == {int(script.queried[name][b])}


def test_a_piece_belongs_to_one_event_and_progress_is_even_within_a_window():
    """Clip by clip, progress grows by 1 over the length of the window."""
    _, _, script = script_of()
    x = script.timeline
    for b in range(len(x)):
        for t in range(1, 32):
            if x.piece[b, t] == x.piece[b, t - 1]:
                assert x.event[b, t] == x.event[b, t - 1] and x.inside[b, t] == x.inside[b, t - 1]
                if x.inside[b, t]:
                    step = x.progress[b, t] - x.progress[b, t - 1]
                    assert step == pytest.approx(1 / x.length[b, t]) and x.length[b, t] == x.length[b, t - 1]
            else:
                assert x.piece[b, t] == t
    assert (x.progress > 0).all() and (x.progress < 1).all()


def test_an_event_that_covers_the_whole_video_is_the_queried_one():
    """It has a chance of 0.03."""
    _, _, script = script_of(2000)
    full = (script.timeline.length == 32).all(1) & (script.timeline.event == 0).all(1) & script.timeline.inside.all(1)
    assert 0.015 < full.mean() < 0.06
    assert script.relevant[full].all()


def test_no_other_event_of_a_video_equals_the_queried_one():
    _, _, script = script_of(500, irrelevant=1.0)
    facts = [getattr(script.timeline, k) == script.queried[k][:, None] for k in ("actor", "action", "object")]
    same, event = np.logical_and.reduce(facts), script.timeline.event
    for b in range(500):
        (queried,) = set(event[b, script.relevant[b]].tolist())
        assert set(event[b, same[b]].tolist()) == {queried}
    resembling = sum(fact.astype(int) for fact in facts)[~same]
    assert set(resembling.tolist()) == {2}  # a near miss shares two of three concepts


def test_correlated_noise_has_the_given_lag_1_correlation_and_variance_1():
    """Three clips by hand, 0.6 of the clip before plus 0.8 of the clip itself; then many."""
    x = np.array([[[1.0], [2.0], [-1.0]]], np.float32)
    correlate(x, 0.6)
    second = 0.8 * 2 + 0.6 * 1
    np.testing.assert_allclose(x[0, :, 0], [1, second, 0.8 * -1 + 0.6 * second], rtol=1e-6)
    x = Dice((0,)).normal("x", 200, 50, 20)
    correlate(x, 0.3)
    assert x.var() == pytest.approx(1, abs=0.02)
    assert (x[:, 1:] * x[:, :-1]).mean() == pytest.approx(0.3, abs=0.02)


def test_every_window_has_a_clip_of_high_visibility():
    world, dice, script = script_of()
    visible, x = visibility(world.p, dice, script.timeline, -5.0), script.timeline
    assert (visible > 0).all() and (visible < 1).all()
    for b in range(len(x)):
        for first in set(x.piece[b, x.inside[b]].tolist()):
            assert visible[b, x.inside[b] & (x.piece[b] == first)].max() >= SHOWN
    assert (visible < SHOWN).mean() > 0.5


def test_a_shot_begins_before_its_clip_and_within_its_event():
    world, dice, script = script_of()
    begin, x = shots(world.p, dice, script.timeline), script.timeline
    t = np.arange(32)
    assert (begin <= t).all() and (begin >= 0).all()
    np.testing.assert_array_equal(np.take_along_axis(x.event, begin, 1), x.event)
    assert (np.diff(begin, axis=1)[x.piece[:, 1:] == x.piece[:, :-1]] >= 0).all()


def test_saliency_scores_rise_with_the_visibility():
    """Scores from 0 to 4 have the shares of QVHighlights."""
    dice = Dice((0,))
    visible = dice.uniform("visible", 400, 75)
    scores = saliency(dice, visible)
    assert scores.shape == (400, 75, 3) and set(np.unique(scores)) == {0, 1, 2, 3, 4}
    shares = np.bincount(scores.ravel(), minlength=5) / scores.size
    np.testing.assert_allclose(shares, [0.032, 0.073, 0.185, 0.307, 0.404], atol=0.03)
    assert np.corrcoef(visible.ravel(), scores.mean(2).ravel())[0, 1] > 0.3


def test_a_query_video_has_the_length_of_the_longest_window_divided_by_its_rate():
    """Between 3 clips and half of the video, and it shows the queried event. At speed 1 the rate is 1."""
    world, dice, script = script_of(200, query="video", speed=1.0)
    timeline, clips = rendition(world, dice, script)
    longest = np.where(script.relevant, script.timeline.length, 0).max(1)
    assert clips.tolist() == np.clip(longest, 3, 16).tolist()
    assert timeline.inside.sum(1).tolist() == clips.tolist() and timeline.event.shape == (200, 16)
    for name in ("actor", "action", "object"):
        assert (getattr(timeline, name) == script.queried[name][:, None]).all()
    inside = timeline.inside
    np.testing.assert_allclose(timeline.progress[inside], ((np.arange(16) + 0.5) / clips[:, None])[inside])
    world, dice, script = script_of(200, query="video", speed=3.0)
    rate = np.where(script.relevant, script.timeline.length, 0).max(1) / rendition(world, dice, script)[1]
    unclipped = (rate > 0.34) & (rate < 2.9)
    assert unclipped.mean() > 0.3 and rate.max() <= 3.5
