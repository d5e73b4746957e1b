"""The file from which a training run goes on, `resume.safetensors`: written, checked and read.

It holds the weights as model.NAME, the state of the optimiser as optimiser.NUMBER.KEY, and in its note

    stage, epoch  the stage to train next, from 0, and how many of its epochs are done
    done          training steps done in all stages
    rows          the history so far
    part          in the middle of an epoch: for every rank, what the epoch has added up so far, see `Progress`
    tensors       how many tensors there are
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrlib import parallel
from mrlib.files import parse_json
from mrlib.tensors import check_fit, load_tensors, read_header, save_tensors


@dataclass
class Progress:
    """What an epoch has added up so far, on one rank."""

    steps: int = 0  # done in this epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the losses
    counts: dict[str, int] = field(default_factory=dict)  # of the augmenter

    def add(self, losses: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Add a step."""
        self.steps += 1
        for totals, step in ((self.sums, losses), (self.counts, counts)):
            for name, value in step.items():
                totals[name] = totals.get(name, 0) + value


def write(
    file: Path,
    note: Mapping[str, Any],
    part: Sequence[Progress],
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer | None,
) -> None:
    """Write the state of a run; part: empty between two epochs."""
    slots = {} if optimiser is None else optimiser.state_dict()["state"]
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for i, slot in slots.items() for k, v in slot.items()}
    extra = {"part": [asdict(each) for each in part]} if part else {}
    save_tensors(file, tensors, json.dumps({**note, **extra, "tensors": len(tensors)}))


class Resumed:
    """The state of a run as `write` has written it.

    All methods raise a ValueError that names the file, what is wrong with it and what to do.
    """

    def __init__(self, file: Path, epochs: Sequence[int]):
        """epochs: of every stage of the run."""
        self.file = file
        try:
            header = read_header(file)
            self.note = parse_json(header.note, f"{file}: note")
            self._check_note(epochs)
            self._require(
                self.note.get("tensors") in (None, len(header.shapes)), "tensors", "the number of its tensors"
            )
            self.shapes, self.tensors = header.shapes, load_tensors(file, header)
        except ValueError as error:
            raise self._with_cure(error) from None

    def _with_cure(self, error: ValueError) -> ValueError:
        return ValueError(f"{error}; delete this file to train from the start, or give another out_dir")

    def _require(self, fits: bool, name: str, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{self.file}: {name!r} of its note must be {wanted}")

    def _check_note(self, epochs: Sequence[int]) -> None:
        note = self.note
        self._require(isinstance(note, dict), "stage", "in an object")
        for name, most in (("stage", len(epochs)), ("epoch", max(epochs)), ("done", math.inf)):
            value = note.get(name)
            self._require(type(value) is int and 0 <= value <= most, name, f"a whole number from 0 to {most}")
        done = note["epoch"] <= (epochs[note["stage"]] if note["stage"] < len(epochs) else 0)
        self._require(done, "epoch", "at most the epochs of the stage")
        rows, part = note.get("rows"), note.get("part", [])
        self._require(isinstance(rows, list) and all(map(_is_row, rows)), "rows", "a list of rows of the history")
        self._require(isinstance(part, list) and all(map(_is_progress, part)), "part", "a list of sums and counts")

    def part(self) -> Progress:
        """What this rank has added up in the epoch that was stopped; of other ranks, where their number has changed."""
        parts = [Progress(**each) for each in self.note.get("part", ())]
        rank, world = parallel.rank_and_world()
        if len(parts) in (0, world):
            return parts[rank] if parts else Progress()
        sums = {name: sum(each.sums[name] for each in parts) / len(parts) for name in parts[0].sums}
        return Progress(parts[0].steps, sums, parts[0].counts)

    def restore_weights(self, model: nn.Module) -> None:
        """Give a model the weights that it had."""
        self._check_fit({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, "model.")
        model.load_state_dict(self._tensors_of("model."))

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Give an optimiser the state that it had; parameters that never had a gradient have none."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        expected: dict[str, Tensor] = {}
        slots: dict[int, dict[str, Tensor]] = {}
        for i, parameter in enumerate(parameters):
            if slot := self._tensors_of(f"optimiser.{i}."):
                slots[i] = slot
                like = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                expected |= {f"optimiser.{i}.{key}": tensor for key, tensor in like.items()}
        if not slots:
            raise self._with_cure(ValueError(f"{self.file}: it lacks the state of the optimiser"))
        self._check_fit(expected, "optimiser.")
        optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})

    def _tensors_of(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def _check_fit(self, expected: Mapping[str, Tensor], prefix: str) -> None:
        shapes = {name: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        try:
            check_fit(self.file, shapes, expected, "the model of this run")
        except ValueError as error:
            raise self._with_cure(error) from None


def _is_row(row: Any) -> bool:
    """Whether a value is a row of a history."""
    names = isinstance(row, dict) and isinstance(row.get("stage"), str) and type(row.get("epoch")) is int
    return names and all(type(value) in (int, float) for name, value in row.items() if name != "stage")


def _is_progress(part: Any) -> bool:
    """Whether a value has the fields of `Progress`."""
    if not isinstance(part, dict) or part.keys() != {"steps", "sums", "counts"} or type(part["steps"]) is not int:
        return False
    tables = part["sums"], part["counts"]
    return all(isinstance(t, dict) and all(type(v) in (int, float) for v in t.values()) for t in tables)
