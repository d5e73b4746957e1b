"""Files appear whole or not at all; JSON lines are read as they were written."""

import json

import pytest

from mrlib import files
from mrlib.files import PARTIAL, read_jsonl, whole_file, write_jsonl, write_whole


def test_lines_are_read_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": [0.1, None]}, {"text": "zwölf\n"}]
    write_jsonl(tmp_path / "deep" / "rows.jsonl", iter(rows))
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == rows
    assert (tmp_path / "deep" / "rows.jsonl").read_text() == "".join(f"{json.dumps(row)}\n" for row in rows)


def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file") as file:
        file.write(b"half of the new")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".file.") and temporary.name.endswith(PARTIAL)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_an_error_of_the_disk_names_the_file_and_what_to_do(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*rows: No space left on device; free some space"):
        write_whole(tmp_path / "rows", b"data")
    assert not list(tmp_path.iterdir())
