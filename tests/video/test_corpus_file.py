"""The file of a corpus: what a killed process leaves, and what damage does."""

import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from mrlib.video import Corpus, corpus_file
from mrlib.video.corpus_file import Entry
from tests.support.corpora import WIDTH, Invented, invented, new_corpus
from tests.support.damage import BYTES


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype("<f2")


@pytest.fixture
def file(tmp_path) -> Path:
    """A corpus file of two videos."""
    file = tmp_path / "videos.corpus"
    corpus_file.create(file, Invented.recipe)
    corpus_file.append(file, Entry("a.mp4", 6.0, 3, 10, 20), rows(3))
    corpus_file.append(file, Entry("b\n'\"\udc80.mp4", 8.0, 4), rows(4, 1))
    return file


def entries(file: Path) -> list[Entry]:
    return [placed.entry for placed in corpus_file.read_entries(file, corpus_file.read_header(file), WIDTH)]


def test_what_was_appended_is_read(file):
    header = corpus_file.read_header(file)
    assert header.recipe == Invented.recipe and header.end == file.stat().st_size
    assert entries(file) == [Entry("a.mp4", 6.0, 3, 10, 20), Entry("b\n'\"\udc80.mp4", 8.0, 4)]
    matrix = np.fromfile(file, "<f2", offset=header.start).reshape(-1, WIDTH)
    placed = list(corpus_file.read_entries(file, header, WIDTH))
    for each, expected in zip(placed, (rows(3), rows(4, 1)), strict=True):
        np.testing.assert_array_equal(matrix[each.first : each.first + each.entry.rows], expected)


def test_a_process_that_was_killed_at_any_byte_leaves_whole_videos(file):
    """Every state of the file while a video is appended: it opens as before, and the next addition gives the same."""
    before, known = file.read_bytes(), entries(file)
    corpus_file.append(file, Entry("c.mp4", 10.0, 5), rows(5, 2))
    after = file.read_bytes()
    for end in (*range(len(before), len(after), 7), len(after)):
        file.write_bytes(before + after[len(before) : end])
        assert entries(file) == known
    corpus_file.append(file, Entry("c.mp4", 10.0, 5), rows(5, 2))
    assert file.read_bytes() == after


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_process_leaves_a_corpus_that_opens_and_can_be_added_to(tmp_path):
    """kill -9 at moments that nobody chose."""
    corpus, random, videos = new_corpus(tmp_path), Random(0), [invented(f"{i}.mp4", 2000) for i in range(8)]
    for i in range(12):
        if (child := os.fork()) == 0:
            for video in videos * 100:
                corpus.add(invented(f"{i}/{video.path}", 50), video)
                corpus.remove(video.path)
            os._exit(0)
        time.sleep(random.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        opened = Corpus.open(corpus.file, Invented())
        assert opened.bank.lengths.tolist() == [entry.rows for entry in opened]
        assert {entry.rows for entry in opened} <= {50, 2000}
    assert corpus.add(invented("last.mp4", 9)) == ["added"] and "last.mp4" in Corpus.open(corpus.file)


@pytest.mark.parametrize("missing", [1, 2 * WIDTH, 100])
def test_a_truncated_file_is_refused(file, missing):
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=r"videos.corpus is truncated: it has \d+ of \d+ bytes"):
        corpus_file.read_header(file)


@pytest.mark.parametrize("position", [4096 + 10, -WIDTH, 120])
def test_one_changed_byte_is_noticed(file, position):
    """In an entry, in a row, in the recipe."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"videos.corpus is damaged, .* is not what was written"):
        entries(file)


@pytest.mark.parametrize("damage", BYTES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused_or_read_as_it_was(damage, file):
    before, known = file.read_bytes(), entries(file)
    for seed in range(20):
        file.write_bytes(before)
        damage(file, Random(seed))
        try:
            assert entries(file) == known
        except ValueError as error:
            assert str(file) in str(error)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 1000, b"<!DOCTYPE html><html>" * 300, bytes(10_000)])
def test_a_file_that_is_no_corpus_is_refused(content, tmp_path):
    (tmp_path / "a.corpus").write_bytes(content)
    with pytest.raises(ValueError, match="a.corpus is no corpus of mrlib.*give another file"):
        corpus_file.read_header(tmp_path / "a.corpus")


def test_a_corpus_of_a_newer_version_is_refused(file):
    file.write_bytes(file.read_bytes().replace(b"corpus 1,", b"corpus 2,"))
    with pytest.raises(ValueError, match="newer version of mrlib"):
        corpus_file.read_header(file)


def test_a_full_disk_leaves_the_corpus_as_it_was(file, monkeypatch):
    before = file.read_bytes()

    def full(handle):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*videos.corpus: No space left on device; free some space"):
        corpus_file.append(file, Entry("c.mp4", 10.0, 5), rows(5, 2))
    assert file.read_bytes() == before
