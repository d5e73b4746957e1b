"""Open a simulated dataset, or export it as files in the layout of the official releases."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.bank import Bank
from mrlib.data.dataset import MomentDataset
from mrlib.data.lines import is_plain_name
from mrlib.ops.runs import runs_of_true
from mrlib.sim.features import render, sentence_queries, video_queries
from mrlib.sim.script import Script, Timeline, ask_for_nothing, draw_script, saliency
from mrlib.sim.world import KNOBS, Dice, Parameters, World, parameters

CLIP_S = 2.0
SPLITS = ("train", "val", "test", "val_shift")
STREAMS = ("motion", "appearance")  # in the order of their columns
MOST = 1_000_000  # samples of a split
BLOCK = 64  # videos that are drawn together, always all of them: a sample does not depend on how many follow
FAMILIES = {"train": (0, 0.5), "val": (0.5, 0.75), "test": (0.75, 1)}  # of the actions, where queries are videos


def open_sim(
    split: str = "train",
    *,
    size: str = "small",
    seed: int = 0,
    n: int | None = None,
    query: str = "text",
    streams: str | tuple[str, ...] | None = None,
    preset: str | None = None,
    absent: bool = False,
    **knobs,
) -> MomentDataset:
    """A split of a simulated world; a sample is a function of (seed, split, its index) and of the knobs.

    split    "train", "val", "test", or "val_shift": "val" with other home places of the actions
    size     "small" (32 clips, 128-d joint space) or "paper" (75 clips, 512-d)
    seed     of the world and of everything in it
    n        number of samples; None: the number that the size has in this split (in "train": knob `n_train`)
    query    "text", or "video": another rendition of the event; then no two splits share an action
    streams  some of "motion" and "appearance", in this order; "joint" for "appearance" alone, None for both
    preset   name of a knob: the parameters under which it shows its effect; or "context", for `spurious`: the place is
             seen around an event, not in it
    absent   the queried event does not happen, in the place where it would have; all else, labels too, stays the same
    knobs    blur        standard deviation of the transition between events, clips
             family      how alike the actions of a family look, 0 to 1
             n_train     training samples
             spurious    chance that an action happens in its home place, 0 to 1
             speed       a query video runs up to this many times faster or slower than the target
             irrelevant  chance that another event of the video resembles the queried one
             noise       norm of the noise on a clip; the other terms together have a norm of 1.2 to 1.4
             null        share of queries about an event that does not happen in the video, 0 to below 1: the windows of
                         such a sample are [], and it has no saliency. It changes no video and no other query
    raises   ValueError for an unknown name or a value out of range
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    p, names = parameters(size, query, preset, knobs), _stream_names(streams)
    if n is None:
        n = {"train": int(p.n_train), "val": p.n_val, "test": p.n_test}[_base(split)]
    require(isinstance(n, Integral) and 1 <= n <= MOST, "n", n, f"a whole number from 1 to {MOST}")
    require(isinstance(seed, Integral), "seed", seed, "a whole number")
    require(isinstance(absent, bool), "absent", absent, "true or false")
    world = World(p, seed)
    blocks = (_draw_block(world, split, first, names, query, absent) for first in range(0, n, BLOCK))
    settings = {"size": size, "seed": seed, "query": query, "preset": preset}
    return _dataset(split, n, p, names, blocks, settings | ({"absent": True} if absent else {}) | knobs)


def _base(split: str) -> str:
    """The split that has the same videos, but for their places."""
    return split.removesuffix("_shift")


def _stream_names(streams: str | tuple[str, ...] | None) -> tuple[str, ...]:
    names = STREAMS if streams is None else ("appearance",) if streams == "joint" else streams
    names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()
    fits = bool(names) and all(name in STREAMS for name in names) and len(set(names)) == len(names)
    require(fits, "streams", streams, f"some of {', '.join(STREAMS)}, 'joint' or None")
    return names


@dataclass(frozen=True)
class _Block:
    """`BLOCK` samples that are drawn together."""

    samples: list[Sample]
    target: dict[str, np.ndarray]  # of every stream (BLOCK, T, its width)
    query: list[np.ndarray]  # of every sample (N, J)
    query_joint: np.ndarray  # (BLOCK, J)


def _draw_block(world: World, split: str, first: int, streams: tuple[str, ...], query: str, absent: bool) -> _Block:
    """The block of samples that begins with number `first` of a split."""
    p, base = world.p, _base(split)
    families = FAMILIES[base] if query == "video" else (0, 1)
    actions = np.arange(*(round(share * p.families) * p.members for share in families))
    dice = Dice((world.seed, base, first // BLOCK))
    script = draw_script(world, dice, actions, split != base, BLOCK)
    target, visible = render(world, dice, script.timeline, streams, p.visible, script.relevant & absent)
    script, null = ask_for_nothing(world, dice, script, actions, split != base)
    samples = list(_samples(world, dice, script, null, saliency(dice, visible), split, first))
    if query == "text":
        vectors, query_joint = sentence_queries(world, dice, script, [sample.query for sample in samples])
    else:
        vectors, query_joint = video_queries(world, Dice((*dice.key, "query")), script)
    return _Block(samples, target, vectors, query_joint)


def _dataset(
    split: str, n: int, p: Parameters, streams: tuple[str, ...], blocks: Iterator[_Block], settings: dict[str, Any]
) -> MomentDataset:
    """The first n samples of some blocks as a dataset."""
    widths = {"appearance": p.joint, "motion": p.motion}
    ends = np.cumsum([0, *(widths[name] for name in streams)]).tolist()
    columns = {name: slice(*ends[i : i + 2]) for i, name in enumerate(streams)}
    target = np.empty((n, p.clips, ends[-1]), np.float32)  # filled block by block, so that it is in memory once
    samples, query, query_joint = [], [], np.empty((n, p.joint), np.float32)
    for block in blocks:
        rows = slice(len(samples), min(len(samples) + BLOCK, n))
        count = rows.stop - rows.start
        for name in streams:
            target[rows, :, columns[name]] = block.target[name][:count]
        samples += block.samples[:count]
        query += block.query[:count]
        query_joint[rows] = block.query_joint[:count]
    joint = "appearance" in streams
    items = torch.arange(n)
    return MomentDataset(
        name="sim",
        split=split,
        samples=samples,
        target=Bank(torch.from_numpy(target).flatten(0, 1), torch.arange(n + 1) * p.clips),  # (n * T, D), (n + 1,)
        video=items,
        query=Bank.from_arrays(query),
        query_item=items,
        query_joint=torch.from_numpy(query_joint) if joint else None,
        streams=columns,
        joint="appearance" if joint else None,
        clip_s=CLIP_S,
        settings=settings,
    )


def _samples(
    world: World, dice: Dice, script: Script, null: np.ndarray, scores: np.ndarray, split: str, first: int
) -> Iterator[Sample]:
    """The annotations of a block of videos.

    null    bool (B,)  the queried event does not happen: no windows, no saliency
    scores  (B, T, 3)  saliency scores of three annotators
    first   number of the first sample in its split
    """
    chances = dice.uniform("sentence", BLOCK, 9)
    first_qid = SPLITS.index(split) * 1_000_000 + first
    for i, relevant in enumerate(script.relevant & ~null[:, None]):
        event = {kind: int(numbers[i]) for kind, numbers in script.queried.items()}
        clips = np.flatnonzero(relevant)
        words = {kind: world.names[kind][number] for kind, number in event.items()}
        yield Sample(
            qid=first_qid + i,
            query=world.sentence(event["actor"], event["action"], event["object"], chances[i]),
            duration=len(relevant) * CLIP_S,
            vid=f"sim_{split}_{first + i:05d}",
            relevant_windows=[[start * CLIP_S, end * CLIP_S] for start, end in runs_of_true(relevant)],
            relevant_clip_ids=None if null[i] else clips.tolist(),
            saliency_scores=None if null[i] else scores[i, clips].tolist(),
            extra=words | {"script": _events(world, script.timeline, i)},
        )


def _events(world: World, timeline: Timeline, i: int) -> list[dict]:
    """The events of video i in their order, times in seconds, for pictures."""
    events = []
    starts = np.flatnonzero(np.diff(timeline.event[i], prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], timeline.event.shape[1]], strict=True):
        kinds = ("actor", "action", "object", "place")
        words = {kind: world.names[kind][getattr(timeline, kind)[i, start]] for kind in kinds}
        windows = [[(start + a) * CLIP_S, (start + b) * CLIP_S] for a, b in runs_of_true(timeline.inside[i, start:end])]
        events.append({"start": start * CLIP_S, "end": end * CLIP_S, "windows": windows, **words})
    return events


def world_of(dataset: MomentDataset) -> World:
    """The world of a simulated dataset; ValueError for another dataset."""
    settings = dataset.settings
    if dataset.name != "sim" or not {"size", "seed", "query", "preset"} <= settings.keys():
        raise ValueError(f'{dataset.name} {dataset.split} is not simulated; open one with mrlib.open_dataset("sim")')
    knobs = {name: settings[name] for name in KNOBS if name in settings}
    return World(parameters(settings["size"], settings["query"], settings["preset"], knobs), settings["seed"])


def export(dataset: MomentDataset, root: str | os.PathLike) -> None:
    """Write a simulated dataset as files in the layout of official releases, for `mrlib.data.layouts.open_files`.

    With sentences, "qvhighlights" in the layout of Moment-DETR: "appearance" as CLIP, "motion" as SlowFast features.
    With query videos, "activitynet_vrl" in the layout of MATR, which has no second stream.
    raises  ValueError, before anything is written, for a dataset without its joint stream, or for the name of a video
            or query by which no file can be called
    """
    if dataset.joint is None:
        raise ValueError("there is no appearance stream to export; open the dataset with streams=None or 'joint'")
    for sample in dataset.samples:
        for field, name in (("vid", sample.vid), ("qid", str(sample.qid))):
            expected = "a plain name, as files are called by it: no / or \\, no leading dot, at most 200 characters"
            require(is_plain_name(name), f"{field} of an exported sample", name, expected)
    root = Path(root)
    if dataset.settings["query"] == "video":
        annotations, folders, queries = "activitynet_vrl_{}.jsonl", {"appearance": "target_vid_clip"}, "query_vid_clip"
    else:
        annotations, queries = "highlight_{}_release.jsonl", "clip_text_features"
        folders = {"motion": "slowfast_features", "appearance": "clip_features"}
    for folder in (queries, *(folders[name] for name in dataset.streams if name in folders)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample.as_line()) for sample in dataset.samples]
    (root / annotations.format(dataset.split)).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for sample, v, q in zip(dataset.samples, dataset.video.tolist(), dataset.query_item.tolist(), strict=True):
        for name, columns in dataset.streams.items():
            if name in folders:
                np.savez(root / folders[name] / f"{sample.vid}.npz", features=_rows(dataset.target, v)[:, columns])
        query = {"last_hidden_state": _rows(dataset.query, q)}
        if dataset.settings["query"] == "text":
            query["pooler_output"] = dataset.query_joint[q].numpy()
        np.savez(root / queries / f"qid{sample.qid}.npz", **query)


def _rows(bank: Bank, item: int) -> np.ndarray:
    """The features of one item of a bank, (L, D)."""
    return bank.rows[bank.index(torch.tensor([item]))[0]].numpy()
