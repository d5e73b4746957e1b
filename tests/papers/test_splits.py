"""Datasets opened for a paper: the kind of query, size and streams; the validation split."""

import pytest

from mrlib import papers
from tests.support.files import line, moment_detr


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("f2sgd", {}, {"query": "text", "streams": ["appearance"]}),  # the joint one, as for matr
        ("qd_detr", {}, {"query": "text", "streams": ["motion", "appearance"]}),
        ("qd_detr", {"streams": ["motion"]}, {"query": "text", "streams": ["motion"]}),
        ("matr", {}, {"query": "video", "streams": ["appearance"]}),
        ("matr", {"query": "text", "streams": None}, {"query": "text", "streams": ["motion", "appearance"]}),
    ],
)
def test_the_simulator_opens_with_the_query_and_streams_of_the_paper(name, settings, expected):
    data = papers.open_split(papers.get(name, "small", **settings), "sim", split="val", n=4)
    assert list(data.streams) == expected["streams"] and len(data) == 4
    words = [len(s.query.split()) for s in data.samples]  # a text query has a vector for each word
    assert (data.query.lengths.tolist() == words) == (expected["query"] == "text")
    assert data.target.lengths.tolist() == [32] * 4


def test_the_simulator_opens_in_the_size_of_the_paper():
    data = papers.open_split(papers.get("qd_detr"), "sim", n=2)
    assert data.target.lengths.tolist() == [75] * 2 and data.widths.joint == 512


def test_options_override_the_paper():
    paper = papers.get("matr", "small")
    data = papers.open_split(paper, "sim", n=2, size="paper", query="text", streams="motion")
    assert data.target.lengths.tolist() == [75] * 2 and list(data.streams) == ["motion"]
    assert data.query.lengths.tolist() == [len(s.query.split()) for s in data.samples]


def test_files_are_opened_with_the_streams_of_the_paper(tmp_path):
    """Size and kind of the queries are properties of the files."""
    root = moment_detr(tmp_path, [line(1), line(2)])
    both = papers.open_split(papers.get("qd_detr"), "qvhighlights", root, "val")
    assert list(both.streams) == ["slowfast", "clip"] and [s.qid for s in both.samples] == [1, 2]
    joint = papers.open_split(papers.get("f2sgd", "small"), "qvhighlights", root, "val")
    assert list(joint.streams) == ["clip"] and joint.widths.joint == 4
    one = papers.open_split(papers.get("qd_detr", streams=["slowfast"]), "qvhighlights", root, "val", limit=1)
    assert list(one.streams) == ["slowfast"] and len(one) == 1


@pytest.mark.parametrize(
    ("dataset", "split"),
    [("sim", "val"), ("qvhighlights", "val"), ("tvsum", "val"), ("charades_sta", "test"), ("tacos", "val")],
)
def test_the_validation_split_is_val_or_test_if_no_val_was_released(dataset, split):
    assert papers.validation_split(dataset) == split
