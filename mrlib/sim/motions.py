"""How the actions of a simulated world move: where the actor's hands and the object are at every moment of a cycle.

An action repeats itself. Its cycle is a function from the phase, 0 to 1, to a `Motion`; the actions of a family look
alike. Units are hundredths of the height of the video, y points down; x = 0 is the middle of the stage, and the actor
stands at `FLOOR`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, pi, sin

FLOOR = 90.0
REST = 78.0  # y of the middle of an object on the floor
AT = 13.0  # x of an object beside the actor
TOP = 66.0  # y of an object on a stand

Shape = tuple[str, str, tuple[float, ...]]  # kind, colour, numbers, as in `mrlib.sim.props`


@dataclass(frozen=True)
class Thing:
    """The object, or a part of it."""

    x: float = AT
    y: float = REST
    angle: float = 0.0  # degrees, counter-clockwise
    size: tuple[float, float] = (1.0, 1.0)  # factors of width and height
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom: what of it is seen


@dataclass(frozen=True)
class Motion:
    """One moment of an action."""

    hands: tuple[tuple[float, float], ...]  # two positions
    things: tuple[Thing, ...] = (Thing(),)
    x: float = -16.0  # of the actor
    lean: float = 0.0  # of the head, to the right
    stride: float = 0.0  # how far the feet are apart
    foot: tuple[float, float] | None = None  # of the leg in front, if it does not stand
    behind: list[Shape] = field(default_factory=list)  # drawn before the object
    front: list[Shape] = field(default_factory=list)  # drawn after it, and after the hands


def wave(p: float) -> float:
    """Between -1 and 1 and back, once in a cycle."""
    return sin(2 * pi * p)


def ramp(p: float, start: float, end: float) -> float:
    """0 before a phase, 1 after another one, linear between them."""
    return min(1.0, max(0.0, (p - start) / (end - start)))


def _stand() -> list[Shape]:
    return [
        ("box", "#6d5a48", (AT - 13, TOP + 11, AT + 13, TOP + 15)),
        ("box", "#6d5a48", (AT - 2, TOP + 13, AT + 2, FLOOR)),
    ]


def _star(x: float, y: float, r: float, colour: str = "#ffd92e") -> Shape:
    points = [(r if k % 2 else 2.4 * r, k * pi / 5 + pi / 2) for k in range(10)]
    return "poly", colour, tuple(c for a, w in points for c in (x + a * cos(w), y - a * sin(w)))


def _beside(
    hand: tuple[float, float], front: list[Shape], thing: Thing | None = None, behind: list[Shape] | None = None
) -> Motion:
    """The actor works with one hand on an object that is on a stand."""
    things = (Thing(y=TOP) if thing is None else thing,)
    return Motion(((-10, 70), hand), things, behind=[*_stand(), *(behind or [])], front=front)


# ---- the object flies


def _kicks(p: float) -> Motion:
    fly = ramp(p, 0.15, 0.75)
    swing = ramp(p, 0, 0.15) - ramp(p, 0.25, 0.6)
    thing = Thing(2 + 40 * fly, REST - 44 * fly, -360 * fly)
    return Motion(((-28, 56), (-6, 58)), (thing,), x=-20, lean=-4 * swing, foot=(-14 + 16 * swing, 88 - 10 * swing))


def _throws(p: float) -> Motion:
    back, fly = ramp(p, 0, 0.3), ramp(p, 0.3, 0.9)
    x, y = (-22 - 8 * back, 50 - 24 * back) if fly == 0 else (-30 + 72 * fly, 26 - 60 * fly + 112 * fly * fly)
    hand = (x, y + 4) if fly == 0 else (-2, 46 + 10 * fly)
    return Motion(((-26, 62), hand), (Thing(x, y, -180 * fly),), x=-20, lean=-4 * back + 8 * ramp(p, 0.3, 0.4))


def _bounces(p: float) -> Motion:
    height = abs(wave(p))
    y = REST - 30 * height
    return Motion(
        ((-24, 66), (AT - 4, min(62, y - 10))), (Thing(AT, y, size=(1, 0.8 + 0.2 * min(1, 3 * height))),), lean=3
    )


def _rolls(p: float) -> Motion:
    along = ramp(p, 0.1, 0.9)
    return Motion(((-8, 76), (-2, 78)), (Thing(2 + 42 * along, REST, -540 * along),), x=-20, lean=8)


# ---- the actor holds the object


def _lifts(p: float) -> Motion:
    y = 44 + 32 * cos(2 * pi * p)
    return Motion(((-6, y + 6), (2, y + 6)), (Thing(-2, y),), lean=2)


def _carries(p: float) -> Motion:
    x = -8 + 20 * wave(p)
    return Motion(((x + 6, 66), (x + 16, 66)), (Thing(x + 14, 60),), x=x, lean=1, stride=7 * wave(4 * p))


def _holds(p: float) -> Motion:
    y = 60 + 0.8 * wave(p)
    return Motion(((-10, y + 6), (2, y + 6)), (Thing(-1, y),), x=-14)


def _drags(p: float) -> Motion:
    x = -10 - 18 * cos(2 * pi * p) / 2
    rope = [("line", "#f4efe2", (1.6, x + 8, 66, x + 22, REST))]
    return Motion(((x + 6, 66), (x + 8, 66)), (Thing(x + 32, REST),), x=x, lean=-9, stride=6 * wave(4 * p), behind=rope)


# ---- something is done to the surface of the object


def _washes(p: float) -> Motion:
    x, y = AT + 6 * wave(p), TOP - 16 + 2 * cos(2 * pi * p)
    drops = [("disc", "#2a9df4", (AT - 9 + 4.5 * k, 54 + (40 * p + 9 * k) % 26, 1.8)) for k in range(5)]
    return _beside((x - 6, y), [("box", "#2a9df4", (x - 7, y - 4, x + 7, y)), *drops])


def _wipes(p: float) -> Motion:
    x = AT + 13 * wave(p)
    return _beside((x, TOP), [("box", "#ffffff", (x - 5, TOP - 6, x + 5, TOP + 6))])


def _scrubs(p: float) -> Motion:
    y = TOP + 9 * wave(2 * p)
    foam = [("disc", "#ffffff", (AT - 10 + 5 * k, TOP + 9 + 2 * wave(p + k / 5), 3)) for k in range(5)]
    return _beside((AT - 6, y), [*foam, ("box", "#7b4a1e", (AT - 6, y - 3, AT + 8, y + 3))])


def _polishes(p: float) -> Motion:
    x, y = AT + 5 * wave(p), TOP + 5 * cos(2 * pi * p)
    sparks = [_star(AT + 15 * cos(w), TOP - 4 + 15 * sin(w), 1.2 + wave(p + w)) for w in (3.6, 4.7, 5.8)]
    return _beside((x, y), [*sparks, ("disc", "#f59d3d", (x, y, 4.5))])


# ---- something is put on it


def _paints(p: float) -> Motion:
    y = TOP + 11 * wave(p)
    stripe = [("box", "#e01f6f", (AT - 3, TOP - 12, AT + 3, y))]
    return _beside(
        (AT - 8, y + 3), [*stripe, ("line", "#7b4a1e", (2.4, AT - 8, y + 3, AT, y)), ("disc", "#e01f6f", (AT, y, 3))]
    )


def _draws(p: float) -> Motion:
    count = 2 + int(7 * p)
    zigzag = [c for k in range(count) for c in (AT - 12 + 3 * k, TOP - 24 + 8 * (k % 2))]
    x, y = zigzag[-2:]
    paper = [("box", "#ffffff", (AT - 15, TOP - 29, AT + 15, TOP - 11))]
    return _beside(
        (x - 6, y + 8),
        [("line", "#1d2bd1", (2, *zigzag)), ("line", "#f4b400", (2.4, x - 6, y + 8, x, y))],
        behind=paper,
    )


def _colors(p: float) -> Motion:
    hues = ["#e2342d", "#f6a11c", "#2fae4e", "#2a6df4"]
    spots = [("disc", hues[k], (AT - 6 + 12 * (k % 2), TOP - 5 + 10 * (k // 2), 4.5)) for k in range(1 + int(4 * p))]
    _, _, (x, y, _) = spots[-1]
    x += 3 * wave(8 * p)
    return _beside((x - 7, y - 5), [*spots, ("line", hues[len(spots) - 1], (3, x - 7, y - 5, x, y))])


def _decorates(p: float) -> Motion:
    around = [(AT + 16 * cos(w), TOP - 16 * sin(w)) for w in [pi - k * pi / 5 for k in range(1 + int(6 * p))]]
    return _beside(around[-1], [_star(x, y, 1.7, "#ff5db1" if k % 2 else "#ffd92e") for k, (x, y) in enumerate(around)])


# ---- the object in its parts


def _parts(apart: Callable[[int], tuple[float, float]]) -> tuple[Thing, ...]:
    """Four quarters of the object, each moved by the function of its number."""
    quarters = [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)]
    moved = [apart(k) for k in range(4)]
    return tuple(
        Thing(AT + dx, TOP + dy, part=(a, b, a + 0.5, b + 0.5))
        for (a, b), (dx, dy) in zip(quarters, moved, strict=True)
    )


def _builds(p: float) -> Motion:
    order = [3, 2, 1, 0]  # the lower quarters first
    things = _parts(lambda k: (0, -36 * (1 - ramp(p, 0.2 * order.index(k), 0.2 * order.index(k) + 0.25))))
    return Motion(((-2, 40), (AT - 2, 46 + 8 * wave(p))), things, behind=_stand())


def _repairs(p: float) -> Motion:
    up = abs(wave(p))
    x, y = AT - 2, TOP - 13 - 14 * up
    hit = [_star(AT - 6, TOP - 12, 2), _star(AT + 8, TOP - 14, 1.6)] if up < 0.45 else []
    return _beside(
        (x - 12, y + 4),
        [("line", "#7b4a1e", (2.4, x - 12, y + 4, x, y)), ("box", "#444a52", (x - 3, y - 5, x + 3, y + 5)), *hit],
    )


def _dismantles(p: float) -> Motion:
    apart = 15 * ramp(p, 0.1, 0.7)
    things = _parts(lambda k: ((k % 2 * 2 - 1) * apart, (k // 2 * 2 - 1) * 0.6 * apart))
    return Motion(((-4, TOP), (AT - 6 + apart, TOP)), things, behind=_stand())


def _tests(p: float) -> Motion:
    y = TOP + 13 * wave(p)
    lamp = "#22d04a" if p < 0.5 else "#e2342d"
    return _beside(
        (-2, TOP - 4), [("line", "#19e0ff", (1.6, AT - 14, y, AT + 14, y)), ("disc", lamp, (AT, TOP - 20, 4))]
    )


# ---- the object is presented


def _shows(p: float) -> Motion:
    size = 1.25 - 0.45 * cos(2 * pi * p)
    return Motion(((-2, 62), (AT - 2, 66)), (Thing(6, 60, size=(size, size)),))


def _reviews(p: float) -> Motion:
    count = 1 + int(5 * p)
    return _beside(
        (0, TOP - 8), [_star(AT - 14 + 7 * k, TOP - 22, 1.5, "#ffd92e" if k < count else "#77746c") for k in range(5)]
    )


def _films(p: float) -> Motion:
    lens = [("box", "#222428", (-6, 50, 2, 57)), ("poly", "#222428", (2, 53.5, 6, 50, 6, 57))]
    if p < 0.5:
        lens.append(("disc", "#ff2020", (-3, 47, 2.5)))
    return _beside((-4, 58), lens, Thing(AT + 3, TOP, size=(0.35 + 0.65 * abs(wave(p)), 1)))


def _describes(p: float) -> Motion:
    bubble = [("oval", "#ffffff", (-4, 14, 34, 36)), ("poly", "#ffffff", (0, 30, 8, 34, -6, 42))]
    dots = [("disc", "#333333", (6 + 9 * k, 25, 2.4)) for k in range(int(4 * p))]
    return _beside((0, 62 + 8 * wave(2 * p)), [*bubble, *dots])


# ---- the object goes into something or comes out


def _carton(y: float) -> Motion:
    front = [("box", "#b98d55", (AT - 15, 71, AT + 15, FLOOR)), ("box", "#8a6538", (AT - 15, 71, AT + 15, 73))]
    behind = [("box", "#8a6538", (AT - 15, 66, AT + 15, 72))]
    return Motion(((AT - 10, y), (AT + 6, y)), (Thing(y=y),), behind=behind, front=front)


def _packs(p: float) -> Motion:
    return _carton(40 + 38 * ramp(p, 0.1, 0.8))


def _unpacks(p: float) -> Motion:
    return _carton(78 - 38 * ramp(p, 0.1, 0.8))


def _wraps(p: float) -> Motion:
    y = TOP + 13 - 26 * ramp(p, 0.1, 0.8)
    ribbon = [("line", "#ffd92e", (2, AT, y, AT, TOP + 13))]
    return _beside((AT - 10, y), [("box", "#6c3fc4", (AT - 12, y, AT + 12, TOP + 13)), *ribbon])


def _hides(p: float) -> Motion:
    x = AT + 28 - 28 * abs(wave(p / 2))
    return Motion(
        ((-10, 70), (x - 13, 66)),
        front=[("box", "#5f6b3a", (x - 14, 56, x + 14, FLOOR)), ("line", "#39401f", (1.5, x, 56, x, FLOOR))],
    )


# ---- the object is taken apart by hand


def _cuts(p: float) -> Motion:
    y, gap = TOP - 12 + 12 * wave(p), 4 * ramp(p, 0.1, 0.4)
    halves = (Thing(AT - gap, TOP, part=(0, 0, 0.5, 1)), Thing(AT + gap, TOP, part=(0.5, 0, 1, 1)))
    knife = [
        ("poly", "#e8eef2", (AT, y + 8, AT + 3, y - 8, AT - 2, y - 8)),
        ("line", "#2b2b2b", (3, AT, y - 8, AT, y - 14)),
    ]
    return Motion(((-8, 70), (AT, y - 12)), halves, behind=_stand(), front=knife)


def _peels(p: float) -> Motion:
    end = 4 + 20 * p
    strip = [c for k in range(6) for c in (AT + 11 + 3 * (k % 2), TOP - 8 + end * k / 5)]
    return _beside(
        (AT + 6, TOP - 10),
        [("line", "#f7f3b0", (3, *strip)), ("poly", "#e8eef2", (AT + 4, TOP - 8, AT + 12, TOP - 12, AT + 12, TOP - 9))],
    )


def _squeezes(p: float) -> Motion:
    press = 0.5 - 0.5 * cos(2 * pi * p)
    wide = 1 - 0.5 * press
    drops = [("disc", "#2a9df4", (AT - 4 + 4 * k, TOP + 14 + 8 * p, 1.8)) for k in range(3)] if press > 0.4 else []
    return Motion(
        ((AT - 12 * wide, TOP), (AT + 12 * wide, TOP)), (Thing(y=TOP, size=(wide, 1 + 0.3 * press)),), front=drops
    )


def _shakes(p: float) -> Motion:
    x, y = 4 + 5 * wave(3 * p), 46 + 3 * wave(6 * p + 0.2)
    lines = [("line", "#ffffff", (1.4, 4 + s * 17, 38 + k, 4 + s * 21, 36 + k)) for s in (-1, 1) for k in (0, 8, 16)]
    return Motion(((x - 6, y + 8), (x + 4, y + 8)), (Thing(x, y, 14 * wave(3 * p)),), front=lines)


_FAMILIES = (
    (_kicks, _throws, _bounces, _rolls),
    (_lifts, _carries, _holds, _drags),
    (_washes, _wipes, _scrubs, _polishes),
    (_paints, _draws, _colors, _decorates),
    (_builds, _repairs, _dismantles, _tests),
    (_shows, _reviews, _films, _describes),
    (_packs, _unpacks, _wraps, _hides),
    (_cuts, _peels, _squeezes, _shakes),
)
MOTIONS: dict[str, Callable[[float], Motion]] = {
    motion.__name__[1:]: motion for family in _FAMILIES for motion in family
}
