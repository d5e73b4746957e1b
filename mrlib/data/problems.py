"""What can be wrong with a data file: said once, raised by the readers and listed by `mrlib.data.check`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place."""

    file: str
    line: int | None  # of an annotation file, from 1; or what `unit` counts
    kind: str  # the field, or what sort of defect: "json", "missing file", "missing key", "shape", "nan", ...
    message: str  # what is wrong and what to do
    fatal: bool = True  # False: the reader can go on, and does
    unit: str = "line"  # "item": an entry of a JSON list, from 0

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', {self.unit} {self.line}'}: {self.kind}: {self.message}"


class DataError(ValueError):
    """A problem that stops a reader."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem

    def __str__(self) -> str:  # KeyError would print its argument quoted
        return self.args[0]


class MissingFile(DataError, FileNotFoundError):
    """A file that should be there."""


class MissingKey(DataError, KeyError):
    """A file without the array that should be in it."""
