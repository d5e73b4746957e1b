"""Each paper as its choices in the slots, its numbers and its training stages. Read it like a table.

A model is two names: one of `ALIGNERS`, one of `DETECTORS`; any pair composes, and any of `AUGMENTERS` may feed them.
To add one, add a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from mrlib.align.anchor import AnchorAligner, ConcatAligner, RawAligner
from mrlib.augment import identity
from mrlib.data import Batch, MomentDataset, Widths, open_dataset
from mrlib.detect.similarity_map import SimilarityMapDetector
from mrlib.retriever import MomentRetriever
from mrlib.settings import is_plain, require, require_like

# name -> (indices, dataset, draw) -> batch
AUGMENTERS: dict[str, Callable[..., Batch]] = {"identity": identity}
# name -> (widths of the dataset, options) -> aligner
ALIGNERS: dict[str, Callable[..., nn.Module]] = {
    "anchor": lambda widths, **options: AnchorAligner(widths.joint, **options),
    "raw": lambda widths, **options: RawAligner(widths.joint, **options),
    "concat": lambda widths, **options: ConcatAligner(widths.joint, **options),
}
# name -> (width of the aligner, options) -> detector
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "similarity_map": lambda width, **options: SimilarityMapDetector(**options),
}


@dataclass(frozen=True)
class Choice:
    """What stands in a slot: a name of `ALIGNERS` or `DETECTORS` and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimiser:
    """Adam or AdamW."""

    method: str = "adamw"  # "adam" | "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float | None = None  # largest norm of the gradient

    def __post_init__(self):
        require(self.method in ("adam", "adamw"), "method", self.method, "adam or adamw")
        require(self.lr >= 0 and math.isfinite(self.lr), "lr", self.lr, "a number from 0 on")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number from 0 on")
        require(self.clip is None or self.clip > 0, "clip", self.clip, "None or a number above 0")


@dataclass(frozen=True)
class Schedule:
    """The learning rate at a share of a stage's steps: linear warm-up, then the curve."""

    curve: str = "constant"  # "constant" | "cosine" down to 0 | "step" down by ten at `drop`
    warmup: float = 0.0  # share of the steps
    drop: float = 1.0  # share of the steps after which "step" drops

    def __post_init__(self):
        require(self.curve in ("constant", "cosine", "step"), "curve", self.curve, "constant, cosine or step")
        for name in ("warmup", "drop"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at `step`, counted from 0, of `steps`."""
        warmup = self.warmup * steps
        if step < warmup:
            return (step + 1) / warmup if warmup > 1 else 1.0
        if self.curve == "cosine":
            done = (step - warmup) / max(steps - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * done))
        return 0.1 if self.curve == "step" and step >= self.drop * steps else 1.0


@dataclass(frozen=True)
class Stage:
    """One training of a paper."""

    name: str
    epochs: int
    batch_size: int
    augment: str = "identity"  # one of `AUGMENTERS`
    start: tuple[str, str] | None = None  # (earlier stage, "last" or "best") to take the weights from; None: go on
    weights: Mapping[str, float] = field(default_factory=dict)  # of loss terms; 1 where nothing stands
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    keep: str = "MR-full-mAP"  # the validation score by which the best epoch is chosen

    def __post_init__(self):
        require(self.name.isidentifier(), "name of a stage", self.name, "a plain word: a folder is called so")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number from 1 on")
        require(self.augment in AUGMENTERS, "augment", self.augment, f"one of {', '.join(AUGMENTERS)}")


@dataclass(frozen=True)
class Paper:
    """A paper's choices."""

    name: str
    title: str
    aligner: Choice
    detector: Choice
    stages: tuple[Stage, ...]
    streams: str | tuple[str, ...] | None = None  # what to open a dataset with: "joint", names, or None for all
    round_s: float | None = None  # predicted times are rounded to multiples of this
    max_windows: int = 10
    given: Mapping[str, Any] = field(default_factory=dict)  # the arguments of `get`

    def __post_init__(self):
        names = [s.name for s in self.stages]
        require(len(set(names)) == len(names), "stages", names, "of different names")
        require(type(self.max_windows) is int and self.max_windows >= 1, "max_windows", self.max_windows, "1 or more")
        require(self.round_s is None or self.round_s > 0, "round_s", self.round_s, "None or seconds above 0")

    def describe(self) -> dict[str, Any]:
        """Everything as plain values, for records."""
        return {name: value for name, value in asdict(self).items() if name != "given"}


PAPERS = {
    "f2sgd": Paper(
        name="f2sgd",
        title="Anchor-Aware Similarity Cohesion in Target Frames Enables Predicting Temporal Moment Boundaries in 2D "
        "(CVPR 2025)",
        aligner=Choice("anchor", {"reweight": True, "align": True, "right": "literal", "scale": False}),
        detector=Choice(
            "similarity_map",
            {"kernel": 21, "channels": 32, "candidates": 10, "head": "linear", "standardise": False}
            | {"loss_cells": "triangle", "reduction": "sum", "zero_init": True},
        ),
        stages=(Stage("train", 10, 128, optimiser=Optimiser("adam", 1e-4), schedule=Schedule("cosine", warmup=0.1)),),
        streams="joint",
    ),
}

# Settings for a size of the simulator, or for a dataset that the paper treats apart.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "f2sgd": {
        "small": {"kernel": 9, "channels": 8, "standardise": True, "batch_size": 32, "lr": 1e-3},
        "charades_sta": {"kernel": 27, "candidates": 1},
        "activitynet_captions": {"kernel": 27, "candidates": 1},
    },
}


def get(name: str, size: str = "paper", preset: str | None = None, **settings: Any) -> Paper:
    """A paper, with any of its numbers changed.

    name      one of `PAPERS`
    size      "paper", or "small" for the small simulated world
    preset    a named set of settings of `PRESETS`, over those of the size
    settings  field=value, or **{"stage.field": value}: a field of the paper, an option of its aligner or detector, or a
              field of a stage, its optimiser or schedule (without the stage's name: of every stage). `aligner` and
              `detector` take a name. `epochs` sets the last stage and scales the others.
    """
    if name not in PAPERS:
        raise ValueError(f"unknown paper {name!r}; known: {', '.join(PAPERS)}")
    if size not in ("paper", "small"):
        raise ValueError(f"unknown size {size!r}; known: paper, small")
    presets = PRESETS.get(name, {})
    if preset is not None and preset not in presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; known: {', '.join(presets)}")
    paper = PAPERS[name]
    for key, value in settings.items():
        require(is_plain(value), key, value, "a plain value: a number, text, or lists and dicts of them")
    given = {"name": name, "size": size, "preset": preset} | settings
    for table in (presets.get("small", {}) if size == "small" else {}, presets.get(preset, {}), settings):
        # names of slots first: their options are looked up in what then stands there
        for key in sorted(table, key=lambda k: k not in ("aligner", "detector")):
            paper = _changed(paper, key, table[key], size)
    return replace(paper, given=given)


def build(paper: Paper, dataset: MomentDataset | Widths, seed: int = 0) -> MomentRetriever:
    """A model of a paper, for the widths of a dataset, its weights a function of `seed`."""
    widths = dataset if isinstance(dataset, Widths) else dataset.widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        aligner = ALIGNERS[paper.aligner.name](widths, **paper.aligner.options)
        detector = DETECTORS[paper.detector.name](aligner.width, **paper.detector.options)
    recipe = {"paper": dict(paper.given), "widths": asdict(widths), "seed": seed} if paper.given else None
    return MomentRetriever(aligner, detector, round_s=paper.round_s, max_windows=paper.max_windows, recipe=recipe)


def open_split(paper: Paper, name: str, root: str | None = None, split: str = "train", **options: Any) -> MomentDataset:
    """A dataset with the streams that a paper reads, in its size where it is simulated; see `mrlib.open_dataset`."""
    if name == "sim":
        options = {"size": paper.given["size"]} | options
    return open_dataset(name, root, split, **({"streams": paper.streams} | options))


def usual(name: str, dataset: str) -> dict[str, str | None]:
    """The size and preset that `get` takes for a dataset: small for the simulator, the paper's numbers for files."""
    preset = dataset if dataset in PRESETS.get(name, {}) else None
    return {"size": "small" if dataset == "sim" else "paper", "preset": preset}


def validation_split(name: str) -> str:
    """The split that epochs are chosen on: "val", or "test" where a dataset has been released without one."""
    return "test" if name == "charades_sta" else "val"


def _choice(slot: str, name: str, size: str) -> Choice:
    """A slot's choice by name, with the options that the paper it comes from gives it."""
    known = ALIGNERS if slot == "aligner" else DETECTORS
    if name not in known:
        raise ValueError(f"unknown {slot} {name!r}; known: {', '.join(known)}")
    choices = (getattr(get(paper, size), slot) for paper in PAPERS)
    return next((choice for choice in choices if choice.name == name), Choice(name))


def _changed(paper: Paper, key: str, value: Any, size: str) -> Paper:
    stage_name, _, name = key.rpartition(".")
    if not stage_name:
        if name in ("aligner", "detector"):
            return replace(paper, **{name: _choice(name, value, size)})
        if name in ("streams", "round_s", "max_windows"):
            return replace(paper, **{name: value})
        for slot in ("aligner", "detector"):
            choice = getattr(paper, slot)
            if name in choice.options:
                require_like(choice.options[name], key, value)
                return replace(paper, **{slot: replace(choice, options={**choice.options, name: value})})
        if name == "epochs":
            require(type(value) is int, key, value, "a whole number from 1 on")
            share = value / paper.stages[-1].epochs
            scaled = [replace(s, epochs=max(1, round(s.epochs * share))) for s in paper.stages[:-1]]
            return replace(paper, stages=(*scaled, replace(paper.stages[-1], epochs=value)))
    elif stage_name not in (s.name for s in paper.stages):
        raise ValueError(
            f"{key!r}: {paper.name} has no stage {stage_name!r}; it has {', '.join(s.name for s in paper.stages)}"
        )
    chosen = [s for s in paper.stages if stage_name in ("", s.name)]
    stages = {s.name: _changed_stage(s, key, name, value) for s in chosen}
    return replace(paper, stages=tuple(stages.get(s.name, s) for s in paper.stages))


def _changed_stage(stage: Stage, key: str, name: str, value: Any) -> Stage:
    own = [f.name for f in fields(Stage) if f.name not in ("name", "optimiser", "schedule")]
    if name in own:
        require_like(getattr(stage, name), key, value)
        return replace(stage, **{name: value})
    for part in ("optimiser", "schedule"):
        if name in (f.name for f in fields(getattr(stage, part))):
            require_like(getattr(getattr(stage, part), name), key, value)
            return replace(stage, **{part: replace(getattr(stage, part), **{name: value})})
    parts = [f.name for f in (*fields(Optimiser), *fields(Schedule))]
    raise ValueError(
        f"unknown setting {key!r}; a paper has aligner, detector, streams, round_s, max_windows and the options of its "
        f"aligner and detector, a stage has {', '.join(own + parts)}"
    )
