"""Saving and loading checkpoints, and their files."""

import json
import time
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from torch import nn

from mrlib import checkpoint, files, papers, tensors
from mrlib.data import Widths
from mrlib.retriever import MomentRetriever, Training

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


def compiled_parts(retriever):
    retriever.aligner = torch.compile(retriever.aligner)
    return retriever


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, compiled_parts])
def test_a_compiled_or_parallel_retriever_is_saved_as_the_one_inside(wrap, saved):
    """The names of torch.compile and DataParallel, `_orig_mod.` and `module.`, are no part of a checkpoint."""
    retriever, folder = saved
    checkpoint.save(wrap(retriever), folder / "wrapped", {"epoch": 4})
    assert (folder / "wrapped.safetensors").read_bytes() == (folder / "best.safetensors").read_bytes()
    assert checkpoint.load(folder / "wrapped")


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


def as_before(folder):
    """The checkpoint as an earlier version wrote it: no recipe in the weights, no checksum in either file."""
    weights = safetensors.torch.load_file(folder / "best.safetensors")
    (folder / "best.safetensors").write_bytes(safetensors.torch.save(weights, {"note": ""}))
    recipe = json.loads((folder / "best.json").read_text())
    del recipe["checksum"]
    (folder / "best.json").write_text(json.dumps(recipe))
    return recipe


def test_a_checkpoint_of_an_earlier_version_is_loaded(saved):
    retriever, folder = saved
    as_before(folder)
    loaded = checkpoint.load(folder / "best")
    assert loaded.recipe == retriever.recipe
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in retriever.state_dict().items())


def test_the_weights_alone_are_a_whole_checkpoint(saved):
    retriever, folder = saved
    (folder / "best.json").unlink()
    assert checkpoint.load(folder / "best").recipe == retriever.recipe


@pytest.mark.parametrize("first", [True, False], ids=["the first checkpoint", "a later one"])
def test_a_process_killed_between_the_two_files_leaves_a_whole_checkpoint(first, saved, monkeypatch):
    """Weights of one model beside the JSON of another, or beside none, load as the model of the weights."""
    _, folder = saved
    if first:
        (folder / "best.json").unlink()
    other = papers.build(papers.get("f2sgd", "small", kernel=3, channels=3), WIDTHS, seed=4)
    written = []

    def stop(path, data):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        files.write_whole(path, data)

    monkeypatch.setattr(tensors, "write_whole", stop)
    monkeypatch.setattr(checkpoint, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(other, folder / "best", {"epoch": 5})
    loaded = checkpoint.load(folder / "best")
    assert loaded.recipe == other.recipe
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in other.state_dict().items())


@pytest.mark.parametrize(("field", "value"), [("seed", 4), ("prepared", [])])
def test_a_changed_json_is_refused_with_its_field_and_a_way_out(field, value, saved):
    _, folder = saved
    recipe = json.loads((folder / "best.json").read_text())
    (folder / "best.json").write_text(json.dumps(recipe | {field: value}))
    with pytest.raises(ValueError, match=f"best.json: '{field}' is .*; without best.json, the settings in best.saf"):
        checkpoint.load(folder / "best")
    (folder / "best.json").unlink()
    checkpoint.load(folder / "best")


def test_the_json_of_other_weights_is_refused(saved):
    _, folder = saved
    weights = safetensors.torch.load_file(folder / "best.safetensors")
    (folder / "best.safetensors").write_bytes(safetensors.torch.save(weights, {"note": ""}))
    with pytest.raises(ValueError, match="best.json belongs to other weights than best.safetensors"):
        checkpoint.load(folder / "best")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '"x"', "{", "{}", 50_000 * "[", '{"seed": ' + 5000 * "1" + "}", "\x00", 5_000_000 * " "],
    ids=lambda text: text[:9],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_json_that_describes_nothing_is_refused(text, earlier, saved):
    _, folder = saved
    if earlier:
        as_before(folder)
    (folder / "best.json").write_text(text)
    with pytest.raises(
        ValueError, match="best.json is not the JSON of a checkpoint: .*; (without best.json|take another copy)"
    ):
        checkpoint.load(folder / "best")


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"paper": "\xe9"}'])
def test_a_json_that_is_not_utf_8_is_refused(content, saved):
    _, folder = saved
    (folder / "best.json").write_bytes(content)
    with pytest.raises(ValueError, match="best.json is not .*can't decode.*; without best.json"):
        checkpoint.load(folder / "best")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paper": "f2sgd"}, "'paper' must be"),
        ({"paper": {"name": "none"}}, "'paper' cannot be built, unknown paper 'none'"),
        ({"paper": {"name": "f2sgd", "colour": 1}}, "'paper' cannot be built, unknown setting 'colour'"),
        ({"paper": {"name": "f2sgd", "size": "huge"}}, "'paper' cannot be built, unknown size"),
        (
            {"paper": {"name": "f2sgd", "size": "small", "channels": 10**12}},
            "the model would have more than .* numbers",
        ),
        (
            {"paper": {"name": "f2sgd", "size": "small", "channels": 10**30}},
            "the model would have more than .* numbers",
        ),
        ({"paper": {"name": "f2sgd", "size": "small", "channels": -1}}, "'paper' cannot be built"),
        ({"paper": {"name": "matr", "size": "small", "layers": 10**6}}, "the model would have more than .* parts"),
        (
            {"paper": {"name": "qd_detr", "size": "small", "decoder_layers": 10**30}},
            "the model would have more than .* parts",
        ),
        ({"widths": {}}, "'widths' must be"),
        ({"widths": {"target": 24, "query": 12, "joint": 10**30}}, "'widths' must be"),
        ({"widths": {"target": 24.0, "query": 12, "joint": 16}}, "'widths' must be"),
        ({"widths": {"target": 24, "query": None, "joint": 16}}, "'widths' must be"),
        ({"seed": "3"}, "'seed' must be"),
        ({"seed": 10**30}, "'seed' must be"),
        ({"seed": None}, "'seed' must be"),
        ({"prepared": "active_queries"}, "'prepared' must be"),
        ({"prepared": ["other"]}, "'prepared' must be"),
        ({"prepared": ["active_queries"]}, "'paper' cannot be built"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_field_that_describes_no_model_is_named_before_memory_is_taken(change, message, earlier, saved):
    _, folder = saved
    recipe = as_before(folder) if earlier else json.loads((folder / "best.json").read_text())
    (folder / "best.json").write_text(json.dumps(recipe | change))
    started = time.perf_counter()
    with pytest.raises(ValueError, match=f"best.json is not the JSON of a checkpoint: .*{message}"):
        checkpoint.load(folder / "best")
    assert time.perf_counter() - started < 20, "a model was built that nobody has the weights of"


def test_weights_of_another_type_or_not_finite_are_refused(saved):
    retriever, folder = saved
    weights = dict(retriever.state_dict())
    name = next(iter(weights))
    as_before(folder)
    for tensor, message in (
        (weights[name].to(torch.int8), f"it has {name} of type I8 for F32"),
        (weights[name].double(), f"it has {name} of type F64 for F32"),
        (weights[name] * torch.nan, f"{name} has numbers that are NaN or infinite"),
    ):
        changed = safetensors.torch.save(weights | {name: tensor.contiguous()}, {"note": ""})
        (folder / "best.safetensors").write_bytes(changed)
        with pytest.raises(ValueError, match=f"best.safetensors .*{message}"):
            checkpoint.load(folder / "best")


def test_a_changed_number_is_noticed(saved):
    retriever, folder = saved
    whole = (folder / "best.safetensors").read_bytes()
    (folder / "best.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="best.safetensors is damaged: its checksum is not that of its content"):
        checkpoint.load(folder / "best")


@pytest.mark.parametrize("name", papers.PAPERS)
def test_every_paper_is_built_within_the_limits_of_its_weights(name, tmp_path):
    paper = papers.get(name, "small")
    retriever = papers.build(paper, WIDTHS)
    for stage in paper.stages:
        if stage.prepare is not None:
            papers.prepare(retriever, stage.prepare)
    checkpoint.save(retriever, tmp_path / name)
    assert checkpoint.load(tmp_path / name).recipe == retriever.recipe


TRAINING = Training(
    streams={"slowfast": 8, "clip": 16},
    clip_s=2.0,
    clips=75,
    normalize=("slowfast", "clip", "query"),
    query="text",
    tokens=32,
    encoder={"encoder": "clip", "width": 16},
)


def test_a_checkpoint_says_what_the_model_was_trained_on(saved):
    """The field is optional: one of an untrained model, or of an earlier version, has none."""
    retriever, folder = saved
    assert checkpoint.load(folder / "best").training_data is None
    assert "training_data" not in json.loads((folder / "best.json").read_text())
    before = safetensors.torch.load_file(folder / "best.safetensors")
    retriever.training_data = TRAINING
    checkpoint.save(retriever, folder / "best")
    assert checkpoint.load(folder / "best").training_data == TRAINING
    (folder / "best.json").unlink()
    assert checkpoint.load(folder / "best").training_data == TRAINING
    after = safetensors.torch.load_file(folder / "best.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "changes",
    [
        {"streams": {"clip": 23}},
        {"streams": {"slowfast": 8, "clip": "16"}},
        {"streams": {"slowfast": 0, "clip": 24}},
        {"streams": []},
        {"clips": 0},
        {"clips": 75.0},
        {"clips": 10**12},
        {"tokens": -1},
        {"clip_s": 0},
        {"clip_s": "2"},
        {"clip_s": float("inf")},
        {"normalize": "clip"},
        {"normalize": [1]},
        {"query": "sound"},
        {"query": []},
        {"encoder": 3},
        {"another": 1},
    ],
    ids=str,
)
def test_damaged_facts_about_the_training_are_named(changes, saved):
    retriever, folder = saved
    retriever.training_data = TRAINING
    checkpoint.save(retriever, folder / "best")
    settings = json.loads((folder / "best.json").read_text())
    settings["training_data"] |= changes
    (folder / "best.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match="best.json is not the JSON of a checkpoint: 'training_data' must be an object"
    ):
        checkpoint.load(folder / "best")
    settings["training_data"] = asdict(replace(TRAINING, clips=74))  # valid, but of another training
    (folder / "best.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="'training_data' is .* was saved with"):
        checkpoint.load(folder / "best")
    settings["training_data"] = None
    (folder / "best.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="'training_data' must be an object"):
        checkpoint.load(folder / "best")
