"""What the README says is so."""

import re
from pathlib import Path

import pandas as pd

from mrlib import grid, papers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_file_it_points_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_the_table_of_results_is_the_committed_grid():
    rows = pd.read_csv(ROOT / "figures" / "04_grid.csv")
    scores = ["MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"]
    table = grid.summary(rows, scores).round(1)
    named = {name.strip(): cells for name, cells in re.findall(r"^\| ([^|]+?) \| ([^\n]*±[^\n]*)\|$", README, re.M)}
    assert set(named) >= {"no A²FA (raw clips)", "align only", "re-weight and align"}
    for arm, cells in named.items():
        values = [f"{table.loc[arm, (s, 'mean')]:.1f} ± {table.loc[arm, (s, 'spread')]:.1f}" for s in scores]
        assert [c.strip() for c in cells.split("|")][:3] == values, arm


def test_every_paper_has_its_row():
    for name in papers.PAPERS:
        assert f'"{name}"' in README


def test_continuous_integration_runs_the_command_it_gives():
    assert '"$venv/bin/pytest" --nbval\n' in (ROOT / ".ci" / "run").read_text()
    assert ".venv/bin/pytest --nbval\n" in README
