"""Train a paper's model through all of its stages: `fit`, `experiment` and the command line.

    python -m mrlib.train f2sgd --dataset sim --size small --epochs 2 --out runs/first
    torchrun --standalone --nproc-per-node=2 --max-restarts=3 -m mrlib.train f2sgd --out runs/parallel

A run depends only on its arguments: every random number derives from (seed, stage, epoch or step, sample). A run that
was stopped by Ctrl-C or SIGTERM therefore continues after its last step, one that was killed after its last whole
epoch, and both end with the weights of a run that was never stopped.

`mrlib.training` has the parts: stages, an epoch, what is saved and resumed, scoring, the options of the command line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mrlib import baselines, papers, parallel
from mrlib.arguments import has_terminal, require, warn_in_one_line
from mrlib.data import MomentDataset
from mrlib.data.sources import LAYOUTS
from mrlib.papers import Paper, Stage
from mrlib.probes import PROBES
from mrlib.retriever import MomentRetriever, Training, unwrapped
from mrlib.training import cli, stopping
from mrlib.training.run_state import History, RunState
from mrlib.training.scoring import headline as headline
from mrlib.training.scoring import longest_video, require_annotations
from mrlib.training.scoring import predict_all as predict_all
from mrlib.training.scoring import scores_of as scores_of
from mrlib.training.stages import MiningRunner, TrainingRunner
from mrlib.training.trainer import Setup


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

    val        None: no validation; every stage keeps its last epoch
    probes     more datasets that are scored after every epoch; they never decide which epoch is kept
    out_dir    folder for what the run writes, see `mrlib.training.run_state`; None: nothing is written
    resume     True: continue a run of the same settings; False: refuse a folder that holds a run
    device     "auto": CUDA if available
    precision  "fp32", or "bf16" for mixed precision
    compile    run the model through torch.compile
    progress   show a progress bar

    ValueError          wrong arguments, or the folder holds a run of other settings
    FloatingPointError  a loss is not finite; it names term, step and the queries of the batch
    MemoryError         the device has no memory left; it names a batch size to try, and the steps so far are saved
    KeyboardInterrupt   after Ctrl-C, SystemExit after SIGTERM: at the next step, with its state saved in out_dir
    """
    retriever = unwrapped(retriever)
    _check_arguments(retriever, train, val, paper, out_dir, seed, precision, probes or {})
    setup = Setup(
        retriever, train, val, dict(probes or {}), paper, seed, parallel.find_device(device), precision, compile
    )
    retriever.training_data = _training_data(train, paper)
    setup = _on_device(setup)
    parallel.broadcast_weights(retriever)
    runners = [_runner(setup, stage, progress) for stage in paper.stages]
    for runner in runners:
        runner.check()
    state = RunState(None if out_dir is None else Path(out_dir))
    with state.locked():
        if out_dir is not None:
            state.open(_describe_run(setup), resume)
        with stopping.at_next_step(state.folder):
            _train(setup, runners, state, progress)
        _finish(setup, state)
    return state.history


def _train(setup: Setup, runners: Sequence[TrainingRunner | MiningRunner], state: RunState, progress: bool) -> None:
    """Train through the stages from where the run is, see `RunState`."""
    training_set, finished = setup.train, state.stage
    for runner in runners[: finished + 1 if state.begun else finished]:
        training_set = runner.replay(training_set, state)
    state.restore_weights(setup.retriever)
    steps = sum(runner.steps for runner in runners)
    no_bar = not progress or sys.stderr is None or parallel.rank_and_world()[0] > 0
    with tqdm(total=steps, initial=state.steps, unit="step", disable=no_bar) as bar:
        for runner in runners[finished:]:
            training_set = runner.run(training_set, state, bar)


def _runner(setup: Setup, stage: Stage, progress: bool) -> TrainingRunner | MiningRunner:
    """The runner of a stage: mining if `stage.mine` is set, else training."""
    if stage.mine is None:
        return TrainingRunner(setup, stage)
    return MiningRunner(setup, stage, partial(_fit_one_stage, setup, progress))


def _fit_one_stage(
    setup: Setup, progress: bool, model: MomentRetriever, train: MomentDataset, stage: Stage, folder: Path | None
) -> History:
    """Train another model on another training set for one stage, with the arguments of a run."""
    return fit(
        model,
        train,
        setup.val,
        replace(setup.paper, stages=(stage,)),
        out_dir=folder,
        seed=setup.seed,
        device=str(setup.device),
        precision=setup.precision,
        compile=setup.compile,
        progress=progress,
    )


def _check_arguments(
    retriever: MomentRetriever,
    train: MomentDataset,
    val: MomentDataset | None,
    paper: Paper,
    out_dir: str | os.PathLike | None,
    seed: int,
    precision: str,
    probes: Mapping[str, MomentDataset],
) -> None:
    require(out_dir is None or os.fspath(out_dir) != "", "out_dir", out_dir, "a folder or None")
    _check_seed(seed)
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"unknown precision {precision!r}; known: fp32, bf16")
    require_annotations("train", train, scored=False)
    for name, dataset in {"val": val, **{f"probe {name!r}": probe for name, probe in probes.items()}}.items():
        if dataset is not None:
            require_annotations(name, dataset, scored=True)
    if val is not None and all(sample.relevant_windows == [] for sample in val.samples):
        raise ValueError(
            f"the val data, {val.name} {val.split}, has null queries only, whose relevant_windows is []; an epoch is "
            "kept by how well it finds windows, so add queries that have some, or give no val"
        )
    if retriever.recipe is not None:
        built = papers.get(**retriever.recipe["paper"])
        if (built.aligner, built.detector) != (paper.aligner, paper.detector):
            raise ValueError(
                "the retriever was built for another aligner or detector than the paper has; build it from this paper "
                "with mrlib.build"
            )
        if retriever.recipe.get("prepared"):
            raise ValueError("the retriever was already changed by a stage of an earlier training run; build a new one")
    elif out_dir is not None:
        raise ValueError("only a retriever made by mrlib.build can be saved in an out_dir; give None, or build it")


def _check_seed(seed: int) -> None:
    require(isinstance(seed, Integral) and -(2**63) <= seed < 2**63, "seed", seed, "a whole number of 64 bits")


def _on_device(setup: Setup) -> Setup:
    """Move the retriever and, on a GPU, the datasets of a setup to its device."""
    setup.retriever.to(setup.device)
    if setup.device.type != "cuda":
        return setup
    train, val = setup.train.to(setup.device), setup.val and setup.val.to(setup.device)
    return replace(setup, train=train, val=val, probes={k: probe.to(setup.device) for k, probe in setup.probes.items()})


def _describe_run(setup: Setup) -> dict[str, Any]:
    """The content of run.json: the settings that must not change when a run is resumed."""
    recipe = setup.retriever.recipe
    settings = {
        "paper": setup.paper.describe(),
        "model": recipe and {k: recipe[k] for k in ("widths", "seed")},
        "train": _dataset_identity(setup.train),
        "val": setup.val and _dataset_identity(setup.val),
        "seed": setup.seed,
        "precision": setup.precision,
    }
    if setup.probes:
        settings["probes"] = {name: _dataset_identity(probe) for name, probe in setup.probes.items()}
    return settings | {"threads": [torch.get_num_threads()], "processes": [parallel.rank_and_world()[1]]}


def _training_data(train: MomentDataset, paper: Paper) -> Training:
    """What checkpoints say about the training data, so that other videos can be prepared in the same way."""
    settings, layout = train.settings, LAYOUTS.get(train.settings.get("layout"))
    streams = {name: columns.stop - columns.start for name, columns in train.streams.items()}
    return Training(
        streams=streams,
        clip_s=train.clip_s,
        clips=longest_video(train),
        normalize=tuple(settings.get("normalize", (*streams, "query") if "encoder" in settings else ())),
        query=paper.query,
        tokens=None if layout is None else layout.tokens,
        encoder=settings.get("encoder"),
    )


def _dataset_identity(dataset: MomentDataset) -> dict[str, Any]:
    identity = {"name": dataset.name, "split": dataset.split, "samples": len(dataset), "digest": dataset.digest()}
    return identity | dataset.settings


def _finish(setup: Setup, state: RunState) -> None:
    """Give the retriever the weights that the last stage keeps, and score them."""
    state.load_kept(setup.retriever, setup.paper.stages[-1].name, "best")
    setup.retriever.eval()
    predictions = None if setup.val is None else setup.predict(setup.val)
    result = {} if predictions is None else scores_of(predictions, setup.val)
    state.finish(result | ({"probes": setup.probe_scores()} if setup.probes else {}), predictions)


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

    size, preset, settings  of `papers.get`; size or preset None: the usual one for the dataset
    data      options of `open_dataset`; the simulator's seed is `seed` unless it is among them
    score     split; None: the validation split
    probes    more data to score the kept weights on: names of `mrlib.probes.PROBES`, which change the split `score`, or
              other splits of the dataset
    options   of `fit`
    returns   the scores, the history, the retriever. The scores are `scores_of` on the split `score`; as "beside", the
              headline scores of baselines that know only the length of the video; as "probes", the scores of each
              probe, "beside" them those of a fixed list of windows chosen on the training set
    raises    ValueError, before anything is trained, for an unknown probe, or for data to score without annotations
    """
    _check_seed(seed)
    _refuse("settings", settings, ("name", "size", "preset"))
    _refuse("data", data, ("name", "root", "split"))
    overrides = {name: value for name, value in (("size", size), ("preset", preset)) if value is not None}
    chosen_paper = papers.get(paper, **papers.usual(paper, dataset) | overrides, **(settings or {}))
    data_options = ({"seed": seed} if dataset == "sim" else {}) | dict(data or {})

    def open_split(split: str) -> MomentDataset:
        return papers.open_split(chosen_paper, dataset, root, split, **data_options)

    validation = papers.validation_split(dataset)
    train, val = open_split("train"), open_split(validation)
    test = val if score in (None, validation) else open_split(score)
    require_annotations(score or validation, test, scored=True)
    probed = {name: _probe(name, test, open_split) for name in probes}
    for name, probe in probed.items():
        require_annotations(f"probe {name!r}", probe, scored=True)
    retriever = papers.build(chosen_paper, train, seed)
    history = fit(retriever, train, val, chosen_paper, seed=seed, progress=progress, **options)

    def score_on(split: MomentDataset) -> dict[str, Any]:
        return scores_of(predict_all(retriever, split, chosen_paper.stages[-1].batch_size), split)

    scores = history.result if test is val else score_on(test)
    has_moments = "moments" in scores  # the baselines predict no highlights
    scores = scores | {"beside": _headlines(baselines.LENGTH_ONLY if has_moments else {}, test)}
    if probed:
        blind = {"fixed list": baselines.FixedList(train)} if has_moments else {}
        scores["probes"] = {k: score_on(probe) | {"beside": _headlines(blind, probe)} for k, probe in probed.items()}
    return scores, history, retriever


def _refuse(kind: str, options: Mapping[str, Any] | None, names: Sequence[str]) -> None:
    """ValueError if options are among the others that are arguments of their own."""
    if taken := [name for name in names if name in (options or {})]:
        raise ValueError(f"{kind} must not have {taken[0]!r}, which is an argument of its own")


def _headlines(guesses: Mapping[str, Callable[..., list[dict]]], dataset: MomentDataset) -> dict[str, dict[str, float]]:
    """The headline scores of some baselines on a dataset."""
    return {name: headline(scores_of(guess(dataset), dataset)) for name, guess in guesses.items()}


def _probe(name: str, scored: MomentDataset, open_split: Callable[[str], MomentDataset]) -> MomentDataset:
    """The probe of that name, made from the dataset `scored`, or else the split of that name."""
    if name in PROBES:
        return PROBES[name](scored)
    try:
        return open_split(name)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"probe {name!r} is neither a split nor one of {', '.join(PROBES)}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train a paper and print its scores as JSON."""
    args = cli.parse(arguments)
    warn_in_one_line()
    size = args.size or papers.usual(args.paper, args.dataset)["size"]
    torch.set_num_threads(args.threads or (1 if size == "small" else torch.get_num_threads()))
    options = {name: getattr(args, name) for name in ("preset", "dataset", "root", "score", "seed", "precision")}
    try:
        with stopping.with_status():
            parallel.start_if_several(args.device)
            scores, _, _ = experiment(
                args.paper,
                size=size,
                settings=dict(args.set) | ({} if args.epochs is None else {"epochs": args.epochs}),
                data=dict(args.data),
                probes=args.probe,
                progress=has_terminal(),
                out_dir=args.out,
                resume=not args.no_resume,
                device=args.device,
                compile=args.compile,
                **options,
            )
            if parallel.rank_and_world()[0] == 0:
                print(json.dumps(_printed_scores(scores), indent=1))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        sys.exit(f"error: {error}")
    finally:
        parallel.end()


def _printed_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The headline scores of `experiment`, of its baselines and of its probes, as the command line prints them."""
    printed = headline(scores) | {"beside": scores["beside"]}
    if "probes" in scores:
        printed["probes"] = {name: headline(of) | {"beside": of["beside"]} for name, of in scores["probes"].items()}
    return printed


if __name__ == "__main__":
    main()
