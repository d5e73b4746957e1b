"""Saving and loading checkpoints, and their files."""

import json

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.data import Widths
from mrlib.retriever import MomentRetriever

WIDTHS = Widths(target=24, query=12, joint=16)


@pytest.fixture
def saved(tmp_path):
    retriever = papers.build(papers.get("f2sgd", "small", kernel=5, channels=2), WIDTHS, seed=3)
    checkpoint.save(retriever, tmp_path / "best", {"epoch": 4})
    return retriever, tmp_path


def test_a_loaded_retriever_equals_the_saved_one(saved):
    retriever, folder = saved
    for path in ("best", "best.json", "best.safetensors"):
        loaded = checkpoint.load(folder / path)
        assert loaded.recipe == retriever.recipe and not loaded.training
        for name, tensor in retriever.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    assert json.loads((folder / "best.json").read_text())["notes"] == {"epoch": 4}


def test_saving_twice_gives_the_same_bytes(saved):
    retriever, folder = saved
    checkpoint.save(retriever, folder / "copy", {"epoch": 4})
    for suffix in ("safetensors", "json"):
        assert (folder / f"copy.{suffix}").read_bytes() == (folder / f"best.{suffix}").read_bytes()


def test_a_dot_in_a_name_does_not_start_a_suffix(saved):
    retriever, folder = saved
    checkpoint.save(retriever, folder / "lr0.1")
    assert (folder / "lr0.1.safetensors").is_file() and checkpoint.load(folder / "lr0.1")


def test_broken_and_missing_files_are_named(saved):
    _, folder = saved
    whole = (folder / "best.safetensors").read_bytes()
    (folder / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="best.safetensors is not a whole safetensors file"):
        checkpoint.load(folder / "best")
    (folder / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="best.safetensors is missing"):
        checkpoint.load(folder / "best")


def test_a_checkpoint_of_other_widths_is_refused_with_keys_and_shapes(saved):
    _, folder = saved
    recipe = json.loads((folder / "best.json").read_text())
    recipe["widths"]["joint"] = 8
    (folder / "best.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"it has aligner\.\S+ of shape \(16, 16\) for \(8, 8\)"):
        checkpoint.load(folder / "best")
    (folder / "best.json").write_text("{}")
    with pytest.raises(ValueError, match="best.json is not the JSON of a checkpoint"):
        checkpoint.load(folder / "best")


def test_unknown_and_missing_tensors_are_named(saved):
    retriever, folder = saved
    tensors = dict(retriever.state_dict())
    tensors["detector.other.weight"] = tensors.pop("detector.last.weight")
    checkpoint.save_tensors(folder / "best.safetensors", tensors)
    message = "it has an unknown detector.other.weight; it lacks detector.last.weight"
    with pytest.raises(ValueError, match=f"best.safetensors does not fit the model of best.json: {message}"):
        checkpoint.load(folder / "best")


def test_saving_a_retriever_without_a_recipe_is_refused(saved, tmp_path):
    retriever, _ = saved
    with pytest.raises(ValueError, match="recipe"):
        checkpoint.save(MomentRetriever(retriever.aligner, retriever.detector), tmp_path / "bare")
