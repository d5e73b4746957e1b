"""What a paper consists of: `Choice`, `Optimiser`, `Schedule`, `Stage`, `Paper`. All check their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mrlib.arguments import keyword_defaults, require, require_like
from mrlib.papers.slots import AUGMENTERS, PREPARATIONS, TRAINING_SETS


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _above_0(x: Any) -> bool:
    return _is_number(x) and x > 0


def are_texts(x: Any) -> bool:
    """Whether x is a list or tuple of strings."""
    return isinstance(x, list | tuple) and all(isinstance(item, str) for item in x)


@dataclass(frozen=True)
class Choice:
    """The part in a slot: a name of `ALIGNERS` or `DETECTORS`, and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimiser:
    """Adam or AdamW."""

    method: str = "adamw"  # "adam" | "adamw"
    lr: float = 1e-4  # before the schedule
    weight_decay: float = 0.0
    clip: float | None = None  # largest norm of the gradient; None: no clipping

    def __post_init__(self):
        require(self.method in ("adam", "adamw"), "method", self.method, "adam or adamw")
        require(self.lr >= 0 and math.isfinite(self.lr), "lr", self.lr, "a number from 0 on")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number from 0 on")
        require(self.clip is None or self.clip > 0, "clip", self.clip, "None or a number above 0")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps of a stage: a linear warm-up, then the curve."""

    curve: str = "constant"  # "constant" | "cosine", down to 0 | "step", a tenth after every `drop`
    warmup: float = 0.0  # share of the steps
    drop: float = 1.0  # share of the steps between two drops of "step"

    def __post_init__(self):
        require(self.curve in ("constant", "cosine", "step"), "curve", self.curve, "constant, cosine or step")
        for name in ("warmup", "drop"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        require(self.drop > 0, "drop", self.drop, "above 0")

    def factor(self, step: int, steps: int) -> float:
        """The factor of the learning rate at `step`, counted from 0, of `steps`."""
        warmup = self.warmup * steps
        if step < warmup:
            return (step + 1) / warmup if warmup > 1 else 1.0
        if self.curve == "cosine":
            progress = (step - warmup) / max(steps - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * progress))
        # 1e-9: with drop=0.4 the rate of 100 steps drops at step 40, whatever the rounding of 40 / 100 / 0.4
        return 0.1 ** math.floor(step / steps / self.drop + 1e-9) if self.curve == "step" else 1.0


@dataclass(frozen=True)
class Stage:
    """One stage of a paper's training."""

    name: str
    epochs: int
    batch_size: int
    augment: str = "identity"  # one of `AUGMENTERS`
    data: str = "pairs"  # one of `TRAINING_SETS`
    start: tuple[str, str] | None = None  # (earlier stage, "last" or "best"): load its weights; None: keep the current
    prepare: str | None = None  # one of `PREPARATIONS`, run after the weights are loaded
    teacher: tuple[str, str] | None = None  # (earlier stage, "last" or "best"): frozen, its outputs enter the losses
    # A score: train on each half of the videos and predict the other half; confident predictions above this score that
    # miss every window become `wrong_spans` for later stages. None: train on all samples, mine nothing
    mine: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)  # of loss terms; 1 for a term that is not listed
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    keep: str = "MR-full-mAP"  # the validation score, or sum of scores, that decides which epoch is the best
    augment_options: Mapping[str, Any] = field(default_factory=dict)  # of the augmenter; others keep their defaults

    def __post_init__(self):
        require(self.name.isidentifier(), "name of a stage", self.name, "a plain word, as a folder has this name")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number from 1 on")
        for name in ("start", "teacher"):
            value = getattr(self, name)
            fits = value is None or (are_texts(value) and len(value) == 2 and value[1] in ("last", "best"))
            require(fits, name, value, 'None, or the name of a stage and "last" or "best"')
        require(self.mine is None or _is_number(self.mine), "mine", self.mine, "None or a score")
        for name in ("start", "prepare", "teacher") if self.mine is not None else ():
            require(
                getattr(self, name) is None, name, getattr(self, name), "None where a stage mines: it trains new models"
            )
        fits = self.prepare is None or self.prepare in PREPARATIONS
        require(fits, "prepare", self.prepare, f"None or one of {', '.join(PREPARATIONS)}")
        fits = isinstance(self.weights, Mapping) and all(_is_number(w) for w in self.weights.values())
        require(fits, "weights", self.weights, "numbers by the names of loss terms")
        require(self.augment in AUGMENTERS, "augment", self.augment, f"one of {', '.join(AUGMENTERS)}")
        defaults = keyword_defaults(AUGMENTERS[self.augment])
        fits = isinstance(self.augment_options, Mapping) and self.augment_options.keys() <= defaults.keys()
        wanted = f"a table of options of {self.augment}: {', '.join(defaults) or 'it has none'}"
        require(fits, "augment_options", self.augment_options, wanted)
        for name, value in self.augment_options.items():
            require_like(defaults[name], name, value)
        require(self.data in TRAINING_SETS, "data", self.data, f"one of {', '.join(TRAINING_SETS)}")


@dataclass(frozen=True)
class Paper:
    """A paper: its choices in the slots, its training stages and how it predicts."""

    name: str
    title: str
    aligner: Choice
    detector: Choice
    stages: tuple[Stage, ...]
    query: str = "text"  # kind of query: "text" or "video"
    streams: str | tuple[str, ...] | None = None  # of the target: "joint", names, or None for all
    round_s: float | None = None  # predicted times are rounded to multiples of this
    max_windows: int = 10
    given: Mapping[str, Any] = field(default_factory=dict)  # the arguments of `get`

    def __post_init__(self):
        names = [s.name for s in self.stages]
        require(len(set(names)) == len(names), "stages", names, "of different names")
        fits = all(s.mine is None for s in self.stages[-1:])
        require(fits, "stages", names, "more than stages that mine: the last one trains with the mined windows")
        for i, stage in enumerate(self.stages):
            earlier = [s.name for s in self.stages[:i] if s.mine is None]
            for name in ("start", "teacher"):
                source = getattr(stage, name)
                fits = source is None or source[0] in earlier
                require(fits, f"{stage.name}.{name}", source, f"None or an earlier stage that does not mine: {earlier}")
        require(self.query in ("text", "video"), "query", self.query, "text or video")
        require(type(self.max_windows) is int and self.max_windows >= 1, "max_windows", self.max_windows, "1 or more")
        require(self.round_s is None or _above_0(self.round_s), "round_s", self.round_s, "None or seconds above 0")
        fits = self.streams is None or isinstance(self.streams, str) or are_texts(self.streams)
        require(fits, "streams", self.streams, "None, a name or a list of names")

    @property
    def weights_were_set(self) -> bool:
        """Whether every weight must name a loss term: `get` did not make the paper, or its caller set weights.

        Otherwise the weights may name terms of an aligner or detector that was replaced; such weights are ignored.
        """
        return not self.given or any(key.rpartition(".")[2] == "weights" for key in self.given)

    def describe(self) -> dict[str, Any]:
        """All fields as plain values, for records."""
        return {name: value for name, value in asdict(self).items() if name != "given"}
