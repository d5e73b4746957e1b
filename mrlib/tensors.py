"""Tensors in one file, with a note about them and a checksum over both; checkpoints and resumed runs are such files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mrlib.downloads import wrong_download
from mrlib.files import parse_json, write_whole

_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a tensor -> its type, as "F32", and its shape


@dataclass(frozen=True)
class Header:
    """What a file says about its tensors."""

    shapes: Shapes
    note: str
    checksum: str | None  # None: a file of an earlier version, which has none


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: str = "") -> str:
    """Write a safetensors file with a note and a checksum in its header, see `mrlib.files.whole_file`.

    returns  the checksum
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"checksum": _checksum(plain, note), "note": note}
    write_whole(path, safetensors.torch.save(plain, {"mrlib": json.dumps(header)}))  # with two keys, in either order
    return header["checksum"]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; ValueError, naming the file, if it is damaged."""
    with _opened(path) as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
        metadata = file.metadata() or {}
    if metadata.keys() == {"mrlib"}:
        header = parse_json(metadata["mrlib"], str(path))
        known = isinstance(header, dict) and header.keys() == {"checksum", "note"}
        if known and all(isinstance(value, str) for value in header.values()):
            return Header(shapes, header["note"], header["checksum"])
    elif metadata.keys() == {"note"}:
        return Header(shapes, metadata["note"], None)
    raise ValueError(f"{path} is damaged, or no file of mrlib: its header has no note and checksum")


def check_fit(path: Path, found: Shapes, expected: Mapping[str, Tensor], subject: str) -> None:
    """ValueError, naming up to five tensors, unless a file has those of `expected`, in their types and shapes.

    found    types and shapes in the file
    subject  what `expected` is, for the message, as "the model of best.json"
    """
    wanted = {name: (_TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in expected.items()}
    problems = [f"lacks {name}" for name in wanted.keys() - found.keys()]
    problems += [f"has an unknown {name}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        if wanted[name][1] != found[name][1]:
            problems.append(f"has {name} of shape {found[name][1]} for {wanted[name][1]}")
        elif wanted[name] != found[name]:
            problems.append(f"has {name} of type {found[name][0]} for {wanted[name][0]}")
    if problems:
        raise ValueError(f"{path} does not fit {subject}: it {'; it '.join(sorted(problems)[:5])}")


def load_tensors(path: Path, header: Header | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    header  of the file, if it was read before
    raises  ValueError, naming the file, if it is damaged or if one of the numbers is NaN or infinite
    """
    header = read_header(path) if header is None else header
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in header.shapes}
    if header.checksum not in (None, _checksum(tensors, header.note)):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} is damaged: {name} has numbers that are NaN or infinite")
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[safetensors.safe_open]:
    """An open safetensors file; whatever goes wrong with it is a ValueError that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        wrong = wrong_download(path)
        raise ValueError(f"{path} {wrong or f'is not a whole safetensors file: {error}'}") from error


def _checksum(tensors: Mapping[str, Tensor], note: str) -> str:
    """A hash over the names, types, shapes and bytes of some tensors and over their note."""
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    h.update(note.encode())
    return h.hexdigest()
