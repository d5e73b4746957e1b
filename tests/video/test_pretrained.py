"""Loading CLIP: which files are read, which are refused and how, that nothing is printed and no network is used."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrlib.video.clip import Clip
from mrlib.video.pretrained import digest, load
from tests.support.tiny_clip import write_tiny_clip

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("pretrained") / "tiny", projection=16, side=32)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "tiny")


@pytest.fixture
def no_network(monkeypatch):
    """Every use of the network fails as without one; returns the list of attempts."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


class Torchscript(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def equal(one, other):
    return digest(load(one)[0]) == digest(load(other)[0])


# ---- what is read ----


def test_every_weight_is_that_of_the_file(whole):
    model, tokenizer = load(whole)
    stored = load_file(whole / "model.safetensors")
    assert {k: v.dtype for k, v in model.state_dict().items()} == dict.fromkeys(stored, torch.float32)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tokenizer("a dog")["input_ids"][-1] == model.config.text_config.eos_token_id


def test_the_folder_that_transformers_saves_is_the_same_model(whole, tmp_path):
    """In shards, with the tokenizer in one file and no vocab.json."""
    transformers.CLIPModel.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="50KB")
    transformers.CLIPTokenizer.from_pretrained(whole).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 and not (tmp_path / "vocab.json").exists()
    assert equal(whole, tmp_path)
    sentence = "A man opens the door"
    assert torch.equal(Clip(whole).text(sentence)[0], Clip(tmp_path).text(sentence)[0])


def test_a_tokenizer_in_the_older_form_of_one_file_is_the_same(whole, folder):
    """Whose merges are texts of two parts; both forms of the files lie in OpenAI's repositories."""
    transformers.CLIPTokenizer.from_pretrained(whole).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(whole / name, folder)
    sentence = "A man opens the door's lock, 12 times"
    assert load(folder)[1](sentence)["input_ids"] == load(whole)[1](sentence)["input_ids"]


def test_half_precision_files_are_read_as_float32(whole, folder):
    change_weights(folder, lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    assert {value.dtype for value in load(folder)[0].state_dict().values()} == {torch.float32}
    assert not equal(whole, folder)  # other numbers


def test_positions_that_older_files_store_are_no_weights(whole, folder):
    name = "text_model.embeddings.position_ids"
    change_weights(folder, lambda weights: weights.update({name: torch.arange(77)[None]}))
    assert equal(whole, folder)


def test_a_setting_that_changes_the_numbers_changes_the_digest(whole, folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, vision_config=config["vision_config"] | {"hidden_act": "gelu"})
    assert not equal(whole, folder)


def test_another_name_for_the_same_number_does_not(whole, folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, text_config=config["text_config"] | {"bos_token_id": 0, "eos_token_id": 2}, note="a copy")
    assert equal(whole, folder)


def test_the_home_folder_is_found(whole, monkeypatch):
    monkeypatch.setenv("HOME", str(whole.parent))
    load("~/tiny")


# ---- what is printed, and where from it comes ----


def test_nothing_is_printed(folder, capfd):
    """Neither when all is well, nor where transformers prints a report, nor for a sentence that is too long.

    The older form of special_tokens_map.json makes the tokenizer's Rust code print a line for every mark.
    """
    name = "vision_model.embeddings.position_ids"
    change_weights(folder, lambda weights: weights.update({name: torch.arange(5)[None]}))
    encoder = Clip(folder)
    with pytest.warns(UserWarning, match="CLIP reads 77"):
        encoder.text("dog " * 200)
    change_weights(folder, lambda weights: weights.pop("text_projection.weight"))
    with pytest.raises(ValueError, match="missing"):
        load(folder)
    assert capfd.readouterr() == ("", "")


def test_what_is_printed_before_and_after_arrives(whole, capfd):
    print("before")
    load(whole)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_a_process_without_standard_output_loads_a_model(whole):
    program = f"import os, sys; os.close(1); from mrlib.video.pretrained import load; load({str(whole)!r})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_how_much_transformers_says_is_as_before(whole):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(whole)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_folder_needs_no_network(whole, no_network):
    Clip(whole).text("a dog runs")
    assert no_network == []


def test_a_hub_name_that_cannot_be_fetched_is_refused_at_once(no_network, capfd):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as error:
        load("nobody/no-such-clip")
    assert time.perf_counter() - start < 5 and no_network
    message = str(error.value)
    assert message.startswith("nobody/no-such-clip is no folder, is not in the local cache and cannot be fetched")
    assert "give a folder with config.json, model.safetensors" in message and "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_a_hub_name_in_the_cache_needs_no_network(whole, no_network, tmp_path, monkeypatch):
    repository = tmp_path / "models--somebody--clip"
    shutil.copytree(whole, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert Clip("somebody/clip").recipe == Clip(whole).recipe and Clip("somebody/clip").notes["name"] == "clip"
    assert no_network == []


def test_a_hub_repository_with_pickled_weights_only_says_how_to_convert_them(whole, tmp_path, monkeypatch):
    """As older repositories are, of which the pickled file is not even fetched."""
    wanted = []

    def fetch(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError(name)
        wanted.extend(allow_patterns)
        for file in whole.glob("*.json"):
            shutil.copy(file, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ValueError, match="somebody/old: no model.safetensors in the local cache or on the hub"):
        load("somebody/old")
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in wanted)


def test_the_command_that_converts_weights_makes_a_folder_that_can_be_read(whole, folder):
    (folder / "model.safetensors").unlink()
    torch.save(load_file(whole / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="nothing is unpickled") as error:
        load(folder)
    command = re.search('python -c "(.*)"', str(error.value))[1]
    exec(command, {})
    assert equal(whole, folder)


# ---- what is refused ----


def refused(name, *parts, kind=ValueError):
    """The name is refused with a message of one line that has these parts, and the name of the folder or file."""
    with pytest.raises(kind) as error:
        load(name)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in (str(name), *parts)), message


@pytest.mark.parametrize("name", ["clip", "./clip", "/no/such/folder", "a/b/c", "C:\\clip", "no such/clip"])
def test_a_folder_that_does_not_exist(name, no_network):
    refused(name, "no such folder", "give a folder with config.json", kind=FileNotFoundError)
    assert no_network == []


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "no config.json", "give a folder with config.json, model.safetensors and the tokenizer")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no model.safetensors", "give a folder with")


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_folder_without_a_tokenizer(missing, folder):
    """Of which transformers would make one that knows no word."""
    (folder / missing).unlink()
    refused(folder, "no tokenizer", "tokenizer.json or vocab.json and merges.txt")


def test_pickled_weights(folder):
    """Which are not opened: this one would end the process."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\n_exit\n(I3\ntR.")
    refused(folder, "but pytorch_model.bin", "nothing is unpickled", "safetensors", "save_pretrained(")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_torchscript_archive_of_openai(tmp_path):
    file = tmp_path / "ViT-B-32.pt"
    torch.jit.script(Torchscript()).save(file)
    refused(file, "OpenAI's TorchScript archive", "give a folder with config.json, model.safetensors")
    refused(tmp_path, "OpenAI's TorchScript archive ViT-B-32.pt", "give a folder with config.json, model.safetensors")


def test_a_file_in_place_of_a_folder(whole):
    refused(whole / "model.safetensors", "is a file", "give a folder")


KINDS = ["siglip", "blip", "clip_vision_model", "clip_text_model", "chinese_clip", "clipseg", None, ["clip"]]


@pytest.mark.parametrize("kind", KINDS)
def test_another_architecture(kind, folder):
    change_config(folder, model_type=kind)
    refused(folder, "config.json", f"model_type is {kind!r}", 'only "clip" can be read')


CONFIGS = [
    ("", "is an empty file"),
    ("{", "config.json: Expecting"),
    ("[1]", "model_type is None"),
    ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a pointer of Git LFS"),
    ("<!DOCTYPE html><html>", "is a web page"),
]


@pytest.mark.parametrize(("content", "part"), CONFIGS)
def test_a_configuration_that_is_none(content, part, folder):
    (folder / "config.json").write_text(content)
    refused(folder, "config.json", part)


def test_a_configuration_in_another_encoding(folder):
    (folder / "config.json").write_bytes('{"model_type": "clip"}'.encode("utf-16"))
    refused(folder, "config.json", "no text in UTF-8")


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_a_configuration_with_a_setting_that_cannot_be(tower, folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, **{tower: config[tower] | {"num_attention_heads": 5}})
    refused(folder, "the model cannot be loaded", "copy or download its files again")


def test_a_pointer_of_git_lfs_in_place_of_the_weights(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605247071\n"
    (folder / "model.safetensors").write_text(text)
    refused(folder, "model.safetensors is a pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("kept", [0, 7, 100, 20_000, -1])
def test_weights_that_are_cut_off(kept, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, "again")


def test_weights_whose_header_is_damaged(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[9:20] = b"x" * 11
    file.write_bytes(content)
    refused(folder, "the model cannot be loaded", "copy or download its files again")


LOST = ["text_projection.weight", "visual_projection.weight", "vision_model.encoder.layers.1.mlp.fc1.bias"]


@pytest.mark.parametrize("name", LOST)
def test_a_missing_tensor(name, folder):
    """For which transformers would take random numbers."""
    change_weights(folder, lambda weights: weights.pop(name))
    refused(folder, f"1 tensors are missing, such as {name}", "copy both again")


def test_tensors_of_another_shape(folder):
    change_config(folder, projection_dim=32)
    refused(folder, "2 tensors are of other shapes, such as text_projection.weight is (16, 32), not (32, 32)")


def test_tensors_that_the_configuration_does_not_know(folder):
    """Of a deeper model, whose first layers alone would be used."""
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, text_config=config["text_config"] | {"num_hidden_layers": 1})
    refused(folder, "16 tensors are unknown, such as text_model.encoder.layers.1.layer_norm1.bias")


def test_a_shard_that_is_missing(whole, tmp_path):
    transformers.CLIPModel.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="50KB")
    shutil.copy(whole / "vocab.json", tmp_path)
    shutil.copy(whole / "merges.txt", tmp_path)
    load(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"no {shard.name}, which model.safetensors.index.json names")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    refused(tmp_path, "model.safetensors.index.json: no list of shards")


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", '{"a": "b"}', "<html>"])
def test_a_vocabulary_that_is_none(content, folder):
    (folder / "vocab.json").write_text(content)
    refused(folder)


def test_a_tokenizer_of_another_model(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({token: i + 3 for token, i in vocab.items()}))
    refused(folder, "a tokenizer of another model", "copy the model's own")


def test_a_list_of_merges_that_is_cut_off(folder):
    """With which words would be spelled, and no error raised."""
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[:-1]) + "\n")
    refused(folder, "merges are missing", "copy the tokenizer's files again")


@pytest.mark.parametrize("side", [[32, 48], -32, 0])
def test_pictures_of_an_impossible_shape(side, folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, vision_config=config["vision_config"] | {"image_size": side})
    refused(folder)


def test_a_weight_that_is_no_number(folder):
    change_weights(folder, lambda weights: weights["text_projection.weight"].fill_(torch.nan))
    refused(folder, "text_projection.weight is not finite")


def test_without_transformers_the_error_says_how_to_install_it(whole, monkeypatch):
    for name in [name for name in sys.modules if name == "transformers" or name.startswith("transformers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape('CLIP needs transformers: pip install -e ".[video]"')):
        load(whole)


def test_importing_the_encoders_loads_no_transformers():
    program = "import sys, mrlib.video.encode; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
