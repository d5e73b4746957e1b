"""A folder of small videos with a table of their moments, as somebody's own data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tests.support.videos import make_video

HEADER = "video,start,end,query"
VIDEOS = {"cat.mp4": 20, "dog.mp4": 24, "bird.mp4": 21, "fish.mp4": 30}
ROWS = (
    "cat.mp4,2,6,a cat jumps",
    "cat.mp4,10,14,a cat jumps",
    "cat.mp4,4,8.5,a cat sleeps",
    "dog,0:12,0:20,a dog runs",
    'bird.mp4,0,21,"a bird sings, then flies"',
    "fish,3,9,a fish swims",
)


def small_video(path: Path, seconds: float) -> Path:
    """A video of 32 x 32 pixels, two frames a second, whose bytes are a function of its name and length."""
    random = np.random.default_rng(list(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_video(
        path, seconds, 2, (32, 32), picture=lambda n, size: np.full((*size, 3), random.integers(0, 256, 3), np.uint8)
    )


def own_folder(
    folder: Path, rows: Iterable[str] = ROWS, header: str = HEADER, videos: Mapping[str, float] = VIDEOS
) -> Path:
    """A folder with videos, {name: seconds}, and moments.csv."""
    for name, seconds in videos.items():
        small_video(folder / name, seconds)
    (folder / "moments.csv").write_text("".join(f"{row}\n" for row in (header, *rows)), encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its path; not of the cache that readers keep there."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and ".mrlib_cache" not in file.parts]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
