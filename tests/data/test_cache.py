"""Cache files are used only if they are as they were written, for the same dataset and the same feature files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mrlib.data.cache import cache_folder, cached_bank
from mrlib.data.layouts import open_files
from mrlib.data.problems import DataError
from tests.support.files import line, moment_detr, random, save_npz

RECORD = {"dataset": "a", "state": "s"}


def bank(folder, record=RECORD, contents="c", seed=0, **options):
    """The bank of `random(seed, 4, 3)`, or what the cache has in its place."""
    items = iter([(random(seed, 4, 3), None)])
    return cached_bank(folder / "stem", record, lambda: contents, items, 1, torch.float32)[0]


def rows(seed):
    return torch.from_numpy(random(seed, 4, 3))


def test_a_bank_is_read_only_once_and_again_after_a_change(tmp_path):
    assert torch.equal(bank(tmp_path).rows, rows(0))
    assert torch.equal(bank(tmp_path, seed=1).rows, rows(0))
    changed = bank(tmp_path, RECORD | {"state": "t"}, contents="d", seed=2)
    assert torch.equal(changed.rows, rows(2))
    assert os.listdir(tmp_path) == ["stem-t.safetensors"]
    other = bank(tmp_path, {"dataset": "b", "state": "t"}, contents="d", seed=3)
    assert torch.equal(other.rows, rows(3))


def test_a_bank_of_the_same_contents_is_kept_under_its_new_state(tmp_path):
    bank(tmp_path)
    for _ in range(2):
        assert torch.equal(bank(tmp_path, RECORD | {"state": "t"}, seed=1).rows, rows(0))
        assert os.listdir(tmp_path) == ["stem-t.safetensors"]


def change(**tensors):
    """Replaces tensors and keeps what the file says about itself."""

    def write(file):
        with safe_open(file, "pt") as content:
            said = content.metadata()
        save_file(load_file(file) | tensors, file, said)

    return write


def flip(at):
    def write(file):
        content = bytearray(file.read_bytes())
        content[at] ^= 4
        file.write_bytes(content)

    return write


TAMPERED = {
    "other rows": change(rows=torch.ones(20, 10)),
    "NaN": change(rows=torch.full((20, 10), torch.nan)),
    "another width": change(rows=torch.ones(20, 9)),
    "integers": change(rows=torch.ones(20, 10, dtype=torch.int32)),
    "one dimension": change(rows=torch.ones(20)),
    "bad offsets": change(offsets=torch.tensor([0, 50, 20])),
    "offsets of another type": change(offsets=torch.tensor([0.0, 10.0, 20.0])),
    "a bit of a row": flip(-7),
    "a bit of the offsets": flip(4096 + 8),
    "a bit of the header": flip(40),
    "a bit of the padding": flip(4000),
    "no record": lambda file: save_file(load_file(file), file),
    "cut off": lambda file: os.truncate(file, file.stat().st_size - 1),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_cache_file_with_any_change_is_written_again(tamper, tmp_path):
    root = moment_detr(tmp_path)
    before = open_files("qvhighlights", root, "val").batch([0, 1, 2])
    file = next((root / ".mrlib_cache").glob("*-target-*"))
    whole = file.read_bytes()
    tamper(file)
    after = open_files("qvhighlights", root, "val").batch([0, 1, 2])
    assert torch.equal(after.target, before.target)
    assert file.read_bytes() == whole


def test_the_rows_of_another_dataset_are_not_used(tmp_path):
    roots = [moment_detr(tmp_path / name) for name in ("one", "two")]
    save_npz(roots[1] / "clip_features/video_a.npz", features=random(77, 10, 4))
    before = [open_files("qvhighlights", root, "val").batch([0]).target for root in roots]
    one, two = (next((root / ".mrlib_cache").glob("*-target-*")) for root in roots)
    two.write_bytes(one.read_bytes())
    assert torch.equal(open_files("qvhighlights", roots[1], "val").batch([0]).target, before[1])


def test_other_queries_of_the_same_files_have_a_cache_of_their_own(tmp_path):
    root = moment_detr(tmp_path)
    open_files("qvhighlights", root, "val")
    (root / "highlight_val_release.jsonl").unlink()
    moment_detr(root, [line(3), line(1)])
    assert open_files("qvhighlights", root, "val").target.lengths.tolist() == [10]


WAITS = """
import sys, time
from pathlib import Path
import torch, numpy as np
from mrlib.data.cache import cached_bank
def items():
    print("reads", flush=True)
    time.sleep(1.5)
    yield np.ones((4, 3), np.float32), None
print("starts", flush=True)
bank, _ = cached_bank(Path(sys.argv[1]) / "stem", {"state": "s"}, lambda: "c", items(), 1, torch.float32)
assert bank.rows.sum() == 12
"""


def test_a_second_process_waits_for_the_first_and_uses_its_file(tmp_path):
    command = [sys.executable, "-c", WAITS, str(tmp_path)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **options)
    while not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial")):
        assert first.poll() is None
        time.sleep(0.01)
    second = subprocess.Popen(command, **options)
    said = [process.communicate(timeout=100) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sum("reads" in out for out, _ in said) == 1
    assert os.listdir(tmp_path) == ["stem-s.safetensors"]


def test_files_that_killed_processes_left_are_removed(tmp_path):
    dead = tmp_path / ".stem-old.safetensors.0123abcd.partial"
    dead.write_bytes(b"x")
    bank(tmp_path)
    assert os.listdir(tmp_path) == ["stem-s.safetensors"]


class TestFolder:
    """Where the cache is, for users who can write here or there."""

    def test_it_is_beside_the_features_or_at_home(self, tmp_path, monkeypatch):
        assert cache_folder(tmp_path, None) == tmp_path / ".mrlib_cache"
        assert cache_folder(tmp_path, tmp_path / "other") == tmp_path / "other"
        self.forbid(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder(tmp_path, None) == tmp_path / "xdg" / "mrlib"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder(tmp_path, None) == tmp_path / "home" / ".cache" / "mrlib"

    @staticmethod
    def forbid(folder):
        """Nobody, not even root, can make this a folder."""
        (folder / ".mrlib_cache").rmdir()
        (folder / ".mrlib_cache").touch()

    def test_a_user_without_home_and_name_gets_a_folder_of_his_own_and_a_warning(self, tmp_path, monkeypatch):
        def nobody():
            raise RuntimeError("Could not determine home directory.")

        root = moment_detr(tmp_path / "data")
        (root / ".mrlib_cache").touch()
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", nobody)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.warns(UserWarning, match="cannot be written; features are cached in .*mrlib-"):
            assert len(open_files("qvhighlights", root, "val")) == 3
        folder = next(tmp_path.glob("mrlib-*"))
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o777)  # anybody could put files there
        with pytest.raises(DataError, match="no folder for the cache can be written.*cache="):
            open_files("qvhighlights", root, "val")

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"file/below: cache: cannot be written; give another folder by cache="):
            cache_folder(tmp_path, tmp_path / "file" / "below")
