"""A slider over pictures, for readers with a running kernel; others see the static picture above it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from ipywidgets import Image, SelectionSlider, VBox


def browse(draw: Callable[[Any], None], choices: Sequence[Any], label: str) -> VBox:
    """A slider over `choices`, and below it the figure that `draw(choice)` makes; shown by the last line of a cell.

    draw     makes one matplotlib figure and leaves it open; it is closed here
    choices  for example numbers of videos, or values of a knob; the slider starts at the first
    raises   ValueError if `choices` is empty, or if `draw` does not make exactly one figure
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
    """The figure that `draw(choice)` makes, as PNG; figures that were open before stay open."""
    before = set(plt.get_fignums())
    try:
        draw(choice)
        figures = [number for number in plt.get_fignums() if number not in before]
        if len(figures) != 1:
            raise ValueError(f"draw must make one figure, it made {len(figures)} for {choice!r}")
        file = io.BytesIO()
        plt.figure(figures[0]).savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
