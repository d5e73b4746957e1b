"""One JSON document: its content, or one error that names the file."""

import json
import os

import pytest

from mrlib.data import documents
from mrlib.data.documents import read_document
from mrlib.data.problems import DataError, MissingFile


def test_the_content_is_of_one_of_the_kinds(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_document(tmp_path / "a.json", dict, list) == [1]
    with pytest.raises(DataError, match=r"a\.json: json: a list where a dict is expected"):
        read_document(tmp_path / "a.json", dict)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[" + b"9" * 5000 + b"]", b"\x1f\x8b"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: json: .*download it again"):
        read_document(tmp_path / "a.json", list)


def test_what_is_no_file_or_too_large_is_refused_unread(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "."):
        with pytest.raises(DataError, match="(no|not a) regular file"):
            read_document(tmp_path / name, list)
    with pytest.raises(MissingFile, match=r"none\.json: missing file"):
        read_document(tmp_path / "none.json", list)
    monkeypatch.setattr(documents, "LARGEST", 100)
    (tmp_path / "a.json").write_text(json.dumps(["x" * 100]))
    with pytest.raises(DataError, match="a file of 104 bytes where one of at most 100 bytes is expected"):
        read_document(tmp_path / "a.json", list)
