"""Cuts of videos that were changed as copies are: encoded anew, cropped, faster or slower; and videos to cut from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrlib.video.probe import probe
from mrlib.video.write import write
from tests.support.videos import every_frame


@dataclass(frozen=True)
class Copy:
    """A changed cut, and where it is from."""

    video: Path
    start_s: float
    end_s: float
    file: Path


def copies(
    videos: list[Path], folder: Path, count: int, *, speed: float = 1.0, crop: float = 0.85, seed: int = 0
) -> Iterator[Copy]:
    """Changed cuts of 4 to 9 s, but of at most 80 % of a video, at random places.

    speed  of a cut: 2 shows it in half its time
    crop   share of the width and of the height that is left, the middle of the picture
    """
    rng, durations = np.random.default_rng(seed), [probe(video).duration_s for video in videos]
    for number in range(count):
        i = rng.choice(len(videos), p=np.array(durations) / sum(durations))
        length = min(rng.uniform(4, 9), 0.8 * durations[i])
        start_s = rng.uniform(0, durations[i] - length)
        file = folder / f"cut{number}_{speed}_{crop}.mp4"
        change(videos[i], start_s, start_s + length, file, speed=speed, crop=crop)
        yield Copy(videos[i], start_s, start_s + length, file)


def change(video: Path, start_s: float, end_s: float, out: Path, *, speed: float = 1.0, crop: float = 0.85) -> Path:
    """Write the middle of the frames between two times as a new video of another frame rate."""
    fps = probe(video).fps
    frames = every_frame(video)[round(start_s * fps) : round(end_s * fps)]
    height, width = (round(crop * side) // 2 * 2 for side in frames[0].shape[:2])
    top, left = (frames[0].shape[0] - height) // 2, (frames[0].shape[1] - width) // 2
    write(out, (frame[top : top + height, left : left + width] for frame in frames), fps * speed)
    return out


def wandering(path: Path, seconds: float = 40.0, fps: int = 8, size: tuple[int, int] = (96, 64), seed: int = 0) -> Path:
    """A video of spots that wander about, in four scenes, each with other colours."""
    rng, count = np.random.default_rng(seed), round(seconds * fps)
    y, x = np.mgrid[: size[1], : size[0]] / size[1]

    def frames() -> Iterator[np.ndarray]:
        for scene in range(4):
            ground, colours = rng.uniform(40, 200, 3), rng.uniform(-150, 150, (6, 3))
            places, speeds = rng.uniform(0, 1, (6, 2)), rng.normal(0, 0.02, (6, 2))
            for _ in range(count * scene // 4, count * (scene + 1) // 4):
                speeds = 0.98 * speeds + rng.normal(0, 0.004, (6, 2))
                places = np.clip(places + speeds, 0, 1)
                spots = np.exp(-20 * ((x - 1.5 * places[:, :1, None]) ** 2 + (y - places[:, 1:, None]) ** 2))
                yield np.clip(ground + np.einsum("kyx,kc->yxc", spots, colours), 0, 255).astype(np.uint8)

    write(path, frames(), fps)
    return path


def overlap(moment: dict, copy: Copy) -> float:
    """The IoU of a moment of `find` with the place where a copy is from."""
    shared = min(moment["end_s"], copy.end_s) - max(moment["start_s"], copy.start_s)
    return max(0.0, shared) / (max(moment["end_s"], copy.end_s) - min(moment["start_s"], copy.start_s))
