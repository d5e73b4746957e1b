"""Train a retriever for one epoch of a stage: order of the samples, steps, losses, gradients."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mrlib import memory, papers, parallel
from mrlib.data import Batch, MomentDataset
from mrlib.ops import whole_batch
from mrlib.ops.draw import Draw
from mrlib.papers import Paper, Stage
from mrlib.retriever import MomentRetriever
from mrlib.training import stopping
from mrlib.training.run_state import RunState
from mrlib.training.scoring import lines_of_all, longest_video, scores_of


@dataclass(frozen=True)
class Setup:
    """What a training run is given: the arguments of `mrlib.train.fit` that its stages share."""

    retriever: MomentRetriever
    train: MomentDataset
    val: MomentDataset | None
    probes: Mapping[str, MomentDataset]
    paper: Paper
    seed: int
    device: torch.device
    precision: str
    compile: bool

    def predict(self, dataset: MomentDataset) -> list[dict[str, Any]]:
        """The predictions of the retriever as it is now."""
        stage, clips = self.paper.stages[-1], longest_video(dataset)
        place = f"in the predictions for {dataset.name} {dataset.split}"
        with memory.naming_batch(stage.batch_size, clips, place, f"{stage.name}.batch_size"):
            return lines_of_all(self.retriever, dataset, stage.batch_size)

    def probe_scores(self) -> dict[str, dict[str, Any]]:
        """`scores_of` the retriever as it is now, for every probe."""
        return {name: scores_of(self.predict(probe), probe) for name, probe in self.probes.items()}


class Trainer:
    """Trains the retriever of a run on the data of one stage."""

    def __init__(self, setup: Setup, stage: Stage, data: MomentDataset, teacher: MomentRetriever | None = None):
        """data: the stage's training set; teacher: a frozen retriever whose outputs go to the losses."""
        self.setup, self.stage, self.data, self.teacher = setup, stage, data, teacher
        self.retriever = setup.retriever
        self.model: nn.Module = torch.compile(setup.retriever) if setup.compile else setup.retriever
        self.optimiser = _optimiser(stage, setup.retriever)
        self.epoch_steps = math.ceil(len(data) / stage.batch_size)
        self.is_whole = True  # False if a step of the optimiser has failed, which may have changed some weights

    def train_epoch(self, epoch: int, state: RunState, bar: tqdm) -> dict[str, float]:
        """Train on every sample once; returns the learning rate, mean losses and the augmenter's counts.

        epoch  counted from 0
        state  its `progress` says how much of the epoch was done before the run was stopped
        raises Stopped, with the state saved, if a signal tells the run to stop; OutOfMemory, see `_train_step`
        """
        setup, stage, rank = self.setup, self.stage, parallel.rank_and_world()[0]
        draw, done = Draw(setup.seed, stage.name, epoch), state.progress
        positions = torch.arange(len(self.data), device=setup.device)
        order = positions[draw("order", positions).argsort()]
        self.retriever.train()
        for i, indices in enumerate(order.split(stage.batch_size)[done.steps :], done.steps):
            step = epoch * self.epoch_steps + i
            torch.manual_seed(seed_of(setup.seed, stage.name, step))
            self._set_learning_rate(step)
            batch = papers.AUGMENTERS[stage.augment](indices, self.data, draw, **stage.augment_options)
            if rank and whole_batch.has_shares(len(batch)):  # each share has dropout of its own
                torch.manual_seed(seed_of(setup.seed, stage.name, step, rank))
            losses = self._train_step(batch, f"stage {stage.name!r}, epoch {epoch + 1}, step {step}")
            done.add(losses, {name: int(each.sum()) for name, each in batch.counts.items()})
            state.steps += 1
            bar.update()
            bar.set_postfix_str(
                f"{stage.name} epoch {epoch + 1}/{stage.epochs}, loss {losses['loss']:.4g}", refresh=False
            )
            if signal := stopping.requested(setup.device):
                state.save(self.retriever, stage.name, optimiser=self.optimiser)
                place = f"after step {i + 1} of {self.epoch_steps} in epoch {epoch + 1} of stage {stage.name!r}"
                raise stopping.Stopped(signal, place)
        lr = self._set_learning_rate((epoch + 1) * self.epoch_steps - 1)
        means = {name: total / self.epoch_steps for name, total in done.sums.items()}
        counts = {f"augment/{name}": total for name, total in done.counts.items()}
        return {"lr": lr} | parallel.average(means, setup.device) | counts

    def _set_learning_rate(self, step: int) -> float:
        stage = self.stage
        lr = stage.optimiser.lr * stage.schedule.factor(step, stage.epochs * self.epoch_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _train_step(self, batch: Batch, where: str) -> dict[str, float]:
        """One step of the optimiser on this rank's share of a batch; returns the loss and its terms.

        where  names stage, epoch and step in error messages
        raises OutOfMemory if the device has no memory left for the batch
        """
        stage, clips = self.stage, batch.target.shape[1]
        with (
            memory.naming_batch(stage.batch_size, clips, f"in {where}", f"{stage.name}.batch_size"),
            whole_batch.dealt_out(len(batch)),
        ):
            values = self._set_gradients(_own_share(batch), where)
            self.is_whole = False
            self.optimiser.step()
            self.is_whole = True
        return values

    def _set_gradients(self, batch: Batch, where: str) -> dict[str, float]:
        """Set the gradients to those of the whole batch, clipped; returns this rank's loss and its terms."""
        try:
            terms = self._loss_terms(batch)
        except FloatingPointError as error:  # a cost that an alignment or the matching refuses
            raise _not_finite(str(error), where, batch) from error
        loss = sum(self.stage.weights.get(name, 1.0) * term for name, term in terms.items())
        terms = {"loss": loss} | {f"loss/{name}": term for name, term in terms.items()}
        values = dict(zip(terms, torch.stack([t.detach().float() for t in terms.values()]).tolist(), strict=True))
        _check_finite(values, where, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if parallel.rank_and_world()[1] > 1:
            parallel.average_gradients(self.retriever)
        norm = nn.utils.clip_grad_norm_(self.retriever.parameters(), self.stage.optimiser.clip or math.inf)
        _check_finite({"the gradient": norm.item()}, where, batch)
        return values

    def _loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch, not yet weighted."""
        with torch.autocast(self.setup.device.type, torch.bfloat16, enabled=self.setup.precision == "bf16"):
            aligned, outputs = self.model(batch)
            teacher_outputs = None
            if self.teacher is not None:
                with torch.no_grad():
                    teacher_outputs = self.teacher(batch)[1]
            terms = self.retriever.losses(aligned, outputs, batch, teacher_outputs)
        unknown = self.stage.weights.keys() - terms.keys()
        if unknown and self.setup.paper.weights_were_set:
            raise ValueError(
                f"weights of stage {self.stage.name!r} name {sorted(unknown)}, which are no loss terms; the terms are "
                f"{', '.join(terms)}"
            )
        return terms


def _own_share(batch: Batch) -> Batch:
    """This rank's rows of a batch; their `labels.negative` are still rows of the whole batch."""
    if whole_batch.ranks() == 1:
        return batch
    rank, world = parallel.rank_and_world()
    share, labels = batch[rank::world], batch.labels
    negative = None if labels.negative is None else labels.negative[rank::world]
    return replace(share, labels=replace(share.labels, negative=negative))


def seed_of(seed: int, name: str, step: int = 0, rank: int = 0) -> int:
    """A seed for the global generator at one step of one rank."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}/{rank}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _optimiser(stage: Stage, retriever: nn.Module) -> torch.optim.Optimizer:
    methods = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameters = [p for p in retriever.parameters() if p.requires_grad]
    options = {"lr": stage.optimiser.lr, "weight_decay": stage.optimiser.weight_decay}
    return methods[stage.optimiser.method](parameters, **options, fused=True)  # reads and writes the weights once


def _check_finite(values: Mapping[str, float], where: str, batch: Batch) -> None:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise _not_finite(f"{', '.join(broken)} is not finite", where, batch)


def _not_finite(problem: str, where: str, batch: Batch) -> FloatingPointError:
    queries = [s.qid for s in batch.samples]
    return FloatingPointError(f"{problem} in {where}; queries of the batch: {queries}; lower lr, or use precision fp32")
