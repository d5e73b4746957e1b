"""What readers do with annotated lines that are not right: the option `bad`.

    error   the first problem is raised
    skip    lines that cannot be used are left out
    clamp   windows are brought into their video, those of no length become one clip; other problems are raised

In each mode a window that ends after its video by less than a clip is cut to the video. One warning per file counts
what was changed or left out, with the first lines of each kind.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from mrlib.arguments import require
from mrlib.data import Sample
from mrlib.data.lines import EARLY, EMPTY, LATE, Line
from mrlib.data.problems import DataError, MissingFile, Problem

Mode = Literal["error", "skip", "clamp"]
FIRST = 3  # lines of each kind that a summary names
_ONE = {LATE: "ends after its video", EARLY: "starts before its video", EMPTY: "has no length"}


def mode_of(bad: str) -> Mode:
    """The mode of that name; ValueError for another name."""
    require(bad in get_args(Mode), "bad", bad, f"one of {', '.join(get_args(Mode))}")
    return bad


def settle(path: str | os.PathLike, clip_s: float, lines: Sequence[Line], bad: Mode) -> list[Sample]:
    """The samples of all lines of a file; raises the first problem that the mode does not allow, warns of others."""
    if refused := refusals(path, lines, bad):
        raise (MissingFile if refused[0].kind == "missing file" else DataError)(refused[0])
    for number, _, problems in lines:
        for problem in problems if number is None else ():
            warnings.warn(str(problem), stacklevel=4)
    if text := summary(lines, bad, clip_s):
        warnings.warn(f"{path}: {text}", stacklevel=4)
    return [sample for _, sample, _ in lines if sample is not None]


def refusals(path: str | os.PathLike, lines: Iterable[Line], bad: Mode) -> list[Problem]:
    """The problems of a file that are raised in a mode, in their order."""
    fatal = [(number, p) for number, _, problems in lines for p in problems if p.fatal]
    if bad == "skip":
        refused = [problem for number, problem in fatal if number is None]
        if not refused and not any(sample is not None for _, sample, _ in lines):
            refused.append(
                Problem(str(path), None, "empty", f"no line can be used, the first problem is: {fatal[0][1]}")
            )
        return refused
    if bad == "clamp":
        way_out = 'bad="clamp" does not mend this; bad="skip" leaves the line out'
        return [p if n is None else replace(p, message=f"{p.message}; {way_out}") for n, p in fatal]
    return [problem for _, problem in fatal]


def summary(lines: Sequence[Line], bad: Mode, clip_s: float) -> str:
    """What a mode changes and leaves out, with counts and the first lines of each kind; empty if there is nothing."""
    left_out: dict[str, list[int]] = defaultdict(list)
    changed: dict[str, list[int]] = defaultdict(list)
    for number, _, problems in lines:
        used = not any(problem.fatal for problem in problems)
        for problem in problems if number is not None else ():
            if problem.fatal:
                left_out[problem.kind].append(number)
            elif used and problem.place:
                changed[problem.place].append(number)
    unit = next((problem.unit for number, _, problems in lines if number is not None for problem in problems), "line")
    parts = []
    if bad == "skip" and left_out:
        kinds = ", ".join(f"{len(set(n))} for {kind} {_first(n, unit)}" for kind, n in left_out.items())
        count = len({number for numbers in left_out.values() for number in numbers})
        every = len({number for number, _, _ in lines if number is not None})
        parts.append(f'bad="skip" leaves out {count} of {every} {unit}s: {kinds}')
    if bad == "clamp" and changed:
        kinds = ", ".join(f"{_windows(n, place)} {_first(n, unit)}" for place, n in changed.items())
        parts.append(f'{kinds}; bad="clamp" changes them')
    elif changed:
        late = changed[LATE]
        text = f"{_windows(late, LATE)} by less than a clip of {clip_s:g} s {_first(late, unit)}"
        parts.append(f"{text}; clamped to its end")
    return "; ".join(parts)


def _windows(numbers: list[int], place: str) -> str:
    """How many windows have a place, as "2 windows have no length"."""
    return f"1 window {_ONE[place]}" if len(numbers) == 1 else f"{len(numbers)} windows {place}"


def _first(numbers: Iterable[int], unit: str) -> str:
    """The first few of some line numbers, as "(lines 3, 5, 8, ...)"."""
    unique = list(dict.fromkeys(numbers))
    more = ", ..." if len(unique) > FIRST else ""
    return f"({unit}{'s' if len(unique) > 1 else ''} {', '.join(map(str, unique[:FIRST]))}{more})"
