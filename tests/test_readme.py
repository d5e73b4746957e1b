"""The README agrees with the repository: its links, tables and commands."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mrlib import grid, papers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


TABLES = {"A²FA + F²SGD": "04_grid.csv", "MATR": "02_grid.csv", "AMR": "01_grid.csv", "TD-DETR": "05_grid.csv"}
TABLES |= {"Every model": "06_grid.csv"}
COLUMNS = {"R1@0.5": "MR-full-R1@0.5", "R1@0.7": "MR-full-R1@0.7", "mAP": "MR-full-mAP", "mIoU": "mIoU"}
COLUMNS |= {"R1@0.5, homes moved": "val_shift/MR-full-R1@0.5", "R1@0.5, new context": "dynamic_context/MR-full-R1@0.5"}


@pytest.mark.parametrize("paper", TABLES)
def test_a_table_of_results_equals_the_committed_grid(paper):
    ((header, body),) = re.findall(
        rf"^\| {re.escape(paper)}, simulated \|([^\n]*)\|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", README, re.M
    )
    scores = [name.strip() for name in header.split("|")][:3]
    rows = pd.read_csv(ROOT / "figures" / TABLES[paper]).rename(columns={v: k for k, v in COLUMNS.items()})
    table = grid.summary(rows, scores).round(1)
    arms = [line.strip("| ").split("|") for line in body.splitlines()]
    assert len(arms) >= 4
    for name, *cells in arms:
        arm = table.loc[name.strip()]
        values = [f"{arm[s, 'mean']:.1f} ± {arm[s, 'spread']:.1f}" for s in scores]
        assert [cell.strip() for cell in cells[:3]] == values, name


def test_every_paper_is_named():
    for name in papers.PAPERS:
        assert f'"{name}"' in README


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert '"$venv/bin/pytest" --nbval\n' in (ROOT / ".ci" / "run").read_text()
    assert ".venv/bin/pytest --nbval\n" in README


def test_the_example_detector_trains_as_shown(tmp_path):
    (file,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.S) if code.startswith("# my_detector.py")]
    (command,) = re.findall(r"^\.venv/bin/python my_detector.py (.*)$", README, re.M)
    (tmp_path / "my_detector.py").write_text(file)
    words = [*shlex.split(command), "--epochs", "1", "--data", "n=40", "--threads", "1"]
    process = subprocess.run([sys.executable, "my_detector.py", *words], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert 0 <= json.loads(process.stdout)["MR-full-mAP"] <= 100
    assert (tmp_path / "runs" / "mine" / "train" / "best.safetensors").is_file()


def test_the_table_of_papers_equals_the_ledger():
    """Published numbers, simulated ones with their spread, those on stand-in features, and the command."""
    ledger = pd.read_csv(ROOT / "figures" / "ledger.csv", dtype=str, keep_default_na=False)
    (table,) = re.findall(r"^\| paper \| published.*?\|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", README, re.M)
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()]
    assert [re.search(r"`(\w+)`", line[0])[1] for line in lines] == list(papers.PAPERS)
    for name, published, where, simulated, stand_in, command in lines:
        rows = ledger[ledger["paper"] == re.search(r"`(\w+)`", name)[1]]
        by_kind = {kind: rows[rows["kind"] == kind] for kind in rows["kind"].unique()}
        source, _, split = where.partition("; ")
        scores = by_kind["published"][by_kind["published"]["source"] == source]
        scores = scores[(scores["dataset"] + " " + scores["split"]).eq(split)]
        values = dict(zip(scores["score"], scores["value"].astype(float), strict=True))
        for part in published.split(", "):
            score, value = part.rsplit(" ", 1)
            assert values[score] == float(value), name
        (mean,) = by_kind["simulated"][by_kind["simulated"]["score"] == "mAP"].itertuples()
        assert simulated == f"{mean.value} ± {mean.spread}", name
        (expected,) = by_kind["stand-in features"][by_kind["stand-in features"]["score"] == "mAP"]["value"]
        assert stand_in == expected, name
        assert command.strip("`") in by_kind["command"]["source"].tolist(), name
