"""A small CLIP with random weights, in the files and with the conventions of the real one; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WORDS = ("a", "man", "opens", "the", "door", "dog", "runs", "in", "water")  # each is one token; others are spelled
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Token -> number, and the merges of CLIP's byte pair encoding: bytes, bytes that end a word, merges, two marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge, parts = " ".join(parts[:2]), ["".join(parts[:2]), *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(parts[0])
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def write_tokenizer(folder: Path) -> None:
    """The older form of the files, as OpenAI's repositories have them."""
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    marks = {"unk_token": added | {"content": END}, "bos_token": added | {"content": START}}
    marks |= {"eos_token": added | {"content": END}, "pad_token": END}
    settings = {"errors": "replace", "add_prefix_space": False, "do_lower_case": True, "model_max_length": 77}
    settings |= {"name_or_path": "openai/clip-vit-base-patch32", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | marks))
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))


def write_tiny_clip(
    folder: Path, *, projection: int = 512, side: int = 64, legacy: bool = False, seed: int = 0, **text: Any
) -> Path:
    """Write a small CLIP with random weights; returns the folder.

    projection  width of the joint space
    side        pixels of its pictures, a multiple of 16
    legacy      the marks of the text tower are numbered wrongly, as in OpenAI's configurations: [EOT] is 2
    text        other settings of the text tower
    """
    vocab, _ = vocabulary()
    marks = (0, 2) if legacy else (vocab[START], vocab[END])
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2}
    text = {"hidden_size": 32, "num_attention_heads": 4} | text | {"bos_token_id": marks[0], "eos_token_id": marks[1]}
    vision = {"hidden_size": 48, "num_attention_heads": 3, "image_size": side, "patch_size": 16}
    return write_clip(folder, projection, seed, text=sizes | text, vision=sizes | vision)


def write_clip(
    folder: Path, projection: int = 512, seed: int = 0, *, text: Mapping[str, Any] = {}, vision: Mapping[str, Any] = {}
) -> Path:
    """Write a CLIP with random weights, of the size of ViT-B/32 where the settings of the towers say nothing else."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    vocab, _ = vocabulary()
    known = {"vocab_size": len(vocab), "bos_token_id": vocab[START], "eos_token_id": vocab[END]}
    width = {"projection_dim": projection}
    config = CLIPConfig(text_config=known | width | text, vision_config=width | vision, projection_dim=projection)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["CLIPModel"]}))
    g = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, weight, g) for name, weight in CLIPModel(config).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _random(name: str, weight: Tensor, g: torch.Generator) -> Tensor:
    """Weights with which pictures and sentences differ, as they do not with those that a training begins with."""
    if not weight.ndim:
        return weight.clone()
    numbers = torch.randn(weight.shape, generator=g) / weight[0].numel() ** 0.5
    return 1 + 0.1 * numbers if "norm" in name and name.endswith("weight") else numbers
