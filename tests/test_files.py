"""Files appear complete or not at all."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import tracemalloc
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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_of_a_written_file_follows_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        files.write_whole(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_an_error_while_reading_is_not_reported_as_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError) as error, files.whole_file(tmp_path / "a.txt"):
        (tmp_path / "features.npy").read_bytes()
    assert "features.npy" in str(error.value) and "cannot write" not in str(error.value)
    assert names(tmp_path) == []


def test_an_error_while_writing_in_the_block_names_the_file(tmp_path, monkeypatch):
    """A device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with (
        pytest.raises(OSError, match=r"cannot write .*a.txt: No space left on device; free some space"),
        files.whole_file(tmp_path / "a.txt") as file,
    ):
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
        file.write(bytes(10_000_000))
    assert names(tmp_path) == []


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
    files.write_whole(tmp_path / "b.txt", "")
    assert partial in names(tmp_path)
    files.write_whole(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_temporary_files_of_dead_processes_are_removed_and_those_of_the_living_stay(tmp_path):
    dead = [f".a.txt.x{files.PARTIAL}", f".a[1].txt.0123abcd{files.PARTIAL}", f".b.x{files.PARTIAL}"]
    others = ["a.txt", f"c{files.PARTIAL}", ".hidden"]
    for name in [*dead, *others]:
        (tmp_path / name).touch()
    with files.whole_file(tmp_path / "a.txt") as file:
        (living,) = set(names(tmp_path)) - {*dead, *others}
        files.remove_dead(tmp_path, "a[1].txt")
        assert not (tmp_path / dead[1]).exists() and (tmp_path / dead[2]).exists()
        files.remove_dead(tmp_path)
        assert names(tmp_path) == sorted([living, *others])
        file.write(b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_lines_are_read_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": [0.1, None]}, {"text": "zwölf\n"}]
    write_jsonl(tmp_path / "deep" / "rows.jsonl", iter(rows))
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == rows
    assert (tmp_path / "deep" / "rows.jsonl").read_text() == "".join(f"{json.dumps(row)}\n" for row in rows)


def test_blank_lines_are_skipped_and_gzipped_files_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n  \n{"a": 2}')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_jsonl(tmp_path / "a.jsonl") == read_jsonl(tmp_path / "a.jsonl.gz") == [{"a": 1}, {"a": 2}]


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_skipped(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n\r\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_jsonl(tmp_path / "a.jsonl") == read_jsonl(tmp_path / "a.jsonl.gz") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\n <!DOCTYPE html><html></html>", "a web page"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b"PK\x03\x04", "a zip file"),
    ],
)
def test_a_file_that_is_something_else_is_called_so(name, content, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {kind}, .*download it again"):
        read_jsonl(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": }\n', r"a.jsonl, line 2: Expecting value at column 7"),
        (b'{"a": 1}\n\n[1, 2]\n', r"a.jsonl, line 3: \[1, 2\] is not a JSON object"),
        (b'"' + 99 * b"x" + b'"', r"a.jsonl, line 1: 'x+\.\.\.x+' is not a JSON object"),
        (b"\xff", "a.jsonl: cannot be read"),
        (b"{}\n" + 100_000 * b"[", "a.jsonl, line 2: lists or objects are nested too deeply"),
        (b'{"a": ' + 5000 * b"1" + b"}", "a.jsonl, line 1: a number has more than 4300 digits"),
    ],
)
def test_a_malformed_line_is_named(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path):
    """A small .gz file that decompresses to 256 MB."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"a": 1}\n{"b": "')
        for _ in range(256):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a.jsonl.gz, line 2: longer than 3000000 characters"):
        read_jsonl(tmp_path / "a.jsonl.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_blank_lines_without_end_are_refused(tmp_path):
    """A small .gz file that decompresses to 50 million of them."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"a": 1}\n')
        for _ in range(50):
            file.write(b"\n" * 1_000_000)
    with pytest.raises(ValueError, match=r"a.jsonl.gz, line 100002: more than 100000 blank lines in a row"):
        read_jsonl(tmp_path / "a.jsonl.gz")


def test_a_line_that_is_repeated_without_end_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"qid": 1}\n' * 2_000_000))
    with pytest.raises(ValueError, match=r"a.jsonl.gz, line 1002: the same line more than 1000 times in a row"):
        read_jsonl(tmp_path / "a.jsonl.gz")


def test_a_file_that_unpacks_to_far_more_than_any_annotation_is_refused(tmp_path):
    """Two lines in turn, 40 MB in 0.1 MB."""
    lines = b"".join(b'{"qid": %d%s}\n' % (i, 10_000 * b" ") for i in (1, 2))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines * 2_000))
    with pytest.raises(ValueError, match=r"a.jsonl.gz, line \d+: the file unpacks to more than 100 times its size"):
        read_jsonl(tmp_path / "a.jsonl.gz")


def test_lines_are_numbered_from_one_with_the_blank_ones(tmp_path):
    (tmp_path / "a").write_text("a\n\n  \nb")
    with open(tmp_path / "a") as file:
        assert list(files.numbered_lines(file)) == [(1, "a\n"), (4, "b")]


def test_a_truncated_gzip_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}' * 99)[:-10])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: cannot be read"):
        read_jsonl(tmp_path / "a.jsonl.gz")


def test_a_line_that_is_no_json_object_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"qid": 1}\n\n{"qid": 2\n')
    with pytest.raises(ValueError, match=r"lines.jsonl, line 3: Expecting ',' delimiter at column 10"):
        read_jsonl(path)
    path.write_text('{"qid": 1}\n[1]\n')
    with pytest.raises(ValueError, match=r"lines.jsonl, line 2: \[1\] is not a JSON object"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"<!DOCTYPE html><html>", "is a web page, not the file of that name; download it again"),
        (
            "a.jsonl.gz",
            gzip.compress(b"<html>", mtime=0),
            "is a web page, not the file of that name; download it again",
        ),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a pointer of Git LFS, .* download it again",
        ),
        (
            "a.jsonl",
            gzip.compress(b"{}", mtime=0),
            "is a gzip file, not the file of that name; rename it to a.jsonl.gz, or",
        ),
        ("a.jsonl.gz", b"{}", "is a text that begins with '{}', not a gzip file; rename it to a.jsonl, or"),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}", mtime=0) + bytes(4096),
            "is a gzip file that ends in zero bytes, .* download it again",
        ),
        ("a.jsonl", bytes(99), "is a file of zero bytes, as an unfinished download leaves it; download it again"),
    ],
)
def test_lines_that_are_something_else_are_called_so(name, content, problem, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {problem}"):
        read_jsonl(tmp_path / name)


def test_an_error_names_any_path_in_one_line(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match=r"cannot write '.*a/b\\nc'") as error:
        files.write_whole(tmp_path / "a" / "b\nc", "text")
    assert "\n" not in str(error.value)
    assert files.shown_path("a 'b'.mp4") == "a 'b'.mp4" and files.shown_path("a\nb") == r"'a\nb'"


def test_a_writer_can_read_what_it_wrote(tmp_path):
    with files.whole_file(tmp_path / "a") as file:
        file.write(b"text")
        file.flush()
        assert file.raw.temporary.read_bytes() == b"text" and names(tmp_path) != ["a"]
    assert names(tmp_path) == ["a"]
