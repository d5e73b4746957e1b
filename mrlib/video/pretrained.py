"""Load CLIP and its tokenizer from a folder or from the Hugging Face hub, through transformers, and check both.

A folder holds what `save_pretrained` of transformers writes: config.json, model.safetensors (or its shards with
model.safetensors.index.json) and the tokenizer's tokenizer.json, or vocab.json and merges.txt. Loading it never uses a
network. A hub name, as "openai/clip-vit-base-patch32", is looked up in the local cache first.

Nothing is unpickled, so weights in pytorch_model.bin or in OpenAI's ViT-B-32.pt are refused. transformers fills weights
that it does not find with random numbers and only prints a report; here that is an error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mrlib.data.digests import Checksum
from mrlib.downloads import wrong_download
from mrlib.files import parse_json

_WEIGHTS, _SHARDS = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do
_FETCHED = ["*.json", "merges.txt", "model*.safetensors"]  # of a hub repository
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads")  # that no tensor's shape shows
_FORM = (
    "a folder with config.json, model.safetensors and the tokenizer's files, as save_pretrained of transformers writes"
)
_CONVERT = (
    "nothing is unpickled here; write the weights as safetensors, once: "
    'python -c "import transformers as t; '
    "[c.from_pretrained('{0}').save_pretrained('{1}') for c in (t.CLIPModel, t.CLIPTokenizer)]\""
)


def load(name: str | Path) -> tuple[nn.Module, Any]:
    """The `CLIPModel`, float32 on the CPU and ready to evaluate, and the `CLIPTokenizer` of a folder or a hub name.

    raises  FileNotFoundError if there is no such folder, or no such model in the cache and on the hub; ValueError,
            which says what to do, for what is no CLIP or not whole; ImportError without transformers
    """
    model_class, tokenizer_class = _transformers()
    with _quiet():
        folder = _folder(name)
        for file in _parts(folder):
            if (wrong := wrong_download(file)) is not None:
                raise ValueError(f"{file} {wrong}")
        _check_config(folder / "config.json")
        model = _load_model(model_class, folder)
        return model, _load_tokenizer(tokenizer_class, folder, model.config.text_config)


def digest(model: nn.Module) -> str:
    """A digest of the weights of a CLIP model and of the settings that go with them, the same for equal numbers.

    Neither the names of files nor their form enter it.
    """
    towers = {"text": model.config.text_config, "vision": model.config.vision_config}
    settings = {tower: {key: getattr(config, key) for key in _SETTINGS} for tower, config in towers.items()}
    checksum = Checksum()
    checksum.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum.update(f"{name} {tuple(tensor.shape)}".encode())
        checksum.update(memoryview(tensor.float().cpu().contiguous().reshape(-1).numpy()).cast("B"))
    return checksum.hexdigest()


def _transformers() -> tuple[type, type]:
    """The classes `CLIPModel` and `CLIPTokenizer`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import CLIPModel, CLIPTokenizer
    except ImportError as error:
        message = f'CLIP needs transformers: pip install -e ".[video]" ({error}); Pixels works without it'
        raise ImportError(message) from error
    return CLIPModel, CLIPTokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that transformers and the hub's client say in this block, in bars, logs or warnings, is printed."""
    from transformers.utils import logging as of_transformers

    hub = logging.getLogger("huggingface_hub")
    levels, bars = (of_transformers.get_verbosity(), hub.level), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity(logging.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings(), _no_standard_output():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if bars:
            of_transformers.enable_progress_bar()


@contextmanager
def _no_standard_output() -> Iterator[None]:
    """Drop what is written to standard output past Python, as the tokenizer's Rust code does for some settings."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


# ---- where the files are ----


def _folder(name: str | Path) -> Path:
    """The folder of a model, fetched from the hub if the name is not one of a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        kind = "OpenAI's TorchScript archive" if _is_torchscript(path) else "a file"
        raise ValueError(f"{path} is {kind}; give {_FORM}")
    if not _HUB_NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"no such folder: {name}; give {_FORM}, or a name on the hub")
    return _snapshot(str(name))


def _snapshot(name: str) -> Path:
    """The folder of a hub repository in the local cache; fetched if it is not there, or not whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FETCHED, local_files_only=True))
        _parts(folder)
        return folder
    except (OSError, ValueError):  # not there, not whole, or no name that a repository can have
        pass
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FETCHED))
    except Exception as error:  # whatever the hub's client raises without a network, a token, or such a repository
        reason = f"{type(error).__name__}: {_first_line(error)}"
        message = f"{name} is no folder, is not in the local cache and cannot be fetched from the hub ({reason})"
        raise FileNotFoundError(f"{message}; give {_FORM}") from error
    if not any(folder.glob("model*.safetensors")):
        message = f"{name}: no {_WEIGHTS} in the local cache or on the hub; {_CONVERT.format(name, 'clip')}"
        raise ValueError(f"{message}; then give the folder clip")
    return folder


def _parts(folder: Path) -> list[Path]:
    """The files of a model; ValueError, which says what to do, if one is missing."""
    if not (folder / "config.json").is_file():
        raise ValueError(_missing(folder, "no config.json"))
    weights = _weights(folder)
    for names in _TOKENIZERS:
        if all((folder / name).is_file() for name in names):
            return [folder / "config.json", *weights, *(folder / name for name in names)]
    wanted = " or ".join(" and ".join(names) for names in _TOKENIZERS)
    raise ValueError(f"{folder}: no tokenizer; copy {wanted} of the same model there")


def _weights(folder: Path) -> list[Path]:
    """The files with the weights, and the list of the shards where there are several."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _SHARDS
    if not index.is_file():
        raise ValueError(_missing(folder, f"no {_WEIGHTS}"))
    if (wrong := wrong_download(index)) is not None:
        raise ValueError(f"{index} {wrong}")
    content = parse_json(index.read_text("utf-8"), str(index))
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index}: no list of shards; copy it again")
    shards = sorted({Path(file).name for file in files.values()})
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(f"{folder}: no {absent[0]}, which {_SHARDS} names; copy all files of the model there")
    return [index, *(folder / shard for shard in shards)]


def _missing(folder: Path, what: str) -> str:
    """The message for a folder that lacks a file, by what else is there."""
    archive = next((path for path in sorted(folder.glob("*.pt")) if _is_torchscript(path)), None)
    if archive is not None:
        return f"{folder}: {what}, but OpenAI's TorchScript archive {archive.name}; give {_FORM}"
    pickled = [*folder.glob("pytorch_model*.bin")]
    if pickled and (folder / "config.json").is_file():
        return f"{folder}: {what}, but {pickled[0].name}; {_CONVERT.format(folder, folder)}"
    return f"{folder}: {what}; give {_FORM}"


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of torch.jit, which holds code beside tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


# ---- what is in them ----


def _check_config(file: Path) -> None:
    """ValueError for a configuration of another architecture than CLIP."""
    try:
        config = parse_json(file.read_text("utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no text in UTF-8 ({error}); copy it again") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        message = f'{file}: model_type is {kind!r}, and only "clip" can be read, a text and a vision tower in one'
        raise ValueError(f"{message}; give a CLIPModel, as of openai/clip-vit-base-patch32")


def _load_model(model_class: type, folder: Path) -> nn.Module:
    """The model with every weight from the file and no other."""
    options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = model_class.from_pretrained(folder, **options)
    except Exception as error:  # of many kinds: the configuration, the file and the tensors are checked in there
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(
            f"{folder}: the model cannot be loaded ({reason}); copy or download its files again"
        ) from error
    unfit = [f"{name} is {tuple(has)}, not {tuple(needs)}" for name, has, needs in report["mismatched_keys"]]
    unknown = [name for name in report["unexpected_keys"] if not name.endswith("position_ids")]
    for what, names in (("missing", report["missing_keys"]), ("of other shapes", unfit), ("unknown", unknown)):
        if names:
            message = f"{folder}: {len(names)} tensors are {what}, such as {min(names)}"
            raise ValueError(f"{message}; config.json and the weights must be of one model, copy both again")
    if broken := [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]:
        raise ValueError(f"{folder}: {broken[0]} is not finite; copy or download the weights again")
    vision = model.config.vision_config
    if vision.image_size <= 0 or vision.num_channels != 3:
        shape = f"{vision.image_size} pixels a side and {vision.num_channels} channels"
        raise ValueError(f"{folder}: config.json asks for pictures of {shape}; only RGB pictures are read")
    return model.eval().requires_grad_(False)


def _load_tokenizer(tokenizer_class: type, folder: Path, config: Any) -> Any:
    """The tokenizer; ValueError unless it is whole and fits the model's vocabulary."""
    try:
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a", verbose=False)["input_ids"]
        vocabulary = tokenizer.get_vocab()
        word = max((token for token in vocabulary if token.endswith("</w>")), key=vocabulary.get)
        pieces = tokenizer.backend_tokenizer.model.tokenize(word.removesuffix("</w>"))
    except Exception as error:  # the Rust library raises a plain Exception
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(f"{folder}: the tokenizer cannot be loaded ({reason}); copy its files again") from error
    if len(pieces) != 1:  # the merge that was learned last is needed for the word that was learned last
        raise ValueError(
            f"{folder}: merges are missing, {word!r} is a word of its own; copy the tokenizer's files again"
        )
    end = config.eos_token_id  # 2 in older configurations, which transformers knows as "the highest number"
    fits = len(tokenizer) <= config.vocab_size and ids[-1] == tokenizer.eos_token_id and end in (2, None, ids[-1])
    if not fits or ids[0] != tokenizer.bos_token_id:
        message = f"{len(tokenizer)} tokens, the last of a sentence is {ids[-1]}; the model knows {config.vocab_size}"
        raise ValueError(
            f"{folder}: a tokenizer of another model ({message} and ends with {end}); copy the model's own"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]
