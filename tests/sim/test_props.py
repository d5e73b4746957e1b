"""Pictures as text, and the canvas that draws them."""

import numpy as np
import pytest
from PIL import Image

from mrlib.sim.props import FIGURES, OBJECTS, PLACES, Canvas, parse, place, sprite
from mrlib.sim.world import SIZES, World


def test_everything_that_a_world_has_has_a_picture():
    names = World(SIZES["paper"], 0).names
    assert names["actor"] == list(FIGURES) and names["object"] == list(OBJECTS) and names["place"] == list(PLACES)


def test_a_picture_is_a_list_of_shapes():
    assert parse("disc red 1 2 3; line #fff 2 0 0 4 5") == (
        ("disc", "red", (1.0, 2.0, 3.0)),
        ("line", "#fff", (2.0, 0.0, 0.0, 4.0, 5.0)),
    )


def test_a_row_repeats_a_shape_and_moves_its_points():
    """Neither the radius of a disc nor the width of a line moves."""
    assert parse("row 2 10 1 disc red 1 2 3") == (("disc", "red", (1.0, 2.0, 3.0)), ("disc", "red", (11.0, 3.0, 3.0)))
    assert parse("row 2 10 1 line red 4 0 0 5 5")[1] == ("line", "red", (4.0, 10.0, 1.0, 15.0, 6.0))


def test_a_box_covers_its_hundredths_of_the_height():
    image = Image.new("RGB", (200, 100))
    Canvas(image, 100, 1.0).picture("box white -50 20 49 39")
    white = np.argwhere(np.asarray(image)[..., 0] == 255)
    assert white.min(0).tolist() == [20, 50] and white.max(0).tolist() == [39, 149]


@pytest.mark.parametrize("kind", ["place", "object"])
def test_no_two_pictures_of_a_kind_look_alike_at_the_size_that_toy_sees(kind):
    """The mean difference of any two, in grey levels."""
    if kind == "place":
        pictures = [np.asarray(place(name, 64, 64), float) for name in PLACES]
    else:
        white = Image.new("RGBA", (20, 20), "white")
        pictures = [np.asarray(Image.alpha_composite(white, sprite(name, 20 / 32)), float) for name in OBJECTS]
    differences = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(differences) > 4
