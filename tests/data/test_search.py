"""Feature files are found by name, whatever their folder, and hidden ones are not."""

import numpy as np

from mrlib.data.search import folders, has_key, matching, templates_of
from tests.support.files import random, save_hdf5, save_npy


def test_files_and_keys_of_a_name_are_found_in_every_folder(tmp_path):
    for folder in ("", "a/b/", ".hidden/", "[x]/"):
        save_npy(tmp_path / folder / "v 1.npy", random(0, 3, 2))
    save_hdf5(tmp_path / "a/all.h5", {"v 1": random(0, 3, 2), "w": np.zeros(3)})
    found = templates_of(tmp_path, {"{vid}": "v 1", "qid{qid}": "qid7"})
    assert sorted(found) == ["[x]/{vid}.npy", "a/all.h5:{vid}", "a/b/{vid}.npy", "{vid}.npy"]
    assert templates_of(tmp_path, {"{vid}": "v"}) == []
    assert has_key(tmp_path / "a/all.h5", "w") and not has_key(tmp_path / "a/all.h5", "v")
    assert not has_key(tmp_path / "v 1.npy", "w")


def test_the_search_ends_after_some_levels_and_does_not_go_in_circles(tmp_path):
    (tmp_path / "1/2/3/4/5").mkdir(parents=True)
    (tmp_path / "1/loop").symlink_to(tmp_path)
    assert list(folders(tmp_path)) == ["", "1/", "1/2/", "1/loop/", "1/2/3/", "1/2/3/4/"]


def test_hidden_files_match_no_pattern(tmp_path):
    for name in ("._v.npy", "v.npy", "[v].npy"):
        (tmp_path / name).touch()
    assert sorted(file.name for file in matching(tmp_path, "*.npy")) == ["[v].npy", "v.npy"]
    assert [file.name for file in matching(tmp_path, "[v].npy")] == ["[v].npy"]
