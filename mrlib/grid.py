"""Comparisons: train every arm with every seed and write one row of a CSV file for each; rows in the file are kept.

    grid.run("figures/04_grid.csv", {"full": Arm("f2sgd"), "no mask": Arm("f2sgd", {"aligner": "raw"})}, seeds=range(3))

An arm is one setting of the comparison. Each row holds the command that trains it. To train rows again and compare:

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
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from mrlib import papers
from mrlib.files import write_whole
from mrlib.train import experiment, headline

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
        folder = hashlib.blake2b(shlex.join(words).encode(), digest_size=4).hexdigest()
        return shlex.join([*words, "--out", f"runs/{folder}"])

    def identity(self, seed: int) -> dict[str, str]:
        """What identifies a row: its command, and a fingerprint of all settings of its paper."""
        described = json.dumps(_changed(papers.get(self.paper, self.size, **self.settings)), sort_keys=True)
        fingerprint = hashlib.blake2b(described.encode(), digest_size=4).hexdigest()
        return {"paper": f"{self.paper}-{fingerprint}", "command": self.command(seed)}


def train(arm: Arm, seed: int) -> dict[str, Any]:
    """Train one row on one thread; returns its scores, steps, seconds and number of parameters."""
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
    )
    probed = {f"{name}/{score}": headline(scores["probes"][name])[score] for name in arm.probes for score in PROBED}
    cost = {"steps": history.rows[-1]["step"], "train_s": round(sum(t["train_s"] for t in history.times), 1)}
    return headline(scores) | probed | cost | {"parameters": sum(p.numel() for p in retriever.parameters())}


def run(path: str | os.PathLike, arms: Mapping[str, Arm], seeds: Iterable[int], processes: int = 2) -> pd.DataFrame:
    """Train the rows that `path` does not hold yet and return the rows of these arms and seeds.

    path       CSV file; every row is written as soon as it is trained, so a run that was stopped can be continued
    processes  how many rows are trained at the same time, each on one thread
    """
    path, seeds = Path(path), list(seeds)
    wanted = {(name, seed): arm.identity(seed) for name, arm in arms.items() for seed in seeds}
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    valid = {_key(r) for r in rows if _key(r) in wanted and r.items() >= wanted[_key(r)].items()}
    rows = [r for r in rows if _key(r) in valid or _key(r) not in wanted]
    missing = [key for key in wanted if key not in valid]
    order = {key: i for i, key in enumerate(wanted)}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(train, arms[name], seed): (name, seed) for name, seed in missing}
        for future in tqdm(as_completed(waiting), total=len(waiting), desc=path.name, disable=not waiting):
            name, seed = waiting[future]
            origin = {"torch": torch.__version__.split("+")[0], "date": date.today().isoformat()}
            rows.append({"arm": name, "seed": seed} | future.result() | origin | wanted[name, seed])
            rows.sort(key=lambda r: order.get(_key(r), len(order)))
            write_whole(path, pd.DataFrame(rows).to_csv(index=False))
    return read(path, arms, seeds)


def read(path: str | os.PathLike, arms: Mapping[str, Arm], seeds: Iterable[int]) -> pd.DataFrame:
    """The rows of these arms and seeds, in this order; ValueError if one is missing or has other settings."""
    rows = {_key(r): r for r in pd.read_csv(path).to_dict("records")}
    for name, arm in arms.items():
        for seed in seeds:
            if not rows.get((name, seed), {}).items() >= arm.identity(seed).items():
                raise ValueError(
                    f"{path} has no row for arm {name!r}, seed {seed}, with these settings; run with full=True"
                )
    return pd.DataFrame([rows[name, seed] for name in arms for seed in seeds])


def retrain_row(path: str | os.PathLike, arm: str, seed: int) -> pd.DataFrame:
    """Train a row again by its command.

    returns  a table with a row for each score: "row" is the value in the file, "again" the new one, "spread" the
             standard deviation over the seeds of the arm. On the machine that wrote the file, "row" equals "again"
    raises   ValueError for a row that the file does not have; RuntimeError, with its message, if the command fails
    """
    rows = pd.read_csv(path)
    of_arm = rows[rows["arm"] == arm]
    matching = of_arm[of_arm["seed"] == seed].to_dict("records")
    if not matching:
        known = (
            f"it has the seeds {of_arm['seed'].tolist()}" if len(of_arm) else f"it has {rows['arm'].unique().tolist()}"
        )
        raise ValueError(f"{path} has no row for arm {arm!r}, seed {seed}; {known}")
    row = matching[0]
    words = shlex.split(row["command"])[1:]
    with tempfile.TemporaryDirectory() as folder:
        words[words.index("--out") + 1] = folder
        process = subprocess.run([sys.executable, *words, "--device", "cpu"], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{row['command']}\n{process.stderr.strip()}")
    printed = json.loads(process.stdout)
    scores = {k: v for k, v in printed.items() if k not in ("beside", "probes")}
    for probe, each in printed.get("probes", {}).items():
        scores |= {f"{probe}/{score}": each[score] for score in PROBED}
    spread = of_arm[list(scores)].std()
    return pd.DataFrame({"row": {k: row[k] for k in scores}, "again": scores, "spread": spread})


def _changed(x: Any) -> Any:
    """A paper as plain values without fields that have their default, so that a field added later changes no row."""
    if not is_dataclass(x):
        return [_changed(each) for each in x] if isinstance(x, tuple) else x
    values = {f.name: getattr(x, f.name) for f in fields(x) if f.name != "given"}
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(x)}
    return {name: _changed(value) for name, value in values.items() if value != defaults[name]}


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["arm"], row["seed"]


def summary(rows: pd.DataFrame, scores: Iterable[str]) -> pd.DataFrame:
    """The mean and the spread (standard deviation over the seeds) of some scores, one row per arm."""
    groups = rows.groupby("arm", sort=False)[list(scores)]
    return pd.concat({"mean": groups.mean(), "spread": groups.std()}, axis=1).swaplevel(axis=1)[list(scores)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train rows of a file again; exit status 1 if a score differs."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.grid", description="Train rows of a grid again.")
    parser.add_argument("file", help="a CSV file that `mrlib.grid.run` wrote")
    parser.add_argument("--arm", nargs="+", action="extend", default=[], help="arms of the file; default: all")
    parser.add_argument("--seed", type=int, nargs="+", action="extend", default=[], help="default: all")
    parser.add_argument("--any", type=int, metavar="N", help="of these rows, N drawn at random")
    args = parser.parse_args(arguments)
    differing = 0
    try:
        rows = pd.read_csv(args.file)
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
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
