"""One loop for every paper and stage: `fit`, and the command line over it.

    python -m mrlib.train f2sgd --dataset sim --size small --epochs 2 --out runs/first
    torchrun --nproc-per-node=2 -m mrlib.train f2sgd --out runs/parallel

A run is a function of its arguments: every random number derives from (seed, stage, epoch or step, sample). So a run
that was killed goes on from its last whole epoch and ends with the weights of one that was not.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from mrlib import baselines, checkpoint, metrics, papers, parallel
from mrlib.augment import mining
from mrlib.data import Batch, MomentDataset
from mrlib.files import PARTIAL, write_whole
from mrlib.ops.draw import Draw
from mrlib.papers import Paper, Stage
from mrlib.probes import PROBES
from mrlib.retriever import MomentRetriever


@dataclass
class History:
    """What a training was like, a row per epoch."""

    # stage, epoch, step, lr, loss, loss/term..., augment/count..., val scores, probe/score... A stage that mines has a
    # row for every epoch of its two models, as stages STAGE_1 and STAGE_2, which are not probed, and one with
    # mined/queries, a share, and mined/windows
    rows: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)  # stage, epoch, train_s, val_s: what differs run by run
    result: dict[str, Any] = field(default_factory=dict)  # `scores_of` the kept weights on val; on "probes" by name
    out_dir: Path | None = None

    def frame(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame, times beside them."""
        rows = pd.DataFrame(self.rows)
        return rows.merge(pd.DataFrame(self.times), on=["stage", "epoch"], how="left") if self.times else rows


def fit(
    retriever: MomentRetriever,
    train: MomentDataset,
    val: MomentDataset | None,
    paper: Paper,
    out_dir: str | os.PathLike | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    progress: bool = True,
    probes: Mapping[str, MomentDataset] | None = None,
) -> History:
    """Train through a paper's stages; afterwards the retriever has the weights that the last stage keeps.

    train, val  val: None leaves validation out, and the last epoch is kept
    probes      further datasets, scored after every epoch as val is; they never decide which epoch is kept
    out_dir     folder for checkpoints (STAGE/best, STAGE/last), history.jsonl, predictions.jsonl and metrics.json;
                None: nothing is written
    resume      True: go on where a run of the same settings stopped; False: refuse a folder that holds a run
    device      "auto": CUDA where there is one
    precision   "fp32", or "bf16" for mixed precision
    compile     run the model through torch.compile
    progress    show a progress bar

    ValueError          the folder holds a run of other settings
    FloatingPointError  a loss is not finite; it names term, step and the queries of the batch
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"unknown precision {precision!r}; known: fp32, bf16")
    probes = dict(probes or {})
    for name, scored in {"val": val, **{f"probe {name!r}": probe for name, probe in probes.items()}}.items():
        if scored is not None and not scored.labelled:
            raise ValueError(f"the {name} data, {scored.name} {scored.split}, has no annotated samples to score")
    device = _device(device)
    retriever.to(device)
    if device.type == "cuda":
        train, val = train.to(device), val and val.to(device)
        probes = {name: probe.to(device) for name, probe in probes.items()}
    if retriever.recipe is not None:
        built = papers.get(**retriever.recipe["paper"])
        if (built.aligner, built.detector) != (paper.aligner, paper.detector):
            raise ValueError(
                "the retriever was built for another aligner or detector than the paper has; build it anew"
            )
        if retriever.recipe.get("prepared"):
            raise ValueError("the retriever was changed by a stage of an earlier training already; build it anew")
    parallel.same_everywhere(retriever)
    out = out_dir and Path(out_dir)
    run = _Run(retriever, train, val, probes, paper, seed, device, precision, compile, progress, out)
    run.try_out()
    run.open(resume)
    steps = sum(s.epochs * run.steps_of(s) for s in paper.stages if s.mine is None)
    with tqdm(total=steps, initial=run.done, unit="step", disable=not progress or parallel.ranks()[0] > 0) as bar:
        for number in range(run.stage, len(paper.stages)):
            run.train_stage(number, bar)
    run.finish()
    return History(run.rows, run.times, run.result, run.out)


class _Run:
    """A training under way: everything that `fit` has to remember between epochs."""

    def __init__(self, retriever, train, val, probes, paper, seed, device, precision, compile, progress, out):
        self.retriever, self.train, self.val, self.probes, self.paper = retriever, train, val, probes, paper
        self.seed, self.device, self.precision, self.out = seed, device, precision, out
        self.train_on(train)
        self.untrained = (
            copy.deepcopy(retriever) if any(s.teacher or s.mine is not None for s in paper.stages) else None
        )
        self.teacher: MomentRetriever | None = None
        self.compile, self.progress = compile, progress
        self.stage = self.epoch = self.done = 0  # where to go on: stage, epoch in it; steps done in all
        self.rows: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] = []
        self.kept: dict[tuple[str, str], dict[str, Tensor]] = {}  # (stage, "last" | "best") -> weights
        self.result: dict[str, Any] = {}
        self.state: dict[str, Tensor] = {}  # of the optimiser, as the run that is resumed left it

    def train_on(self, train: MomentDataset) -> None:
        """Let the stages see this training set."""
        self.sets = {stage.name: papers.TRAINING_SETS[stage.data](train) for stage in self.paper.stages}

    def steps_of(self, stage: Stage) -> int:
        return math.ceil(len(self.sets[stage.name]) / stage.batch_size)

    def try_out(self) -> None:
        """What cannot be trained on is found before anything is written: one sample through every stage's augmenter."""
        for stage in self.paper.stages:
            data = self.sets[stage.name]
            if stage.mine is not None and not mining.done(self.train):
                mining.halves(self.train, Draw(self.seed, stage.name))
            first = torch.zeros(1, dtype=torch.long, device=self.device)
            augment = papers.AUGMENTERS[stage.augment]
            if augment(first, data, Draw(self.seed), **stage.augment_options).labels is None:
                raise ValueError(
                    f"the train data, {data.name} {data.split}, has no annotated samples for stage {stage.name!r} to "
                    "learn from"
                )

    # ---- files

    def open(self, resume: bool) -> None:
        """Start a folder, or take up the run that it holds."""
        if self.out is None:
            return
        if self.retriever.recipe is None:
            raise ValueError("only a retriever made by mrlib.build can be saved in an out_dir; give None, or build it")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; give a folder as out_dir")
        settings = {
            "paper": self.paper.describe(),
            "model": self.retriever.recipe and {k: self.retriever.recipe[k] for k in ("widths", "seed")},
            "train": _describe(self.train),
            "val": self.val and _describe(self.val),
            "seed": self.seed,
            "precision": self.precision,
        }
        if self.probes:
            settings["probes"] = {name: _describe(probe) for name, probe in self.probes.items()}
        settings = json.loads(json.dumps(settings))
        file = self.out / "run.json"
        if file.is_file():
            if not resume:
                raise ValueError(f"{self.out} holds a run already; resume it, or give another out_dir")
            differing = _differences(_read_lines(file)[0], settings)
            if differing:
                raise ValueError(
                    f"{self.out} holds a run of other settings: {'; '.join(differing)}. Give another out_dir"
                )
            self._take_up()
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} holds other files and no run.json; give a new or empty out_dir")
        parallel.barrier()  # every rank has looked before the first one writes
        if parallel.ranks()[0] == 0:
            for leftover in self.out.rglob(f".*{PARTIAL}"):
                leftover.unlink()
            _write_lines(file, [settings])
        parallel.barrier()

    def _take_up(self) -> None:
        file = self.out / "resume.safetensors"
        if not file.is_file():
            return  # stopped before the end of the first epoch
        note = json.loads(checkpoint.read_note(file))
        self.stage, self.epoch, self.done = note["stage"], note["epoch"], note["done"]
        self.rows, self.times = note["rows"], _read_lines(self.out / "times.jsonl")[: len(note["rows"])]
        for i, stage in enumerate(self.paper.stages[: self.stage + 1]):
            if stage.mine is not None and i < self.stage:
                self._have_mined(mining.read(self._mined(stage)))
            if stage.prepare is not None and (i < self.stage or self.epoch > 0):
                papers.prepare(self.retriever, stage.prepare)
        tensors = checkpoint.load_tensors(file)
        self.retriever.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.state = {k[10:]: v for k, v in tensors.items() if k.startswith("optimiser.")}

    def _save(self, stage: Stage, optimiser: torch.optim.Optimizer | None, kept: Sequence[str]) -> None:
        """Remember the end of an epoch; `resume.safetensors`, one file, decides what a later run goes on from.

        kept  what of the stage the weights are: "last", "best"
        """
        weights = {k: v.detach().cpu().clone() for k, v in self.retriever.state_dict().items()}
        for which in kept:
            self.kept[stage.name, which] = weights
        if self.out is None or parallel.ranks()[0] > 0:
            return
        for which in kept:
            checkpoint.save(self.retriever, self.out / stage.name / which, self.rows[-1])
        slots = {} if optimiser is None else optimiser.state_dict()["state"]
        state = {f"optimiser.{i}.{k}": torch.as_tensor(v) for i, slot in slots.items() for k, v in slot.items()}
        note = {"stage": self.stage, "epoch": self.epoch, "done": self.done, "rows": self.rows}
        tensors = {f"model.{k}": v for k, v in weights.items()} | state
        _write_lines(self.out / "times.jsonl", self.times)
        checkpoint.save_tensors(self.out / "resume.safetensors", tensors, json.dumps(note))
        _write_lines(self.out / "history.jsonl", self.rows)

    def _weights(self, stage: str, which: str) -> dict[str, Tensor]:
        if (stage, which) not in self.kept:
            self.kept[stage, which] = checkpoint.load_tensors(self.out / stage / f"{which}.safetensors")
        return self.kept[stage, which]

    # ---- training

    def train_stage(self, number: int, bar: tqdm) -> None:
        stage = self.paper.stages[number]
        if stage.mine is not None:
            self._mine(number)
            return
        if self.epoch == 0:
            if stage.start is not None:
                self.retriever.load_state_dict(self._weights(*stage.start))
            if stage.prepare is not None:
                papers.prepare(self.retriever, stage.prepare, _step_seed(self.seed, f"{stage.name}/prepare", 0, 0))
        self.teacher = self._teacher(stage)
        self.model: nn.Module = torch.compile(self.retriever) if self.compile else self.retriever
        optimiser = _optimiser(stage, self.retriever)
        if self.epoch > 0:
            _restore(optimiser, self.state)
        for epoch in range(self.epoch, stage.epochs):
            started = time.perf_counter()
            means = self._train_epoch(stage, epoch, optimiser, bar)
            trained = time.perf_counter()
            row = {"stage": stage.name, "epoch": epoch + 1, "step": (epoch + 1) * self.steps_of(stage), **means}
            if self.val is not None:
                row |= headline(self._score(self.val)[0])
            earlier = [_kept_by(stage, r) for r in self.rows if r["stage"] == stage.name] if self.val else []
            better = self.val is None or _kept_by(stage, row) > max(earlier, default=-math.inf)
            for name, scores in self._probed().items():
                row |= {f"{name}/{score}": value for score, value in headline(scores).items()}
            self.rows.append(row)
            seconds = {"train_s": round(trained - started, 3), "val_s": round(time.perf_counter() - trained, 3)}
            self.times.append({"stage": stage.name, "epoch": epoch + 1, **seconds})
            self.stage, self.epoch = (number, epoch + 1) if epoch + 1 < stage.epochs else (number + 1, 0)
            self._save(stage, optimiser, ("last", "best") if better else ("last",))
            parallel.barrier()

    def _teacher(self, stage: Stage) -> MomentRetriever | None:
        """What the stage learns from: the model as an earlier stage left it; it learns nothing itself."""
        if stage.teacher is None:
            return None
        teacher = copy.deepcopy(self.untrained)
        teacher.load_state_dict(self._weights(*stage.teacher))
        if stage.prepare is not None:
            seed = _step_seed(self.seed, f"{stage.name}/teacher", 0, 0)
            papers.prepare(teacher, stage.prepare, seed, teacher=True)
        return teacher.requires_grad_(False).eval()

    def _mine(self, number: int) -> None:
        """Two models, each trained on one half of the videos, show what is confusing in the other half.

        A training set that brings `wrong_spans` is left as it is.
        """
        stage = self.paper.stages[number]
        if not mining.done(self.train):
            wrong: dict[int, list] = {}
            parts = mining.halves(self.train, Draw(self.seed, stage.name))
            for i, (own, other) in enumerate((parts, parts[::-1]), 1):
                alone = replace(stage, name=f"{stage.name}_{i}", mine=None)
                model = copy.deepcopy(self.untrained)
                history = fit(
                    model,
                    self.train.subset(own),
                    self.val,
                    replace(self.paper, stages=(alone,)),
                    out_dir=self.out and self.out / stage.name / str(i),
                    seed=self.seed,
                    device=str(self.device),
                    precision=self.precision,
                    compile=self.compile,
                    progress=self.progress,
                )
                self.rows += history.rows
                self.times += history.times
                unseen = self.train.subset(other)
                lines = predict_all(model, unseen, stage.batch_size)
                wrong |= dict(zip(other.tolist(), mining.confusing(lines, unseen, stage.mine), strict=True))
            self._have_mined([wrong[i] for i in range(len(self.train))])
        mined = [s.extra.get("wrong_spans") or [] for s in self.train.samples]
        row = {"stage": stage.name, "epoch": 1, "step": 0, "mined/windows": sum(map(len, mined))}
        self.rows.append(row | {"mined/queries": sum(map(bool, mined)) / len(mined)})
        self.times.append({"stage": stage.name, "epoch": 1, "train_s": 0.0, "val_s": 0.0})
        self.stage, self.epoch = number + 1, 0
        if self.out is not None and parallel.ranks()[0] == 0:
            mining.write(self._mined(stage), self.train, asdict(stage))
        self._save(stage, None, ())
        parallel.barrier()

    def _mined(self, stage: Stage) -> Path:
        return self.out / stage.name / "wrong_spans.jsonl"

    def _have_mined(self, wrong: Sequence[list[list[float]]]) -> None:
        self.train = mining.with_wrong(self.train, wrong)
        self.train_on(self.train)

    def _train_epoch(self, stage: Stage, epoch: int, optimiser: torch.optim.Optimizer, bar: tqdm) -> dict[str, float]:
        rank, world = parallel.ranks()
        draw = Draw(self.seed, stage.name, epoch)
        data = self.sets[stage.name]
        everything = torch.arange(len(data), device=self.device)
        order = everything[draw("order", everything).argsort()]
        steps, sums, counts = self.steps_of(stage), {}, {}
        self.retriever.train()
        for i, indices in enumerate(order.split(stage.batch_size)):
            step = epoch * steps + i
            torch.manual_seed(_step_seed(self.seed, stage.name, step, rank))
            lr = stage.optimiser.lr * stage.schedule.factor(step, stage.epochs * steps)
            for group in optimiser.param_groups:
                group["lr"] = lr
            batch = papers.AUGMENTERS[stage.augment](indices, data, draw, **stage.augment_options)
            for name, each in batch.counts.items():
                counts[name] = counts.get(name, 0) + each.sum()
            if len(batch) >= world > 1:  # of a batch too small to share every rank takes all
                batch = batch[rank::world]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                aligned, outputs = self.model(batch)
                taught = None
                if self.teacher is not None:
                    with torch.no_grad():
                        taught = self.teacher(batch)[1]
                terms = self.retriever.losses(aligned, outputs, batch, taught)
            unknown = stage.weights.keys() - terms.keys()
            if unknown and self.paper.weighed:
                raise ValueError(f"stage {stage.name!r} weighs {sorted(unknown)}; the losses are {', '.join(terms)}")
            loss = sum(stage.weights.get(name, 1.0) * term for name, term in terms.items())
            terms = {"loss": loss} | {f"loss/{name}": term for name, term in terms.items()}
            values = dict(zip(terms, torch.stack([t.detach().float() for t in terms.values()]).tolist(), strict=True))
            _check_finite(values, stage, epoch, step, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if world > 1:
                parallel.average_gradients(self.retriever)
            norm = nn.utils.clip_grad_norm_(self.retriever.parameters(), stage.optimiser.clip or math.inf)
            _check_finite({"the gradient": norm.item()}, stage, epoch, step, batch)
            optimiser.step()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            self.done += 1
            bar.update()
            bar.set_postfix_str(
                f"{stage.name} epoch {epoch + 1}/{stage.epochs}, loss {values['loss']:.4g}", refresh=False
            )
        means = parallel.average({name: total / steps for name, total in sums.items()}, self.device)
        return {"lr": lr} | means | {f"augment/{name}": int(total) for name, total in counts.items()}

    def _score(self, dataset: MomentDataset) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        lines = predict_all(self.retriever, dataset, self.paper.stages[-1].batch_size)
        return scores_of(lines, dataset), lines

    def _probed(self) -> dict[str, dict[str, Any]]:
        return {name: self._score(probe)[0] for name, probe in self.probes.items()}

    def finish(self) -> None:
        """Give the retriever the weights that are kept, and write what they predict."""
        last = self.paper.stages[-1].name
        self.retriever.load_state_dict(self._weights(last, "best"))
        self.retriever.eval()
        if self.val is not None:
            self.result, lines = self._score(self.val)
        if self.probes:
            self.result = self.result | {"probes": self._probed()}
        if self.result and self.out is not None and parallel.ranks()[0] == 0:
            _write_lines(self.out / "history.jsonl", self.rows)
            if self.val is not None:
                _write_lines(self.out / "predictions.jsonl", lines)
            write_whole(self.out / "metrics.json", json.dumps(self.result, indent=1) + "\n")
        parallel.barrier()


def predict_all(retriever: MomentRetriever, dataset: MomentDataset, batch_size: int = 128) -> list[dict[str, Any]]:
    """The predictions of a whole dataset, in its order; shared out over the ranks where there are several."""
    rank, world = parallel.ranks()
    batches = list(torch.arange(len(dataset)).split(batch_size))
    parts = [retriever.predict(dataset.batch(indices)) for indices in batches[rank::world]]
    return [line for part in parallel.dealt(parts) for line in part]


def scores_of(lines: Sequence[Mapping[str, Any]], dataset: MomentDataset) -> dict[str, Any]:
    """Scores of predictions for a dataset: `mrlib.metrics.evaluate`, and as "moments" `mrlib.metrics.moment_scores`.

    lines  as `predict_all` gives them; where the dataset is labelled for highlights only, there are no "moments"
    """
    truth = [s.as_line() for s in dataset.samples]
    scores, moments = metrics.evaluate(lines, truth), metrics.moment_scores(lines, truth)
    return scores | ({"moments": moments["all"]} if moments else {})


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """What a row of a history or of a grid has of `scores_of`: its "brief", and the mIoU where there are moments."""
    return scores["brief"] | ({"mIoU": scores["moments"]["mIoU"]} if "moments" in scores else {})


def experiment(
    paper: str,
    *,
    size: str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    dataset: str = "sim",
    root: str | None = None,
    data: Mapping[str, Any] | None = None,
    score: str | None = None,
    probes: Sequence[str] = (),
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], History, MomentRetriever]:
    """Open the data, build a paper's model, train it, choose its epoch on the validation split, score it on `score`.

    size, preset  of `papers.get`; None: as is usual for the dataset
    score     None: the validation split
    probes    what the kept weights are scored on beside it: names of `mrlib.probes.PROBES`, which are made of the
              split `score`, and other splits of the dataset
    settings  of `papers.get`
    data      options of `open_dataset`; the simulator's seed is `seed` unless it is among them
    options   of `fit`
    returns   the scores (`scores_of`) on the split `score`, with those of what knows only the video's length "beside"
              them, and those of each probe as "probes", beside them the ones of a fixed list of windows chosen on the
              training set; the history, the retriever
    raises    ValueError, before anything is trained, for a probe that is neither
    """
    asked = {name: value for name, value in (("size", size), ("preset", preset)) if value is not None}
    chosen = papers.get(paper, **papers.usual(paper, dataset) | asked, **(settings or {}))
    opened = ({"seed": seed} if dataset == "sim" else {}) | dict(data or {})
    validation = papers.validation_split(dataset)
    train, val = (papers.open_split(chosen, dataset, root, split, **opened) for split in ("train", validation))
    test = val if score in (None, validation) else papers.open_split(chosen, dataset, root, score, **opened)
    probed = {name: _probe(name, test, chosen, dataset, root, opened) for name in probes}
    retriever = papers.build(chosen, train, seed)
    history = fit(retriever, train, val, chosen, seed=seed, progress=progress, **options)
    scores = history.result
    if test is not val:
        scores = scores_of(predict_all(retriever, test, chosen.stages[-1].batch_size), test)
    guesses = baselines.LENGTH_ONLY if "moments" in scores else {}  # they say nothing about highlights
    beside = {name: headline(scores_of(guess(test), test)) for name, guess in guesses.items()}
    scores = scores | {"beside": beside}
    if probed:
        blind = {"fixed list": baselines.FixedList(train)} if guesses else {}
        scores["probes"] = {
            name: scores_of(predict_all(retriever, probe, chosen.stages[-1].batch_size), probe)
            | {"beside": {known: headline(scores_of(guess(probe), probe)) for known, guess in blind.items()}}
            for name, probe in probed.items()
        }
    return scores, history, retriever


def _probe(
    name: str, scored: MomentDataset, paper: Paper, dataset: str, root: str | None, options: Mapping[str, Any]
) -> MomentDataset:
    if name in PROBES:
        return PROBES[name](scored)
    try:
        return papers.open_split(paper, dataset, root, name, **options)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"probe {name!r}, none of {', '.join(PROBES)}, is no split either: {error}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; known: auto, cpu, cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this PyTorch finds no CUDA device; take device auto or cpu")
    return device


def _step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}/{rank}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _optimiser(stage: Stage, retriever: nn.Module) -> torch.optim.Optimizer:
    known = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameters = [p for p in retriever.parameters() if p.requires_grad]
    return known[stage.optimiser.method](parameters, lr=stage.optimiser.lr, weight_decay=stage.optimiser.weight_decay)


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        slots.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})


def _check_finite(values: dict[str, float], stage: Stage, epoch: int, step: int, batch: Batch) -> None:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} is not finite in stage {stage.name!r}, epoch {epoch + 1}, step {step}; "
            f"queries of the batch: {[s.qid for s in batch.samples]}"
        )


def _describe(dataset: MomentDataset) -> dict[str, Any]:
    about = {"name": dataset.name, "split": dataset.split, "samples": len(dataset), "digest": dataset.digest()}
    return about | dataset.settings


def _kept_by(stage: Stage, row: Mapping[str, Any]) -> float:
    """The score of an epoch by which its stage keeps the best, "mIoU + MR-full-R1@0.5" being a sum."""
    names = [name.strip() for name in stage.keep.split("+")]
    if unknown := [name for name in names if name not in row]:
        raise ValueError(f"stage {stage.name!r} keeps by {unknown[0]!r}, which is none of {', '.join(row)}")
    return sum(row[name] for name in names)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        return [line for i, a, b in pairs for line in _differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); give another out_dir") from error


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: what `fit` offers."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.train", description="Train a paper through its stages.")
    parser.add_argument("paper", help=f"one of {', '.join(papers.PAPERS)}")
    parser.add_argument("--dataset", default="sim", help="sim, or the name of a dataset on disk")
    parser.add_argument("--root", help="folder of the dataset; default: its folder in $MRLIB_DATA")
    parser.add_argument("--size", help="small or paper; default: small for sim, paper for files")
    parser.add_argument("--preset", help="a named set of settings of the paper; default: the dataset's")
    parser.add_argument("--epochs", type=int, help="of the last stage; earlier ones are scaled")
    for option, of in (("--set", "the paper"), ("--data", "the dataset")):
        several = {"type": _setting, "nargs": "+", "action": "extend", "default": []}
        parser.add_argument(option, **several, metavar="NAME=VALUE", help=f"settings of {of}")
    parser.add_argument("--out", required=True, help="folder for checkpoints, history and predictions")
    parser.add_argument("--no-resume", action="store_true", help="refuse a folder that holds a run")
    parser.add_argument("--score", metavar="SPLIT", help="split whose scores are printed; default: validation")
    parser.add_argument(
        "--probe",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"what is scored beside: other splits, or of the scored one {', '.join(PROBES)}",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--threads", type=int, help="of the CPU; default: 1 for small models, which gain nothing, else all"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    args = parser.parse_args(arguments)
    size = args.size or papers.usual(args.paper, args.dataset)["size"]
    torch.set_num_threads(args.threads or (1 if size == "small" else torch.get_num_threads()))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parallel.start(args.device, int(os.environ["LOCAL_RANK"]))
    try:
        scores, _, _ = experiment(
            args.paper,
            size=size,
            preset=args.preset,
            settings=dict(args.set) | ({} if args.epochs is None else {"epochs": args.epochs}),
            dataset=args.dataset,
            root=args.root,
            data=dict(args.data),
            score=args.score,
            probes=args.probe,
            seed=args.seed,
            progress=sys.stderr.isatty(),
            out_dir=args.out,
            resume=not args.no_resume,
            device=args.device,
            precision=args.precision,
            compile=args.compile,
        )
        if parallel.ranks()[0] == 0:
            printed = headline(scores) | {"beside": scores["beside"]}
            if args.probe:
                each = scores["probes"].items()
                printed["probes"] = {name: headline(of) | {"beside": of["beside"]} for name, of in each}
            print(json.dumps(printed, indent=1))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    finally:
        if parallel.ranks()[1] > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
