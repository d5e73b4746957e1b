"""Rows of a CSV file, each with its line."""

import pytest

from mrlib.data.problems import MissingFile
from mrlib.data.tables import table_rows


def read(path, content: bytes | str, columns=("a", "b")):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(table_rows(path, columns))


def test_a_row_has_its_fields_and_the_number_of_its_last_line(tmp_path):
    rows = read(tmp_path / "t.csv", '\ufeffa,b,more\r\n1,2,3\r\n\r\n"two\nlines","with ""quotes"", and a comma",\r\n')
    assert rows == [
        (2, {"a": "1", "b": "2", "more": "3"}, []),
        (5, {"a": "two\nlines", "b": 'with "quotes", and a comma', "more": ""}, []),
    ]


@pytest.mark.parametrize(
    ("content", "place", "kind", "message"),
    [
        ("a,c\n1,2\n", 1, "b", "no such column; needed are a, b, there are a, c"),
        ("a;b\n1;2\n", 1, "a", "there are a;b"),
        ("a,b\n1,2,3\n", 2, "row", "has more or fewer fields"),
        ("a,b\n1\n", 2, "row", "has more or fewer fields"),
        ("a,b\n", None, "empty", "no row"),
        ("", 1, "a", "there are none"),
        (b"a,b\n1,2\n3,caf\xe9\n", 3, "unreadable", "no text in UTF-8; save the file as CSV in UTF-8"),
        ("a,b\n1,2\n3,4\n".encode("utf-16"), 1, "unreadable", "no text in UTF-8"),
        ('a,b\n1,"2\n', 3, "unreadable", "unexpected end of data"),
        ("<!DOCTYPE html><html>", None, "download", "web page"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(content, place, kind, message, tmp_path):
    *_, (number, row, (problem,)) = read(tmp_path / "t.csv", content)
    assert row is None and number in (place, None) and (problem.line, problem.kind) == (place, kind)
    assert message in problem.message and problem.file == str(tmp_path / "t.csv")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFile, match="t.csv"):
        list(table_rows(tmp_path / "t.csv", ("a",)))
