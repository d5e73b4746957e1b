"""A comparison: arms x seeds, a row of a CSV file for each, written as it is done and never done twice.

    grid.run("figures/04_grid.csv", {"full": Arm("f2sgd"), "no mask": Arm("f2sgd", {"aligner": "raw"})}, seeds=range(3))

A row tells the command that trains it. To train some rows of a file once more and compare:

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

PROBED = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "mIoU")  # what a row has of a probe


@dataclass(frozen=True)
class Arm:
    """What one row trains; epochs are chosen on `val` and scored on `split`."""

    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `papers.get`
    data: Mapping[str, Any] = field(default_factory=dict)  # options of the simulator
    size: str = "small"
    split: str = "test"
    probes: tuple[str, ...] = ()  # of `mrlib.train.experiment`: scored beside, in columns PROBE/SCORE

    def command(self, seed: int) -> str:
        """The command line that trains the same."""
        words = ["python", "-m", "mrlib.train", self.paper, "--size", self.size, "--seed", str(seed)]
        for option, values in (("--set", self.settings), ("--data", self.data)):
            if values:
                words += [option, *(f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in values.items())]
        words += ["--probe", *self.probes] if self.probes else []
        words += ["--score", self.split]
        folder = hashlib.blake2b(shlex.join(words).encode(), digest_size=4).hexdigest()
        return shlex.join([*words, "--out", f"runs/{folder}"])

    def identity(self, seed: int) -> dict[str, str]:
        """By which a row is known to be of this training: its command, and every number of the paper behind it."""
        described = json.dumps(_chosen(papers.get(self.paper, self.size, **self.settings)), sort_keys=True)
        fingerprint = hashlib.blake2b(described.encode(), digest_size=4).hexdigest()
        return {"paper": f"{self.paper}-{fingerprint}", "command": self.command(seed)}


def train(arm: Arm, seed: int) -> dict[str, Any]:
    """One row's training, on one thread; returns its scores and what it cost."""
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
    """Train what `path` does not hold yet and return all its rows for these arms and seeds.

    path       CSV file; every finished row is in it at once, so that a run that was stopped goes on where it was
    processes  trainings at a time, each on one thread
    """
    path, seeds = Path(path), list(seeds)
    wanted = {(name, seed): arm.identity(seed) for name, arm in arms.items() for seed in seeds}
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {_key(r) for r in rows if r.items() >= wanted.get(_key(r), {"no": "such arm"}).items()}
    rows = [r for r in rows if _key(r) in done or _key(r) not in wanted]
    missing = [key for key in wanted if key not in done]
    order = {key: i for i, key in enumerate(wanted)}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(train, arms[name], seed): (name, seed) for name, seed in missing}
        for future in tqdm(as_completed(waiting), total=len(waiting), desc=path.name, disable=not waiting):
            name, seed = waiting[future]
            made = {"torch": torch.__version__.split("+")[0], "date": date.today().isoformat()}
            rows.append({"arm": name, "seed": seed} | future.result() | made | wanted[name, seed])
            rows.sort(key=lambda r: order.get(_key(r), len(order)))
            write_whole(path, pd.DataFrame(rows).to_csv(index=False))
    return read(path, arms, seeds)


def read(path: str | os.PathLike, arms: Mapping[str, Arm], seeds: Iterable[int]) -> pd.DataFrame:
    """The rows of these arms and seeds, in this order; a row that is missing or of other settings is an error."""
    rows = {_key(r): r for r in pd.read_csv(path).to_dict("records")}
    for name, arm in arms.items():
        for seed in seeds:
            if not rows.get((name, seed), {}).items() >= arm.identity(seed).items():
                raise ValueError(
                    f"{path} has no row for arm {name!r}, seed {seed}, with these settings; run with full=True"
                )
    return pd.DataFrame([rows[name, seed] for name in arms for seed in seeds])


def again(path: str | os.PathLike, arm: str, seed: int) -> pd.DataFrame:
    """Train a row once more, by its own command.

    returns  a row for each of its scores: "row" as the file has it, "again" as it came out now, "spread" the standard
             deviation over the seeds of the arm. On the machine that wrote the file the first two are the same digits
    raises   ValueError for a row that is not there, RuntimeError with its message where the command fails
    """
    rows = pd.read_csv(path)
    of_arm = rows[rows["arm"] == arm]
    found = of_arm[of_arm["seed"] == seed].to_dict("records")
    if not found:
        known = (
            f"it has the seeds {of_arm['seed'].tolist()}" if len(of_arm) else f"it has {rows['arm'].unique().tolist()}"
        )
        raise ValueError(f"{path} has no row for arm {arm!r}, seed {seed}; {known}")
    words = shlex.split(found[0]["command"])[1:]
    with tempfile.TemporaryDirectory() as folder:
        words[words.index("--out") + 1] = folder
        done = subprocess.run([sys.executable, *words, "--device", "cpu"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{found[0]['command']}\n{done.stderr.strip()}")
    printed = json.loads(done.stdout)
    scores = {k: v for k, v in printed.items() if k not in ("beside", "probes")}
    for probe, each in printed.get("probes", {}).items():
        scores |= {f"{probe}/{score}": each[score] for score in PROBED}
    spread = of_arm[list(scores)].std()
    return pd.DataFrame({"row": {k: found[0][k] for k in scores}, "again": scores, "spread": spread})


def _chosen(x: Any) -> Any:
    """A paper as plain values without what is as its class has it by default: a field added later changes no row."""
    if not is_dataclass(x):
        return [_chosen(each) for each in x] if isinstance(x, tuple) else x
    own = {f.name: getattr(x, f.name) for f in fields(x) if f.name != "given"}
    usual = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(x)}
    return {name: _chosen(value) for name, value in own.items() if value != usual[name]}


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["arm"], row["seed"]


def summary(rows: pd.DataFrame, scores: Iterable[str]) -> pd.DataFrame:
    """Mean and spread (standard deviation over the seeds) of some scores, a row per arm."""
    groups = rows.groupby("arm", sort=False)[list(scores)]
    return pd.concat({"mean": groups.mean(), "spread": groups.std()}, axis=1).swaplevel(axis=1)[list(scores)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train rows of a file once more; exit status 1 where a score is another."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.grid", description="Train rows of a grid once more.")
    parser.add_argument("file", help="a CSV file that `mrlib.grid.run` wrote")
    parser.add_argument("--arm", nargs="+", action="extend", default=[], help="names of its arms; default: all")
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
            scores = again(args.file, arm, seed)
            other = scores[scores["row"] != scores["again"]]
            differing += len(other)
            print(f"{arm}, seed {seed}: {len(scores) - len(other)} of {len(scores)} scores are the same", flush=True)
            if len(other):
                print(other.round(2).to_string(), flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
