"""Damaged files of every kind that mrlib reads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.campaign.forks import forked
from tests.support.answers import Answer, answer
from tests.support.inputs import KINDS, Kind, copied, damaged_file


class Case(NamedTuple):
    kind: str
    what: str  # the damage, and the number that repeats it
    answer: Answer


def damaged(folder: Path, seed: int, count: int, only: str = "") -> Iterator[Case]:
    """Damage `count` files in all, equally many of each kind whose name begins with `only`."""
    kinds = [kind for kind in KINDS if kind.name.startswith(only)] if count else []
    for number, kind in enumerate(kinds):
        share = count // len(kinds) + (number < count % len(kinds))
        whole, here = folder / str(number) / "whole", folder / str(number) / "here"
        here.mkdir(parents=True)
        forked(lambda kind=kind, here=here: kind.make(here) and None, 300)
        copied(here, whole)
        expected = forked(lambda kind=kind, here=here: kind.read(here), 300)
        copied(whole, here)
        needed = forked(lambda kind=kind, here=here, expected=expected: answer(lambda: kind.read(here), [], expected))
        assert needed.kind in ("same", "slow", "memory"), f"{kind.name}: two readings of a whole file differ: {needed}"
        for i in range(share):
            yield case(kind, whole, here, f"{seed} {kind.name} {i}", expected, needed)


def case(kind: Kind, whole: Path, here: Path, seed: str, expected: object, needed: Answer) -> Case:
    """Damage one file and read it, both in processes of their own.

    expected, needed  what the whole file gives, and what reading it takes
    """
    copied(whole, here)
    file, random = damaged_file(kind, here), Random(seed)
    damage = random.choice(kind.damages)
    os.chdir(here)  # what unpickling would make appears here
    what = f"{damage.__name__} ({seed!r})"

    def strike() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damage(file, random)

    try:
        forked(strike)
        names = [file.name, str(here), *kind.names]
        options = {"protected": kind.protected, "one_line": kind.one_line, "needed": needed}
        got = forked(lambda: answer(lambda: kind.read(here), names, expected, **options), 40)
    except (TimeoutError, ChildProcessError) as error:
        got = Answer("slow" if isinstance(error, TimeoutError) else "bare", f"{error}", 0, 0)
    if (here / "planted").exists():
        got = Answer("bare", "something in the file was executed", 0, 0)
    if leftover := [path.name for path in here.rglob("*.partial")]:
        got = Answer("bare", f"leaves {leftover[0]} behind", 0, 0)
    return Case(kind.name, what, got)
