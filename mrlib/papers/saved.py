"""Read files of `torch.save` without running anything that they name.

Here     `read_saved` looks at a file before it loads it: what it is, whether it is whole, how large its parts say that
         they are, and every global that its pickles name. Only those of `_PLAIN` and `_STAND_INS` go on to
         `torch.load(weights_only=True)`
Stand-in a class that may not be installed, or of which only a plain value is needed: an EasyDict is read as an
         OrderedDict, a path as text, a NumPy scalar as a number, a NumPy type as its name
"""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import torch

from mrlib.arguments import shown
from mrlib.downloads import wrong_download

_LEGACY_PICKLES = 5  # of the format before zip: magic number, version, machine, content, keys of the storages
_MOST_INSTRUCTIONS = 100_000  # of the pickles of a file; a large release has 30,000, with its optimiser
_PLAIN = re.compile(  # tensors, their parts, and containers
    r"collections\.(OrderedDict|Counter)|torch\.(Size|device)|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(\w+Storage|b?float\d+|u?int\d+|bool)|torch\.nn\.parameter\.Parameter|_codecs\.encode"
    r"|(__builtin__|builtins)\.set"
)
_CODE = re.compile(r"[?biufSU]\d{0,6}")  # of a NumPy type whose values are plain


class _Dtype:
    """A NumPy type, by its code, such as "f8"."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise TypeError("no NumPy type of plain values")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """A NumPy scalar as a plain value."""
    known = np.dtype(dtype.order + dtype.code)
    if known.itemsize != len(data):
        raise ValueError("a NumPy scalar of another size than its type")
    return np.frombuffer(data, known)[0].item() if data else known.type().item()


def _text_of(kind: type[PurePath]) -> Callable[..., str]:
    """A function that makes the text of a path from its parts, on any system."""

    def text(*parts: str) -> str:
        return str(kind(*parts))

    return text


_STAND_INS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "easydict.EasyDict": OrderedDict,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{
        f"numpy.{name}": f"numpy.{name}"
        for name in ("bool", "bool_", "str_", "int_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
        + ("uint64", "float16", "float32", "float64", "longlong", "intc", "float_", "single", "double", "half")
    },
    **{
        f"{module}.{name}": _text_of(kind)
        for module in ("pathlib", "pathlib._local")
        for kind, names in (
            (PurePosixPath, ("Path", "PosixPath", "PurePath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    },
}


def read_saved(path: Path) -> Any:
    """The content of a file that `torch.save` wrote, on the CPU.

    raises  FileNotFoundError; ValueError that names the file and says what it is instead, what is damaged, or which
            global it names beyond those that are read
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no file; give the path of a checkpoint")
    try:
        problem = _problem(path)
        if problem is None:
            with _allowed(_STAND_INS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or type(error).__name__}"
    except Exception as error:  # of many types, since the file may hold anything
        problem = wrong_download(path)
        problem = problem or f"is not a whole checkpoint of PyTorch ({type(error).__name__}); copy it again"
    raise ValueError(f"{path} {problem}")


def _problem(path: Path) -> str | None:
    """What speaks against loading a file, as the end of a sentence; None: nothing."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            return _problem_of_zip(file, path.stat().st_size)
        if start[:1] == b"\x80":
            return _foreign(file, _LEGACY_PICKLES)
    if start[:2] == b"\x1f\x8b" and path.suffix.lower() == ".gz":
        return "is packed; unpack it by gunzip, and give the path of the checkpoint in it"
    return wrong_download(path) or "is not a whole checkpoint of PyTorch (no file of torch.save); copy it again"


def _problem_of_zip(file: BinaryIO, size: int) -> str | None:
    """The same of a zip file of `size` bytes: damaged or packed parts, or foreign globals."""
    with zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
        if sum(entry.file_size for entry in entries) > size:
            return (
                "holds more bytes than it has, as torch.save never writes; it is packed, so unpack it or copy it again"
            )
        if (damaged := parts.testzip()) is not None:
            return f"is not a whole checkpoint of PyTorch (its part {shown(damaged)} is damaged); copy it again"
        names = [entry.filename for entry in entries]
        if any(name.endswith("constants.pkl") for name in names):
            return "is a TorchScript program, not a dict of model and opt; save its state_dict with torch.save"
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            return "is a zip file without data.pkl, no checkpoint of PyTorch; give the file that torch.save wrote"
        problems = (_foreign(io.BytesIO(parts.read(name)), 1) for name in pickles)
        return next((problem for problem in problems if problem is not None), None)


def _foreign(file: BinaryIO, pickles: int) -> str | None:
    """Which global that is not read the next pickles of a file name, or that they are longer than any release's."""
    instructions = (each for _ in range(pickles) for each in pickletools.genops(file))
    for number, (instruction, argument, _) in enumerate(instructions):
        if number == _MOST_INSTRUCTIONS:
            return f"has pickles of more than {number:,} instructions; save the model and opt of one network alone"
        name = _global(instruction, argument)
        if name is not None and name not in _STAND_INS and not _PLAIN.fullmatch(name):
            return (
                f"holds {_name(name)}; only tensors, plain values, argparse.Namespace, EasyDict, paths and NumPy "
                "scalars are read, and nothing else is unpickled; if you trust the file, load it where it was made "
                "and save its model and opt as those"
            )
    return None


def _global(instruction: pickletools.OpcodeInfo, argument: Any) -> str | None:
    """The global that an instruction of a pickle names, if it does; it is not run."""
    if instruction.name in ("GLOBAL", "INST"):
        return ".".join(argument.split(" "))
    if instruction.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
        return f"a pickle of protocol {instruction.proto}"
    return None


def _name(text: str) -> str:
    """A global's name in one line; in quotes if it is no name."""
    return text if re.fullmatch(r"[\w.]{1,100}", text) else shown(text)


@contextmanager
def _allowed(stand_ins: dict[str, Any]) -> Iterator[None]:
    """Allow exactly these names, beside those of torch, while the block runs."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
