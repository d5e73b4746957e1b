"""A slider over pictures; a static picture stands above it, for readers without a running kernel."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from ipywidgets import Image, SelectionSlider, VBox


def browse(draw: Callable[[Any], None], choices: Sequence[Any], label: str) -> VBox:
    """A slider over `choices` and under it what `draw(choice)` draws; the last line of a cell shows both.

    draw     makes one matplotlib figure and leaves it open; it is closed here
    choices  numbers of videos, values of a knob; the slider starts at the first
    raises   ValueError if there is nothing to choose, or `draw` makes no figure
    """
    if len(choices) == 0:
        raise ValueError(f"nothing to choose for {label!r}: choices is empty")
    slider = SelectionSlider(options=list(choices), description=label, continuous_update=False)
    picture = Image(format="png")

    def redraw(_=None) -> None:
        picture.value = _png(draw, slider.value)

    slider.observe(redraw, names="value")
    redraw()
    return VBox([slider, picture])


def _png(draw: Callable[[Any], None], choice: Any) -> bytes:
    """The figure that `draw(choice)` makes; figures that were open before stay as they are."""
    before = set(plt.get_fignums())
    try:
        draw(choice)
        made = [number for number in plt.get_fignums() if number not in before]
        if len(made) != 1:
            raise ValueError(f"draw must make one figure, it made {len(made)} for {choice!r}")
        file = io.BytesIO()
        plt.figure(made[0]).savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
