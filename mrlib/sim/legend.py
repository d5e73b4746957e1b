"""A picture of everything that a rendered video can show, with its word: the code by which a person reads one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrlib.data import Sample
from mrlib.sim.drawing import CYCLE_S, Drawing

COLUMNS = 8
WIDTH, HEIGHT = 176, 118  # of an entry, with its word
MOMENTS = 2  # pictures of an action


def legend(names: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The actors, objects, actions and places of a world, each under its word, uint8 (H, W, 3).

    names  as `mrlib.sim.world.World.names`
    """
    usual = {kind: words[0] for kind, words in names.items()} | {"action": "holds"}
    if "holds" not in names["action"]:
        usual["action"] = names["action"][0]
    rows = [
        row
        for kind in ("actor", "object", "action", "place")
        for row in _rows([_entry(usual | {kind: word}, kind, word) for word in names[kind]])
    ]
    return np.concatenate(rows)


def _rows(entries: list[np.ndarray]) -> list[np.ndarray]:
    """Entries side by side, the last row filled with white."""
    entries += [np.full((HEIGHT, WIDTH, 3), 255, np.uint8)] * (-len(entries) % COLUMNS)
    return [np.concatenate(entries[k : k + COLUMNS], 1) for k in range(0, len(entries), COLUMNS)]


def _entry(event: Mapping[str, str], kind: str, word: str) -> np.ndarray:
    """One word: its action at several moments, its place while nothing happens, or somebody who holds something."""
    window = [] if kind == "place" else [[0.0, CYCLE_S]]
    script = [{"start": 0.0, "end": CYCLE_S, "windows": window, **event}]
    drawing = Drawing(Sample(0, "", CYCLE_S, word, extra={"script": script}))
    times = [CYCLE_S * k / MOMENTS for k in range(MOMENTS)] if kind == "action" else [0.0]
    frames = [drawing.frame(t, WIDTH // len(times) - 2, HEIGHT - 20) for t in times]
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    for k, frame in enumerate(frames):
        image.paste(Image.fromarray(frame), (k * WIDTH // len(frames), 18))
    ImageDraw.Draw(image).text((2, 1), f"{kind}: {word}", "black", ImageFont.load_default(13))
    return np.asarray(image)
