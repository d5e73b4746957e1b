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
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from mrlib import locks, papers
from mrlib.files import write_whole
from mrlib.grid_file import read_rows
from mrlib.train import experiment, headline
from mrlib.training import cli, stopping

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


def run(path: str | os.PathLike, arms: Mapping[str, Arm], seeds: Iterable[int], processes: int = 2) -> pd.DataFrame:
    """Train the rows that `path` does not hold yet and return the rows of these arms and seeds.

    While another process does the same with this file, this one waits, and says for whom.

    path       CSV file; every row is written as soon as it is trained, so a run that was stopped can be continued
    processes  how many rows are trained at the same time, each on one thread
    raises     ValueError, naming the file, if it is damaged
    """
    path, seeds = Path(path), list(seeds)
    wanted = {(name, seed): arm.identity(seed) for name, arm in arms.items() for seed in seeds}
    if wanted.keys() - _valid(_rows(path), wanted):
        with locks.hold(path.with_name(f".{path.name}.lock"), f"grid {path}", wait=True):
            _train_missing(path, arms, wanted, processes)
    _remove_runs(path, wanted.values())
    return read(path, arms, seeds)


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path).to_dict("records") if path.is_file() else []


def _valid(rows: Iterable[Mapping[str, Any]], wanted: Mapping[tuple[str, int], dict[str, str]]) -> set[tuple[str, int]]:
    """The keys of the rows that are wanted and have the wanted settings."""
    return {_key(r) for r in rows if _key(r) in wanted and r.items() >= wanted[_key(r)].items()}


def _train_missing(
    path: Path, arms: Mapping[str, Arm], wanted: Mapping[tuple[str, int], dict[str, str]], processes: int
) -> None:
    """Train the wanted rows that a file does not hold and write each as soon as it is trained."""
    rows = _rows(path)
    valid = _valid(rows, wanted)
    rows = [r for r in rows if _key(r) in valid or _key(r) not in wanted]
    order = {key: i for i, key in enumerate(wanted)}
    folders = {key: _runs(path) / _digest(json.dumps(wanted[key])) for key in wanted if key not in valid}
    with _workers(processes) as pool:
        waiting = {pool.submit(_train_in_worker, arms[key[0]], key[1], folder): key for key, folder in folders.items()}
        no_bar = not waiting or sys.stderr is None
        for future in tqdm(as_completed(waiting), total=len(waiting), desc=path.name, disable=no_bar):
            key = waiting[future]
            origin = {"torch": torch.__version__.split("+")[0], "date": date.today().isoformat()}
            rows.append({"arm": key[0], "seed": key[1]} | future.result() | origin | wanted[key])
            rows.sort(key=lambda r: order.get(_key(r), len(order)))
            write_whole(path, pd.DataFrame(rows).to_csv(index=False))
            shutil.rmtree(folders[key], ignore_errors=True)


def _runs(path: Path) -> Path:
    """The folder of the training runs of rows that a file does not hold yet."""
    return path.with_name(f".{path.name}.runs")


def _remove_runs(path: Path, identities: Iterable[Mapping[str, str]]) -> None:
    """Remove what is left of the training runs of rows that a file holds; a run that was killed may leave it."""
    for identity in identities:
        shutil.rmtree(_runs(path) / _digest(json.dumps(identity)), ignore_errors=True)
    with suppress(OSError):  # rows of other arms go on there
        _runs(path).rmdir()


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that train rows; they end with the block, and when this process dies.

    If the block fails or is stopped, they are stopped at their next step.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _train_in_worker(arm: Arm, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """`train`; a worker that is stopped takes no other row."""
    try:
        return train(arm, seed, folder)
    except SystemExit as stopped:
        os._exit(stopped.code)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when that has died."""

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end, daemon=True).start()


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
        described = Arm.from_command(row["command"])
    except ValueError as error:
        raise ValueError(f"{path}, arm {arm!r}, seed {seed}: {error}; it is not run") from error
    try:
        with _workers(1) as pool:
            scores = pool.submit(_train_in_worker, *described).result()
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        raise RuntimeError(f"{row['command']}\nerror: {error}") from error
    scores = {name: value for name, value in scores.items() if name not in ("steps", "train_s", "parameters")}
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
