"""How the actions of a simulated world move."""

from itertools import combinations

import numpy as np
import pytest

from mrlib.sim.motions import MOTIONS, Motion, ramp, wave
from mrlib.sim.world import ACTIONS, SIZES, World

PHASES = np.arange(16) / 16


def numbers(motion: Motion) -> np.ndarray:
    """Where the actor, the hands and the first part of the object are."""
    thing = motion.things[0]
    return np.array([motion.x, *motion.hands[0], *motion.hands[1], thing.x, thing.y, thing.angle, *thing.size])


def test_every_action_of_a_world_has_a_motion():
    assert list(MOTIONS) == World(SIZES["paper"], 0).names["action"]


@pytest.mark.parametrize("action", MOTIONS)
def test_an_action_moves_and_stays_in_the_picture(action):
    motions = [MOTIONS[action](p) for p in PHASES]
    looks = {(numbers(m).tobytes(), str(m.front), str(m.behind), str(m.things)) for m in motions}
    assert len(looks) > 4
    for motion in motions:
        assert all(-50 < thing.x < 50 and 10 < thing.y < 90 for thing in motion.things)
        assert all(-50 < x < 50 and 10 < y < 90 for x, y in motion.hands)


@pytest.mark.parametrize("family", ACTIONS)
def test_actions_of_a_family_are_told_apart_by_their_course(family):
    courses = {a: [str(MOTIONS[a](p)) for p in PHASES] for a in family.split()}
    for a, b in combinations(courses, 2):
        assert courses[a] != courses[b]


def test_waves_and_ramps():
    assert [round(wave(p), 6) for p in (0, 0.25, 0.5, 0.75)] == [0, 1, 0, -1]
    assert [ramp(p, 0.2, 0.6) for p in (0, 0.2, 0.4, 0.6, 1)] == [0, 0, pytest.approx(0.5), 1, 1]
