"""Files appear complete or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrlib import files
from mrlib.files import read_jsonl, write_jsonl


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("data", "content"), [("größe\n", "größe\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_text_and_bytes_are_written_and_folders_are_created(data, content, tmp_path):
    """Text as UTF-8 with unchanged line ends."""
    path = tmp_path / "a" / "b" / "file"
    files.write_whole(path, data)
    assert path.read_bytes() == content and names(path.parent) == ["file"]


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    files.write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "a.txt") as file:
        file.write(b"ne")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_old_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        (partial,) = set(names(tmp_path)) - {"a.txt"}
        assert partial.startswith(".a.txt.") and partial.endswith(files.PARTIAL)
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_written_file_can_be_read_by_everybody(tmp_path):
    """A temporary file can be read by its owner only."""
    files.write_whole(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_system_error_names_the_file_and_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a.txt: No space left on device; free some space") as error:
        files.write_whole(tmp_path / "a.txt", "new")
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*a/b"):
        files.write_whole(tmp_path / "a" / "b", "text")


def test_a_process_killed_while_writing_leaves_the_old_file_and_a_partial_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    program = f"""
import os, signal
from mrlib.files import whole_file
with whole_file({str(tmp_path / "a.txt")!r}) as file:
    file.write(b"ne")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"
    (partial,) = set(names(tmp_path)) - {"a.txt"}
    assert partial.endswith(files.PARTIAL)


def test_lines_are_read_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": [0.1, None]}, {"text": "zwölf\n"}]
    write_jsonl(tmp_path / "deep" / "rows.jsonl", iter(rows))
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == rows
    assert (tmp_path / "deep" / "rows.jsonl").read_text() == "".join(f"{json.dumps(row)}\n" for row in rows)
