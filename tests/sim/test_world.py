"""The simulated world: its vectors and sentences, and where actions are at home."""

from __future__ import annotations

import numpy as np
import pytest

from mrlib.sim import open_sim
from mrlib.sim.world import ACTIONS, KNOBS, PRESETS, SIZES, Dice, World, parameters, unit
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


# --- vectors and words -----------------------------------------------------------------------------------------------


def world(size="paper", seed=0, preset=None, query="text", **knobs):
    return World(parameters(size, query, preset, knobs), seed)


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_what_is_drawn_under_a_name_is_drawn_alone():
    """Whatever else is drawn; another name or key gives other numbers."""
    dice = Dice((0, "a"))
    first = dice.uniform("x", 5)
    dice.normal("y", 100)
    np.testing.assert_array_equal(dice.uniform("x", 5), first)
    np.testing.assert_array_equal(Dice((0, "a")).uniform("x", 5), first)
    for other in (dice.uniform("y", 5), Dice((1, "a")).uniform("x", 5), Dice((0, "b")).uniform("x", 5)):
        assert (other != first).all()


def test_whole_numbers_are_shares_of_the_same_uniform_numbers():
    dice = Dice((0,))
    u = dice.uniform("x", 1000)
    for n in (1, 3, 10):
        assert dice.pick("x", n, 1000).tolist() == [int(x * n) for x in u]


def test_a_unit_vector_is_the_vector_over_its_norm():
    x = np.array([[3.0, 4.0], [0.0, -2.0]])
    assert unit(x).tolist() == [[0.6, 0.8], [0.0, -1.0]]


@pytest.mark.parametrize("size", SIZES)
def test_concepts_are_unit_vectors_of_the_size_and_of_the_seed(size):
    one, same, other = world(size), world(size), world(size, seed=1)
    p = one.p
    shapes = {
        "actors": (p.actors, p.joint),
        "objects": (p.objects, p.joint),
        "places": (p.places, p.joint),
        "actions": (p.families * p.members, p.joint),
        "motions": (p.families * p.members, p.motion),
        "phases": (p.families * p.members, 4, p.joint),
        "gaps": (2, p.joint),
        "words": (len(one.vocabulary), p.joint),
    }
    for name, shape in shapes.items():
        vectors = getattr(one, name)
        assert vectors.shape == shape
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(vectors, getattr(same, name))
        assert not np.allclose(vectors, getattr(other, name))


def test_pictures_and_sentences_lie_apart_by_a_known_angle():
    assert cosines(world().gaps)[0, 1] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize(("name", "share"), [("actions", 0.6), ("motions", 0.2)])
def test_actions_of_a_family_are_alike_by_its_share(name, share):
    """Of a size of 512 and 256 numbers: siblings by the share, others by nothing, with what chance adds."""
    similar = cosines(getattr(world(), name))
    family = np.arange(len(similar)) // 4
    siblings = (family[:, None] == family) & ~np.eye(len(similar), dtype=bool)
    assert similar[siblings].mean() == pytest.approx(share, abs=0.03)
    assert abs(similar[family[:, None] != family].mean()) < 0.02


def test_a_family_of_one_look_has_one_vector():
    """In motion too where the preset says so, and else by its own share."""
    for preset, alike in (("family", 1.0), (None, 0.2)):
        turned = world(preset=preset, family=1.0)
        np.testing.assert_allclose(turned.actions[0], turned.actions[3], atol=1e-6)
        assert turned.motions[0] @ turned.motions[3] == pytest.approx(alike, abs=0.15)


def test_an_event_is_its_actor_action_and_object_in_known_parts():
    """Weights 0.5, 0.5 and 0.7 over their norm."""
    w = world()
    parts = np.array([0.5, 0.5, 0.7]) / np.sqrt(0.5**2 + 0.5**2 + 0.7**2)
    expected = parts[0] * w.actors[1] + parts[1] * w.actions[2] + parts[2] * w.objects[3]
    np.testing.assert_allclose(w.event(np.array([1]), np.array([2]), np.array([3]))[0], expected, atol=1e-6)


def test_an_action_is_at_home_in_one_place_and_elsewhere_after_the_shift():
    """Every place is the home of as many actions as any other, give or take one."""
    for seed in range(5):
        w = world(seed=seed)
        before, after = w.homes(shifted=False), w.homes(shifted=True)
        assert (before != after).all()
        for homes_ in (before, after):
            counts = np.bincount(homes_, minlength=w.p.places)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("u", "sentence"),
    [
        ([1.0] * 10, "A woman rolls a lamp."),
        ([0.0] * 10, "A young woman in a red shirt rolls the big lamp in front of the camera."),
        ([1, 0, 0, 0.99, 0.2, 1, 0, 1, 0, 0], "A woman in a yellow shirt rolls the lamp."),
        ([0.5, 0.99, 1, 0, 0.6, 0.5, 0.99, 0.5, 0.99, 0], "A bearded woman rolls a heavy lamp very slowly."),
    ],
)
def test_a_sentence_says_what_the_numbers_choose(u, sentence):
    """By hand; what is optional is said with a chance of 0.53 at this size."""
    assert world().sentence(1, 3, 2, np.array(u)) == sentence


def test_every_word_of_a_sentence_has_a_vector():
    w = world()
    names = {word for words in w.names.values() for word in words}
    assert names - set(w.names["place"]) <= w.vocabulary.keys()
    assert sorted(w.vocabulary.values()) == list(range(len(w.vocabulary)))
    assert [len(row.split()) for row in ACTIONS] == [4] * 8 and len(w.names["action"]) == len(
        set(w.names["action"])
    ) == 32


@pytest.mark.parametrize("size", SIZES)
def test_a_knob_changes_its_own_parameter_and_a_preset_what_it_says(size):
    plain = parameters(size, "text", None, {})
    assert plain == SIZES[size]
    for knob, value in zip(KNOBS, (2.0, 0.1, 7, 0.3, 4.0, 0.9, 0.0), strict=True):
        turned = parameters(size, "text", None, {knob: value})
        assert {k for k, v in vars(turned).items() if v != getattr(plain, k)} == {knob}
        assert getattr(turned, knob) == value
    for preset, changes in PRESETS.items():
        changed = parameters(size, "text", preset, {})
        assert vars(changed) == vars(plain) | changes
    assert parameters(size, "video", None, {}).windows == (1.0,)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"family": 1.1}, "family must be from 0 to 1, is 1.1"),
        ({"irrelevant": -0.1}, "irrelevant must be from 0 to 1, is -0.1"),
        ({"blur": -1}, "blur must be at least 0, is -1"),
        ({"noise": -1}, "noise must be at least 0, is -1"),
        ({"n_train": 2.5}, "n_train must be a whole number of at least 1, is 2.5"),
        ({"n_train": 0}, "n_train must be a whole number of at least 1, is 0"),
        ({"scene": 1}, "unknown knob .'scene'.; known: blur, family"),
    ],
)
def test_a_knob_out_of_its_range_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        parameters("small", "text", None, knobs)
