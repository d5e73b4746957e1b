"""The simulated world: its vectors and sentences, and where actions are at home."""

from __future__ import annotations

from mrlib.data.simulate import open_sim
from tests.support.simulated import homes, val


def test_a_sentence_names_actor_action_and_object_but_not_the_place():
    dataset = val("paper", seed=0, streams="joint")
    places = {s.extra["place"] for s in dataset.samples}
    for i, s in enumerate(dataset.samples):
        words = s.query.rstrip(".").lower().split()
        assert {s.extra[k] for k in ("actor", "action", "object")} <= set(words) and not places & set(words)
        assert len(words) == dataset.query.lengths[i]


def test_val_shift_is_val_with_every_home_moved():
    val_, shift = val(spurious=1.0), open_sim("val_shift", spurious=1.0)
    before, after = homes(val_), homes(shift)
    assert all(len(c) == 1 for c in (*before.values(), *after.values()))
    assert all(not set(before[a]) & set(after[a]) for a in before)
    assert [s.relevant_windows for s in val_.samples] == [s.relevant_windows for s in shift.samples]
    there = {next(iter(before[a])): next(iter(after[a])) for a in before}
    assert all(set(after[a]) == {there[next(iter(before[a]))]} for a in before)  # a permutation of places
    assert len(set(there.values())) == len(there)
