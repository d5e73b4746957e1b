"""Problems of data files, as the readers raise them and as `mrlib.data.check` lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem in one place of a file."""

    file: str
    line: int | None  # of an annotation file, from 1; or the number of what `unit` names
    kind: str  # the field, or the kind of defect: "json", "missing file", "missing key", "shape", "nan", ...
    message: str  # what is wrong and what to do
    fatal: bool = True  # False: the reader continues
    unit: str = "line"  # "item": an entry of a JSON list, from 0
    place: str = ""  # of a window that is not inside its video, see `mrlib.data.lines.Defect`

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
    """A file that is needed does not exist."""


class MissingKey(DataError, KeyError):
    """A file does not contain the array that is needed."""


def counted(n: int, noun: str) -> str:
    """A number with its noun, as "1 problem" and "2 problems"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
