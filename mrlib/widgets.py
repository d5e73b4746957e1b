"""A slider over pictures; a static picture stands above it, for readers without a running kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from ipywidgets import Output, SelectionSlider, VBox


def browse(draw: Callable[[Any], None], choices: Sequence[Any], label: str) -> VBox:
    """A slider over `choices` and under it what `draw(choice)` draws; the last line of a cell shows both.

    draw     makes one matplotlib figure, or prints
    choices  numbers of videos, values of a knob; the slider starts at the first
    raises   ValueError if there is nothing to choose
    """
    if len(choices) == 0:
        raise ValueError(f"nothing to choose for {label!r}: choices is empty")
    slider = SelectionSlider(options=list(choices), description=label, continuous_update=False)
    picture = Output()

    def redraw(_=None) -> None:
        picture.clear_output(wait=True)
        with picture:
            draw(slider.value)
            plt.show()

    slider.observe(redraw, names="value")
    redraw()
    return VBox([slider, picture])
