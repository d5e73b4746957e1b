"""Files of official checkpoints: what `load_official` reads and what it refuses."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from random import Random

import pytest
import torch

from mrlib.checkpoint import load_official
from mrlib.retriever import Training
from tests.reference import official_amr, official_cg_detr, official_detr
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


def test_files_that_are_not_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.ckpt is missing"):
        load_official(tmp_path / "model.ckpt", "univtg")
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    for broken, message in (
        (whole[: len(whole) // 2], "is not a whole checkpoint of PyTorch"),
        (b"", "is an empty file, as an unfinished download leaves it; download it again"),
        (b"not a checkpoint" * 99, "is a text that begins with .*; download it again"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"model.ckpt {message}"):
            load_official(path, "univtg")


def test_contents_that_are_not_a_checkpoint_are_refused(tmp_path):
    path, tensors = tmp_path / "model.ckpt", {"a": torch.ones(1)}
    beside = "put the opt.json of its training into its folder"
    for content, message in (
        (torch.ones(2), "model.ckpt holds a Tensor, not a dict of model and opt"),
        ({"epoch": 3}, "model.ckpt has no model; it has epoch"),
        ({"model": 3}, "model.ckpt has no model; it has model"),
        (tensors, f"model.ckpt has no opt; it has a; {beside}"),
        ({"model": tensors, "epoch": 3}, f"model.ckpt has no opt; it has model, epoch; {beside}"),
        ({"model": tensors, "opt": "--lr 1"}, f"model.ckpt has no opt; it has model, opt; {beside}"),
        ({"model": {"a": 3}, "opt": make_opt()}, "model of .*model.ckpt is not a dict of tensors"),
        ({"model": {}, "opt": make_opt()}, "model of .*model.ckpt is not a dict of tensors"),
        ({"model": {1: torch.ones(1)}, "opt": make_opt()}, "model of .*model.ckpt is not a dict of tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_official(path, "univtg")
    known = "matr, univtg, moment_detr, qd_detr, td_detr, amr, cg_detr"
    with pytest.raises(ValueError, match=f"unknown release 'bert'; known: {known}"):
        load_official(path, "bert")


def same_outputs(path, expected):
    batch, _, _ = batch_and_rows()
    found = outputs_of(load_official(path, "univtg"), batch)
    return all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.fixture
def expected(tmp_path):
    """A checkpoint's network, its file, and its outputs."""
    network, path = saved(tmp_path)
    batch, _, _ = batch_and_rows()
    with torch.no_grad():
        return network, path, outputs_of(load_official(path, "univtg"), batch)


WRAPPED = (
    "module.",
    "_orig_mod.",
    "model.",
    "module.module.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.",
)


@torch.no_grad()
def test_names_of_networks_within_wrappers_are_read(expected):
    """DataParallel, torch.compile, Lightning; of the whole network, or of a part that was compiled alone."""
    network, path, outputs = expected
    for prefix in WRAPPED:
        assert same_outputs(save(network, path, prefix=prefix), outputs), prefix
    tensors = network.state_dict()
    inner = {name.replace("transformer.encoder", "transformer._orig_mod.encoder"): x for name, x in tensors.items()}
    mixed = {("" if i % 2 else "module.") + name: x for i, (name, x) in enumerate(tensors.items())}
    for model in (inner, mixed):
        assert model.keys() != tensors.keys() and same_outputs(save(network, path, model=model), outputs)
    twice = tensors | {f"module.{name}": x for name, x in tensors.items()}
    with pytest.raises(ValueError, match="model of .*model.ckpt has two tensors named .*; save one network alone"):
        load_official(save(network, path, model=twice), "univtg")


@torch.no_grad()
def test_layouts_in_which_checkpoints_are_published_are_read(expected):
    network, path, outputs = expected
    tensors, opt = network.state_dict(), network.opt
    lightning = {"pytorch-lightning_version": "2.4", "global_step": 9, "callbacks": {}, "hparams_name": "opt"}
    lightning |= {"state_dict": {f"model.{k}": x for k, x in tensors.items()}, "hyper_parameters": {"opt": vars(opt)}}
    for content in (
        {"model": tensors, "opt": vars(opt)},
        {"state_dict": tensors, "args": opt, "epoch": 3, "best_metric": 0.4},
        {"model_state_dict": tensors, "config": OrderedDict(vars(opt)), "optimizer_state_dict": {}},
        {"model": {"state_dict": tensors}, "opt": opt},
        lightning,
        lightning | {"hyper_parameters": vars(opt)},
    ):
        torch.save(content, path)
        assert same_outputs(path, outputs), list(content)


@torch.no_grad()
def test_options_that_a_file_lacks_are_read_from_the_json_beside_it(expected):
    network, path, outputs = expected
    beside = path.with_name("opt.json")
    for content in (network.state_dict(), {"model": network.state_dict(), "epoch": 3}):
        torch.save(content, path)
        beside.write_text(json.dumps(vars(network.opt)))
        assert same_outputs(path, outputs)
        for broken in ("", "[1, 2]", "{'a': 1}", "[" * 10**5, "\xff", "1" * 5000):
            beside.write_text(broken, encoding="latin-1")
            with pytest.raises(
                ValueError, match=r"opt\.json is not the JSON object of a training's options: .*copy it"
            ):
                load_official(path, "univtg")


SIZES = ("hidden_dim", "dim_feedforward", "enc_layers", "nheads", "n_input_proj", "v_feat_dim", "t_feat_dim")
STRANGE = [
    10**6,
    10**30,
    -8,
    1e30,
    float("nan"),
    True,
    None,
    "2",
    [2],
    torch.ones(2),
    argparse.Namespace(),
    "x" * 10**6,
]


@pytest.mark.parametrize("name", [*SIZES, "input_dropout", "dropout", "clip_length", "pre_norm", "ctx_mode"])
def test_sizes_are_refused_before_a_network_is_built(name, tmp_path):
    network, path = saved(tmp_path)
    for value in [*STRANGE, *([0] if name in SIZES and name != "enc_layers" else [])]:
        if name == "pre_norm" and value is True:
            continue
        setattr(network.opt, name, value)
        save(network, path)
        started = time.perf_counter()
        with pytest.raises(
            ValueError, match=f"model.ckpt does not describe a network that can be built: {name} of opt"
        ) as e:
            load_official(path, "univtg")
        assert time.perf_counter() - started < 1 and len(str(e.value)) < 500 and "\n" not in str(e.value)


def test_the_largest_numbers_of_layers_take_a_second_at_most(tmp_path):
    network, path = saved(tmp_path)
    network.opt.enc_layers = network.opt.n_input_proj = 64
    save(network, path)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="does not fit the network that its opt describes; .* missing"):
        load_official(path, "univtg")
    assert time.perf_counter() - started < 2


TENSORS = {
    "int8": (lambda x: x.to(torch.int8), "has weightedpool.weight of int8 where floating-point weights are expected"),
    "complex": (lambda x: x.to(torch.complex64), "of complex64 where"),
    "bool": (lambda x: x > 0, "of bool where"),
    "sparse": (lambda x: x.to_sparse(), "(holds torch._utils._rebuild_sparse_tensor|where floating-point)"),
    "meta": (lambda x: x.to("meta"), "(holds torch|where floating-point)"),
    "one number": (
        lambda x: torch.ones(1, 1).expand(16, 1),
        "has weightedpool.weight without its numbers where floating-point weights are expected",
    ),
    "NaN": (lambda x: x * torch.nan, "has NaN or Inf in weightedpool.weight; copy it again"),
    "beyond float32": (lambda x: x.double() * 1e300, "has NaN or Inf in weightedpool.weight"),
    "scalar": (lambda x: x.sum(), r"1 of another shape: weightedpool.weight expected \(16, 1\) found \(\)"),
    "empty": (lambda x: x[:0], "where floating-point weights are expected"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_are_no_numbers_are_refused(name, tmp_path):
    change, message = TENSORS[name]
    network, path = saved(tmp_path)
    model = network.state_dict()
    model["weightedpool.weight"] = change(model["weightedpool.weight"])
    with pytest.raises(ValueError, match=f"model.ckpt .*{message}"):
        load_official(save(network, path, model=model), "univtg")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_precision_become_float32(dtype, tmp_path):
    network, path = saved(tmp_path)
    retriever = load_official(
        save(network, path, model={k: x.to(dtype) for k, x in network.state_dict().items()}), "univtg"
    )
    assert all(p.dtype == torch.float32 and p.requires_grad and p.is_leaf for p in retriever.parameters())
    assert torch.equal(retriever.aligner.pool.weight[0], network.weightedpool.weight[:, 0].to(dtype).float())


def test_a_parameter_that_the_file_shares_is_read_and_trains(tmp_path):
    """Whole modules are saved with parameters instead of tensors."""
    network, path = saved(tmp_path)
    model = dict(network.named_parameters())
    retriever = load_official(save(network, path, model=model), "univtg")
    assert all(p.requires_grad and p.is_leaf for p in retriever.parameters())


def test_the_first_load_of_a_process_compiles_nothing(tmp_path):
    """Initial values of "meta" tensors import torch's compiler: three seconds and 160 MB for a file of a kilobyte."""
    networks = {"univtg": saved(tmp_path)[0], "cg_detr": official_cg_detr.Official(official_cg_detr.make_opt())}
    networks |= {name: official_detr.Official(official_detr.make_opt(), name) for name in ("moment_detr", "td_detr")}
    networks["amr"] = official_amr.random_network(official_amr.make_opt(stage="distill"))
    code = "import sys; from mrlib.checkpoint import load_official\n"
    for paper, network in networks.items():
        torch.save({"model": network.state_dict(), "opt": network.opt}, tmp_path / paper)
        code += (
            f"load_official({str(tmp_path / paper)!r}, {paper!r}); print({paper!r}, 'torch._dynamo' in sys.modules)\n"
        )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"{paper} False" for paper in networks]


def changed_content(random, content):
    """The content of a checkpoint with one entry of its options or of its tensors changed, renamed or left out."""
    content = content | {"model": dict(content["model"]), "opt": argparse.Namespace(**vars(content["opt"]))}
    entries = random.choice([content["model"], vars(content["opt"]), content])
    name = random.choice(list(entries))
    changes = [*STRANGE, 0, 1, 3, 0.5, False, "sine", {}, (), b"x", {"model": 3}, torch.zeros(0, 10**12)]
    changes += [torch.ones(()).expand(10**5, 10**5), torch.ones(2, 2).to_sparse(), torch.ones(16, 1).to(torch.int8)]
    entries[name] = random.choice(changes)
    if random.random() < 0.2:
        entries[random.choice(["x", "module.x", "new\nline" * 99, 3, ("a",)])] = entries.pop(name)
    return content


def changed_bytes(random, whole):
    """The bytes of a file with some changed, left out, inserted or cut off."""
    at, kind = random.randrange(len(whole)), random.choice(["change", "cut", "insert", "remove"])
    some = bytes(random.randrange(256) for _ in range(random.randrange(1, 40)))
    after = {"change": at + len(some), "cut": len(whole), "insert": at, "remove": at + len(some)}[kind]
    return whole[:at] + (some if kind in ("change", "insert") else b"") + whole[after:]


@pytest.mark.parametrize("new", [True, False])
def test_a_damaged_file_gives_a_model_or_an_error_that_names_it(new, tmp_path):
    network, path = saved(tmp_path)
    content = {"model": network.state_dict(), "opt": network.opt, "epoch": 3}
    random, answers = Random(7), Counter()
    for i in range(100):
        torch.save(changed_content(random, content) if i % 2 else content, path, _use_new_zipfile_serialization=new)
        if i % 2 == 0:
            path.write_bytes(changed_bytes(random, path.read_bytes()))
        started = time.perf_counter()
        try:
            load_official(path, random.choice(["univtg", "univtg", "univtg", "matr", "qd_detr"]))
            answers["model"] += 1
        except ValueError as error:
            said = str(error)
            assert said.startswith((str(path), f"model of {path}")) and "\n" not in said and len(said) < 3000, said
            answers["refused"] += 1
        assert time.perf_counter() - started < 2
    assert answers["model"] >= 5 and answers["refused"] >= 50, answers


def test_whose_network_a_file_holds_is_told_by_its_tensors(tmp_path):
    for paper in ("univtg", "matr"):
        _, path = saved(tmp_path, paper)
        told, named = load_official(path), load_official(path, paper)
        assert told.recipe == named.recipe and told.training_data == named.training_data
    torch.save({"model": {"layer.weight": torch.ones(2, 2)}, "opt": make_opt()}, path)
    with pytest.raises(ValueError, match=r"model.ckpt does not tell whose network it holds; known: .*moment_detr"):
        load_official(path)
    torch.save({"model": {"CIM.weight": torch.ones(2, 2)}, "opt": make_opt()}, path)
    with pytest.raises(ValueError, match="model.ckpt holds a network of uvcom, which cannot be loaded"):
        load_official(path)


def test_the_options_say_what_the_network_was_trained_on(tmp_path):
    """Two more columns of `v_feat_dim` are the endpoints."""
    dirs = ["features/slowfast_features", "features/clip_features"]
    wide = {"v_feat_dim": 2304 + 512 + 2, "v_feat_dirs": dirs, "max_v_l": 75, "max_q_l": 32, "clip_length": 1}
    _, path = saved(tmp_path, **wide)
    assert load_official(path).training_data == Training(
        streams={"slowfast": 2304, "clip": 512},
        clip_s=1.0,
        clips=75,
        normalize=("slowfast", "clip", "query"),
        query="text",
        tokens=32,
    )
    _, path = saved(tmp_path, v_feat_dirs=dirs, max_v_l=-1, no_norm_vfeat=True, no_norm_tfeat=True)
    training = load_official(path).training_data
    assert (training.streams, training.clips, training.normalize) == ({"features": 7}, None, ())
