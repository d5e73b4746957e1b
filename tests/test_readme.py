"""What the README says is so."""

import re
from pathlib import Path

import pandas as pd
import pytest

from mrlib import grid, papers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_file_it_points_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


TABLES = {"A²FA + F²SGD": "04_grid.csv", "MATR": "02_grid.csv", "AMR": "01_grid.csv", "TD-DETR": "05_grid.csv"}
COLUMNS = {"R1@0.5": "MR-full-R1@0.5", "R1@0.7": "MR-full-R1@0.7", "mAP": "MR-full-mAP", "mIoU": "mIoU"}
COLUMNS |= {"R1@0.5, homes moved": "val_shift/MR-full-R1@0.5", "R1@0.5, new context": "dynamic_context/MR-full-R1@0.5"}


@pytest.mark.parametrize("paper", TABLES)
def test_a_table_of_results_is_the_committed_grid(paper):
    (found,) = re.findall(
        rf"^\| {re.escape(paper)}, simulated \|([^\n]*)\|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", README, re.M
    )
    scores = [name.strip() for name in found[0].split("|")][:3]
    rows = pd.read_csv(ROOT / "figures" / TABLES[paper]).rename(columns={v: k for k, v in COLUMNS.items()})
    table = grid.summary(rows, scores).round(1)
    arms = [line.strip("| ").split("|") for line in found[1].splitlines()]
    assert len(arms) >= 4
    for name, *cells in arms:
        arm = table.loc[name.strip()]
        values = [f"{arm[s, 'mean']:.1f} ± {arm[s, 'spread']:.1f}" for s in scores]
        assert [cell.strip() for cell in cells[:3]] == values, name


def test_every_paper_has_its_row():
    for name in papers.PAPERS:
        assert f'"{name}"' in README


def test_continuous_integration_runs_the_command_it_gives():
    assert '"$venv/bin/pytest" --nbval\n' in (ROOT / ".ci" / "run").read_text()
    assert ".venv/bin/pytest --nbval\n" in README
