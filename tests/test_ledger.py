"""The ledger: numbers and checks have a source, and its commands parse with this version of the repository."""

import csv
import re
import shlex
from collections import Counter
from pathlib import Path

import papermill
import pytest
import torch

from mrlib import papers, train
from mrlib.data import Widths
from mrlib.data.layouts import DATASETS
from mrlib.papers import build

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["paper", "kind", "dataset", "split", "features", "score", "value", "spread", "runs", "source", "note"]
KINDS = {
    "published",
    "verified",
    "not verified",
    "command",
    "simulated",
    "stand-in features",
}  # the last two are measured here
PARTS = {"uvcom", "cg_detr", "taskweave", "tan"}  # aligners and detectors that no entry of `PAPERS` uses

with (ROOT / "figures" / "ledger.csv").open(newline="") as file:
    LEDGER = csv.DictReader(file)
    ROWS = list(LEDGER)


def rows_of(kind):
    return [row for row in ROWS if row["kind"] == kind]


def test_columns_kinds_papers_and_datasets_are_known():
    assert LEDGER.fieldnames == COLUMNS
    assert not [row for row in ROWS if None in row or None in row.values()], "a line has too many or too few fields"
    assert {row["kind"] for row in ROWS} - KINDS == set()
    assert {row["paper"] for row in ROWS} == set(papers.PAPERS) | PARTS
    assert set(papers.ALIGNERS) | set(papers.DETECTORS) >= PARTS
    assert {row["dataset"] for row in ROWS} <= {*DATASETS, "sim", ""}


def test_no_row_is_repeated():
    columns = [name for name in COLUMNS if name not in ("value", "spread", "runs", "note")]
    counts = Counter(tuple(row[name] for name in columns) for row in ROWS)
    assert [row for row, count in counts.items() if count > 1] == []


def test_every_row_has_a_source_or_a_note_on_why_it_is_not_verified():
    assert [row for row in ROWS if not row["note" if row["kind"] == "not verified" else "source"]] == []


def test_values_spreads_and_runs_are_numbers():
    for row in ROWS:
        for field in ("value", "spread", "runs"):
            assert row[field] == "" or float(row[field]) >= 0, row


def test_published_numbers_have_their_table_and_protocol():
    for row in rows_of("published"):
        assert row["value"] and row["score"] and row["dataset"] and row["split"] and row["features"], row
        assert re.search(r"\b(Table|Figure) S?\d|, table of |, results/\S+\.json, ", row["source"]), row
        assert "run" in row["note"], f"the note must give the number of runs, or say that it is not stated: {row}"
        assert 0 <= float(row["value"]) <= 100
        assert not row["spread"] or int(row["runs"]) > 1, row


def test_rows_that_are_not_verified_have_no_value():
    assert [row for row in rows_of("not verified") if row["value"] or not row["score"]] == []


@pytest.mark.parametrize("source", sorted({row["source"] for row in rows_of("verified")}))
def test_the_test_that_verifies_a_row_exists(source):
    path, test = re.fullmatch(r"pytest (tests/[\w/]+\.py)::(test_\w+)", source).groups()
    assert f"\ndef {test}(" in (ROOT / path).read_text()


def test_the_note_of_a_verified_row_names_the_kind_of_reference():
    """Official code, official files, or a network that was written for the tests."""
    for row in rows_of("verified"):
        beginnings = "official code: ", "official files: ", "not the official code: ", "numbers "
        assert row["note"].startswith(beginnings) and row["score"], row
        if row["note"].startswith("official"):
            path = re.search(r"tests/[\w/]+\.py", row["source"])[0]
            assert "MRLIB_DATA" in row["note"] and "MRLIB_DATA" in (ROOT / path).read_text(), row
        named = re.search(r"\((tests/[\w/]+\.py)\)", row["note"])
        assert named is None or (ROOT / named[1]).is_file()


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_every_paper_has_published_numbers_a_check_and_a_command(paper):
    kinds = {row["kind"] for row in ROWS if row["paper"] == paper}
    assert "published" in kinds and "command" in kinds and kinds & {"verified", "not verified"}


class ModelReached(Exception):
    """The command line was parsed, and its data opened, up to the construction of the model."""


def opened_splits(words, first, monkeypatch):
    """Run a training command up to its model; returns what it opens, (paper, name, root, split, options) each."""
    opened = []

    def open_split(paper, name, root, split, **options):
        opened.append((paper, name, root, split, options))

    def stop(*_):
        raise ModelReached

    monkeypatch.setattr(papers, "open_split", open_split)
    monkeypatch.setattr(train, "require_annotations", lambda *_, **__: None)  # nothing was opened
    monkeypatch.setattr(papers, "build", stop)
    assert [first, *words[:2]] == ["python", "-m", "mrlib.train"]
    with pytest.raises(ModelReached):
        train.main(words[2:])
    return opened


@pytest.mark.parametrize(
    "row", rows_of("command"), ids=lambda row: f"{row['paper']} {row['dataset']} {row['features']}"
)
def test_every_command_can_be_run(row, monkeypatch):
    """Parameters of a notebook exist; a training command opens its splits, and its model can be built."""
    first, *words = shlex.split(row["source"])
    if first == "papermill":
        parameters = dict(zip(words[3::3], words[4::3], strict=True))
        assert words[2::3] == ["-p"] * len(parameters) and words[1] == "out.ipynb"
        assert parameters.keys() <= papermill.inspect_notebook(str(ROOT / words[0])).keys()
        assert (parameters["dataset"], parameters["root"]) == (row["dataset"], "FOLDER")
        return
    opened = opened_splits(words, first, monkeypatch)
    paper = opened[0][0]
    assert {(name, root, str(options)) for _, name, root, _, options in opened} == {(row["dataset"], "FOLDER", "{}")}
    assert (opened[0][3], opened[-1][3]) == ("train", row["split"])
    assert row["paper"] in (paper.name, paper.aligner.name, paper.detector.name)
    assert paper.given["size"] == "paper"
    widths = Widths(512, 512, 512) if paper.streams == "joint" else Widths(2816, 512, 512)
    with torch.device("meta"):
        build(paper, Widths(5376, 2048, None) if paper.name == "amr" else widths)
    assert (paper.streams == "joint") == (row["features"] == "CLIP")


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_scores_on_stand_in_features_have_a_command_that_can_be_run(paper, monkeypatch):
    rows = [row for row in rows_of("stand-in features") if row["paper"] == paper]
    assert {row["score"] for row in rows} >= {"R1@0.5", "R1@0.7", "mAP"}
    (source,) = {row["source"] for row in rows}
    first, *words = shlex.split(source)
    opened = opened_splits(words, first, monkeypatch)
    assert {(used.name, name, root, split) for used, name, root, split, _ in opened} == {
        (paper, "qvhighlights", "runs/stand_in", split) for split in ("train", "val")
    }
    for row in rows:
        assert (row["dataset"], row["split"], row["runs"]) == ("qvhighlights", "val", "1")
        assert "python -m mrlib.data.stand_in qvhighlights FOLDER runs/stand_in --limit" in row["note"]


def test_every_training_command_writes_to_its_own_folder():
    folders = [shlex.split(row["source"])[-1] for row in rows_of("command") if "--out" in row["source"]]
    assert [folder for folder, count in Counter(folders).items() if count > 1] == []
