"""Files that are either whole or not there."""

import pytest

from mrlib import files


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    files.write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "a.txt") as file:
        file.write(b"ne")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
