"""Files of official checkpoints: what `load_official` reads and what it refuses."""

import argparse
import os
from collections import OrderedDict

import pytest
import torch

from mrlib.checkpoint import load_official
from tests.reference.official_univtg import make_opt, save, saved
from tests.support.batches import batch_and_rows
from tests.support.modules import outputs_of


@pytest.mark.parametrize("paper", ["univtg", "matr"])
@torch.no_grad()
def test_names_of_multi_gpu_runs_and_widths_without_endpoints_are_read(paper, tmp_path):
    network, path = saved(tmp_path, paper, prefix="module.")
    batch, _, _ = batch_and_rows()
    expected = outputs_of(load_official(path, paper), batch)
    network.opt.v_feat_dim -= 2  # as in the official opt.json, written before the two are added
    save(network, path)
    for key, value in outputs_of(load_official(path, paper), batch).items():
        assert torch.equal(value, expected[key])


@torch.no_grad()
def test_half_precision_and_the_old_file_format_are_read(tmp_path):
    network, path = saved(tmp_path)
    content = {"model": OrderedDict((k, v.half()) for k, v in network.state_dict().items()), "opt": network.opt}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    retriever = load_official(path, "univtg")
    assert all(p.dtype == torch.float32 for p in retriever.parameters())
    assert torch.equal(retriever.aligner.pool.weight[0], network.weightedpool.weight[:, 0].half().float())


def test_every_key_and_shape_that_does_not_fit_is_listed(tmp_path):
    network, path = saved(tmp_path)
    model = network.state_dict()
    model["lost.weight"] = model.pop("token_type_embeddings.weight")
    model["weightedpool.weight"] = torch.ones(1, 16)
    model["span_embed.layers.0.bias"] = torch.ones(3)
    with pytest.raises(ValueError) as error:
        load_official(save(network, path, model=model), "univtg")
    assert str(error.value) == (
        f"{path} does not fit the network that its opt describes; 1 missing: token_type_embeddings.weight; "
        "1 unexpected: lost.weight; 2 of another shape: weightedpool.weight expected (16, 1) found (1, 16), "
        "span_embed.layers.0.bias expected (16,) found (3,)"
    )
    network.opt.enc_layers = 4
    with pytest.raises(ValueError, match=r"24 missing: transformer\.encoder\.layers\.2\S+, .* and 14 more$"):
        load_official(save(network, path), "univtg")


class MakesFolder:
    """Unpickling it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("new", [True, False])
def test_other_objects_are_not_unpickled(new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"model": {}, "opt": make_opt(), "epoch": MakesFolder()}
    torch.save(content, "evil.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"evil.ckpt holds posix.mkdir; only tensors, plain values"):
        load_official("evil.ckpt", "univtg")
    assert not (tmp_path / "evil").exists()
    torch.save({"model": {}, "opt": argparse.Namespace(at=tmp_path)}, "path.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"path.ckpt holds pathlib"):
        load_official("path.ckpt", "univtg")


def test_files_that_are_not_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.ckpt is missing"):
        load_official(tmp_path / "model.ckpt", "univtg")
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint" * 99):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="model.ckpt is not a whole checkpoint of PyTorch"):
            load_official(path, "univtg")


def test_contents_that_are_not_a_checkpoint_are_refused(tmp_path):
    path, tensors = tmp_path / "model.ckpt", {"a": torch.ones(1)}
    for content, message in (
        (torch.ones(2), "model.ckpt holds a Tensor, not a dict of model and opt"),
        (tensors, "model.ckpt has no model and no opt; it has a"),
        ({"model": tensors, "epoch": 3}, "model.ckpt has no opt; it has model, epoch"),
        ({"model": tensors, "opt": {"hidden_dim": 4}}, "opt of .*model.ckpt is a dict, not an argparse.Namespace"),
        ({"model": {"a": 3}, "opt": make_opt()}, "model of .*model.ckpt is not a dict of tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_official(path, "univtg")
    known = "matr, univtg, moment_detr, qd_detr, td_detr, amr"
    with pytest.raises(ValueError, match=f"unknown release 'bert'; known: {known}"):
        load_official(path, "bert")
