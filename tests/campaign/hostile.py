"""Hostile ids, and things that are no files in the places of files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from mrlib import grid, open_dataset
from mrlib.sim import export
from tests.campaign.files import Case, case
from tests.campaign.forks import forked
from tests.support.answers import Answer, answer
from tests.support.damage import Damage
from tests.support.files import line, moment_detr, write_lines
from tests.support.inputs import KINDS, copied, opening, table

IDS: list[Any] = ["../outside", "../../outside", "/outside", "a/b", "..", ".", "", " ", "~", "~root", "$HOME", "a\0b"]
IDS += ["a\nb", "x" * 255, "x" * 256, "é" * 200, "x" * 5000, "\ud800", "con", "nul.npz", "{vid}", "{0}", "%s", "*"]
IDS += ["[a]", "-rf", "file:///etc/passwd", "\\\\host\\x", "C:\\x", "a:b", "a;b", "\u202eabc", "\u200b", "\x7f"]
IDS += ["\x1b[31m", 0, -1, 2**70, 1.5, True, None, [], {}, float("nan")]


def a_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_link_to_nothing(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("nothing")


def a_link_to_zeros(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_socket(path: Path, random: Random) -> None:
    path.unlink()
    os.chdir(path.parent)  # an address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def nothing(path: Path, random: Random) -> None:
    path.unlink()


def very_long(path: Path, random: Random) -> None:
    """Zeros behind the content, 3 GB of them; they take no room on disk."""
    os.truncate(path, 3_000_000_000)


def one_long_line(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b" " * 150_000_000 + b"\n")


SPECIAL: list[Damage] = [a_folder, a_pipe, a_link_to_itself, a_link_to_nothing, a_link_to_zeros, a_socket, nothing]
SPECIAL += [very_long, one_long_line]
PIPED = ("predictions", "truth")  # as in `python -m mrlib.metrics <(zcat predictions.gz) truth.jsonl`


def hostile(folder: Path, seed: int, only: str = "") -> Iterator[Case]:
    """No files in the place of every kind of file; odd ids in annotations and in what the simulator writes."""
    for number, kind in enumerate(KINDS):
        if not kind.name.startswith(only):
            continue
        whole, here = folder / f"special{number}" / "whole", folder / f"special{number}" / "here"
        here.mkdir(parents=True)
        forked(lambda kind=kind, here=here: kind.make(here) and None)
        copied(here, whole)
        expected = forked(lambda kind=kind, here=here: kind.read(here))
        copied(whole, here)
        needed = forked(lambda kind=kind, here=here: answer(lambda: kind.read(here), [], None))
        for damage in SPECIAL:
            if damage is a_pipe and kind.name in PIPED:
                continue
            one = replace(kind, name=f"special: {kind.name}", damages=(damage,))
            yield case(one, whole, here, f"{seed}", expected, needed)
    if "ids".startswith(only):
        yield from odd_ids(folder)
    if "grid commands".startswith(only):
        yield from commands(folder)


def odd_ids(folder: Path) -> Iterator[Case]:
    read = opening("qvhighlights")
    for number, name in enumerate(IDS):
        for field in ("vid", "qid"):
            yield guarded(f"ids: {field}", name, folder / f"id{number}{field}", partial(planted, field, name), read)
        if isinstance(name, str):
            root = folder / f"export{number}"
            yield guarded("ids: export", name, root, lambda root: None, partial(exported, name))


def planted(field: str, name: Any, root: Path) -> None:
    """A dataset with an odd id, and features outside its folder, where the id may lead."""
    moment_detr(root)
    write_lines(root / "highlight_val_release.jsonl", [line(1), line(2, vid="video_b"), line(3) | {field: name}])
    for place in (root.parent, root.parent.parent, root):
        for outside in ("outside.npz", "qidoutside.npz"):
            np.savez(place / outside, features=np.ones((10, 6), np.float32))


def exported(name: str, root: Path) -> str:
    """Write a simulated dataset with an odd id."""
    dataset = open_dataset("sim", split="val", n=2, size="small")
    samples = [replace(dataset.samples[0], vid=name), dataset.samples[1]]
    export(replace(dataset, samples=samples), root)
    return "written"


def guarded(kind: str, name: Any, root: Path, make: Callable[[Path], None], read: Callable[[Path], Any]) -> Case:
    """Make and read in a folder of its own; nothing may appear beside it."""
    cage = root / "cage" / "data"
    cage.mkdir(parents=True)
    forked(lambda: make(cage))
    before = sorted(root.rglob("*"))
    try:
        got = forked(lambda: answer(lambda: read(cage), [str(cage), "highlight_val", "grid.csv", repr(name)]), 20)
    except (TimeoutError, ChildProcessError) as error:
        got = Answer("bare", str(error), 0, 0)
    if outside := [p for p in sorted(root.rglob("*")) if p not in before and cage not in p.parents]:
        got = Answer("silent", f"writes outside its folder: {outside[:3]}", 0, 0)
    return Case(kind, repr(name)[:40], got)


COMMANDS = [
    "python -c \"open('planted', 'w')\" --out x",
    "python -m mrlib.train f2sgd --out x; touch planted",
    "python -m mrlib.train $(touch planted) --out x",
    "touch planted --out x",
    "python planted.py --out x",
    "python -m tests.campaign --out x",
    "python -m mrlib.train f2sgd --root ../.. --out x",
    "python -m mrlib.train f2sgd --size small --out",
    "python -m mrlib.train f2sgd --size small --out x --out ../../y",
    "python -m mrlib.train nothing --out x",
    "python -m mrlib.train f2sgd --data n=abc --out x",
    "python -m mrlib.train f2sgd --size small --set 'x",
    "",
]


def commands(folder: Path) -> Iterator[Case]:
    """Grids whose rows have commands that train nothing."""
    for number, command in enumerate(COMMANDS):
        yield guarded("grid commands", command, folder / f"grid{number}", partial(with_command, command), retrained)


def with_command(command: str, root: Path) -> None:
    table(root)
    frame = pd.read_csv(root / "grid.csv")
    frame["command"] = command
    frame.to_csv(root / "grid.csv", index=False)
    (root / "planted.py").write_text("open('planted', 'w')")


def retrained(root: Path) -> str:
    os.chdir(root)
    try:
        grid.main(["grid.csv", "--arm", "raw", "--seed", "0"])
    finally:
        assert not list(root.rglob("planted")), "the command was run"
    return "trained"
