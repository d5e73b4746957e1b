"""The simulated world: its vectors, its sentences, and the home places of actions."""

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


def test_val_shift_is_val_with_permuted_home_places():
    val_, shift = val(spurious=1.0), open_sim("val_shift", spurious=1.0)
    before, after = homes(val_), homes(shift)
    assert all(len(c) == 1 for c in (*before.values(), *after.values()))
    assert all(not set(before[a]) & set(after[a]) for a in before)
    assert [s.relevant_windows for s in val_.samples] == [s.relevant_windows for s in shift.samples]
    moves = {next(iter(before[a])): next(iter(after[a])) for a in before}
    assert all(set(after[a]) == {moves[next(iter(before[a]))]} for a in before)  # a permutation of places
    assert len(set(moves.values())) == len(moves)


# --- vectors and words -----------------------------------------------------------------------------------------------


def world(size="paper", seed=0, preset=None, query="text", **knobs):
    return World(parameters(size, query, preset, knobs), seed)


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_numbers_depend_on_their_name_and_key_and_not_on_other_draws():
    dice = Dice((0, "a"))
    first = dice.uniform("x", 5)
    dice.normal("y", 100)
    np.testing.assert_array_equal(dice.uniform("x", 5), first)
    np.testing.assert_array_equal(Dice((0, "a")).uniform("x", 5), first)
    for other in (dice.uniform("y", 5), Dice((1, "a")).uniform("x", 5), Dice((0, "b")).uniform("x", 5)):
        assert (other != first).all()


def test_whole_numbers_are_scaled_uniform_numbers():
    dice = Dice((0,))
    u = dice.uniform("x", 1000)
    for n in (1, 3, 10):
        assert dice.pick("x", n, 1000).tolist() == [int(x * n) for x in u]


def test_a_unit_vector_is_the_vector_divided_by_its_norm():
    x = np.array([[3.0, 4.0], [0.0, -2.0]])
    assert unit(x).tolist() == [[0.6, 0.8], [0.0, -1.0]]


@pytest.mark.parametrize("size", SIZES)
def test_concepts_are_unit_vectors_that_depend_on_size_and_seed(size):
    first, equal, other = world(size), world(size), world(size, seed=1)
    p = first.p
    shapes = {
        "actors": (p.actors, p.joint),
        "objects": (p.objects, p.joint),
        "places": (p.places, p.joint),
        "actions": (p.families * p.members, p.joint),
        "motions": (p.families * p.members, p.motion),
        "phases": (p.families * p.members, 4, p.joint),
        "gaps": (2, p.joint),
        "words": (len(first.vocabulary), p.joint),
    }
    for name, shape in shapes.items():
        vectors = getattr(first, name)
        assert vectors.shape == shape
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(vectors, getattr(equal, name))
        assert not np.allclose(vectors, getattr(other, name))


def test_the_gap_vectors_of_images_and_sentences_have_the_cosine_of_the_parameters():
    assert cosines(world().gaps)[0, 1] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize(("name", "share"), [("actions", 0.6), ("motions", 0.2)])
def test_actions_of_a_family_have_its_share_as_cosine(name, share):
    """Up to chance, in 512 and 256 dimensions; the cosine of actions of different families is 0."""
    similar = cosines(getattr(world(), name))
    family = np.arange(len(similar)) // 4
    siblings = (family[:, None] == family) & ~np.eye(len(similar), dtype=bool)
    assert similar[siblings].mean() == pytest.approx(share, abs=0.03)
    assert abs(similar[family[:, None] != family].mean()) < 0.02


def test_actions_of_a_family_of_share_1_have_the_same_vector():
    """In the motion stream only with the preset; by default its share is 0.2."""
    for preset, cosine in (("family", 1.0), (None, 0.2)):
        changed = world(preset=preset, family=1.0)
        np.testing.assert_allclose(changed.actions[0], changed.actions[3], atol=1e-6)
        assert changed.motions[0] @ changed.motions[3] == pytest.approx(cosine, abs=0.15)


def test_an_event_is_the_weighted_sum_of_its_actor_action_and_object():
    """With the weights 0.5, 0.5 and 0.7 divided by their norm."""
    w = world()
    weights = np.array([0.5, 0.5, 0.7]) / np.sqrt(0.5**2 + 0.5**2 + 0.7**2)
    expected = weights[0] * w.actors[1] + weights[1] * w.actions[2] + weights[2] * w.objects[3]
    np.testing.assert_allclose(w.event(np.array([1]), np.array([2]), np.array([3]))[0], expected, atol=1e-6)


def test_every_action_has_another_home_place_after_the_shift():
    """Places are the homes of equally many actions, up to one."""
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
def test_the_numbers_choose_the_optional_words_of_a_sentence(u, sentence):
    """By hand; an optional part has a chance of 0.53 at this size."""
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
def test_a_knob_changes_one_parameter_and_a_preset_those_that_it_lists(size):
    plain = parameters(size, "text", None, {})
    assert plain == SIZES[size]
    for knob, value in zip(KNOBS, (2.0, 0.1, 7, 0.3, 4.0, 0.9, 0.0, 0.5), strict=True):
        changed = parameters(size, "text", None, {knob: value})
        assert {k for k, v in vars(changed).items() if v != getattr(plain, k)} == {knob}
        assert getattr(changed, knob) == value
    for preset, changes in PRESETS.items():
        changed = parameters(size, "text", preset, {})
        assert vars(changed) == vars(plain) | changes
    assert parameters(size, "video", None, {}).windows == (1.0,)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"family": 1.1}, "family must be from 0 to 1, not 1.1"),
        ({"irrelevant": -0.1}, "irrelevant must be from 0 to 1, not -0.1"),
        ({"blur": -1}, "blur must be at least 0, not -1"),
        ({"noise": -1}, "noise must be at least 0, not -1"),
        ({"n_train": 2.5}, "n_train must be a whole number of at least 1, not 2.5"),
        ({"n_train": 0}, "n_train must be a whole number of at least 1, not 0"),
        ({"scene": 1}, "unknown knob .'scene'.; known: blur, family"),
    ],
)
def test_a_knob_out_of_its_range_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        parameters("small", "text", None, knobs)
