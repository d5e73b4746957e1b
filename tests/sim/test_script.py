"""Scripts: windows, the event asked for, places and how long they are seen, the speed of query videos."""

from __future__ import annotations

import numpy as np

from mrlib.data import Labels
from tests.support.simulated import homes, val


def test_annotations_are_in_the_official_form():
    for s in val().samples:
        clips = [i for a, b in s.relevant_windows for i in range(int(a / 2), int(b / 2))]
        assert s.relevant_clip_ids == clips == sorted(set(clips)) and clips[-1] < s.duration / 2
        assert all(a[1] < b[0] for a, b in zip(s.relevant_windows, s.relevant_windows[1:], strict=False))
        assert len(s.saliency_scores) == len(clips) and {len(x) for x in s.saliency_scores} == {3}
    assert isinstance(val().batch([0, 1]).labels, Labels)


def test_the_windows_are_those_of_the_one_event_that_the_query_names():
    for s in val(irrelevant=0.8).samples:
        asked = [s.extra[k] for k in ("actor", "action", "object")]
        told = [e for e in s.extra["script"] if [e[k] for k in ("actor", "action", "object")] == asked]
        assert [w for e in told for w in e["windows"]] == s.relevant_windows and len(told) == 1


def test_the_event_asked_for_is_any_of_those_in_the_video():
    """Exchangeable: it is neither longer, nor earlier, nor made of more windows than the others."""
    chosen, mean = [], []
    for s in val("paper", seed=0, streams="joint").samples:
        present = [e for e in s.extra["script"] if e["windows"]]
        facts = np.array([[sum(b - a for a, b in e["windows"]), e["start"], len(e["windows"])] for e in present])
        chosen.append(facts[[e["windows"] == s.relevant_windows for e in present]][0])
        mean.append(facts.mean(0))
    difference = np.array(chosen) - np.array(mean)
    error = difference.std(0) / np.sqrt(len(difference))
    assert (abs(difference.mean(0)) < 3 * error).all()


def test_spurious_is_how_often_an_action_happens_at_home():
    """At home by this chance, and else one time in eight by accident."""
    usual = {a: c.most_common(1)[0][0] for a, c in homes(val(spurious=1.0)).items()}
    for chance in (0.0, 0.5, 1.0):
        here = np.mean([s.extra["place"] == usual[s.extra["action"]] for s in val(spurious=chance).samples])
        assert abs(here - (chance + (1 - chance) / 8)) < 0.06


def test_in_the_preset_a_place_is_seen_four_clips_beyond_its_moment_on_both_sides():
    for s in val(preset="spurious", spurious=1.0).samples:
        for e in (e for e in s.extra["script"] if e["windows"]):
            assert e["start"] == 0 or e["windows"][0][0] - e["start"] >= 8
            assert e["end"] == s.duration or e["end"] - e["windows"][-1][1] >= 8


def test_speed_is_how_many_times_faster_or_slower_a_query_video_runs():
    def rates(speed: float) -> np.ndarray:
        dataset = val(query="video", speed=speed)
        pairs = zip(dataset.samples, dataset.query.lengths.tolist(), strict=True)
        lengths = [(b - a, 2 * n, a, b, s.duration) for s, n in pairs for a, b in s.relevant_windows]
        return np.array([x / y for x, y, a, b, whole in lengths if a > 0 and b < whole and 6 < y < whole / 2])

    assert set(rates(1.0)) == {1.0}
    assert 2.2 < rates(3.0).max() <= 3.5 and 0.25 <= rates(3.0).min() < 0.45
