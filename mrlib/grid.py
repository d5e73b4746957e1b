"""Comparisons: train every arm with every seed and write one row of a CSV file for each; rows in the file are kept.

    grid.run("figures/04_grid.csv", {"full": Arm("f2sgd"), "no mask": Arm("f2sgd", {"aligner": "raw"})}, seeds=range(3))

An arm is one setting of the comparison. Each row holds the command that trains it. A run that is stopped goes on from
the rows in the file, and from the steps of the rows that it was training, which are beside it until they are written.

To train rows again and compare:

    python -m mrlib.grid figures/04_grid.csv --any 2
    python -m mrlib.grid figures/04_grid.csv --arm "align only" --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from mrlib import jobs, locks, papers
from mrlib.arguments import require
from mrlib.files import write_whole
from mrlib.grid_file import read_rows
from mrlib.train import experiment, headline
from mrlib.training import cli, stopping

TRAIN = "mrlib.grid.train_row"  # what trains a row at its worker
PROBED = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "mIoU")  # the scores of a probe that a row holds


@dataclass(frozen=True)
class Arm:
    """One setting of a comparison; the epoch is chosen on `val` and scored on `split`."""

    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `papers.get`
    data: Mapping[str, Any] = field(default_factory=dict)  # options of the simulator
    size: str = "small"
    split: str = "test"
    probes: tuple[str, ...] = ()  # of `mrlib.train.experiment`; scored too, in columns PROBE/SCORE

    def command(self, seed: int) -> str:
        """The command line that trains this arm with a seed."""
        words = ["python", "-m", "mrlib.train", self.paper, "--size", self.size, "--seed", str(seed)]
        for option, values in (("--set", self.settings), ("--data", self.data)):
            if values:
                words += [option, *(f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in values.items())]
        words += ["--probe", *self.probes] if self.probes else []
        words += ["--score", self.split]
        return shlex.join([*words, "--out", f"runs/{_digest(shlex.join(words))}"])

    @classmethod
    def from_command(cls, command: str) -> tuple[Arm, int]:
        """The arm and the seed of a command line as `command` gives it.

        raises  ValueError for any other command, and for options that a row does not need
        """
        words = shlex.split(command)
        if words[:3] != ["python", "-m", "mrlib.train"]:
            raise ValueError(f"{command!r} is not a command of mrlib.train")
        options = vars(cli.parse_words(words[3:]))
        given = {name: options.pop(name) for name in ("paper", "set", "data", "size", "score", "probe", "seed", "out")}
        defaults = vars(cli.parse_words([given["paper"], "--out", given["out"]]))
        if foreign := [name for name, value in options.items() if value != defaults[name]]:
            raise ValueError(f"{command!r} has the option {foreign[0]!r}, which a row of a grid does not have")
        if missing := [name for name in ("size", "score") if given[name] is None]:
            raise ValueError(f"{command!r} lacks the option {missing[0]!r}")
        probes = tuple(given["probe"])
        arm = cls(given["paper"], dict(given["set"]), dict(given["data"]), given["size"], given["score"], probes)
        return arm, given["seed"]

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, whatever class the arm and its settings are of."""
        lists = {"settings": dict(self.settings), "data": dict(self.data), "probes": list(self.probes)}
        return {"paper": self.paper, "size": self.size, "split": self.split} | lists

    def identity(self, seed: int) -> dict[str, str]:
        """What identifies a row: its command, and a fingerprint of all settings of its paper."""
        described = json.dumps(_changed(papers.get(self.paper, self.size, **self.settings)), sort_keys=True)
        fingerprint = _digest(described)
        return {"paper": f"{self.paper}-{fingerprint}", "command": self.command(seed)}


def train(arm: Arm, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Train one row on one thread; returns its scores, steps, seconds and number of parameters.

    folder  holds the state of the training run, from which it goes on if it was stopped; None: nothing is written
    """
    torch.set_num_threads(1)
    scores, history, retriever = experiment(
        arm.paper,
        size=arm.size,
        settings=arm.settings,
        data=arm.data,
        score=arm.split,
        probes=arm.probes,
        seed=seed,
        device="cpu",
        out_dir=folder,
    )
    probed = {f"{name}/{score}": headline(scores["probes"][name])[score] for name in arm.probes for score in PROBED}
    cost = {"steps": history.rows[-1]["step"], "train_s": round(sum(t["train_s"] for t in history.times), 1)}
    return headline(scores) | probed | cost | {"parameters": sum(p.numel() for p in retriever.parameters())}


def train_row(
    arm: Mapping[str, Any], seed: int, folder: str | None = None, identity: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`train` in the process of a worker; returns the version of torch too.

    arm       the fields of an `Arm`
    identity  that of the row at the process that submitted it
    raises    ValueError if this one's mrlib gives the row another
    """
    described = Arm(**arm | {"probes": tuple(arm["probes"])})
    if identity is not None and described.identity(seed) != identity:
        raise ValueError(f"mrlib of {socket.gethostname()} has other settings for this arm; install the same version")
    scores = train(described, seed, None if folder is None else Path(folder))
    return scores | {"torch": torch.__version__.split("+")[0]}


def run(
    path: str | os.PathLike,
    arms: Mapping[str, Arm],
    seeds: Iterable[int],
    executor: Executor | None = None,
    processes: int = 2,
) -> pd.DataFrame:
    """Train the rows that `path` does not hold yet and return the rows of these arms and seeds.

    While another process does the same with this file, this one waits, and says for whom. A row that fails, or is lost
    with its worker, does not stop the others.

    path       CSV file; every row is written as soon as it is trained, so a run that was stopped can be continued
    executor   whose workers train the rows, each in a process of its own, on one thread, see `mrlib.jobs`; it stays
               open. Workers on other machines need the folder of `path`. None: this machine
    processes  how many rows this machine trains at the same time
    raises     ValueError, naming the file, if it is damaged, or if the executor is none or takes no rows; RuntimeError,
               naming the rows that failed with their commands, when all others are written
    """
    path, seeds = Path(path), list(seeds)
    for seed in seeds:
        require(isinstance(seed, Integral), "seed", seed, "a whole number")
    require(type(processes) is int and processes > 0, "processes", processes, "a whole number from 1")
    workers = jobs.ThisMachine(processes) if executor is None else executor
    jobs.check_executor(workers)
    wanted = {(name, int(seed)): arm.identity(int(seed)) for name, arm in arms.items() for seed in seeds}
    if wanted.keys() - _valid(_rows(path), wanted):
        lock = locks.hold(path.with_name(f".{path.name}.lock"), f"grid {path}", wait=True)
        with lock, workers if executor is None else nullcontext():
            _train_missing(path, arms, wanted, workers)
    _remove_runs(path, wanted.values())
    return read(path, arms, seeds)


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path).to_dict("records") if path.is_file() else []


def _valid(rows: Iterable[Mapping[str, Any]], wanted: Mapping[tuple[str, int], dict[str, str]]) -> set[tuple[str, int]]:
    """The keys of the rows that are wanted and have the wanted settings."""
    return {_key(r) for r in rows if _key(r) in wanted and r.items() >= wanted[_key(r)].items()}


def _train_missing(
    path: Path, arms: Mapping[str, Arm], wanted: Mapping[tuple[str, int], dict[str, str]], executor: Executor
) -> None:
    """Train the wanted rows that a file does not hold and write each as soon as it is trained."""
    rows = _rows(path)
    valid = _valid(rows, wanted)
    rows = [r for r in rows if _key(r) in valid or _key(r) not in wanted]
    order, failed = {key: i for i, key in enumerate(wanted)}, []
    missing = {key: _job(path, arms[key[0]], key, wanted[key]) for key in wanted if key not in valid}
    with _runs_folder(path) as folder, jobs.submitted(missing, executor, folder) as ended:
        no_bar = not missing or sys.stderr is None
        for key, scores in tqdm(ended, total=len(missing), desc=path.name, disable=no_bar):
            if isinstance(scores, jobs.JobError):
                failed.append(f"{missing[key].name}: {scores}\n    {wanted[key]['command']}")
                tqdm.write(failed[-1], file=sys.stderr)
                continue
            rows.append({"arm": key[0], "seed": key[1]} | scores | {"date": date.today().isoformat()} | wanted[key])
            rows.sort(key=lambda r: order.get(_key(r), len(order)))
            write_whole(path, pd.DataFrame(rows).to_csv(index=False))
            shutil.rmtree(missing[key].arguments["folder"], ignore_errors=True)
    if failed:
        done = f"{len(missing) - len(failed)} of {len(missing)} rows were trained and are in {path}"
        advice = "the same call trains the others, each from its last saved step"
        raise RuntimeError("\n".join([f"{done}; {advice}", *failed]))


def _job(path: Path, arm: Arm, key: tuple[str, int], identity: Mapping[str, str]) -> jobs.Job:
    """The call that trains a row."""
    folder = _runs(path) / _digest(json.dumps(identity))
    arguments = {"arm": arm.plain(), "seed": key[1], "folder": str(folder.absolute()), "identity": dict(identity)}
    return jobs.Job(f"arm {key[0]!r}, seed {key[1]}", TRAIN, arguments, folder.with_suffix(".lock"))


def _runs(path: Path) -> Path:
    """The folder of the training runs of rows that a file does not hold yet."""
    return path.with_name(f".{path.name}.runs")


@contextmanager
def _runs_folder(path: Path) -> Iterator[Path]:
    """The folder of training runs, which a block needs; it is removed if it is empty at the end."""
    _runs(path).mkdir(parents=True, exist_ok=True)
    try:
        yield _runs(path)
    finally:
        with suppress(OSError):  # rows go on there
            _runs(path).rmdir()


def _remove_runs(path: Path, identities: Iterable[Mapping[str, str]]) -> None:
    """Remove what is left of the training runs of rows that a file holds; a run that was killed may leave it."""
    if _runs(path).is_dir():
        with _runs_folder(path) as folder:
            for identity in identities:
                shutil.rmtree(folder / _digest(json.dumps(identity)), ignore_errors=True)


def read(path: str | os.PathLike, arms: Mapping[str, Arm], seeds: Iterable[int]) -> pd.DataFrame:
    """The rows of these arms and seeds, in this order; ValueError if one is missing or has other settings."""
    rows = {_key(r): r for r in read_rows(path).to_dict("records")}
    for name, arm in arms.items():
        for seed in seeds:
            if not rows.get((name, seed), {}).items() >= arm.identity(seed).items():
                raise ValueError(
                    f"{path} has no row for arm {name!r}, seed {seed}, with these settings; run with full=True"
                )
    return pd.DataFrame([rows[name, seed] for name in arms for seed in seeds])


def retrain_row(path: str | os.PathLike, arm: str, seed: int) -> pd.DataFrame:
    """Train a row again as its command says, in another process; nothing else that is in the file is run.

    returns  a table with a row for each score: "row" is the value in the file, "again" the new one, "spread" the
             standard deviation over the seeds of the arm. On the machine that wrote the file, "row" equals "again"
    raises   ValueError for a row that the file does not have, or whose command trains no arm of a grid;
             RuntimeError, with its message, if the training run fails
    """
    rows = read_rows(path)
    of_arm = rows[rows["arm"] == arm]
    matching = of_arm[of_arm["seed"] == seed].to_dict("records")
    if not matching:
        known = (
            f"it has the seeds {of_arm['seed'].tolist()}" if len(of_arm) else f"it has {rows['arm'].unique().tolist()}"
        )
        raise ValueError(f"{path} has no row for arm {arm!r}, seed {seed}; {known}")
    row = matching[0]
    try:
        described, trained_seed = Arm.from_command(row["command"])
    except ValueError as error:
        raise ValueError(f"{path}, arm {arm!r}, seed {seed}: {error}; it is not run") from error
    try:
        arguments = {"arm": described.plain(), "seed": trained_seed}
        scores = jobs.run_here(jobs.Job(f"arm {arm!r}, seed {seed}", TRAIN, arguments))
    except jobs.JobError as error:
        raise RuntimeError(f"{row['command']}\nerror: {error}") from error
    scores = {name: value for name, value in scores.items() if name not in ("steps", "train_s", "parameters", "torch")}
    if missing := [name for name in scores if name not in rows]:
        raise ValueError(f"{path} has no column {missing[0]!r}, which the rows of arm {arm!r} have")
    spread = of_arm[list(scores)].std()
    return pd.DataFrame({"row": {k: row[k] for k in scores}, "again": scores, "spread": spread})


def _changed(x: Any) -> Any:
    """A paper as plain values without fields that have their default, so that a field added later changes no row."""
    if not is_dataclass(x):
        return [_changed(each) for each in x] if isinstance(x, tuple) else x
    values = {f.name: getattr(x, f.name) for f in fields(x) if f.name != "given"}
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(x)}
    return {name: _changed(value) for name, value in values.items() if value != defaults[name]}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["arm"], row["seed"]


def summary(rows: pd.DataFrame, scores: Iterable[str]) -> pd.DataFrame:
    """The mean and the spread (standard deviation over the seeds) of some scores, one row per arm."""
    groups = rows.groupby("arm", sort=False)[list(scores)]
    return pd.concat({"mean": groups.mean(), "spread": groups.std()}, axis=1).swaplevel(axis=1)[list(scores)]


def _retrain(args: argparse.Namespace) -> int:
    """Train the chosen rows of a file again and print how they compare; returns the number of scores that differ."""
    rows, differing = read_rows(args.file), 0
    chosen = [
        (arm, seed)
        for arm, seed in rows[["arm", "seed"]].itertuples(index=False)
        if (not args.arm or arm in args.arm) and (not args.seed or seed in args.seed)
    ]
    if not chosen:
        raise ValueError(f"{args.file} has no such row; its arms are {', '.join(rows['arm'].unique())}")
    for arm, seed in chosen if args.any is None else random.sample(chosen, min(args.any, len(chosen))):
        scores = retrain_row(args.file, arm, seed)
        changed = scores[scores["row"] != scores["again"]]
        differing += len(changed)
        print(f"{arm}, seed {seed}: {len(scores) - len(changed)} of {len(scores)} scores are the same", flush=True)
        if len(changed):
            print(changed.round(2).to_string(), flush=True)
    return differing


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train rows of a file again; exit status 1 if a score differs."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.grid", description="Train rows of a grid again.")
    parser.add_argument("file", help="a CSV file that `mrlib.grid.run` wrote")
    parser.add_argument("--arm", nargs="+", action="extend", default=[], help="arms of the file; default: all")
    parser.add_argument("--seed", type=int, nargs="+", action="extend", default=[], help="default: all")
    parser.add_argument("--any", type=int, metavar="N", help="of these rows, N drawn at random")
    args = parser.parse_args(arguments)
    try:
        with stopping.with_status():
            differing = _retrain(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
