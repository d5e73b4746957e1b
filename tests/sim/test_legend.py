"""The code of rendered videos as a picture."""

import numpy as np

from mrlib.sim.legend import COLUMNS, HEIGHT, WIDTH, legend
from mrlib.sim.world import SIZES, World


def test_a_legend_has_an_entry_for_every_word():
    names = World(SIZES["small"], 0).names
    rows = sum(-(-len(words) // COLUMNS) for words in names.values())
    picture = legend(names)
    assert picture.shape == (rows * HEIGHT, COLUMNS * WIDTH, 3)
    entries = picture.reshape(rows, HEIGHT, COLUMNS, WIDTH, 3).swapaxes(1, 2).reshape(-1, HEIGHT, WIDTH, 3)
    drawn = [entry for entry in entries if (entry != 255).any()]
    assert len(drawn) == sum(map(len, names.values()))
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])
    assert np.ptp(drawn[0]) > 200


def test_a_world_without_the_usual_action_has_a_legend():
    names = {"actor": ["nurse"], "action": ["throws"], "object": ["kite"], "place": ["beach"]}
    assert legend(names).shape == (4 * HEIGHT, COLUMNS * WIDTH, 3)
