"""The state of a training run: its history, its kept weights and where it goes on, saved to a folder and resumed.

    run.json             the settings of the run; a folder that holds other settings is refused
    STAGE/last, best     checkpoints, see `mrlib.checkpoint`
    resume.safetensors   weights, optimiser, position and history at the end of the last epoch
    history.jsonl        a row per epoch
    times.jsonl          seconds per epoch, the only file that differs between two runs of one seed
    predictions.jsonl    predictions of the kept weights for the validation data
    metrics.json         their scores

`resume.safetensors` alone decides where a run goes on, so a run can be killed between any two writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mrlib import checkpoint, parallel
from mrlib.files import PARTIAL, write_jsonl, write_whole
from mrlib.retriever import MomentRetriever


@dataclass
class History:
    """Scores and losses per epoch."""

    # stage, epoch, step, lr, loss, loss/term..., augment/count..., validation scores, probe/score... A stage that mines
    # has the rows of its two models, as stages STAGE_1 and STAGE_2 and without probes, then one row with mined/queries,
    # the share of queries with mined windows, and mined/windows, their number
    rows: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)  # stage, epoch, train_s, val_s; differs from run to run
    result: dict[str, Any] = field(default_factory=dict)  # `scores_of` the kept weights on val; as "probes", by name
    out_dir: Path | None = None

    def frame(self) -> pd.DataFrame:
        """The rows and times as one pandas DataFrame."""
        rows = pd.DataFrame(self.rows)
        return rows.merge(pd.DataFrame(self.times), on=["stage", "epoch"], how="left") if self.times else rows


class RunState:
    """Position, history and kept weights of a run; without a folder they are in memory only.

    stage, epoch  the stage to train next, counted from 0, and how many of its epochs are done
    steps         training steps done in all stages
    """

    def __init__(self, folder: Path | None):
        self.folder, self.history = folder, History(out_dir=folder)
        self.stage = self.epoch = self.steps = 0
        self._kept: dict[tuple[str, str], dict[str, Tensor]] = {}  # (stage, "last" or "best") -> weights
        self._resumed: dict[str, Tensor] = {}  # what `resume.safetensors` held

    # ---- start or resume

    def open(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Create the run folder, or read the run in it (needs `resume`); nothing is written before all ranks have read.

        settings  what run.json holds
        raises    ValueError if the folder is a file, holds other files or a run of other settings, or any run although
                  `resume` is False
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; give a folder as out_dir")
        settings, file = json.loads(json.dumps(settings)), self.folder / "run.json"
        if file.is_file():
            self._check_run(file, settings, resume)
            self._read()
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds other files and no run.json; give a new or empty out_dir")
        parallel.barrier()
        if parallel.rank_and_world()[0] == 0:
            for leftover in self.folder.rglob(f".*{PARTIAL}"):
                leftover.unlink()
            write_jsonl(file, [settings])
        parallel.barrier()

    def _check_run(self, file: Path, settings: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise ValueError(f"{self.folder} holds a run already; resume it, or give another out_dir")
        differences = _differences(_read_lines(file)[0], settings)
        if differences:
            raise ValueError(
                f"{self.folder} holds a run of other settings: {'; '.join(differences)}. Give another out_dir"
            )

    def _read(self) -> None:
        file = self.folder / "resume.safetensors"
        if not file.is_file():
            return  # the run was stopped before the end of its first epoch
        note = json.loads(checkpoint.read_note(file))
        self.stage, self.epoch, self.steps = note["stage"], note["epoch"], note["done"]
        self.history.rows = note["rows"]
        self.history.times = _read_lines(self.folder / "times.jsonl")[: len(note["rows"])]
        self._resumed = checkpoint.load_tensors(file)

    def restore_weights(self, retriever: MomentRetriever) -> None:
        """Give the retriever the weights of the resumed run, if there is one."""
        if weights := self._part_of_resumed("model."):
            retriever.load_state_dict(weights)

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Give an optimiser the state that it had in the resumed run."""
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._part_of_resumed("optimiser.").items():
            number, _, key = name.partition(".")
            slots.setdefault(int(number), {})[key] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})

    def _part_of_resumed(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self._resumed.items() if k.startswith(prefix)}

    # ---- record

    def end_epoch(self, row: dict[str, Any], train_s: float, val_s: float, *, last: bool) -> None:
        """Add an epoch to the history and move on; last: it is the last epoch of its stage."""
        seconds = {"train_s": train_s, "val_s": val_s}
        self.history.rows.append(row)
        self.history.times.append({"stage": row["stage"], "epoch": row["epoch"], **seconds})
        self.stage, self.epoch = (self.stage + 1, 0) if last else (self.stage, self.epoch + 1)

    def save(
        self,
        retriever: MomentRetriever,
        stage: str,
        kept: Sequence[str] = (),
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        """Save the end of an epoch.

        kept  as what to keep the weights of the stage: "last", "best"
        """
        weights = {k: v.detach().cpu().clone() for k, v in retriever.state_dict().items()}
        for which in kept:
            self._kept[stage, which] = weights
        if self.folder is None or parallel.rank_and_world()[0] > 0:
            return
        for which in kept:
            checkpoint.save(retriever, self.folder / stage / which, self.history.rows[-1])
        slots = {} if optimiser is None else optimiser.state_dict()["state"]
        tensors = {f"model.{k}": v for k, v in weights.items()}
        tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for i, slot in slots.items() for k, v in slot.items()}
        note = {"stage": self.stage, "epoch": self.epoch, "done": self.steps, "rows": self.history.rows}
        write_jsonl(self.folder / "times.jsonl", self.history.times)
        checkpoint.save_tensors(self.folder / "resume.safetensors", tensors, json.dumps(note))
        write_jsonl(self.folder / "history.jsonl", self.history.rows)

    def weights_of(self, stage: str, which: str) -> dict[str, Tensor]:
        """The kept weights of an earlier stage; which: "last" or "best"."""
        if (stage, which) not in self._kept:
            self._kept[stage, which] = checkpoint.load_tensors(self.folder / stage / f"{which}.safetensors")
        return self._kept[stage, which]

    def finish(self, result: dict[str, Any], predictions: Sequence[Mapping[str, Any]] | None) -> None:
        """Set the result of the run and write it; predictions: None if there is no validation data."""
        self.history.result = result
        if result and self.folder is not None and parallel.rank_and_world()[0] == 0:
            write_jsonl(self.folder / "history.jsonl", self.history.rows)
            if predictions is not None:
                write_jsonl(self.folder / "predictions.jsonl", predictions)
            write_whole(self.folder / "metrics.json", json.dumps(result, indent=1) + "\n")
        parallel.barrier()


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested settings differ, as "path was ... and is ..."."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        return [line for i, a, b in pairs for line in _differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); give another out_dir") from error
