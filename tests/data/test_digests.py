"""Checksums notice every change of a bit, and do not depend on how bytes come."""

import os

import numpy as np
import pytest

from mrlib.data import digests
from mrlib.data.digests import Checksum, content_digest, stamp
from mrlib.data.problems import DataError, MissingFile

DATA = np.random.default_rng(0).integers(0, 256, 3 * (1 << 16) + 1234, dtype=np.uint8).tobytes()


def checksum(*pieces):
    made = Checksum()
    for piece in pieces:
        made.update(piece)
    return made.hexdigest()


def test_a_checksum_is_that_of_the_bytes_however_they_are_cut():
    whole = checksum(DATA)
    for size in (1 << 16, 999, 70_001):
        assert checksum(*(DATA[i : i + size] for i in range(0, len(DATA), size))) == whole
    assert checksum() == checksum(b"") != checksum(b"\0")


def test_a_block_is_the_sum_of_its_words_by_hand():
    import hashlib

    block = DATA[: 1 << 16]
    words = [int.from_bytes(block[i : i + 8], "little") for i in range(0, len(block), 8)]
    weights = [int(w) for w in digests._WEIGHTS]
    assert all(w % 2 for w in weights)
    total = sum(a * b for a, b in zip(words, weights, strict=True)) % 2**64
    expected = hashlib.blake2b(total.to_bytes(8, "little") + bytes(8), digest_size=16).hexdigest()
    assert checksum(block) == expected


@pytest.mark.parametrize("at", [0, 7, 8, 65_535, 65_536, 190_000, len(DATA) - 1])
def test_every_bit_counts(at):
    for bit in range(8):
        changed = bytearray(DATA)
        changed[at] ^= 1 << bit
        assert checksum(bytes(changed)) != checksum(DATA)


def test_rows_in_another_order_and_zeros_at_the_end_count():
    rows = [DATA[i : i + 2048] for i in range(0, 1 << 17, 2048)]
    rows[3], rows[4] = rows[4], rows[3]
    assert checksum(*rows) != checksum(DATA[: 1 << 17])
    assert checksum(DATA + bytes(8)) != checksum(DATA) != checksum(DATA[:-1])


def test_the_digest_of_a_large_file_looks_at_blocks_of_it(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(DATA)
    assert content_digest(file) == checksum(DATA)
    monkeypatch.setattr(digests, "_WHOLE", 1 << 17)
    sampled = content_digest(file)
    for at in (0, len(DATA) - 1):
        changed = bytearray(DATA)
        changed[at] ^= 1
        file.write_bytes(changed)
        assert content_digest(file) != sampled


def test_a_stamp_changes_with_content_of_the_same_size_and_time(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before, status = stamp(file), file.stat()
    assert stamp(file) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stamp(file) != before


def test_what_is_no_file_has_no_stamp(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: download: is a named pipe"):
        stamp(tmp_path / "pipe")
    with pytest.raises(MissingFile, match="none: missing file"):
        stamp(tmp_path / "none")
