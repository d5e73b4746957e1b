"""What a download is that is not what its name says, and that sound files of every kind are left alone."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mrlib.data.annotations import load_annotations
from mrlib.downloads import what_it_is, wrong_download
from tests.support.files import line, random, save_hdf5, save_npy, save_npz, write_lines

PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NAMES = ["a.npz", "a.npy", "a.hdf5", "a.h5", "a.pt", "a.ckpt", "a.jsonl", "a.jsonl.gz", "glove.6B.50d.txt", "model"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PAGE, "a web page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang=en>", "a web page"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html>', "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML document"),
        (POINTER, "a pointer of Git LFS"),
        (b"/annex/objects/SHA256E-s12--abc.npz\n", "a pointer of git-annex"),
        (b"", "an empty file"),
        (b"BZh91AY&SY", "a bzip2 file"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "a resource fork of macOS"),
    ],
)
def test_a_download_that_is_something_else_is_called_so_under_every_name(name, content, kind, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    assert what_it_is(file) == kind
    assert kind in wrong_download(file) and "download it again" in wrong_download(file)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.hdf5", "a.h5", "a.pt", "a.ckpt", "a.jsonl", "glove.txt"])
def test_a_packed_file_without_the_ending_is_called_so(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b"content"))
    assert what_it_is(tmp_path / name) == "a gzip file"


def test_a_page_that_was_packed_on_its_way_is_called_so(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    for content, kind in (
        (PAGE, "a web page"),
        (POINTER, "a pointer of Git LFS"),
        (gzip.compress(b"x"), "a gzip file"),
    ):
        file.write_bytes(gzip.compress(content))
        assert what_it_is(file) == kind


def test_an_answer_of_a_server_is_quoted(tmp_path):
    for name in ("a.npz", "a.hdf5", "a.pt"):
        (tmp_path / name).write_text('{"error": "Quota exceeded"}')
        assert what_it_is(tmp_path / name) == """a text that begins with '{"error": "Quota exceeded"}'"""


def test_a_file_of_zeros_is_an_unfinished_download(tmp_path):
    for name in ("a.npz", "a.pt", "a.jsonl"):
        (tmp_path / name).write_bytes(bytes(5000))
        assert what_it_is(tmp_path / name) == "a file of zero bytes"


def test_a_gzip_file_that_ends_in_zeros_is_an_unfinished_download(tmp_path):
    """A gzip reader skips zeros at the end byte by byte, so gigabytes of them take minutes."""
    file = tmp_path / "val.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(line(0)).encode()))
    os.truncate(file, 2**31)
    assert what_it_is(file) == "a gzip file that ends in zero bytes"
    with pytest.raises(ValueError, match=r"val.jsonl.gz.*ends in zero bytes.*download it again"):
        load_annotations(file)


def test_sound_files_are_what_their_names_say(tmp_path):
    save_npz(tmp_path / "a.npz", features=random(0, 3, 2))
    save_npz(tmp_path / "none.npz")
    save_npy(tmp_path / "a.npy", random(0, 3, 2))
    save_hdf5(tmp_path / "a.hdf5", {"v": random(0, 3, 2)})
    save_hdf5(tmp_path / "a.h5", {"v": random(0, 3, 2)})
    import h5py

    with h5py.File(tmp_path / "block.h5", "w", userblock_size=512) as content:
        content["v"] = np.zeros(3)
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    write_lines(tmp_path / "a.jsonl", [line()])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(line()).encode()))
    (tmp_path / "packed.ckpt.gz").write_bytes(gzip.compress((tmp_path / "a.pt").read_bytes()))
    (tmp_path / "glove.txt").write_text("the 0.1 0.2\n")
    for file in tmp_path.iterdir():
        assert what_it_is(file) is None and wrong_download(file) is None, file.name
    assert what_it_is(tmp_path / "absent.npz") is None


def test_a_pipe_and_a_folder_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    code = f"from mrlib.downloads import wrong_download as w; print(w({str(tmp_path / 'pipe.npz')!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("is a named pipe, not a regular file"), run.stderr
    assert what_it_is(tmp_path / "folder.npz") == "a folder"
    assert what_it_is("/dev/zero") == "a device"
