"""A simulated dataset: videos of known events with features, questions about them and annotations.

No real features can ship with this repository; this is the dataset that everything runs on by default. One knob turns
each effect that the papers describe, and a knob left alone changes no video, so comparisons between its values are
paired. Layout and scores without training follow QVHighlights (`tests/test_simulate.py` states each number); what a
model scores here says what a mechanism does, not what it would score there.

`world` holds what there is, `script` what happens when, this file what it looks like. With e the unit vector of the
event, s the visibility of a clip, K a Gaussian over clips and n white noise,

    appearance_t = v g_v + S scene + sum_i K_ti (p place_i + h shot_i) + s_t sum_i K_ti c e_i + noise n_t
    query        = u g_t + k e + kappa n
    motion_t     = (1 + s_t) / 2 sum_i K_ti a action_i + b (scene' + g_m) + noise' n'_t

each divided by its norm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mrlib.data import Sample
from mrlib.data.bank import Bank
from mrlib.data.dataset import MomentDataset
from mrlib.data.script import Script, Timeline, remember, rendition, saliency, shots, visibility, write
from mrlib.data.world import Dice, World, parameters, unit

CLIP_S = 2.0
SPLITS = ("train", "val", "test", "val_shift")
STREAMS = ("motion", "appearance")  # in the order of their columns
BLOCK = 64  # videos that are made together, always all: a sample does not depend on how many follow
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

    split    "train", "val", "test", or "val_shift": "val" with the actions' homes permuted
    size     "small" (32 clips, 128-d joint space) or "paper" (75 clips, 512-d)
    seed     of the world and of everything in it
    n        samples; None: what the size has in this split (in "train": knob `n_train`)
    query    "text", or "video": another rendition of the event; then no two splits share an action
    streams  some of "motion" and "appearance", the joint one, in this order; "joint" for only the joint one, None for
             both
    preset   name of a knob: what that knob needs beside it to show its effect; or "context", for `spurious`: the place
             is seen around an event, not in it
    absent   the event asked for does not happen, in the place where it would have; all else, labels too, is as it was
    knobs    blur        sd of the transition between events, clips
             family      how alike the actions of a family look, 0 to 1
             n_train     training samples
             spurious    chance that an action happens in its home place, 0 to 1
             speed       a query video runs up to so many times faster or slower than the target
             irrelevant  chance that another event of the video resembles the one asked for
             noise       norm of the noise on a clip; all else has a norm of 1.2 to 1.4
    raises   ValueError for an unknown name or a value out of range
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    p = parameters(size, query, preset, knobs)
    chosen = _streams(streams)
    base = split.removesuffix("_shift")  # the same videos, but for the places
    if n is None:
        n = {"train": p.n_train, "val": p.n_val, "test": p.n_test}[base]
    if n < 1:
        raise ValueError(f"n must be at least 1, is {n}")

    world = World(p, seed)
    first, last = (round(x * p.families) * p.members for x in (FAMILIES[base] if query == "video" else (0, 1)))
    widths = {"appearance": p.joint, "motion": p.motion}
    ends = np.cumsum([0, *(widths[name] for name in chosen)]).tolist()
    columns = {name: slice(*ends[i : i + 2]) for i, name in enumerate(chosen)}
    target = np.empty((n, p.clips, ends[-1]), np.float32)
    joint = "appearance" in chosen

    samples, words, query_joint = [], [], np.empty((n, p.joint), np.float32)
    for begin in range(0, n, BLOCK):
        dice = Dice((seed, base, begin // BLOCK))
        rows = slice(begin, min(begin + BLOCK, n))
        count = rows.stop - begin
        script = write(world, dice, np.arange(first, last), split != base, BLOCK)
        features, visible = _render(world, dice, script.timeline, chosen, p.visible, script.relevant & absent)
        for name in chosen:
            target[rows, :, columns[name]] = features[name][:count]
        block = list(_samples(world, dice, script, saliency(dice, visible), split, begin))[:count]
        if query == "text":
            vectors, whole = _ask(world, dice, script, [s.query for s in block])
        else:
            vectors, whole = _film(world, Dice((*dice.key, "query")), script)
        samples += block
        words += vectors[:count]
        query_joint[rows] = whole[:count]

    lengths = torch.full((n,), p.clips)
    each = torch.arange(n)
    return MomentDataset(
        name="sim",
        split=split,
        samples=samples,
        target=Bank(
            torch.from_numpy(target).flatten(0, 1), torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        ),
        video=each,
        query=Bank.from_arrays(words),
        question=each,
        query_joint=torch.from_numpy(query_joint) if joint else None,
        streams=columns,
        joint="appearance" if joint else None,
        clip_s=CLIP_S,
        settings={"size": size, "seed": seed, "query": query, "preset": preset}
        | ({"absent": True} if absent else {})
        | knobs,
    )


def export(dataset: MomentDataset, root: str | os.PathLike) -> None:
    """Write a simulated dataset as files in the layout of official releases, for `mrlib.data.layouts.open_files`.

    Sentences: as "qvhighlights" in the layout of Moment-DETR, "appearance" as CLIP and "motion" as SlowFast features.
    Query videos: as "activitynet_vrl" in the layout of MATR, which has no second stream.
    raises  ValueError for a dataset without its joint stream
    """
    if dataset.joint is None:
        raise ValueError("there is no appearance stream to export; open the dataset with streams=None or 'joint'")
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
    for sample, v, q in zip(dataset.samples, dataset.video.tolist(), dataset.question.tolist(), strict=True):
        for name, columns in dataset.streams.items():
            if name in folders:
                np.savez(root / folders[name] / f"{sample.vid}.npz", features=_item(dataset.target, v)[:, columns])
        query = {"last_hidden_state": _item(dataset.query, q)}
        if dataset.settings["query"] == "text":
            query["pooler_output"] = dataset.query_joint[q].numpy()
        np.savez(root / queries / f"qid{sample.qid}.npz", **query)


def _item(bank: Bank, item: int) -> np.ndarray:
    return bank.rows[bank.index(torch.tensor([item]))[0]].numpy()


def _streams(streams: str | tuple[str, ...] | None) -> tuple[str, ...]:
    chosen = STREAMS if streams is None else ("appearance",) if streams == "joint" else streams
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not chosen or len(set(chosen)) < len(chosen) or (set(chosen) - set(STREAMS)):
        raise ValueError(f"streams must be some of {', '.join(STREAMS)}, 'joint' or None, is {streams!r}")
    return chosen


def _render(
    world: World,
    dice: Dice,
    timeline: Timeline,
    chosen: tuple[str, ...],
    mean: float,
    absent: np.ndarray | bool = False,
) -> tuple[dict, np.ndarray]:
    """Features of some videos, each stream (B, T, its width), and the visibility of the event (B, T).

    absent  bool (B, T)  clips whose event does not happen
    """
    p = world.p
    videos, clips = timeline.event.shape
    visible = visibility(p, dice, timeline, mean)
    seen = visible[..., None].astype(np.float32)
    t = np.arange(clips)
    kernel = np.exp(-0.5 * ((t[:, None] - t) / p.blur) ** 2) if p.blur else np.eye(clips)
    kernel = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
    on = (timeline.inside & np.logical_not(absent))[..., None]
    features = {}
    if "appearance" in chosen:
        scene = unit(dice.normal("scene", videos, 1, p.joint))
        shot = unit(dice.normal("shot", videos, clips, p.joint))
        around = np.float32(p.place) * np.where(on, np.float32(p.place_inside), 1) * world.places[timeline.place]
        around += np.float32(p.shot) * shot[np.arange(videos)[:, None], shots(p, dice, timeline)]
        x = kernel @ around
        event = world.event(timeline.actor, timeline.action, timeline.object)
        if p.phase:
            event += _phase(world, timeline)
        x += seen * (kernel @ (np.float32(p.content) * event * on))
        x += np.float32(p.gap_video) * world.gaps[0] + np.float32(p.scene) * scene
        noise = dice.normal("noise", videos, clips, p.joint)
        remember(noise, p.memory)
        x += np.float32(p.noise / np.sqrt(p.joint)) * noise
        features["appearance"] = unit(x)
    if "motion" in chosen:
        scene = unit(dice.normal("scene/motion", videos, 1, p.motion))
        x = (0.5 + 0.5 * seen) * (kernel @ (np.float32(p.action_motion) * world.motions[timeline.action] * on))
        x += np.float32(p.scene_motion) * (scene + world.gap_motion)
        noise = dice.normal("noise/motion", videos, clips, p.motion)
        remember(noise, p.memory)
        x += np.float32(p.noise_motion / np.sqrt(p.motion)) * noise
        features["motion"] = unit(x)
    return features, visible


def _phase(world: World, timeline: Timeline) -> np.ndarray:
    """How the action looks just then (B, T, J), between the four moments of its course."""
    moments = world.phases.shape[1] - 1
    at = timeline.progress * moments
    before = np.minimum(at.astype(np.int64), moments - 1)
    share = (at - before)[..., None].astype(np.float32)
    phases = np.float32(world.p.phase) * world.phases
    return phases[timeline.action, before] * (1 - share) + phases[timeline.action, before + 1] * share


def _ask(world: World, dice: Dice, script: Script, sentences: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Word vectors (N, J) of every sentence and the queries in the joint space (B, J)."""
    p = world.p
    asked = script.asked
    noise = dice.normal("query", BLOCK, p.joint)
    whole = np.float32(p.gap_text) * world.gaps[1]
    whole = whole + np.float32(p.asked) * world.event(asked["actor"], asked["action"], asked["object"])
    whole += np.float32(p.asked_noise / np.sqrt(p.joint)) * noise
    spread = np.float32(0.3 / np.sqrt(p.joint)) * dice.normal("words", BLOCK, 24, p.joint)
    words = [[world.vocabulary[w] for w in s.rstrip(".").lower().split()] for s in sentences]
    return [unit(world.words[w] + spread[i, : len(w)]) for i, w in enumerate(words)], unit(whole)


def _film(world: World, dice: Dice, script: Script) -> tuple[list[np.ndarray], np.ndarray]:
    """Joint rows (N, J) of a video of every event asked for, and their normalised means (B, J)."""
    timeline, clips = rendition(world, dice, script)
    rows = _render(world, dice, timeline, ("appearance",), world.p.visible_query)[0]["appearance"]
    films = [x[:n] for x, n in zip(rows, clips, strict=True)]
    return films, unit(np.stack([x.mean(0) for x in films]))


def _samples(world: World, dice: Dice, script: Script, scores: np.ndarray, split: str, begin: int) -> Iterator[Sample]:
    chances = dice.uniform("sentence", BLOCK, 9)
    first = SPLITS.index(split) * 1_000_000 + begin
    for i, relevant in enumerate(script.relevant):
        facts = {k: int(v[i]) for k, v in script.asked.items()}
        ids = np.flatnonzero(relevant)
        yield Sample(
            qid=first + i,
            query=world.sentence(facts["actor"], facts["action"], facts["object"], chances[i]),
            duration=len(relevant) * CLIP_S,
            vid=f"sim_{split}_{begin + i:05d}",
            relevant_windows=[[a * CLIP_S, b * CLIP_S] for a, b in _runs(relevant)],
            relevant_clip_ids=ids.tolist(),
            saliency_scores=scores[i, ids].tolist(),
            extra={k: world.names[k][v] for k, v in facts.items()} | {"script": _told(world, script.timeline, i)},
        )


def _runs(x: np.ndarray) -> list[list[int]]:
    """Start and end of the runs of True."""
    return np.flatnonzero(np.diff(x, prepend=False, append=False)).reshape(-1, 2).tolist()


def _told(world: World, timeline: Timeline, i: int) -> list[dict]:
    """The events of a video one after the other, for pictures."""
    told = []
    names = world.names
    changes = np.flatnonzero(np.diff(timeline.event[i], prepend=-1)).tolist()
    for a, b in zip(changes, [*changes[1:], timeline.event.shape[1]], strict=True):
        facts = {k: names[k][getattr(timeline, k)[i, a]] for k in ("actor", "action", "object", "place")}
        on = [[(a + s) * CLIP_S, (a + e) * CLIP_S] for s, e in _runs(timeline.inside[i, a:b])]
        told.append({"start": a * CLIP_S, "end": b * CLIP_S, "windows": on, **facts})
    return told
