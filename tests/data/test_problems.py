"""How a problem of a data file reads, and how it can be caught."""

import pickle

import pytest

from mrlib.data.problems import DataError, MissingFile, MissingKey, Problem, counted


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            Problem("a/train.jsonl", 7, "duration", "must be above 0"),
            "a/train.jsonl, line 7: duration: must be above 0",
        ),
        (Problem("a.json", 0, "json", "no object", unit="item"), "a.json, item 0: json: no object"),
        (Problem("a.npz", None, "nan", "row 3", fatal=False), "a.npz: nan: row 3"),
    ],
    ids=["line", "item", "file"],
)
def test_a_problem_names_file_place_and_kind(problem, text):
    assert str(problem) == text
    for error in (DataError, MissingFile, MissingKey):
        assert str(error(problem)) == text and error(problem).problem is problem


def test_a_problem_is_fatal_by_default():
    assert Problem("a", None, "nan", "b").fatal and not Problem("a", None, "nan", "b", fatal=False).fatal


@pytest.mark.parametrize(
    ("error", "caught", "other"),
    [(DataError, ValueError, KeyError), (MissingFile, FileNotFoundError, KeyError), (MissingKey, KeyError, OSError)],
)
def test_a_problem_is_caught_as_the_usual_error_of_its_kind(error, caught, other):
    """Each is a ValueError too, and no other usual error."""
    problem = Problem("a.npz", None, "kind", "message")
    for each in (caught, ValueError, DataError):
        with pytest.raises(each, match="a.npz: kind: message"):
            raise error(problem)
    assert not isinstance(error(problem), other)


def test_problems_of_the_same_content_are_equal_and_can_be_pickled():
    problem = Problem("a", 1, "json", "b")
    assert problem == Problem("a", 1, "json", "b") != Problem("a", 2, "json", "b")
    assert pickle.loads(pickle.dumps(problem)) == problem


def test_a_number_goes_with_its_noun():
    assert [counted(n, "problem") for n in (0, 1, 2)] == ["0 problems", "1 problem", "2 problems"]
