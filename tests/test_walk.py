"""How many files a reader opens to follow a batch from the dataset to its predictions."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mrlib
from mrlib import papers
from mrlib.align import Aligned
from mrlib.data import Batch, Labels
from mrlib.detect import Moments

ROOT = Path(mrlib.__file__).parent
MOST_FILES = 5  # data/__init__.py, data/dataset.py, retriever.py, the aligner's and the detector's
CASES = [(name, None) for name in papers.PAPERS] + [("amr", name) for name in papers.PREPARATIONS]


def files_entered(function: Callable[[], Any]) -> dict[str, set[str]]:
    """The files of mrlib that a batch enters while `function` runs, with the functions that take or return it.

    A batch enters a file when a function of the file is called with the batch or with what it became, or returns it: a
    `Batch`, its `Labels`, an `Aligned` or `Moments`. A dict of outputs travels beside its batch.
    Files whose functions take plain tensors only are not counted: `layers`, `ops`, `align.words`, `detect.dab`.
    """
    entered: dict[str, set[str]] = {}

    def record(frame: FrameType, event: str, value: Any) -> None:
        code = frame.f_code
        file = Path(code.co_filename)
        if event not in ("call", "return") or ROOT not in file.parents:
            return
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [frame.f_locals.get(name) for name in arguments] if event == "call" else [value]
        if any(isinstance(each, Batch | Labels | Aligned | Moments) for each in values):
            entered.setdefault(file.relative_to(ROOT).as_posix(), set()).add(code.co_qualname)

    sys.setprofile(record)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize(("name", "preparation"), CASES)
def test_a_batch_enters_at_most_five_files_on_its_way_to_predictions(name, preparation):
    """With the stages' preparations too, which change AMR's detector."""
    paper = papers.get(name, "small")
    dataset = papers.open_split(paper, "sim", split="val", n=4)
    retriever = papers.build(paper, dataset)
    if preparation is not None:
        papers.prepare(retriever, preparation)
    entered = files_entered(lambda: retriever.predict(dataset.batch([0, 1, 2])))
    assert {"data/__init__.py", "data/dataset.py", "retriever.py"} < entered.keys()
    lines = [f"{file}: {', '.join(sorted(functions))}" for file, functions in entered.items()]
    assert len(entered) <= MOST_FILES, "\n".join(lines)


def test_a_function_that_takes_or_returns_a_batch_is_recorded():
    """So that the test above can fail: by name, with its file, and only while the trace runs."""
    dataset = papers.open_split(papers.get("f2sgd", "small"), "sim", split="val", n=2)
    entered = files_entered(lambda: dataset.batch([0, 1]).unlabelled())
    assert entered["data/dataset.py"] >= {"MomentDataset.batch"}
    assert "Batch.unlabelled" in entered["data/__init__.py"]
    assert sys.getprofile() is None
