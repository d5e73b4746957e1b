"""How a stage of a paper runs: `TrainingRunner` trains the retriever, `MiningRunner` mines confusing windows.

A runner has

    steps                     training steps of the stage that the progress bar counts
    check()                   raises ValueError for data that the stage cannot use, before anything is written
    replay(train, state)      what a finished or begun stage changed besides weights, when a run is resumed
    run(train, state, bar)    the stage itself, from the epoch in `state` on

`replay` and `run` return the training set for the stages that follow.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mrlib import papers, parallel
from mrlib.augment import mining
from mrlib.data import MomentDataset
from mrlib.memory import OutOfMemory
from mrlib.ops.draw import Draw
from mrlib.papers import Stage
from mrlib.retriever import MomentRetriever
from mrlib.training.run_state import History, RunState
from mrlib.training.scoring import headline, lines_of_all, score_names, scores_of
from mrlib.training.trainer import Setup, Trainer, seed_of


class TrainingRunner:
    """Train the retriever for the epochs of a stage; keep its last weights and its best."""

    def __init__(self, setup: Setup, stage: Stage):
        self.setup, self.stage = setup, stage
        self.retriever = setup.retriever
        self.untrained = copy.deepcopy(setup.retriever) if stage.teacher is not None else None
        data = papers.TRAINING_SETS[stage.data](setup.train)
        self.steps = stage.epochs * math.ceil(len(data) / stage.batch_size)

    def check(self) -> None:
        """ValueError if the training set has no labels for the stage, or validation no score to keep an epoch by."""
        _check_labels(self.setup, self.stage)
        _check_keep(self.setup.val, self.stage)

    def replay(self, train: MomentDataset, state: RunState) -> MomentDataset:
        """Change the retriever as the stage did before its first epoch."""
        if self.stage.prepare is not None:
            papers.prepare(self.retriever, self.stage.prepare)
        return train

    def run(self, train: MomentDataset, state: RunState, bar: tqdm) -> MomentDataset:
        """Train from the epoch in `state` on, and save the end of every epoch."""
        stage = self.stage
        if not state.begun:
            self._begin(state)
        trainer = Trainer(self.setup, stage, papers.TRAINING_SETS[stage.data](train), self._make_teacher(state))
        if state.begun:
            state.restore_optimiser(trainer.optimiser)
        for epoch in range(state.epoch, stage.epochs):
            started = time.perf_counter()
            with self._saved_if_out_of_memory(trainer, state):
                means = trainer.train_epoch(epoch, state, bar)
                trained = time.perf_counter()
                row = {"stage": stage.name, "epoch": epoch + 1, "step": (epoch + 1) * trainer.epoch_steps, **means}
                row |= self._validation_scores()
                kept = ("last", "best") if self._is_best(row, state.history) else ("last",)  # not by a probe's scores
                for name, scores in self.setup.probe_scores().items():
                    row |= {f"{name}/{score}": value for score, value in headline(scores).items()}
            seconds = round(trained - started, 3), round(time.perf_counter() - trained, 3)
            state.end_epoch(row, *seconds, last=epoch + 1 == stage.epochs)
            state.save(self.retriever, stage.name, kept, trainer.optimiser)
            parallel.barrier()
        return train

    def _begin(self, state: RunState) -> None:
        """Take the weights that the stage starts from, and prepare the retriever for it."""
        stage = self.stage
        if stage.start is not None:
            state.load_kept(self.retriever, *stage.start)
        if stage.prepare is not None:
            papers.prepare(self.retriever, stage.prepare, seed_of(self.setup.seed, f"{stage.name}/prepare"))

    def _make_teacher(self, state: RunState) -> MomentRetriever | None:
        """The model as an earlier stage left it, frozen; None if the stage has no teacher."""
        stage = self.stage
        if stage.teacher is None:
            return None
        teacher = copy.deepcopy(self.untrained)
        state.load_kept(teacher, *stage.teacher)
        if stage.prepare is not None:
            seed = seed_of(self.setup.seed, f"{stage.name}/teacher")
            papers.prepare(teacher, stage.prepare, seed, teacher=True)
        return teacher.requires_grad_(False).eval()

    @contextmanager
    def _saved_if_out_of_memory(self, trainer: Trainer, state: RunState) -> Iterator[None]:
        """Save the steps of an epoch if the device runs out of memory in this block, and add to the error how to go on.

        Other ranks cannot take part in saving: they wait for a step that does not end. There, the last saved state
        counts.
        """
        try:
            yield
        except OutOfMemory as error:
            if state.folder is None:
                raise
            if trainer.is_whole and state.progress.steps and parallel.rank_and_world()[1] == 1:
                state.save(self.retriever, self.stage.name, optimiser=trainer.optimiser)
            kept = f"{state.folder} holds the run, and the same command goes on with it where more memory is free"
            raise OutOfMemory(f"{error}; {kept}") from error

    def _validation_scores(self) -> dict[str, float]:
        val = self.setup.val
        return {} if val is None else headline(scores_of(self.setup.predict(val), val))

    def _is_best(self, row: Mapping[str, Any], history: History) -> bool:
        """Whether an epoch is the best of its stage so far; without validation data the last epoch is."""
        if self.setup.val is None:
            return True
        earlier = [_score_to_keep_by(self.stage, r) for r in history.rows if r["stage"] == self.stage.name]
        return _score_to_keep_by(self.stage, row) > max(earlier, default=-math.inf)


class MiningRunner:
    """Train two models, each on one half of the videos, and mine the windows that confuse them in the other half.

    The retriever of the run is not trained. A training set that already has `wrong_spans` is left as it is.
    """

    steps = 0  # the two models have progress bars of their own

    def __init__(self, setup: Setup, stage: Stage, train_model: Callable[..., History]):
        """train_model: trains a model on a dataset for one stage, given (model, dataset, stage, folder or None)."""
        self.setup, self.stage, self.train_model = setup, stage, train_model
        self.untrained = copy.deepcopy(setup.retriever)

    def check(self) -> None:
        """ValueError if the training set has no labels for the stage or cannot be split into halves."""
        if not mining.has_wrong_spans(self.setup.train):
            self._halves(self.setup.train)
        _check_labels(self.setup, self.stage)

    def replay(self, train: MomentDataset, state: RunState) -> MomentDataset:
        """The training set with the windows that were mined before the run was stopped."""
        if mining.has_wrong_spans(train):
            return train
        file = self._file(state)
        mined_s = mining.read(file)
        if len(mined_s) != len(train):
            raise ValueError(f"{file} has {len(mined_s)} lines for {len(train)} samples; give another out_dir")
        return mining.with_wrong_spans(train, mined_s)

    def run(self, train: MomentDataset, state: RunState, bar: tqdm) -> MomentDataset:
        """Mine, and save the mined windows and how many there are."""
        if not mining.has_wrong_spans(train):
            train = mining.with_wrong_spans(train, self._mine(train, state))
        windows = [s.extra.get("wrong_spans") or [] for s in train.samples]
        row = {"stage": self.stage.name, "epoch": 1, "step": 0, "mined/windows": sum(map(len, windows))}
        state.end_epoch(row | {"mined/queries": sum(map(bool, windows)) / len(windows)}, 0.0, 0.0, last=True)
        if state.folder is not None and parallel.rank_and_world()[0] == 0:
            mining.write(self._file(state), train, asdict(self.stage))
        state.save(self.setup.retriever, self.stage.name)
        parallel.barrier()
        return train

    def _mine(self, train: MomentDataset, state: RunState) -> list[list[list[float]]]:
        """The mined windows of every sample, predicted by the model that was trained without the sample's video."""
        halves, mined = self._halves(train), {}
        for i, (seen, unseen) in enumerate((halves, halves[::-1]), 1):
            model, others = copy.deepcopy(self.untrained), train.subset(unseen)
            stage = replace(self.stage, name=f"{self.stage.name}_{i}", mine=None)
            folder = state.folder and state.folder / self.stage.name / str(i)
            history = self.train_model(model, train.subset(seen), stage, folder)
            state.history.rows += history.rows
            state.history.times += history.times
            windows = mining.confusing(lines_of_all(model, others, stage.batch_size), others, self.stage.mine)
            mined |= dict(zip(unseen.tolist(), windows, strict=True))
        return [mined[i] for i in range(len(train))]

    def _halves(self, train: MomentDataset) -> tuple[Tensor, Tensor]:
        return mining.halves(train, Draw(self.setup.seed, self.stage.name))

    def _file(self, state: RunState) -> Path:
        return state.folder / self.stage.name / "wrong_spans.jsonl"


def _check_labels(setup: Setup, stage: Stage) -> None:
    """Send one sample through the augmenter of a stage; ValueError if it comes out without labels."""
    data = papers.TRAINING_SETS[stage.data](setup.train)
    first = torch.zeros(1, dtype=torch.long, device=setup.device)
    batch = papers.AUGMENTERS[stage.augment](first, data, Draw(setup.seed), **stage.augment_options)
    if batch.labels is None:
        raise ValueError(
            f"the train data, {data.name} {data.split}, has no annotated samples for stage {stage.name!r} to learn from"
        )


def _check_keep(val: MomentDataset | None, stage: Stage) -> None:
    """ValueError if a stage keeps its best epoch by a score of windows or highlights that `val` cannot give."""
    names = [name for name in map(str.strip, stage.keep.split("+")) if name.startswith(("MR-", "HL-", "mIoU"))]
    if val is None or not names:
        return
    known = score_names(val)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"keep of stage {stage.name!r} names {unknown[0]!r}, which is no score of its epochs; they have "
            f"{', '.join(known)}"
        )


def _score_to_keep_by(stage: Stage, row: Mapping[str, Any]) -> float:
    """The score of an epoch by which its stage keeps the best; "mIoU + MR-full-R1@0.5" is a sum."""
    names = [name.strip() for name in stage.keep.split("+")]
    if unknown := [name for name in names if name not in row]:
        raise ValueError(
            f"keep of stage {stage.name!r} names {unknown[0]!r}, which is no score of its epochs; they have "
            f"{', '.join(row)}"
        )
    return sum(row[name] for name in names)
