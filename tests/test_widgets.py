"""The slider, without a front end."""

import matplotlib.pyplot as plt
import pytest

from mrlib.widgets import browse


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """Counts the pictures shown, which need a front end."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    return calls


def test_the_first_choice_is_drawn_at_once(shown):
    drawn = []
    box = browse(drawn.append, [0.2, 0.5, 0.9], "noise")
    assert drawn == [0.2]
    assert len(shown) == 1
    assert box.children[0].description == "noise"


def test_moving_the_slider_draws_that_choice(shown):
    drawn = []
    slider = browse(drawn.append, range(3, 6), "video").children[0]
    slider.value = 5
    slider.index = 1
    assert drawn == [3, 5, 4]
    assert len(shown) == 3


def test_a_slider_that_stays_draws_nothing():
    drawn = []
    browse(drawn.append, ["a", "b"], "query").children[0].value = "a"
    assert drawn == ["a"]


def test_nothing_to_choose_is_an_error():
    with pytest.raises(ValueError, match="nothing to choose for 'video'"):
        browse(print, [], "video")
