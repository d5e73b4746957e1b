"""The slider over pictures, without a notebook front end."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mrlib.widgets import browse


@pytest.fixture(autouse=True)
def no_front_end(monkeypatch):
    """Figures are not shown, and all are closed afterwards."""
    plt.switch_backend("agg")
    plt.close("all")
    yield
    plt.close("all")


def recorder():
    """A list of the drawn choices, and a function that draws a choice as a figure of that shade of grey."""
    drawn = []

    def draw(choice):
        drawn.append(choice)
        plt.figure(figsize=(1, 1), facecolor=str(choice))

    return drawn, draw


def shade(box):
    """The grey of the shown picture, 0 to 1."""
    return float(np.median(plt.imread(io.BytesIO(box.children[1].value))[..., 0]))


def test_the_first_choice_is_drawn_at_once():
    drawn, draw = recorder()
    box = browse(draw, [0.2, 0.6, 1.0], "noise")
    assert drawn == [0.2]
    assert shade(box) == pytest.approx(0.2, abs=0.01)
    assert box.children[0].description == "noise"


def test_moving_the_slider_draws_that_choice():
    drawn, draw = recorder()
    box = browse(draw, [0.2, 0.6, 1.0], "noise")
    box.children[0].value = 1.0
    assert shade(box) == pytest.approx(1.0, abs=0.01)
    box.children[0].index = 1
    assert shade(box) == pytest.approx(0.6, abs=0.01)
    assert drawn == [0.2, 1.0, 0.6]


def test_setting_the_same_value_draws_nothing():
    drawn, draw = recorder()
    browse(draw, [0.2, 0.6], "noise").children[0].value = 0.2
    assert drawn == [0.2]


def test_drawn_figures_are_closed_and_other_figures_stay_open():
    other = plt.figure()
    browse(recorder()[1], [0.2, 0.6], "noise").children[0].value = 0.6
    assert plt.get_fignums() == [other.number]


def test_no_figure_stays_open_if_drawing_fails():
    def draw(choice):
        plt.figure()
        raise RuntimeError("no such video")

    with pytest.raises(RuntimeError, match="no such video"):
        browse(draw, [1], "video")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("count", [0, 2])
def test_drawing_no_figure_or_two_is_refused(count):
    with pytest.raises(ValueError, match=f"must make one figure, it made {count}"):
        browse(lambda choice: [plt.figure() for _ in range(count)], [1], "video")


def test_an_empty_list_of_choices_is_refused():
    with pytest.raises(ValueError, match="nothing to choose for 'video'"):
        browse(print, [], "video")
