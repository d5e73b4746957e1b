"""The files that an extraction writes: equal bytes for equal input, and kept only if whole and of the same input."""

import json
import time

import numpy as np
import pytest
import torch

from mrlib.data import Sample
from mrlib.video.feature_files import FeatureFolder
from tests.support.own_videos import files_of

RECIPE = {"encoder": "fake", "clip_s": 2.0, "width": 3}
LONG = torch.arange(30_000.0).reshape(-1, 3)  # more rows than a query may have


def made(root, recipe=RECIPE, words=True) -> FeatureFolder:
    folder = FeatureFolder(root, recipe, words=words)
    folder.begin()
    return folder


def test_equal_input_gives_equal_bytes_at_any_time(tmp_path):
    for name in ("a", "b"):
        folder = made(tmp_path / name)
        folder.write_video("v", LONG, 20_000.0, 7)
        folder.write_query(1, "a dog", LONG[:4], LONG[0])
        folder.write_annotations("train", [Sample(1, "a dog", 20_000.0, "v", [[2.0, 4.0]])])
        time.sleep(2.1)  # the times in a zip file are even seconds
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") and len(files_of(tmp_path / "a")) == 4


def test_a_video_stays_if_it_is_whole_and_of_the_same_file_and_recipe(tmp_path):
    folder = made(tmp_path)
    assert folder.duration_s("v", 7) is folder.duration_s("v") is None
    folder.write_video("v", LONG, 20_000.5, 7)
    assert folder.duration_s("v", 7) == folder.duration_s("v") == 20_000.5 and folder.duration_s("v", 8) is None
    file = tmp_path / "clip_features/v.npz"
    whole = file.read_bytes()
    for place in (100, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:place])
        assert folder.duration_s("v", 7) is None
    file.write_bytes(whole[:1000] + b"x" + whole[1001:])
    assert folder.duration_s("v", 7) is None
    np.savez(file, features=LONG.numpy())  # of somebody else
    assert folder.duration_s("v", 7) is folder.duration_s("v") is None


def test_a_query_stays_if_it_is_of_the_same_sentence_and_recipe(tmp_path):
    folder = made(tmp_path)
    folder.write_query(1, "a dog", LONG[:4], LONG[0])
    assert folder.has_query(1, "a dog") and not folder.has_query(1, "a cat") and not folder.has_query(2, "a dog")
    file = tmp_path / "clip_text_features/qid1.npz"
    whole = file.read_bytes()
    for name in (b"last_hidden_state.npy", b"pooler_output.npy", b"made_from.npy"):
        place = whole.index(name) + 160  # in the numbers of the array
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not folder.has_query(1, "a dog")
    file.write_bytes(b"x" + whole[1:])
    assert not folder.has_query(1, "a dog")
    file.write_bytes(whole)
    assert folder.has_query(1, "a dog")
    (tmp_path / "encoder.json").write_text(json.dumps(RECIPE | {"version": 2}))
    assert not made(tmp_path, RECIPE | {"version": 2}).has_query(1, "a dog")


def test_failures_are_noted_until_they_are_mended(tmp_path):
    folder = made(tmp_path)
    folder.fail("a", "a.mp4: no frames")
    folder.fail("b", "b.mp4: no frames")
    assert folder.failed() == {"a", "b"} and (tmp_path / "failed/a.txt").read_text() == "a.mp4: no frames\n"
    folder.succeed("a"), folder.succeed("c")
    assert folder.failed() == {"b"}
    folder.succeed("b")
    assert not (tmp_path / "failed").exists()


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder"):
        FeatureFolder(tmp_path / "file", RECIPE, words=True)
    with pytest.raises(ValueError, match="no encoder.json, but other files, as file; give a new or empty folder"):
        FeatureFolder(tmp_path, RECIPE, words=True)
    made(tmp_path / "out")
    with pytest.raises(ValueError, match="features of another encoder are here, width 3, not 4, joint null, not 4"):
        FeatureFolder(tmp_path / "out", RECIPE | {"width": 4, "joint": 4}, words=True)


def test_query_videos_have_the_names_of_matr(tmp_path):
    folder = made(tmp_path, words=False)
    folder.write_query("q", 7, LONG[:4])
    folder.write_video("v", LONG[:9], 18.0, 8)
    assert sorted(files_of(tmp_path)) == ["encoder.json", "query_vid_clip/qidq.npz", "target_vid_clip/v.npz"]
    assert folder.has_query("q", 7) and folder.duration_s("v", 8) == 18.0
