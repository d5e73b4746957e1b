"""Word vectors are read from a GloVe file, which is refused by line where it is something else."""

import os

import numpy as np
import pytest

from mrlib.data.glove import read_glove
from mrlib.data.problems import DataError, MissingFile


def test_only_the_vectors_of_the_given_words_are_read(tmp_path):
    """A word may contain spaces; the lines of other words may be malformed."""
    file = tmp_path / "glove.txt"
    text = "dog 0.5 -1 2e-1\n. . 1 2 3\ncat x y z\n, 0 0 0\ndog name@domain.com 4 5 6\r\nbird 1 2 3\n"
    file.write_text(text, encoding="utf-8", newline="")
    vectors = read_glove(file, {"dog", ". .", "bee"})
    assert vectors.keys() == {"dog", ". ."}
    np.testing.assert_array_equal(vectors["dog"], np.float32([0.5, -1, 0.2]))
    np.testing.assert_array_equal(vectors[". ."], np.float32([1, 2, 3]))


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    (tmp_path / "glove.txt").write_text("\ufeffcat 1 2\r\ndog 3 4\r\n", encoding="utf-8")
    assert read_glove(tmp_path / "glove.txt", {"cat", "dog"})["cat"].tolist() == [1, 2]


LINES = ["cat x y z", "cat 1 2", "cat 1 2 3 4", "cat 1 nan 3", "cat 1 inf 3", "cat 1 1e99 3", "cat", "cat 1  3"]


@pytest.mark.parametrize("line", LINES)
def test_a_word_without_finite_numbers_is_named_with_its_line(line, tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text(f"dog 1 2 3\n{line}\n")
    with pytest.raises(DataError, match=r"glove.txt, line 2: word vector: 'cat' has no 3 finite numbers"):
        read_glove(file, {"cat"})


def test_a_word_with_two_vectors_is_named_with_its_line(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("cat 1 2\ndog 1 2\ncat 1 2\n")
    assert len(read_glove(file, {"cat"})) == 1  # the same twice
    file.write_text("cat 1 2\ndog 1 2\ncat 1 3\n")
    with pytest.raises(DataError, match=r"glove.txt, line 3: word vector: 'cat' has another vector"):
        read_glove(file, {"cat"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat 1 2\nd\xe9j\xe0 1 2\n", r"line 2: unreadable: .*utf-8.*download the file of word vectors again"),
        ("cat 1 2\n".encode("utf-16"), r"line 1: unreadable: .*utf-8"),
        (b"cat 1 2\n" + b"x" * 200_000, r"line 2: unreadable: longer than 131072 bytes"),
        (b"cat" + b" 1" * 5000 + b"\n", r"line 1: word vector: 5000 numbers, where"),
        (b"cat\n", r"line 1: word vector: 0 numbers, where"),
        (b"", r"download: is an empty file.*download it again"),
        (b"\n\n\n", r"line 1: word vector: 0 numbers"),
        (b"<!DOCTYPE html><html>", r"download: is a web page.*download it again"),
        (b"PK\x03\x04glove.6B.50d.txt", r"download: is a zip file"),
    ],
)
def test_a_file_that_is_something_else_is_refused(content, message, tmp_path):
    (tmp_path / "glove.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_glove(tmp_path / "glove.txt", {"cat"})


def test_pipes_devices_and_missing_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "glove.pipe.txt")
    (tmp_path / "glove.endless.txt").symlink_to("/dev/zero")
    for name, kind in (("glove.pipe.txt", "a named pipe"), ("glove.endless.txt", "a device")):
        with pytest.raises(DataError, match=f"{name}: download: is {kind}, not a regular file"):
            read_glove(tmp_path / name, {"cat"})
    with pytest.raises(MissingFile):
        read_glove(tmp_path / "none.txt", {"cat"})


def test_a_sparse_file_without_end_is_refused_at_once(tmp_path):
    with (tmp_path / "glove.txt").open("wb") as file:
        file.write(b"cat 1 2\n")
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="line 2: unreadable: longer than 131072 bytes"):
        read_glove(tmp_path / "glove.txt", {"cat"})
