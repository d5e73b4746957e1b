"""Rules for committed notebooks, and the check of their parameters; `pytest --nbval` checks that they run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jupytext
import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from mrlib.notebooks import check_parameters
from tests.support import seeds

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = ["dataset", "root", "size", "epochs", "batch_size", "seed", "device", "out_dir", "full", "save_figures"]
OPTIONAL = {"epochs", "batch_size", "out_dir", "full"}  # of a notebook that trains nothing, or has no grid
VIDEOS = "07_your_video"  # opens a video file, and no dataset but simulated ones of one size
OF_DATASETS = {"dataset", "root", "size", "device"}
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


CHECK = "from mrlib.notebooks import check_parameters\n\ncheck_parameters(globals())\n"


def given(cell: str, **values) -> dict:
    """The names after a parameters cell and the cell that papermill puts below it."""
    namespace = {"In": ["", cell], "Out": {}, "get_ipython": print, "_i1": cell}
    exec(compile(cell, "parameters", "exec", dont_inherit=True), namespace)  # annotations are types, as in a kernel
    return namespace | values


SOME = """
root: str = ""  # a folder
epochs: int = 4  # passes
lr: float = 0.0  # learning rate
full: bool = False  # all of it
"""


def test_a_parameter_of_another_type_is_converted_where_papermill_could_not_know():
    namespace = given(SOME, root=2024, epochs=2.0, lr=1, full="false")
    check_parameters(namespace)
    assert [namespace[name] for name in ("root", "epochs", "lr", "full")] == ["2024", 2, 1.0, False]
    assert [type(namespace[name]) for name in ("root", "epochs", "lr", "full")] == [str, int, float, bool]


def test_parameters_of_their_own_type_stay_as_they_are():
    values = {"root": "data/2024", "epochs": -1, "lr": 1e-4, "full": True}
    namespace = given(SOME, **values)
    check_parameters(namespace)
    assert {name: namespace[name] for name in values} == values


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("root", None, "text"),
        ("root", ["a"], "text"),
        ("epochs", "ten", "a number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a number"),
        ("epochs", None, "a number"),
        ("epochs", float("inf"), "a number"),
        ("lr", "fast", "a number"),
        ("lr", float("nan"), "a number"),
        ("full", "yes please", "true or false"),
        ("full", 2, "true or false"),
    ],
)
def test_a_value_that_cannot_be_converted_is_refused_by_the_name_of_its_parameter(name, value, wanted):
    with pytest.raises(ValueError, match=f"^{name} must be {wanted}, not ") as error:
        check_parameters(given(SOME, **{name: value}))
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(("name", "close"), [("epoch", "epochs"), ("Root", "root"), ("learning", None)])
def test_an_unknown_parameter_is_refused_with_the_closest_that_there_is_and_all_of_them(name, close):
    with pytest.raises(ValueError, match=f"no parameter {name!r}") as error:
        check_parameters(given(SOME, **{name: 3}))
    assert (f"did you mean {close!r}?" in str(error.value)) == (close is not None)
    assert str(error.value).endswith("It has: root, epochs, lr, full")


def test_names_that_a_notebook_defines_later_are_no_parameters_when_its_first_cell_runs_again():
    namespace = given(SOME)
    check_parameters(namespace)
    namespace |= {"simulated": True, "epochs": 6.0}
    check_parameters(namespace)
    assert namespace["epochs"] == 6 and type(namespace["epochs"]) is int


def test_a_notebook_checks_its_parameters_before_anything_else(notebook):
    """An unknown one is refused, whatever the notebook."""
    parameters, first, *_ = map(source, code_cells(notebook))
    assert first.startswith(CHECK)
    check_parameters(given(parameters))
    with pytest.raises(ValueError, match="no parameter 'epoch'"):
        check_parameters(given(parameters, epoch=3))


def test_papermill_stops_at_the_first_cell_if_a_parameter_does_not_exist(tmp_path):
    arguments = {"parameters": {"epoch": 3}, "progress_bar": False}
    with pytest.raises(PapermillExecutionError, match="no parameter 'epoch'; did you mean 'epochs'"):
        papermill.execute_notebook(FOLDER / "04_f2sgd.ipynb", tmp_path / "out.ipynb", **arguments)
    made = json.loads((tmp_path / "out.ipynb").read_text())
    ran = [
        cell for cell in code_cells(made) if cell["execution_count"] and "papermill-error-cell-tag" not in tags(cell)
    ]
    assert [tags(cell)[:1] for cell in ran] == [["parameters"], ["injected-parameters"], []]


def test_what_runs_with_several_seeds_measure_is_a_row_per_seed(tmp_path, monkeypatch, capsys):
    """An error in a cell is told, and a row that is there already replaced."""
    for folder in ("notebooks", "figures"):
        (tmp_path / folder).mkdir()
    cells = [
        '# %% tags=["parameters"]\nseed: int = 0  # of all',
        "# %%\nmeasured = {'half': seed / 2}\nassert seed < 3",
    ]
    (tmp_path / "notebooks" / "09_toy.py").write_text("\n\n".join(cells))
    (tmp_path / "figures" / "09_seeds.csv").write_text("seed,half\n1,7.0\n4,2.0\n")
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="1"):
        seeds.main(["09_toy", "--seeds", "3", "1"])
    assert (tmp_path / "figures" / "09_seeds.csv").read_text() == "seed,half\n1,0.5\n3,1.5\n4,2.0\n"
    assert capsys.readouterr().out.splitlines() == ["09_toy, seed 3: AssertionError: ", "09_toy, seed 1: no error"]


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if not p.stem.startswith("06")], ids=lambda p: p.stem)
def test_what_a_notebook_says_of_its_runs_is_asserted_on_rows_of_at_least_three_seeds(path):
    text = path.with_suffix(".py").read_text(encoding="utf-8")
    name = f"{path.stem[:2]}_seeds.csv"
    assert f'pd.read_csv(figures / "{name}")' in text and "\nmeasured = {" in text
    rows = pd.read_csv(FOLDER.parent / "figures" / name)
    assert rows["seed"].nunique() == len(rows) >= 3


@pytest.mark.parametrize("bad", [p for p in NOTEBOOKS if p.stem[:2] not in ("06", "07")], ids=lambda p: p.stem)
def test_a_notebook_that_opens_files_passes_on_what_to_do_with_odd_lines(bad):
    """Of all its datasets; those of 06 and 07 are simulated."""
    text = bad.with_suffix(".py").read_text(encoding="utf-8")
    assert re.search(r'^bad: str = "error"  # ', text, re.MULTILINE)
    assert re.search(r'if simulated else \{"bad": bad\}', text)


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


def test_common_parameters_come_first_with_the_same_names_and_order(path, notebook):
    names = [LINE.fullmatch(line)["name"] for line in source(code_cells(notebook)[0]).splitlines()]
    common = [name for name in PARAMETERS if name in names]
    assert names[: len(common)] == common
    assert set(PARAMETERS) - set(names) <= OPTIONAL | (OF_DATASETS if path.stem == VIDEOS else set())


def test_the_notebook_about_a_video_has_the_parameters_of_a_search():
    (notebook,) = [json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS if path.stem == VIDEOS]
    names = [LINE.fullmatch(line)["name"] for line in source(code_cells(notebook)[0]).splitlines()]
    assert names[-5:] == ["video", "query", "clip", "encoder", "retriever"]


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
