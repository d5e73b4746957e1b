"""The state of a training run: its history, its kept weights and where it goes on, saved to a folder and resumed.

    run.json             the settings of the run; a folder that holds other settings is refused. As "threads" and
                         "processes", the numbers of both with which it was trained, more than one if they changed
    STAGE/last, best     checkpoints, see `mrlib.checkpoint`
    resume.safetensors   where the run goes on: at the end of its last epoch, or at the step after which it was stopped,
                         see `mrlib.training.resuming`
    history.jsonl        a row per epoch
    times.jsonl          seconds per epoch, the only file that differs between two runs of one seed
    predictions.jsonl    predictions of the kept weights for the validation data
    metrics.json         their scores

`resume.safetensors` alone decides where a run goes on, so a run can be killed between any two writes. One process at a
time, or rank 0 for all of its run, holds the folder, by the lock `.lock`.
"""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mrlib import checkpoint, locks, parallel
from mrlib.files import read_jsonl, remove_dead, write_jsonl, write_whole
from mrlib.retriever import MomentRetriever
from mrlib.tensors import check_fit, load_tensors, read_header
from mrlib.training import resuming

LOCK = ".lock"
MACHINE = ("threads", "processes")  # what run.json says about the machine; the numbers of a run depend on it slightly


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
        self.progress = resuming.Progress()  # of the epoch in which the run is
        self._kept: dict[tuple[str, str], dict[str, Tensor]] = {}  # (stage, "last" or "best") -> weights
        self._resumed: resuming.Resumed | None = None

    # ---- start or resume

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while a run is in it.

        raises  ValueError if the folder is a file, or if another process holds it, which it names
        """
        if self.folder is None:
            yield
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; give a folder as out_dir")
        with ExitStack() as stack:
            lock = locks.hold(self.folder / LOCK, f"out_dir {self.folder}")
            parallel.on_first(lambda: stack.enter_context(lock))
            yield

    def open(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Create the run folder, or read the run in it (needs `resume`); nothing is written before all ranks have read.

        settings  what run.json holds
        raises    ValueError if the folder holds other files, a run of other settings or one that is damaged, or any
                  run although `resume` is False
        """
        settings, file = json.loads(json.dumps(settings)), self.folder / "run.json"
        if parallel.rank_and_world()[0] == 0 and self.folder.is_dir():
            remove_dead(self.folder, file.name)  # of a run that was killed before its first file was whole
        parallel.barrier()
        if file.is_file():
            settings = self._check_run(file, settings, resume)
            self._read([stage["epochs"] for stage in settings["paper"]["stages"]])
        elif self.folder.is_dir() and any(path.name != LOCK for path in self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds other files and no run.json; give a new or empty out_dir")
        parallel.barrier()
        if parallel.rank_and_world()[0] == 0:
            for folder in (self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())):
                remove_dead(folder)
            write_jsonl(file, [settings])
        parallel.barrier()

    def _check_run(self, file: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any]:
        """The settings to write to run.json, in which another run is described; ValueError if that is not this run."""
        if not resume:
            raise ValueError(f"{self.folder} holds a run already; resume it, or give another out_dir")
        lines = _read_lines(file)
        if len(lines) != 1:
            raise ValueError(f"{file} is damaged: it has {len(lines)} lines, not one; give another out_dir")
        before = lines[0]
        numbers = {name: before.pop(name) for name in MACHINE if name in before}
        if differences := _differences(before, {k: v for k, v in settings.items() if k not in MACHINE}):
            more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            text = "; ".join(differences[:5])
            raise ValueError(f"{self.folder} holds a run of other settings: {text}{more}. Give another out_dir")
        for name, values in numbers.items():
            whole = isinstance(values, list) and all(type(x) is int and x > 0 for x in values)
            if not whole or len(set(values)) < max(1, len(values)):
                raise ValueError(f"{file} is damaged: {name} is {reprlib.repr(values)}; give another out_dir")
        return settings | {name: self._with_numbers(name, numbers[name], settings[name]) for name in numbers}

    def _with_numbers(self, name: str, before: list[int], now: list[int]) -> list[int]:
        """The numbers of threads or processes so far; a warning if there is a new one."""
        if before != now and parallel.rank_and_world()[0] == 0:
            numbers = ", ".join(map(str, before))
            warnings.warn(
                f"{self.folder} was trained with {name}: {numbers}, and goes on with {now[0]}; the bytes of its "
                "results will differ from those of a run with one number",
                stacklevel=4,
            )
        return before + [number for number in now if number not in before]

    def _read(self, epochs: Sequence[int]) -> None:
        file = self.folder / "resume.safetensors"
        if not file.is_file():
            return  # the run was stopped before the end of its first epoch
        self._resumed = resuming.Resumed(file, epochs)
        note = self._resumed.note
        self.stage, self.epoch, self.steps = note["stage"], note["epoch"], note["done"]
        self.progress = self._resumed.part()
        self.history.rows = note["rows"]
        self.history.times = _read_lines(self.folder / "times.jsonl")[: len(note["rows"])]

    @property
    def begun(self) -> bool:
        """Whether a part of the current stage is done."""
        return self.epoch > 0 or self.progress.steps > 0

    def restore_weights(self, retriever: nn.Module) -> None:
        """Give the retriever the weights of the resumed run, if there is one."""
        if self._resumed is not None:
            self._resumed.restore_weights(retriever)

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Give an optimiser the state that it had in the resumed run."""
        self._resumed.restore_optimiser(optimiser)

    # ---- record

    def end_epoch(self, row: dict[str, Any], train_s: float, val_s: float, *, last: bool) -> None:
        """Add an epoch to the history and move on; last: it is the last epoch of its stage."""
        seconds = {"train_s": train_s, "val_s": val_s}
        self.history.rows.append(row)
        self.history.times.append({"stage": row["stage"], "epoch": row["epoch"], **seconds})
        self.stage, self.epoch = (self.stage + 1, 0) if last else (self.stage, self.epoch + 1)
        self.progress = resuming.Progress()

    def save(
        self,
        retriever: MomentRetriever,
        stage: str,
        kept: Sequence[str] = (),
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        """Save the end of an epoch, or a step in the middle of one.

        kept  as what to keep the weights of the stage: "last", "best"
        """
        part = parallel.gather([self.progress]) if self.progress.steps else []
        weights = {k: v.detach().cpu().clone() for k, v in retriever.state_dict().items()}
        for which in kept:
            self._kept[stage, which] = weights
        if self.folder is None or parallel.rank_and_world()[0] > 0:
            return
        for which in kept:
            checkpoint.save(retriever, self.folder / stage / which, self.history.rows[-1])
        note = {"stage": self.stage, "epoch": self.epoch, "done": self.steps, "rows": self.history.rows}
        write_jsonl(self.folder / "times.jsonl", self.history.times)
        resuming.write(self.folder / "resume.safetensors", note, part, weights, optimiser)
        write_jsonl(self.folder / "history.jsonl", self.history.rows)

    def weights_of(self, stage: str, which: str) -> dict[str, Tensor]:
        """The kept weights of an earlier stage; which: "last" or "best"."""
        if (stage, which) not in self._kept:
            with self._required():
                self._kept[stage, which] = load_tensors(self._file_of(stage, which))
        return self._kept[stage, which]

    def load_kept(self, model: nn.Module, stage: str, which: str) -> None:
        """Give a model the weights that an earlier stage kept; which: "last" or "best".

        raises  ValueError, naming the file, if it is damaged or does not fit the model
        """
        if (stage, which) not in self._kept:
            file = self._file_of(stage, which)
            with self._required():
                check_fit(file, read_header(file).shapes, model.state_dict(), f"the model of stage {stage!r}")
        model.load_state_dict(self.weights_of(stage, which))

    def _file_of(self, stage: str, which: str) -> Path:
        return self.folder / stage / f"{which}.safetensors"

    @contextmanager
    def _required(self) -> Iterator[None]:
        """Read a file in this block without which the run cannot go on."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error}; the run in {self.folder} cannot go on, give another out_dir") from error

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
    return [] if old == new else [f"{path} was {reprlib.repr(old)} and is {reprlib.repr(new)}"]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path) if path.is_file() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged{str(error).removeprefix(str(path))}; give another out_dir") from None
