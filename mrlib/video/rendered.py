"""Render simulated samples as videos: the same script gives features, which are the dataset's, or a video.

The truth is known: `dataset.samples[i].relevant_windows` for the query of the sample, and `moments` for every event.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.dataset import MomentDataset
from mrlib.sim.drawing import Drawing, script_of
from mrlib.sim.simulator import CLIP_S, world_of
from mrlib.sim.world import Dice
from mrlib.video.write import write

WORDS = ("actor", "action", "object")
FEWEST = 3  # clips of a query video


def render(
    dataset: MomentDataset,
    i: int,
    path: str | os.PathLike,
    **options: float,
) -> list[dict[str, Any]]:
    """Write sample i of a simulated dataset as an H.264 video.

    options  of `render_sample`
    returns  every event in it, see `moments`
    raises   ValueError for a sample without a script, as those of real datasets, or a dataset opened with absent=True
    """
    return render_sample(sample_at(dataset, i), path, **options)


def render_sample(
    sample: Sample,
    path: str | os.PathLike,
    *,
    fps: float = 10,
    seed: int = 0,
    width: int = 640,
    height: int = 360,
) -> list[dict[str, Any]]:
    """Write a simulated sample as an H.264 video, frame by frame, in memory that does not grow with its length.

    seed     of what no label says, see `mrlib.sim.drawing.Drawing`
    returns  every event in it, see `moments`
    raises   ValueError for a sample without a script, or a size or rate that is out of range
    """
    require(1 <= fps <= 60, "fps", fps, "from 1 to 60")
    for name, value in (("width", width), ("height", height)):
        fits = isinstance(value, Integral) and value >= 16 and value % 2 == 0
        require(fits, name, value, "an even number of at least 16 pixels")
    require(9 * width <= 16 * height, "width", width, f"at most 16 / 9 of the height, which is {height}")
    write(path, Drawing(sample, seed).frames(fps, width, height), fps)
    return moments(sample)


def sample_at(dataset: MomentDataset, i: int) -> Sample:
    """Sample i of a simulated dataset; ValueError if it cannot be drawn or there is no such sample."""
    fits = isinstance(i, Integral) and 0 <= i < len(dataset)
    require(fits, "i", i, f"the number of a sample, from 0 to {len(dataset) - 1}")
    require(not dataset.settings.get("absent"), "absent", True, "false: a script shows the event that is absent")
    script_of(dataset.samples[i])
    return dataset.samples[i]


def caption(event: Mapping[str, Any]) -> str:
    """The sentence about an event, as "A woman throws the ball."; it does not name the place."""
    return f"A {event['actor']} {event['action']} the {event['object']}."


def moments(sample: Sample) -> list[dict[str, Any]]:
    """Every event of a simulated sample: {"query": its sentence, "windows": [[start, end], ...] in seconds}.

    Events of the same words are one, wherever they happen; in the order in which they are first seen.
    """
    windows: dict[str, list[list[float]]] = {}
    for event in script_of(sample):
        windows.setdefault(caption(event), []).extend(map(list, event["windows"]))
    return [{"query": query, "windows": each} for query, each in windows.items() if each]


def in_a_row(samples: Sequence[Sample]) -> Sample:
    """One long sample that shows several, one after the other; its query is that of the first.

    An hour is 57 samples of size "small"; `render_sample` writes it.
    """
    require(len(samples) > 0, "samples", samples, "one or more")
    script, start = [], 0.0
    for sample in samples:
        script += [_later(event, start) for event in script_of(sample)]
        start += sample.duration
    first = samples[0]
    words = {kind: first.extra[kind] for kind in WORDS}
    windows = [w for event in script if words.items() <= event.items() for w in event["windows"]]
    vid = f"{first.vid}_to_{samples[-1].vid}"
    return Sample(first.qid, first.query, start, vid, windows, extra=first.extra | {"script": script})


def _later(event: Mapping[str, Any], shift_s: float) -> dict[str, Any]:
    """An event, moved in time."""
    windows = [[a + shift_s, b + shift_s] for a, b in event["windows"]]
    return {**event, "start": event["start"] + shift_s, "end": event["end"] + shift_s, "windows": windows}


def another_take(dataset: MomentDataset, i: int, *, seed: int = 0) -> Sample:
    """The queried event of sample i once more, from start to end, in another place and at another speed.

    As `mrlib.sim.script.rendition` draws query videos: up to `speed` times faster or slower, at least three clips. A
    query about an event that does not happen is shown for as long as half the video.
    """
    sample, world = sample_at(dataset, i), world_of(dataset)
    dice = Dice((seed, sample.vid, "query"))
    place, speed = dice.uniform("take", 2)
    rate = world.p.speed ** (2 * speed - 1)
    longest = max((end - start for start, end in sample.relevant_windows or []), default=sample.duration / 2)
    clips = min(max(FEWEST, round(longest / rate / CLIP_S)), world.p.clips // 2)
    others = [name for name in world.names["place"] if name != sample.extra["place"]]
    event = {kind: sample.extra[kind] for kind in WORDS} | {"place": others[int(place * len(others))], "rate": rate}
    event |= {"start": 0.0, "end": clips * CLIP_S, "windows": [[0.0, clips * CLIP_S]]}
    return Sample(
        sample.qid, sample.query, event["end"], f"{sample.vid}_query", event["windows"], extra={"script": [event]}
    )


def render_query(dataset: MomentDataset, i: int, path: str | os.PathLike, *, fps: float = 10, seed: int = 0) -> Sample:
    """Write `another_take` of sample i as a video, to search with by example; returns its sample."""
    sample = another_take(dataset, i, seed=seed)
    render_sample(sample, path, fps=fps, seed=seed)
    return sample
