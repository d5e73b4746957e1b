"""What a simulated world looks like: pictures of its places, actors and objects, as text, and the canvas for them.

A picture is a list of shapes, later ones over earlier ones:

    disc COLOUR x y r                   box COLOUR x0 y0 x1 y1            line COLOUR width x y x y ...
    oval COLOUR x0 y0 x1 y1             poly COLOUR x y x y x y ...       row N dx dy SHAPE     (N copies, each shifted)

Units are hundredths of the height of the video, y points down. A place is drawn around the middle of its upper edge, an
object around its middle, what an actor wears around the middle of its head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from PIL import Image, ImageDraw

INK = "#26221f"  # of outlines
SKIN = "#f0bf98"

PLACES = {
    "kitchen": (
        "box #efe3c8 -90 0 90 64; row 19 10 0 line #d9c9a5 .6 -90 0 -90 64; row 7 0 10 line #d9c9a5 .6 -90 0 90 0; "
        "box #8fa8b0 -90 50 90 64; box #b9a184 -90 64 90 100; box #ffffff -84 8 -58 34; box #ffffff 58 8 84 34"
    ),
    "garden": (
        "box #bfe3f5 -90 0 90 60; box #8cc66e -90 60 90 100; row 24 8 0 box #e9e2cf -90 34 -85 64; "
        "box #e9e2cf -90 42 90 46; row 14 13 0 disc #e2679b -86 69 2; row 14 13 0 disc #f6d84b -80 94 2"
    ),
    "garage": (
        "box #a9adb3 -90 0 90 68; row 8 0 8 line #8c9097 1.2 -60 6 60 6; box #6f6a66 -90 68 90 100; "
        "box #7d4b38 -88 14 -64 68; row 4 0 13 line #53301f 1.6 -88 20 -64 20; oval #57524e 20 82 60 92"
    ),
    "beach": (
        "box #a7dcf2 -90 0 90 34; disc #fff2a8 66 14 9; box #3f9fce -90 34 90 56; "
        "row 12 16 0 oval #7cc4e4 -92 40 -82 43; box #f0dca2 -90 56 90 100; oval #fdf5e0 -96 53 96 60"
    ),
    "street": (
        "box #cfd6e6 -90 0 90 70; row 5 38 0 box #98a3bd -92 8 -64 70; row 5 38 0 box #f4e7a1 -88 14 -80 24; "
        "row 5 38 0 box #f4e7a1 -76 14 -68 24; row 5 38 0 box #f4e7a1 -88 32 -80 42; "
        "row 5 38 0 box #f4e7a1 -76 32 -68 42; box #5b5d66 -90 70 90 100; row 8 26 0 box #f2f2f2 -92 84 -80 87"
    ),
    "gym": (
        "box #f3d9b4 -90 0 90 66; row 8 0 8 line #b9773c 2 -88 5 -30 5; row 8 0 8 line #b9773c 2 30 5 88 5; "
        "box #d99a55 -90 66 90 100; line #ffffff 1.2 -90 76 90 76; line #c23b3b 1.6 -70 100 -30 66; "
        "line #c23b3b 1.6 70 100 30 66"
    ),
    "park": (
        "box #d8f0e2 -90 0 90 58; row 6 36 0 box #8a6b4a -82 34 -78 62; row 6 36 0 disc #5f9e6e -80 26 15; "
        "box #a9d48b -90 58 90 100; poly #e6d7b0 -30 100 30 100 6 58 -6 58; box #8a6b4a 44 66 80 69; "
        "box #8a6b4a 44 58 80 61"
    ),
    "market": (
        "box #fbf0df -90 0 90 64; row 10 20 0 poly #d8574f -92 8 -82 8 -82 26 -92 26; "
        "row 10 20 0 poly #ffffff -82 8 -72 8 -72 26 -82 26; box #a5794d -90 48 90 64; "
        "row 16 12 0 disc #e9a23b -88 46 4; row 15 12 0 disc #7fae4a -82 46 4; box #c9bfae -90 64 90 100"
    ),
    "studio": (
        "box #3d3a4d -90 0 90 70; poly #5d5875 -70 0 -62 0 -20 70 -84 70; poly #5d5875 70 0 62 0 20 70 84 70; "
        "box #22202c -90 70 90 100; oval #4b4763 -46 78 46 96; box #15141c -74 0 -58 5; box #15141c 58 0 74 5"
    ),
    "forest": (
        "box #54795a -90 0 90 70; row 10 20 0 box #5a4632 -90 0 -83 74; row 9 20 0 box #40573f -79 0 -75 68; "
        "box #6f8a4e -90 70 90 100; row 12 16 0 poly #3c5f36 -92 76 -80 76 -86 64"
    ),
    "classroom": (
        "box #e6e1d3 -90 0 90 70; box #8a5f3c -62 6 62 46; box #2f6b52 -59 9 59 43; line #dfeee6 1 -50 18 -20 18; "
        "line #dfeee6 1 -50 26 -28 26; line #dfeee6 1 24 20 48 20; box #c7b08a -90 70 90 100; "
        "row 9 20 0 line #b39a72 .6 -80 70 -90 100"
    ),
    "harbor": (
        "box #c9d3dc -90 0 90 40; box #376a8c -90 40 90 70; poly #a34242 -84 34 -30 34 -38 48 -78 48; "
        "box #f5f5f5 -70 24 -48 34; line #4d545c 2 66 6 66 40; line #4d545c 2 40 8 84 8; "
        "row 5 40 0 oval #5b8cab -88 54 -70 57; box #8d8f94 -90 70 90 100; row 5 36 0 box #3c3d42 -76 66 -70 76"
    ),
}

OBJECTS = {
    "ball": "disc #e2342d 0 0 11; line #ffffff 3 -10 -4 10 4",
    "box": "box #a8662f -11 -9 11 11; box #d9a25f -3 -9 3 11; line #6f3f18 1.5 -11 -2 11 -2",
    "lamp": "line #555555 3 0 0 0 10; box #555555 -6 9 6 12; poly #ffe033 -5 -12 5 -12 11 2 -11 2",
    "bag": "line #7c1160 3 -5 -3 -4 -11 4 -11 5 -3; poly #d1319f -9 -4 9 -4 12 11 -12 11",
    "bottle": "box #0d7d3c -5 -3 5 12; box #0d7d3c -2 -12 2 -2; box #f7f7e8 -5 2 5 7",
    "chair": "line #4b2b8f 3.5 -7 -12 -7 12; line #4b2b8f 3.5 -7 1 8 1 8 12; box #7d5bd0 -8 -11 -5 0",
    "pumpkin": "oval #f08a1c -12 -7 12 11; oval #d8701b -5 -7 5 11; box #3d7a2b -2 -12 2 -6",
    "guitar": "line #4a2a12 3.5 0 -2 0 -13; disc #d98c2b 0 6 7; disc #d98c2b 0 -1 5; disc #2b1a0f 0 4 2.5",
    "bicycle": (
        "disc #1b1b1b -7 5 6; disc #ffffff -7 5 4; disc #1b1b1b 7 5 6; disc #ffffff 7 5 4; "
        "line #18a0c9 2.5 -7 5 -2 -5 5 -5 7 5; line #18a0c9 2.5 -2 -5 1 5 5 -5 4 -10 8 -10"
    ),
    "basket": (
        "line #8b6b2e 2.5 -9 -2 -6 -10 6 -10 9 -2; poly #dcc07a -11 -2 11 -2 8 11 -8 11; line #8b6b2e 1.5 -10 4 10 4"
    ),
    "kettle": (
        "poly #b9c4cf -8 -5 8 -5 11 10 -11 10; poly #b9c4cf 8 0 13 -6 13 -3 10 6; "
        "line #2c2c2c 2.5 -6 -5 -5 -11 5 -11 6 -5"
    ),
    "drum": "box #2452c4 -11 -5 11 10; oval #f4f4f4 -11 -9 11 -1; row 5 5.5 0 line #f6d84b 1.5 -11 -2 -8 10",
    "phone": "box #20242c -6 -12 6 12; box #6fd3ff -4 -9 4 7",
    "camera": "box #3a3f47 -12 -6 12 10; box #3a3f47 -5 -10 5 -5; disc #c9e6ff 0 2 6; disc #26418f 0 2 3.5",
    "toy": "disc #c98a4a 0 4 8; disc #c98a4a 0 -6 6.5; disc #c98a4a -6 -11 3; disc #c98a4a 6 -11 3; disc #f7e3c4 0 5 4",
    "mirror": "oval #c9a227 -9 -13 9 9; oval #d7f0fa -6 -10 6 6; box #c9a227 -2 8 2 13",
    "blanket": "box #7fb6e8 -12 -8 12 10; row 4 6 0 box #f6f6fb -11 -8 -9 10; row 3 0 6 line #3d6fb5 1.2 -12 -5 12 -5",
    "bucket": "line #5f666e 2 -9 -5 -6 -12 6 -12 9 -5; poly #35b6a6 -10 -6 10 -6 7 11 -7 11",
    "cake": "box #f6c6d4 -11 -1 11 11; box #ffffff -11 -4 11 1; line #e2342d 2.5 0 -4 0 -11; disc #ffb300 0 -11 2",
    "ladder": "line #b36a1d 2.5 -6 -13 -6 13; line #b36a1d 2.5 6 -13 6 13; row 5 0 5.5 line #b36a1d 2 -6 -11 6 -11",
    "melon": "oval #2e8b3d -12 -8 12 9; row 4 5.5 0 line #9ed36a 2 -8 -6 -8 7",
    "pillow": "poly #f3eefc -12 -9 0 -7 12 -9 11 0 12 9 0 7 -12 9 -11 0; disc #b79ae0 0 0 4",
    "radio": "box #8c2f39 -12 -4 12 10; line #555555 1.5 6 -4 11 -13; disc #f1dfb7 -6 3 5; box #f1dfb7 1 0 10 6",
    "suitcase": (
        "line #3b2414 2.5 -4 -6 -4 -11 4 -11 4 -6; box #6b4226 -12 -6 12 11; box #e0b04c -8 -6 -5 11; "
        "box #e0b04c 5 -6 8 11"
    ),
    "table": "box #946b45 -13 -5 13 -1; line #946b45 3 -10 -1 -10 12; line #946b45 3 10 -1 10 12",
    "puppet": (
        "disc #f7d9a8 0 -8 5; poly #6ac04a -8 9 8 9 2 -4 -2 -4; line #e2342d 2 -9 -3 9 -3; "
        "line #e2342d 2 -3 9 -4 13; line #e2342d 2 3 9 4 13"
    ),
    "vase": "poly #5ec1c9 -4 -6 4 -6 9 4 5 12 -5 12 -9 4; line #3d7a2b 1.5 0 -6 0 -10; disc #f05a7e 0 -11 4",
    "wagon": "box #d6402f -12 -5 12 4; line #333333 2 12 2 16 -6; disc #222222 -7 7 4.5; disc #222222 7 7 4.5",
    "clock": "disc #8a5a2b 0 0 12; disc #fffbe8 0 0 9; line #222222 2 0 0 0 -7; line #222222 2 0 0 5 2",
    "kite": "poly #f04fa0 0 -13 9 -2 0 10 -9 -2; poly #38c6f4 0 -13 9 -2 0 -2; line #666666 1.2 0 10 4 13",
}


@dataclass(frozen=True)
class Figure:
    """How an actor looks."""

    body: str  # colours
    legs: str
    head: str  # hair and hat: a picture around the middle of the head, whose radius is 6
    back: str = ""  # the part of it that is behind the head
    height: float = 56.0
    dress: bool = False


FIGURES = {
    "man": Figure("#2f5fb3", "#3a3f4a", "poly #4a2f1b -6.5 -1 -6 -4 -3.5 -6.5 0 -7.5 3.5 -6.5 6 -4 6.5 -1"),
    "woman": Figure(
        "#cf2b3b",
        "#e9b48c",
        "poly #6b2f14 -6.5 -1 -6 -4 -3.5 -6.5 0 -7.5 3.5 -6.5 6 -4 6.5 -1",
        "box #6b2f14 -8 -5 8 10",
        dress=True,
    ),
    "boy": Figure("#f28c28", "#4c6b3a", "box #2e8b57 -6 -7 6 -3; box #2e8b57 0 -4 10 -2", height=42.0),
    "girl": Figure(
        "#f59ac0",
        "#f0bf98",
        "poly #c98b1f -6.5 -1 -6 -4 -3.5 -6.5 0 -7.5 3.5 -6.5 6 -4 6.5 -1",
        "disc #c98b1f -9 0 4; disc #c98b1f 9 0 4",
        42.0,
        True,
    ),
    "chef": Figure("#fafafa", "#54565c", "box #fafafa -6 -10 6 -3; oval #fafafa -9 -18 9 -7"),
    "dancer": Figure(
        "#8a3fd1",
        "#d9b3ff",
        "poly #2b1a12 -6.5 -1 -6 -4 -3.5 -6.5 0 -7.5 3.5 -6.5 6 -4 6.5 -1; disc #2b1a12 0 -9 4",
        dress=True,
    ),
    "farmer": Figure("#3f7a4a", "#3f7a4a", "oval #eccb55 -13 -6 13 -2; oval #eccb55 -6 -11 6 -2"),
    "nurse": Figure(
        "#39c1c9", "#e6fbfc", "box #ffffff -6 -9 6 -4; box #e2342d -1 -9 1 -4; box #e2342d -3 -7 3 -6", dress=True
    ),
    "coach": Figure("#f2d21b", "#1d1d1f", "box #1d1d1f -6 -7 6 -4; line #e2342d 2 -3 8 0 14 3 8"),
    "singer": Figure("#17171d", "#17171d", "box #111111 -6 -3 -1 1; box #111111 1 -3 6 1", "disc #241611 0 -2 11"),
}


@cache
def parse(picture: str) -> tuple[tuple[str, str, tuple[float, ...]], ...]:
    """The shapes of a picture: kind, colour and numbers of each."""
    return tuple(shape for part in picture.split(";") if part.strip() for shape in _shapes(part.split()))


def _shapes(words: list[str]) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """The shape that some words say, or the copies of it."""
    copies, dx, dy = 1, 0.0, 0.0
    if words[0] == "row":
        copies, dx, dy, words = int(words[1]), float(words[2]), float(words[3]), words[4:]
    kind, colour, *numbers = words
    width, points = (numbers[:1], numbers[1:]) if kind == "line" else ([], numbers)
    shifted = 2 if kind == "disc" else len(points)  # the third number of a disc is its radius
    for i in range(copies):
        moved = [float(x) + i * (dx, dy)[k % 2] * (k < shifted) for k, x in enumerate(points)]
        yield kind, colour, (*map(float, width), *moved)


@dataclass
class Canvas:
    """A picture to draw on, in hundredths of its height."""

    image: Image.Image
    middle: float  # x of the middle of the picture, pixels
    scale: float  # pixels per unit
    top: float = 0.0  # y of the upper edge of the picture, pixels

    def __post_init__(self):
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A position in pixels."""
        return self.middle + x * self.scale, self.top + y * self.scale

    def shape(
        self, kind: str, colour: str, numbers: tuple[float, ...], x: float = 0, y: float = 0, **outline: Any
    ) -> None:
        """Draw one shape, shifted by (x, y)."""
        if kind == "disc":
            a, b, r = numbers
            kind, numbers = "oval", (a - r, b - r, a + r, b + r)
        width, points = (numbers[0], numbers[1:]) if kind == "line" else (0, numbers)
        pixels = [self.at(x + points[k], y + points[k + 1]) for k in range(0, len(points), 2)]
        if kind == "line":
            self.pen.line(pixels, colour, max(1, round(width * self.scale)), "curve")
        elif kind == "oval":
            self.pen.ellipse(pixels, colour, **outline)
        elif kind == "box":
            self.pen.rectangle(pixels, colour, **outline)
        else:
            self.pen.polygon(pixels, colour, **outline)

    def picture(self, picture: str, x: float = 0, y: float = 0) -> None:
        """Draw a picture around (x, y)."""
        for shape in parse(picture):
            self.shape(*shape, x, y)


def place(name: str, width: int, height: int) -> Image.Image:
    """The picture of a place, RGB."""
    image = Image.new("RGB", (width, height))
    Canvas(image, width / 2, height / 100).picture(PLACES[name])
    return image


@lru_cache(maxsize=512)
def sprite(name: str, pixels: float) -> Image.Image:
    """The picture of an object with an outline, RGBA, 32 units wide and high; `pixels` per unit; not to be changed."""
    side = round(32 * pixels)
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas = Canvas(image, side / 2, pixels)
    thick = max(1, round(0.7 * pixels))
    for kind, colour, numbers in parse(OBJECTS[name]):
        if kind == "line":
            canvas.shape(kind, INK, (numbers[0] + 1.4, *numbers[1:]), 0, 16)
            canvas.shape(kind, colour, numbers, 0, 16)
        else:
            canvas.shape(kind, colour, numbers, 0, 16, outline=INK, width=thick)
    return image
