"""The features of a video, kept so that it is encoded once."""

import os
import shutil
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest
import torch

from mrlib.tensors import save_tensors
from mrlib.video import index as module
from mrlib.video.encode import Pixels
from mrlib.video.index import Index, fresh_index, index
from tests.support.encoders import FakeEncoder
from tests.support.own_videos import small_video


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return small_video(tmp_path_factory.mktemp("videos") / "a.mp4", 10)


@pytest.fixture
def video(made, tmp_path) -> Path:
    return Path(shutil.copy2(made, tmp_path / "a.mp4"))


def cached(video: Path) -> list[Path]:
    return sorted((video.parent / ".mrlib_cache").glob("*.safetensors"))


def same(a: Index, b: Index) -> bool:
    facts = a.path == b.path and a.duration_s == b.duration_s and a.recipe == b.recipe
    return facts and a.features.dtype == b.features.dtype == torch.float32 and torch.equal(a.features, b.features)


def test_an_index_is_what_the_encoder_gives_with_the_duration_and_the_recipe(video):
    for encoder in (FakeEncoder(), Pixels()):
        made = index(video, encoder)
        assert torch.equal(made.features, encoder.video(video)) and made.path == str(video)
        assert (made.duration_s, made.recipe, made.clip_s) == (10, encoder.recipe, encoder.recipe["clip_s"])


def test_a_video_is_encoded_once_and_the_cache_gives_the_same(video):
    encoder = FakeEncoder()
    fresh, again = index(video, encoder), index(str(video), encoder)
    assert encoder.videos == ["a.mp4"] and same(fresh, again)
    assert [file.name for file in (video.parent / ".mrlib_cache").iterdir()] == [cached(video)[0].name]


def test_every_encoder_has_an_index_of_its_own(video):
    one, other = FakeEncoder(version=1), FakeEncoder(version=2)
    assert not torch.equal(index(video, one).features, index(video, other).features)
    index(video, one), index(video, other)
    assert (len(one.videos), len(other.videos), len(cached(video))) == (1, 1, 2)


def test_a_changed_video_is_encoded_again_and_a_touched_or_copied_one_is_not(video, tmp_path):
    encoder = FakeEncoder()
    first = index(video, encoder)
    os.utime(video, (1, 1))
    assert same(first, index(video, encoder)) and len(encoder.videos) == 1
    shutil.copytree(tmp_path, tmp_path / "copy")
    copied = index(tmp_path / "copy" / "a.mp4", encoder)
    assert torch.equal(first.features, copied.features) and len(encoder.videos) == 1
    times = os.stat(video)
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and time as before
    assert not torch.equal(first.features, index(video, encoder).features) and len(encoder.videos) == 2
    assert len(cached(video)) == 1


def test_two_videos_of_one_name_share_a_cache_folder(video, tmp_path):
    other = small_video(tmp_path / "other" / "a.mp4", 6)
    encoder = FakeEncoder()
    for _ in range(2):
        lengths = [len(index(path, encoder, tmp_path / "cache").features) for path in (video, other)]
    assert lengths == [5, 3] and len(encoder.videos) == 2 and not (tmp_path / ".mrlib_cache").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text", "folder note"])
def test_a_damaged_cache_file_is_made_again(damage, video):
    encoder = FakeEncoder()
    fresh = index(video, encoder)
    (file,) = cached(video)
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    texts = {"cut": whole[:-7], "bit": flipped, "empty": b"", "text": b"features"}
    if damage == "folder note":
        save_tensors(file, {"features": fresh.features}, "[]")
    else:
        file.write_bytes(texts[damage])
    assert same(fresh, index(video, encoder)) and len(encoder.videos) == 2
    assert same(fresh, index(video, encoder)) and file.read_bytes() == whole


def test_beside_a_video_where_nothing_can_be_written_the_cache_is_at_home(video, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / ".mrlib_cache").write_text("")  # so that no folder can be made there, not even by root
    encoder = FakeEncoder()
    assert same(index(video, encoder), index(video, encoder)) and len(encoder.videos) == 1
    assert len(list((tmp_path / "home" / "mrlib").glob("a.mp4-*.safetensors"))) == 1


def test_without_space_for_the_cache_the_features_are_still_returned(video, monkeypatch):
    def full(*_):
        raise OSError(ENOSPC, "cannot write: no space left on the device")

    monkeypatch.setattr(module, "save_tensors", full)
    with pytest.warns(UserWarning, match="no space left.*a.mp4 are not cached"):
        assert len(index(video, FakeEncoder()).features) == 5


PROGRAM = """
import sys, time
from pathlib import Path
from mrlib.video.index import index
from tests.support.encoders import FakeEncoder

class Slow(FakeEncoder):
    def video(self, path, progress=None):
        print("encoded", flush=True)
        time.sleep(1)
        return super().video(path, progress)

print(float(index(sys.argv[1], Slow()).features.sum()), flush=True)
"""


def test_of_two_processes_one_encodes(video):
    command = [sys.executable, "-c", PROGRAM, str(video)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in processes for line in process.communicate(timeout=120)[0].splitlines()]
    assert lines.count("encoded") == 1 and len(set(lines)) == 2 and len(lines) == 3


def test_an_index_is_saved_and_loaded(video, tmp_path):
    made = fresh_index(video, FakeEncoder())
    made.save(tmp_path / "a.index.safetensors")
    assert same(made, Index.load(tmp_path / "a.index.safetensors"))
    index(video, FakeEncoder())
    assert same(made, Index.load(cached(video)[0]))  # a file of the cache is an index like any other


def test_a_foreign_or_damaged_index_is_refused_by_name(video, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors is missing"):
        Index.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("features")
    with pytest.raises(ValueError, match="text.safetensors is not a whole safetensors file"):
        Index.load(tmp_path / "text.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"features": torch.ones(2, 3)}, '{"kind": "model"}')
    with pytest.raises(ValueError, match="other.safetensors is no index of a video; make one with"):
        Index.load(tmp_path / "other.safetensors")
    fresh_index(video, FakeEncoder()).save(file := tmp_path / "cut.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut.safetensors is not a whole"):
        Index.load(file)


def test_bad_arguments_are_named(video, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.mp4: no such file"):
        index(tmp_path / "none.mp4", FakeEncoder())
    with pytest.raises(ValueError, match="is a folder; give one video file"):
        index(tmp_path, FakeEncoder())
    with pytest.raises(ValueError, match="cache: cannot be written"):
        index(video, FakeEncoder(), cache=video)
    wrong = FakeEncoder()
    wrong.recipe = wrong.recipe | {"width": 7}
    wrong._draw = lambda data, rows: torch.ones(rows, 16)
    with pytest.raises(ValueError, match=r"a.mp4: encoder fake gave torch.float32 \(5, 16\), not float32 rows of 7"):
        index(video, wrong)
    wrong._draw = lambda data, rows: torch.full((rows, 7), torch.nan)
    with pytest.raises(ValueError, match="encoder fake gave features that are NaN"):
        index(video, wrong)
    wrong.recipe = {"encoder": "fake", "clip_s": 2, "width": 16, "weights": torch.ones(1)}
    with pytest.raises(ValueError, match="the recipe of FakeEncoder must have"):
        index(video, wrong)


@pytest.mark.parametrize("name", ['it\'s "a" name.mp4', "two\nlines.mp4", "x" * 200 + ".mp4", "ümläut.mp4"])
def test_any_name_of_a_file_will_do(name, video, tmp_path):
    video = video.rename(tmp_path / name)
    encoder = FakeEncoder()
    assert same(index(video, encoder), index(video, encoder)) and len(encoder.videos) == 1


def test_progress_is_told(video):
    told = []
    index(video, FakeEncoder(), progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 10)]
