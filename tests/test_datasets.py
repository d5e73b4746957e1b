"""`open_dataset` opens the simulator or files, by name."""

import pytest
import torch

import mrlib
from tests.support.files import moment_detr


def test_the_simulator_is_opened_with_its_options():
    data = mrlib.open_dataset("sim", split="val", n=3, size="paper", streams="joint", seed=4)
    assert (data.name, data.split, len(data)) == ("sim", "val", 3)
    assert data.target.lengths.tolist() == [75] * 3 and list(data.streams) == ["appearance"]
    assert not torch.equal(data.target.rows, mrlib.open_dataset("sim", split="val", n=3, size="paper").target.rows)
    assert mrlib.open_dataset("sim", n=2).split == "train"


def test_files_are_opened_in_the_given_folder_or_in_the_default_one(tmp_path, monkeypatch):
    root = moment_detr(tmp_path / "qvhighlights")
    data = mrlib.open_dataset("qvhighlights", root, "val", limit=2)
    assert (data.name, data.split, [s.qid for s in data.samples]) == ("qvhighlights", "val", [1, 2])
    monkeypatch.setenv("MRLIB_DATA", str(tmp_path))
    assert mrlib.open_dataset("qvhighlights", split="val").samples[:2] == data.samples


@pytest.mark.parametrize("name", ["qvhighlight", "simulator", ""])
def test_an_unknown_name_is_refused_with_the_known_names(name):
    with pytest.raises(ValueError, match=f"unknown dataset '{name}'; known: sim, qvhighlights, "):
        mrlib.open_dataset(name)


def test_an_option_of_the_other_kind_of_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="qvhighlights has no option size; there are layout, streams, "):
        mrlib.open_dataset("qvhighlights", moment_detr(tmp_path), "val", size="small")
    with pytest.raises(ValueError, match="limit"):
        mrlib.open_dataset("sim", limit=3)
