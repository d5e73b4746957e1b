"""The ledger: a number or a check has its source, and every command in it is one that this repository understands."""

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
KINDS = {"published", "verified", "not verified", "command", "simulated", "stand-in features"}  # two are measured
PLUGGED = {"uvcom", "cg_detr", "taskweave", "tan"}  # an aligner or a detector, and no paper of its own

with (ROOT / "figures" / "ledger.csv").open(newline="") as file:
    LEDGER = csv.DictReader(file)
    ROWS = list(LEDGER)


def of(kind):
    return [row for row in ROWS if row["kind"] == kind]


def test_columns_kinds_papers_and_datasets_are_known():
    assert LEDGER.fieldnames == COLUMNS
    assert not [row for row in ROWS if None in row or None in row.values()], "a line of more or fewer fields"
    assert {row["kind"] for row in ROWS} - KINDS == set()
    assert {row["paper"] for row in ROWS} == set(papers.PAPERS) | PLUGGED
    assert set(papers.ALIGNERS) | set(papers.DETECTORS) >= PLUGGED
    assert {row["dataset"] for row in ROWS} <= {*DATASETS, "sim", ""}


def test_a_row_is_there_once():
    said = Counter(tuple(v for k, v in row.items() if k not in ("value", "spread", "runs", "note")) for row in ROWS)
    assert [row for row, times in said.items() if times > 1] == []


def test_a_row_says_where_it_is_from_or_why_it_is_not():
    assert [row for row in ROWS if not row["note" if row["kind"] == "not verified" else "source"]] == []


def test_what_stands_as_a_number_is_one():
    for row in ROWS:
        for field in ("value", "spread", "runs"):
            assert row[field] == "" or float(row[field]) >= 0, row


def test_a_published_number_has_its_table_and_its_protocol():
    for row in of("published"):
        assert row["value"] and row["score"] and row["dataset"] and row["split"] and row["features"], row
        assert re.search(r"\b(Table|Figure) S?\d|, table of |, results/\S+\.json, ", row["source"]), row
        assert "run" in row["note"], f"of how many runs it is, or that this is not stated: {row}"
        assert 0 <= float(row["value"]) <= 100
        assert not row["spread"] or int(row["runs"]) > 1, row


def test_what_is_not_verified_has_no_number():
    assert [row for row in of("not verified") if row["value"] or not row["score"]] == []


@pytest.mark.parametrize("source", sorted({row["source"] for row in of("verified")}))
def test_what_is_said_to_verify_is_there(source):
    path, test = re.fullmatch(r"pytest (tests/[\w/]+\.py)::(test_\w+)", source).groups()
    assert f"\ndef {test}(" in (ROOT / path).read_text()


def test_what_was_compared_is_told_apart():
    """From the official code or files, or from a network that was written for the tests."""
    for row in of("verified"):
        told = row["note"].startswith(("official code: ", "official files: ", "not the official code: ", "numbers "))
        assert told and row["score"], row
        if row["note"].startswith("official"):
            path = re.search(r"tests/[\w/]+\.py", row["source"])[0]
            assert "MRLIB_DATA" in row["note"] and "MRLIB_DATA" in (ROOT / path).read_text(), row
        named = re.search(r"\((tests/[\w/]+\.py)\)", row["note"])
        assert named is None or (ROOT / named[1]).is_file()


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_a_paper_has_its_numbers_its_checks_and_its_command(paper):
    kinds = {row["kind"] for row in ROWS if row["paper"] == paper}
    assert "published" in kinds and "command" in kinds and kinds & {"verified", "not verified"}


class Understood(Exception):
    """The command has been read as far as its model."""


def read(words, first, monkeypatch):
    """A training's command line as far as its model: what it opens, as (paper, name, root, split, options)."""
    opened = []

    def open_split(paper, name, root, split, **options):
        opened.append((paper, name, root, split, options))

    def stop(*_):
        raise Understood

    monkeypatch.setattr(papers, "open_split", open_split)
    monkeypatch.setattr(papers, "build", stop)
    assert [first, *words[:2]] == ["python", "-m", "mrlib.train"]
    with pytest.raises(Understood):
        train.main(words[2:])
    return opened


@pytest.mark.parametrize("row", of("command"), ids=lambda row: f"{row['paper']} {row['dataset']} {row['features']}")
def test_a_command_is_understood(row, monkeypatch):
    """Of a training: its paper with all settings and its splits, as `main` has them, and the model is built."""
    first, *words = shlex.split(row["source"])
    if first == "papermill":
        given = dict(zip(words[3::3], words[4::3], strict=True))
        assert words[2::3] == ["-p"] * len(given) and words[1] == "out.ipynb"
        assert given.keys() <= papermill.inspect_notebook(str(ROOT / words[0])).keys()
        assert (given["dataset"], given["root"]) == (row["dataset"], "FOLDER")
        return
    opened = read(words, first, monkeypatch)
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
def test_what_was_measured_on_stand_in_features_has_a_command_that_is_understood(paper, monkeypatch):
    rows = [row for row in of("stand-in features") if row["paper"] == paper]
    assert {row["score"] for row in rows} >= {"R1@0.5", "R1@0.7", "mAP"}
    (source,) = {row["source"] for row in rows}
    first, *words = shlex.split(source)
    opened = read(words, first, monkeypatch)
    assert {(chosen.name, name, root, split) for chosen, name, root, split, _ in opened} == {
        (paper, "qvhighlights", "runs/stand_in", split) for split in ("train", "val")
    }
    for row in rows:
        assert (row["dataset"], row["split"], row["runs"]) == ("qvhighlights", "val", "1")
        assert "python -m mrlib.data.stand_in qvhighlights FOLDER runs/stand_in --limit" in row["note"]


def test_every_training_has_a_folder_of_its_own():
    folders = [shlex.split(row["source"])[-1] for row in of("command") if "--out" in row["source"]]
    assert [folder for folder, times in Counter(folders).items() if times > 1] == []
