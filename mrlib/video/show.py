"""The player: a video's moments on a timeline, played by a click or a key.

It works in two places from one source, `show.js`. In a running JupyterLab it is a widget [anywidget], so that Python
sees and sets which moment is chosen. Everywhere else it is a self-contained piece of HTML that needs neither a kernel
nor a network, such as in a notebook that `jupyter nbconvert --to html` exports. Both hold short copies of the moments,
never the whole file, and the picture of `mrlib.video.scene` stands above them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex

try:
    from anywidget import AnyWidget
    from traitlets import Dict, Int, TraitError, validate
except ImportError as error:
    raise ImportError(
        'Player needs anywidget: pip install -e ".[video]"; without it mrlib.video.storyboard draws the picture'
    ) from error

from mrlib import plots
from mrlib.data.problems import counted
from mrlib.video.scene import Moment, Scene, draw, scene
from mrlib.video.write import proxy

LONGEST_S = 30.0  # of a copy; a video that is no longer is copied as a whole
BUDGET = 2_000_000  # bytes of all copies
SOURCE = Path(__file__).with_suffix(".js")
STYLE = Path(__file__).with_suffix(".css")


class Player(AnyWidget):
    """A video with a timeline of saliency, predicted and true moments; the last line of a cell shows it.

    A click on a moment plays it, from its start to its end; hovering shows its score and times. With the keyboard: Tab
    to the moments, arrows between them, Enter plays, space pauses.

    selected  the number of the predicted moment that was played last, or None; setting it plays that moment
    """

    _esm, _css = SOURCE, STYLE
    shown = Dict().tag(sync=True)  # what `show.js` draws
    selected = Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        video: str | os.PathLike,
        moments: Sequence[Moment],
        saliency: Sequence[float] | None = None,
        truth: Sequence[Moment] | None = None,
        query: str = "",
    ):
        """Arguments and errors as `mrlib.video.scene.scene`."""
        self._scene = scene(video, moments, saliency, truth, query)
        super().__init__(shown=_describe(self._scene))

    def open(self) -> None:
        """Connect to the front end, if there is one.

        Without one nothing would answer, and programs that execute notebooks would store a second copy of the videos,
        as the widget's state, which a page can show only with a network.
        """
        if _has_front_end():
            super().open()

    @property
    def model_id(self) -> str:
        """The widget's name in front ends; needed without one only inside another widget, such as a `VBox`."""
        super().open()
        return super().model_id

    @validate("selected")
    def _is_moment(self, proposal: Any) -> int | None:
        number, count = proposal["value"], len(self._scene.moments)
        if number is not None and not 0 <= number < count:
            raise TraitError(f"selected must be None or the number of a moment, 0 to {count - 1}, not {number}")
        return number

    def html(self) -> str:
        """The player as HTML without references to anything outside, for any page."""
        data = json.dumps(self.shown).replace("<", "\\u003c")  # no "</script>" in it
        name = hashlib.sha256(data.encode()).hexdigest()[:16]  # the same player has the same text
        return PAGE.format(
            name=name,
            style=STYLE.read_text("utf-8"),
            source=SOURCE.read_text("utf-8"),
            data=data,
            text=html.escape(f"{self!r}: it plays once this notebook is trusted or the cell is run."),
        )

    def __repr__(self) -> str:
        return f"Player({Path(self._scene.video).name!r}, {counted(len(self._scene.moments), 'moment')})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = {"text/plain": repr(self), "text/html": self.html()}
        if self.comm is not None:
            bundle |= super()._repr_mimebundle_(**kwargs)[0] | {"text/plain": repr(self)}
        return bundle

    def _ipython_display_(self) -> None:
        from IPython.display import display

        fig, file = draw(self._scene), io.BytesIO()
        fig.savefig(file, format="png", dpi=100, metadata={"Software": None})
        plt.close(fig)
        picture = base64.b64encode(file.getvalue()).decode()
        display({"image/png": picture, "text/plain": "frames, moments and truth along the video"}, raw=True)
        display(self._repr_mimebundle_(), raw=True)


PAGE = """<div class="mrlib-player" data-name="{name}">{text}</div>
<style>
{style}</style>
<script type="application/json" data-name="{name}">{data}</script>
<script type="module">
{source}
const data = document.querySelector('script[data-name="{name}"]').textContent;
for (const el of document.querySelectorAll('div[data-name="{name}"]:not([data-ready])')) {{
  el.dataset.ready = "";
  el.replaceChildren();
  render({{ model: new StaticModel({{ shown: JSON.parse(data), selected: null }}), el }});
}}
</script>
"""


def _has_front_end() -> bool:
    """Whether the running cell was sent by a front end: it says which cell; papermill, nbconvert and nbval do not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and "cellId" in shell.get_parent().get("metadata", {})


class Part(NamedTuple):
    """A part of the video that is copied into the page."""

    start_s: float
    end_s: float


def parts(shown: Scene) -> tuple[list[Part], list[int]]:
    """The parts of the video to copy, most important first, and which of them plays a moment.

    Parts last LONGEST_S at most: of a longer moment the beginning. Moments that overlap share a part if it holds them.

    returns  the parts; an index into them for every predicted moment, then for every true one
    """
    windows = np.concatenate([shown.moments, shown.truth])[:, :2].tolist()
    if shown.duration_s <= LONGEST_S:
        return [Part(0.0, shown.duration_s)], [0] * len(windows)
    copied: list[Part] = []
    places = []
    for start, end in windows:
        end = min(end, start + LONGEST_S)
        for place, part in enumerate(copied):
            both = Part(min(start, part.start_s), max(end, part.end_s))
            if start <= part.end_s and part.start_s <= end and both.end_s - both.start_s <= LONGEST_S:
                copied[place] = both
                break
        else:
            place = len(copied)
            copied.append(Part(start, end))
        places.append(place)
    return copied, places


def _describe(shown: Scene) -> dict[str, Any]:
    """A scene as plain JSON, with the copies of its parts, for `show.js`."""
    copied, places = parts(shown)
    copies = _copies(shown.video, copied)
    places = [place if place < len(copies) else None for place in places]
    count = len(shown.moments)
    missing = places.count(None)
    return {
        "name": Path(shown.video).name,
        "query": shown.query,
        "duration": shown.duration_s,
        "moments": _bars(shown.moments, shown.opacity(), places[:count]),
        "truth": _bars(shown.truth, np.ones(len(shown.truth)), places[count:]),
        "saliency": None if shown.saliency is None else _unit(shown.saliency),
        "copies": copies,
        "colours": {
            "saliency": to_hex(plots.QUERY),
            "prediction": to_hex(plots.PREDICTED),
            "true": to_hex(plots.TRUTH),
        },
        "note": f"Left out to keep this page small: the videos of {counted(missing, 'moment')}." if missing else "",
    }


def _copies(video: str, copied: Sequence[Part]) -> list[dict[str, Any]]:
    """The parts as base64 of an mp4, as many as BUDGET allows."""
    copies, left = [], BUDGET
    for start, end in copied:
        data = proxy(video, start, end)
        left -= len(data)
        if left < 0:
            break
        copies.append({"start": start, "end": end, "data": base64.b64encode(data).decode()})
    return copies


def _bars(windows: np.ndarray, opacity: np.ndarray, places: Sequence[int | None]) -> list[dict[str, Any]]:
    return [
        {
            "start": start,
            "end": end,
            "score": None if math.isnan(score) else score,
            "opacity": shade,
            "lane": lane,
            "copy": place,
        }
        for (start, end, score), shade, lane, place in zip(
            windows.tolist(), opacity.tolist(), plots.lanes(windows).tolist(), places, strict=True
        )
    ]


def _unit(values: np.ndarray) -> list[float | None]:
    """Values between 0 and 1; None for NaN."""
    return [None if math.isnan(v) else round(v, 4) for v in plots.stretched(values).tolist()]
