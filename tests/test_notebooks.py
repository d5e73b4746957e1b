"""Rules for committed notebooks; `pytest --nbval` checks that they run and print the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = ["dataset", "root", "size", "epochs", "batch_size", "seed", "device", "out_dir", "full", "save_figures"]
OPTIONAL = {"epochs", "batch_size", "out_dir", "full"}  # of a notebook that trains nothing, or has no grid
LINE = re.compile(r"(?P<name>\w+): (str|int|float|bool) = [^#]+  # \S.*")
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(home|root|tmp|work|Users)/")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def source(cell: dict) -> str:
    return "".join(cell["source"])


def texts(value) -> list[str]:
    """Every string in a JSON value except pictures, which are base64."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() if not key.startswith("image/") for text in texts(inner)]
    if isinstance(value, list):  # the lines of one text are a list of strings
        lines = "".join(value) if all(isinstance(inner, str) for inner in value) else None
        return [lines] if lines is not None else [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def test_every_notebook_has_a_script_and_every_script_a_notebook():
    assert NOTEBOOKS
    assert [p.stem for p in NOTEBOOKS] == sorted(p.stem for p in FOLDER.glob("*.py"))


def test_a_notebook_equals_its_script(path):
    assert jupytext.writes(jupytext.read(path), fmt="py:percent") == path.with_suffix(".py").read_text(encoding="utf-8")


def test_the_kernel_is_the_default_python_3(notebook):
    kernel = notebook["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["display_name"]) == ("python3", "Python 3")


def test_the_first_code_cell_holds_the_parameters_with_comments(notebook):
    tagged = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    assert tagged == code_cells(notebook)[:1]
    lines = source(tagged[0]).splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []


def test_common_parameters_come_first_with_the_same_names_and_order(notebook):
    names = [LINE.fullmatch(line)["name"] for line in source(code_cells(notebook)[0]).splitlines()]
    common = [name for name in PARAMETERS if name in names]
    assert names[: len(common)] == common
    assert set(PARAMETERS) - set(names) <= OPTIONAL


def test_every_cell_was_run_once_in_order_without_an_error(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert any(kind == "display_data" for kind in kinds)  # pictures


def test_the_last_code_cell_asserts_and_prints_its_findings(notebook):
    last = code_cells(notebook)[-1]
    assert re.search(r"^ *assert ", source(last), re.MULTILINE)
    assert "nbval-ignore-output" not in tags(last)
    assert [output["name"] for output in last["outputs"]] == ["stdout"]


def test_outputs_that_differ_from_run_to_run_are_not_compared(notebook):
    """HTML tables contain scores; widgets, progress bars and vector graphics contain times or ids."""
    varying = {"text/html", "image/svg+xml", "application/vnd.jupyter.widget-view+json"}
    for cell in code_cells(notebook):
        kinds = varying & {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert not kinds or "nbval-ignore-output" in tags(cell), source(cell)


def test_a_notebook_contains_no_path_of_a_machine(notebook):
    assert [text for text in texts(notebook) if MACHINE_PATH.search(text)] == []


def test_links_between_notebooks_lead_to_files(notebook):
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    linked = re.findall(r"\]\((?!https?://|#)([^)#\s]+)\)", text)
    assert [link for link in linked if not (FOLDER / link).is_file()] == []


def test_a_notebook_is_small_enough_to_be_read_online(path):
    assert path.stat().st_size < 1_000_000
