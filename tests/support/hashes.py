"""Hash everything that a restructuring must not change; two checkouts that print the same lines behave the same.

    python -m tests.support.hashes > before.txt      # in each checkout, then diff
    python -m tests.support.hashes --only models grids

    models      weights, checkpoint bytes, predictions, outputs, losses and gradients of every paper, preset and pair of
                aligner and detector
    mixed       outputs, losses and gradients of papers and pairs at size small under bf16 autocast
    augmenters  batches of every augmenter, training sets
    simulator   samples and features for every knob; baselines, metrics and probes on them
    grids       the fingerprint of every committed row of figures/*_grid.csv, and whether it is the row's
    runs        weights, scores, history and the bytes of all files of short runs of every paper
    released    models loaded from official checkpoints, with --official FOLDER of files PAPER*.ckpt

Everything runs on one thread; the hashes are comparable on one machine with one version of torch. About four minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mrlib import baselines, checkpoint, grid, metrics, papers, train
from mrlib.data import Batch, Labels, Sample, Widths, open_dataset
from mrlib.ops.draw import Draw
from mrlib.probes import PROBES
from mrlib.retriever import MomentRetriever

Lines = Iterator[tuple[str, str]]
ROOT = Path(__file__).resolve().parents[2]
ALIGNED = ("target", "mask", "query", "query_mask", "query_global", "saliency", "context", "context_mask")
ALIGNED += ("context_positions",)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "matr": [{"align": name} for name in ("global", "otam", "mean", "drop", "tcc", "none")]
    + [{"cost": "contrastive"}, {"typed": True}, {"memory": "whole"}]
    + [{"fusion": name} for name in ("channel", "attend", "none")]
    + [{"answer": "pre"}, {"answer": "post"}, {"offsets": "raw"}, {"timestamps": "edge"}]
    + [{"length": "duration"}, {"padding": "seen"}],
    "f2sgd": [{"reweight": False}, {"align": False}, {"right": "mirror"}, {"scale": True}, {"head": "sigmoid"}]
    + [{"loss_cells": "full"}, {"reduction": "mean"}, {"standardise": False}, {"zero_init": False}],
    "td_detr": [{"beta": None}, {"beta": 0.3}, {"masks": "released"}, {"query_positions": "learned"}],
    "univtg": [{"beta": 0.5}, {"pre_norm": True}, {"query_positions": "sine"}],
    "moment_detr": [{"pre_norm": True}, {"beta": 0.5}, {"query_positions": "learned"}],
    "amr": [{"padding": "seen"}, {"against": "video"}, {"last_mask": "previous"}, {"content": "zero"}]
    + [{"surplus": "drawn"}, {"joint_self_attention": False}, {"beta": 0.5}],
    "snag": [{"beta": 0.7}],
    "qd_detr": [{"masks": "released"}, {"surplus": "first"}, {"content": "query"}, {"detector": "dab_quality"}],
}


def digest(x: Any) -> str:
    """A hash of tensors and arrays by their bytes, of everything else by its parts or its repr."""
    h = hashlib.blake2b(digest_size=8)
    _feed(h, x)
    return h.hexdigest()


def _feed(h: Any, x: Any) -> None:
    if isinstance(x, torch.Tensor):
        h.update(f"{tuple(x.shape)}{x.dtype}".encode())
        x = x.detach().cpu().contiguous()
        h.update((x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().tobytes())
    elif isinstance(x, np.ndarray):
        h.update(f"{x.shape}{x.dtype}".encode() + x.tobytes())
    elif isinstance(x, bytes):
        h.update(x)
    elif isinstance(x, dict):
        for key, value in x.items():
            h.update(str(key).encode())
            _feed(h, value)
    elif is_dataclass(x):
        _feed(h, {f.name: getattr(x, f.name) for f in fields(x) if not f.name.startswith("_")})
    elif isinstance(x, list | tuple):
        for each in x:
            _feed(h, each)
    else:
        h.update(repr(x).encode())


def of_model(name: str, paper: papers.Paper, batch: Batch) -> Lines:
    """A paper's model for the widths of a batch, and after each of its preparations."""
    joint = None if batch.target_joint is None else batch.target_joint.shape[-1]
    widths = Widths(batch.target.shape[-1], batch.query.shape[-1], joint)
    try:
        model = papers.build(paper, widths)
    except ValueError as error:
        yield f"{name} refused", type(error).__name__
        return
    yield f"{name} weights", digest(dict(model.state_dict()))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(model, Path(folder) / "m")
        files = [(Path(folder) / f"m.{suffix}").read_bytes() for suffix in ("safetensors", "json")]
        yield f"{name} checkpoint", digest(files)
    yield f"{name} predictions", digest(model.predict(batch))
    yield from of_step(name, model, batch)
    for stage in paper.stages:
        if stage.prepare is not None:
            papers.prepare(model, stage.prepare, 7)
            teacher = papers.build(paper, widths)
            papers.prepare(teacher, stage.prepare, 8, teacher=True)
            yield f"{name} {stage.prepare} weights", digest(dict(model.state_dict()))
            with torch.no_grad():
                outputs = teacher(batch)[1]
            yield from of_step(f"{name} {stage.prepare}", model, batch, outputs)


def of_step(name: str, model: MomentRetriever, batch: Batch, teacher: dict[str, torch.Tensor] | None = None) -> Lines:
    """One forward and backward pass in training mode."""
    model.train()
    torch.manual_seed(1)
    aligned, outputs = model(batch)
    yield f"{name} aligned", digest([getattr(aligned, field) for field in ALIGNED] + [dict(aligned.paths)])
    yield f"{name} outputs", digest(outputs)
    losses = model.losses(aligned, outputs, batch, teacher)
    yield f"{name} losses", digest(losses)
    model.zero_grad(set_to_none=True)
    total = sum(losses.values())
    if total.requires_grad:
        total.backward()
    yield f"{name} gradients", digest({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)


def models() -> Lines:
    """Every paper, size and preset; every pair of aligner and detector; every option of `OPTIONS`."""
    data = {
        (size, query, streams): open_dataset("sim", seed=3, n=n, size=size, query=query, streams=streams)
        for size, n in (("small", 24), ("paper", 3))
        for query in ("text", "video")
        for streams in (None, "joint")
    }
    for name in papers.PAPERS:
        for size, rows in (("small", 12), ("paper", 3)):
            for preset in (None, *papers.PRESETS.get(name, {})):
                paper = papers.get(name, size, preset)
                batch = data[size, paper.query, paper.streams].batch(torch.arange(rows))
                yield from of_model(f"{name} {size} {preset}", paper, batch)
    batch = data["small", "text", None].batch(torch.arange(8))
    for aligner in papers.ALIGNERS:
        for detector in papers.DETECTORS:
            paper = papers.get("qd_detr", "small", aligner=aligner, detector=detector)
            yield from of_model(f"{aligner} x {detector}", paper, batch)
    for name, several in OPTIONS.items():
        for options in several:
            try:
                paper = papers.get(name, "small", **options)
            except ValueError as error:
                yield f"{name} {options} refused", type(error).__name__
                continue
            batch = data["small", paper.query, paper.streams].batch(torch.arange(8))
            yield from of_model(f"{name} {options}", paper, batch)


def mixed() -> Lines:
    """One step in mixed precision, of every paper and every pair of aligner and detector, at size small."""
    named = [(name, papers.get(name, "small")) for name in papers.PAPERS]
    named += [
        (f"{aligner} x {detector}", papers.get("qd_detr", "small", aligner=aligner, detector=detector))
        for aligner in papers.ALIGNERS
        for detector in papers.DETECTORS
    ]
    for name, paper in named:
        data = open_dataset("sim", seed=3, n=24, query=paper.query)
        with torch.autocast("cpu", torch.bfloat16):
            yield from of_step(f"{name} mixed", papers.build(paper, data), data.batch(torch.arange(8)))


def augmenters() -> Lines:
    """Batches of every augmenter in three epochs, options of `synthesize`, and the training sets."""
    options = [{"partners": "random"}, {"partners": "table"}, {"alpha": 0.2}, {"jitter": None}]
    for query, streams in (("text", None), ("video", "joint")):
        data = open_dataset("sim", seed=5, n=80, query=query, streams=streams)
        for name, augment in papers.AUGMENTERS.items():
            for epoch in range(3):
                try:
                    batch = augment(torch.arange(40) + epoch, data, Draw(9, "stage", epoch))
                except ValueError as error:
                    yield f"augment {name} {query} {epoch} refused", type(error).__name__
                    continue
                yield f"augment {name} {query} {epoch}", digest(batch)
        for each in options:
            batch = papers.AUGMENTERS["synthesize"](torch.arange(40), data, Draw(9), **each)
            yield f"synthesize {query} {each}", digest(batch)
        for name, training_set in papers.TRAINING_SETS.items():
            yield f"training set {name} {query}", training_set(data).digest()


def simulator() -> Lines:
    """Simulated data for every knob and split; what is computed on it without training."""
    knobs: list[dict[str, Any]] = [{}, {"blur": 2.0}, {"family": 0.9}, {"spurious": 0.8}, {"irrelevant": 0.5}]
    knobs += [{"noise": 1.0}, {"absent": True}, {"preset": "context"}, {"preset": "spurious"}, {"size": "paper"}]
    for split in ("train", "val", "test", "val_shift"):
        for options in knobs:
            data = open_dataset("sim", split=split, seed=2, n=70, **options)
            parts = [data.samples, data.target.rows, data.query.rows, data.query_joint, data.settings, data.digest()]
            yield f"sim {split} {options}", digest(parts)
    data = open_dataset("sim", split="val", seed=2, n=70, query="video", speed=3.0)
    yield "sim video", digest([data.samples, data.target.rows, data.query.rows, data.query_joint])
    val, training = (open_dataset("sim", split=split, seed=2, n=70) for split in ("val", "train"))
    truth = [sample.as_line() for sample in val.samples]
    for name in ("whole_video", "centred_window", "query_similarity", "anchor_interval"):
        lines = getattr(baselines, name)(val)
        scores = metrics.evaluate(lines, truth), metrics.moment_scores(lines, truth)
        yield f"baseline {name}", digest([lines, *scores])
    yield "baseline fixed list", digest(baselines.FixedList(training)(val))
    yield "anchor inside", digest(baselines.anchor_inside(val))
    for name, probe in PROBES.items():
        probed = probe(val)
        batch = probed.batch(torch.arange(70))
        yield f"probe {name}", digest([probed.samples, probed.target.rows, probed.settings, batch])


def _arm(command: str) -> grid.Arm:
    """The arm that a row's command trains."""
    _, _, _, paper, *words = shlex.split(command)
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            values = options.setdefault(word, [])
        else:
            values.append(word)

    def table(name: str) -> dict[str, Any]:
        pairs = dict(pair.split("=", 1) for pair in options.get(name, ()))
        return {key: _value(text) for key, text in pairs.items()}

    probes = tuple(options.get("--probe", ()))
    return grid.Arm(paper, table("--set"), table("--data"), options["--size"][0], options["--score"][0], probes)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def grids() -> Lines:
    """The fingerprint of every committed row, True if it is still the row's."""
    for file in sorted((ROOT / "figures").glob("*_grid.csv")):
        for row in pd.read_csv(file).to_dict("records"):
            identity = _arm(row["command"]).identity(int(row["seed"]))
            same = identity["paper"] == row["paper"] and identity["command"] == row["command"]
            yield f"grid {file.name} {row['arm']} {row['seed']}", f"{identity['paper']} {same}"


def runs() -> Lines:
    """Two epochs of every paper on 40 samples, with and without probes; every file but the times."""
    for name in papers.PAPERS:
        for probes in ((), ("masked_mean", "dynamic_context")):
            with tempfile.TemporaryDirectory() as folder:
                out, key = Path(folder) / "run", f"run {name} {len(probes)}"
                options = {"settings": {"epochs": 2}, "data": {"n": 40}, "score": "test", "probes": probes, "seed": 1}
                scores, history, model = train.experiment(name, **options, out_dir=out, device="cpu")
                yield f"{key} weights", digest(dict(model.state_dict()))
                yield f"{key} scores", digest(scores)
                yield f"{key} history", digest(history.rows)
                for file in sorted(out.rglob("*")):
                    if file.is_file() and file.name != "times.jsonl":
                        yield f"{key} {file.relative_to(out)}", digest(file.read_bytes())


def released(folder: Path) -> Lines:
    """Every official checkpoint of a folder, as released and corrected."""
    names = sorted(papers.RELEASES, key=len, reverse=True)
    for file in sorted(folder.glob("*.ckpt")):
        paper = next(name for name in names if file.name.startswith(name))
        for corrected in (False, True):
            model, key = checkpoint.load_official(file, paper, corrected), f"official {file.stem} {corrected}"
            batch = _padded_batch(**model.recipe["widths"])
            yield f"{key} weights", digest(dict(model.state_dict()))
            yield f"{key} recipe", digest(model.recipe)
            yield f"{key} predictions", digest(model.predict(batch))
            yield from of_step(key, model, batch)


def _padded_batch(target: int, query: int, joint: None) -> Batch:
    g = torch.Generator().manual_seed(0)
    lengths, words, T, N = torch.tensor([9, 4, 12, 1]), torch.tensor([7, 6, 5, 7]), 12, 7
    mask, query_mask = torch.arange(T) < lengths[:, None], torch.arange(N) < words[:, None]
    return Batch(
        target=torch.randn(4, T, target, generator=g) * mask[..., None],
        target_mask=mask,
        query=torch.randn(4, N, query, generator=g) * query_mask[..., None],
        query_mask=query_mask,
        target_joint=None,
        query_joint=None,
        video=torch.arange(4),
        duration_s=lengths * 2.0,
        clip_s=torch.full((4,), 2.0),
        labels=Labels(
            spans=torch.tensor([[[0.1, 0.5]]] * 4),
            span_mask=torch.ones(4, 1, dtype=torch.bool),
            relevant=mask & (torch.arange(T) < 3),
            saliency=mask * 4.0,
            saliency_mask=torch.ones(4, dtype=torch.bool),
        ),
        samples=[Sample(b, "", 2.0 * int(n), str(b)) for b, n in enumerate(lengths)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts above")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="folder of official checkpoints, PAPER*.ckpt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "models": models,
        "mixed": mixed,
        "augmenters": augmenters,
        "simulator": simulator,
        "grids": grids,
        "runs": runs,
    }
    if args.official is not None:
        parts["released"] = lambda: released(args.official)
    for name, part in parts.items():
        if args.only is None or name in args.only:
            for key, value in part():
                print(f"{key}\t{value}", flush=True)


if __name__ == "__main__":
    main()
