"""Where pictures are written: `plots.save` writes to the given path; notebooks take theirs from the package."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mrlib import plots

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.py"))


@pytest.fixture
def fig():
    plt.switch_backend("agg")
    fig, _ = plots.figure(1, 1)
    yield fig
    plt.close(fig)


@pytest.mark.parametrize("name", ["00_task", "00_task.png"])
def test_a_picture_and_its_table_are_written_side_by_side(fig, name, tmp_path):
    table = pd.DataFrame({"score": [1.5]})
    plots.save(fig, tmp_path / "new" / name, table)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["00_task.csv", "00_task.png"]
    assert plt.imread(tmp_path / "new/00_task.png").ndim == 3
    assert (tmp_path / "new/00_task.csv").read_text() == "score\n1.5\n"


def test_a_picture_without_a_table_is_one_file(fig, tmp_path):
    plots.save(fig, tmp_path / "04_map")
    assert [file.name for file in tmp_path.iterdir()] == ["04_map.png"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_takes_the_folder_of_its_figures_from_the_package(file):
    """papermill runs in the current folder, nbval in that of the notebook."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines.count('figures = Path(mrlib.__file__).resolve().parent.parent / "figures"') == 1
    assert sum(line.startswith("figures =") for line in lines) == 1
