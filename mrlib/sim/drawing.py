"""Draw a simulated sample: its script as frames of a video, whose truth is therefore known.

Places are backgrounds, actors are figures, actions are motions, objects are what the actor acts on; an idle clip of an
event shows its place and nobody in it. All events are drawn alike: nothing shows which of them is queried.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.sim.motions import FLOOR, MOTIONS, Motion, Thing
from mrlib.sim.props import FIGURES, INK, OBJECTS, PLACES, SKIN, Canvas, place, sprite
from mrlib.sim.world import Dice

CYCLE_S = 2.0  # seconds that an action takes, before it begins again
FINER = 2  # a frame is drawn this many times larger, for smooth edges
KINDS = {"actor": FIGURES, "action": MOTIONS, "object": OBJECTS, "place": PLACES}


def script_of(sample: Sample) -> list[dict[str, Any]]:
    """The events of a simulated sample in their order, see `mrlib.sim.simulator`.

    raises  ValueError for a sample without a script, as those of real datasets, or with a word that has no picture
    """
    script = sample.extra.get("script")
    if not script:
        raise ValueError(
            f"sample {sample.qid!r} ({sample.vid}) has no script, so it cannot be drawn; "
            'only simulated samples have one, see mrlib.open_dataset("sim")'
        )
    for event in script:
        if not isinstance(event, Mapping) or not {"start", "end", "windows"} <= event.keys():
            raise ValueError(f"sample {sample.qid!r}: an event of its script has no start, end and windows")
        for kind, pictures in KINDS.items():
            word = event.get(kind)
            if word not in pictures:
                known = ", ".join(pictures)
                raise ValueError(f"sample {sample.qid!r}: no picture of the {kind} {word!r}; known: {known}")
    return script


@dataclass(frozen=True)
class Look:
    """What differs between two events of the same words: drawn once per event."""

    shift: float  # of the stage, units
    size: float  # of all that is on it
    cycle_s: float
    phase: float  # at the start of a window


class Drawing:
    """The frames of one sample, a function of the time alone."""

    def __init__(self, sample: Sample, seed: int = 0):
        """A sample, ready to be drawn.

        seed    of what no label says: where the actor stands, how large everything is, the pace of the action
        raises  ValueError as `script_of`
        """
        self.events = script_of(sample)
        self.duration_s = float(sample.duration)
        self._starts = [event["start"] for event in self.events]
        self._looks = [_look(Dice((seed, sample.vid, "event", start))) for start in self._starts]

    def frame(self, time_s: float, width: int = 640, height: int = 360) -> np.ndarray:
        """The frame at a time, uint8 (height, width, 3); the action is in the square in its middle."""
        inside = 0 <= time_s <= self.duration_s
        require(inside, "time_s", time_s, f"from 0 to {self.duration_s}, the length of the video in seconds")
        number = max(0, bisect_right(self._starts, time_s) - 1)
        event, look = self.events[number], self._looks[number]
        window = next((w for w in event["windows"] if w[0] <= time_s < w[1]), None)
        if window is None:
            return np.array(_stage(event["place"], width, height))
        phase = look.phase + event.get("rate", 1.0) * (time_s - window[0]) / look.cycle_s
        return _acted(event, look, phase % 1, width, height)

    def frames(self, fps: float = 10, width: int = 640, height: int = 360) -> Iterator[np.ndarray]:
        """All frames of the video at a rate, one after the other."""
        for k in range(round(self.duration_s * fps)):
            yield self.frame(k / fps, width, height)


def _look(dice: Dice) -> Look:
    shift, size, cycle, phase = dice.uniform("look", 4)
    return Look(12 * shift - 6, (0.9, 1.0, 1.1)[int(3 * size)], CYCLE_S * 1.25 ** (2 * cycle - 1), phase)


@lru_cache(maxsize=64)
def _stage(name: str, width: int, height: int) -> np.ndarray:
    """The frame of a place where nothing happens; not to be changed."""
    return np.asarray(place(name, FINER * width, FINER * height).reduce(FINER))


@lru_cache(maxsize=64)
def _middle(name: str, width: int, height: int) -> Image.Image:
    """The square in the middle of a place, `FINER` times as large; not to be changed."""
    side, w, h = min(width, height), FINER * width, FINER * height
    left, top = FINER * ((width - side) // 2), FINER * ((height - side) // 2)
    return place(name, w, h).crop((left, top, left + FINER * side, top + FINER * side))


def _acted(event: Mapping[str, Any], look: Look, phase: float, width: int, height: int) -> np.ndarray:
    """The frame of an event at a phase of its action."""
    side = min(width, height)
    image = _middle(event["place"], width, height).copy()
    scale = FINER * side / 100 * look.size
    middle = image.width / 2 + look.shift * FINER * side / 100
    canvas = Canvas(image, middle, scale, image.height * FLOOR / 100 - FLOOR * scale)  # the floor stays where it is
    _draw(canvas, event["actor"], event["object"], MOTIONS[event["action"]](phase))
    out = np.array(_stage(event["place"], width, height))
    top, left = (height - side) // 2, (width - side) // 2
    out[top : top + side, left : left + side] = np.asarray(image.reduce(FINER))
    return out


def _draw(canvas: Canvas, actor: str, thing: str, motion: Motion) -> None:
    for shape in motion.behind:
        canvas.shape(*shape)
    _draw_body(canvas, actor, motion)
    for part in motion.things:
        _paste(canvas, thing, part)
    _draw_arms(canvas, actor, motion)
    for shape in motion.front:
        canvas.shape(*shape)


def _joints(actor: str) -> tuple[float, float, float]:
    """y of the middle of the head, of the shoulders and of the hips."""
    top = FLOOR - FIGURES[actor].height
    return top + 6, top + 14, FLOOR - 0.36 * FIGURES[actor].height


def _draw_body(canvas: Canvas, actor: str, motion: Motion) -> None:
    figure, (head, shoulder, hip) = FIGURES[actor], _joints(actor)
    x, lean = motion.x, motion.lean
    feet = ((x - 4 - motion.stride, FLOOR), motion.foot or (x + 4 + motion.stride, FLOOR))
    canvas.picture(figure.back, x + lean, head)
    for start, (foot_x, foot_y) in zip((x - 3, x + 3), feet, strict=True):
        canvas.shape("line", figure.legs, (4.5, start, hip, foot_x, foot_y - 2))
        canvas.shape("oval", INK, (foot_x - 3, foot_y - 3, foot_x + 5, foot_y))
    wide = 12 if figure.dress else 7
    low = hip + 8 if figure.dress else hip + 2
    corners = (x + lean - 7, shoulder - 3, x + lean + 7, shoulder - 3, x + wide, low, x - wide, low)
    canvas.shape("poly", figure.body, corners, outline=INK, width=max(1, round(0.6 * canvas.scale)))
    canvas.shape("disc", SKIN, (x + lean, head, 6.5))
    canvas.shape("disc", INK, (x + lean + 3, head + 1, 0.9))
    canvas.picture(figure.head, x + lean, head)


def _draw_arms(canvas: Canvas, actor: str, motion: Motion) -> None:
    figure, (_, shoulder, _) = FIGURES[actor], _joints(actor)
    for side, (x, y) in zip((-5, 5), motion.hands, strict=True):
        canvas.shape("line", figure.body, (4, motion.x + motion.lean + side, shoulder, x, y))
        canvas.shape("disc", SKIN, (x, y, 2.6))


def _paste(canvas: Canvas, name: str, thing: Thing) -> None:
    """Paste an object, or a part of it."""
    image = sprite(name, canvas.scale)
    side = image.width
    a, b, c, d = (round(x * side) for x in thing.part)
    centre_x, centre_y = canvas.at(thing.x, thing.y)
    centre_x += (a + c - side) / 2
    centre_y += (b + d - side) / 2
    if (a, b, c, d) != (0, 0, side, side):
        image = image.crop((a, b, c, d))
    if thing.angle:
        image = image.rotate(thing.angle, Image.Resampling.BILINEAR)
    if thing.size != (1.0, 1.0):
        image = image.resize([max(1, round(n * f)) for n, f in zip(image.size, thing.size, strict=True)])
    corner = round(centre_x - image.width / 2), round(centre_y - image.height / 2)
    canvas.image.paste(image, corner, image)
