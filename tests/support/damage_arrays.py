"""Damage files of arrays, see `tests.support.damage`: .npy, .npz, .hdf5, .safetensors and what PyTorch pickles."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch

from tests.support import damage
from tests.support.damage import Damage, of_bytes

NPY: list[Damage] = []
NPZ: list[Damage] = []
HDF5: list[Damage] = []
SAFETENSORS: list[Damage] = []
PICKLE: list[Damage] = []

BOMB = 300_000_000  # bytes of an array that is small on disk


def odd_array(array: np.ndarray, random: Random) -> np.ndarray:
    """An array that is not what the reader expects."""
    with np.errstate(all="ignore"):
        return random.choice(
            [
                lambda: array[0],
                lambda: array[:0],
                lambda: array[..., :0],
                lambda: array[None],
                lambda: array[:1],
                lambda: np.concatenate([array] * 40),
                lambda: np.concatenate([array, array], -1),
                lambda: array.T,
                lambda: np.float32(3),
                lambda: np.where(
                    np.arange(array.size).reshape(array.shape) == random.randrange(array.size), np.nan, array
                ),
                lambda: np.full_like(array, np.inf),
                lambda: array.astype(np.float64) * 1e200,
                lambda: array.astype(random.choice([int, bool, complex, np.float16, ">f4", "S4", "U3", "M8[s]"])),
                lambda: np.zeros(len(array), [("a", "f4"), ("b", "i8")]),
                lambda: np.array([None, {"a": 1}], object),
                lambda: np.asfortranarray(array),
            ]
        )()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def edited_header(content: bytes, random: Random) -> bytes:
    """A .npy file whose header says something else, the array as it was."""
    length = struct.unpack("<H", content[8:10])[0]
    header, rest = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    shape = re.search(r"\([\d, ]*\)", header)
    shape = shape[0] if shape else "(1,)"
    odd = ["(1000000000, 512)", "(-1, 4)", "(0, 4)", "()", "(10, 1e9)", f"({10**30},)", "None", "(10,)", "(" * 5000]
    kinds = ["'|O'", "'<f8'", "'<i4'", "'<f2'", "'|S9'", "'<U1000000000'", "[('a', '<f4')]", "'x'", "None", "'|V4'"]
    match random.randrange(5):
        case 0:
            header = header.replace(shape, random.choice(odd))
        case 1:
            header = re.sub(r"'[<>|=]\w+'", random.choice(kinds), header, count=1)
        case 2:
            header = header.replace("False", random.choice(["True", "None", "2"]))
        case 3:
            header = random.choice(["", "{}", "[]", "{'a': 1}", "__import__('os')", "{" * 9000, "1" * 5000])
        case 4:
            return content[:6] + bytes([random.randrange(5), 0]) + content[8:]
    text = header.encode("latin-1")
    return content[:8] + struct.pack("<H", len(text)) + text + rest


@of_bytes(NPY)
def an_odd_header(content: bytes, random: Random) -> bytes:
    return edited_header(content, random)


@of_bytes(NPY)
def an_odd_npy(content: bytes, random: Random) -> bytes:
    return npy(odd_array(np.load(io.BytesIO(content)), random))


def sparse_npy(path: Path, random: Random) -> None:
    """A header of very many rows, and a file as long that takes no room on disk."""
    rows = BOMB // 4 // 512
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 512)})
    with path.open("wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + BOMB)


NPY.append(sparse_npy)


# ---- .npz


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


@of_bytes(NPZ)
def an_odd_array_in_an_archive(content: bytes, random: Random) -> bytes:
    entries = _entries(content)
    name = random.choice(list(entries))
    entries[name] = npy(odd_array(np.load(io.BytesIO(entries[name])), random))
    return _archive(list(entries.items()), random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))


@of_bytes(NPZ)
def an_odd_header_in_an_archive(content: bytes, random: Random) -> bytes:
    entries = _entries(content)
    name = random.choice(list(entries))
    entries[name] = edited_header(entries[name], random)
    return _archive(list(entries.items()))


@of_bytes(NPZ)
def odd_entries(content: bytes, random: Random) -> bytes:
    """Entries that are renamed, missing, twice there, no arrays, archives, outside the folder."""
    entries = list(_entries(content).items())
    i = random.randrange(len(entries))
    name, array = entries[i]
    entries[i] = random.choice(
        [
            (name.removesuffix(".npy"), array),
            ("../" + name, array),
            ("/" + name, array),
            (name.upper(), array),
            ("", array),
            (name, b""),
            (name, b"text"),
            (name, content),
            (name, damage.HTML),
            (name.removesuffix(".npy"), content),
            (name.removesuffix(".npy"), b"text"),
        ]
    )
    return _archive(random.choice([entries, entries + entries[:1], entries[:1], []]))


@cache
def bomb() -> bytes:
    """Rows of zeros, 300 MB, in an archive of 300 kB."""
    rows = BOMB // 4 // 512
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 512)})
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("features.npy", "w") as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(BOMB // 1_000_000):
            entry.write(bytes(1_000_000))
    return out.getvalue()


@of_bytes(NPZ)
def a_zip_bomb(content: bytes, random: Random) -> bytes:
    return bomb()


@of_bytes(NPZ)
def lying_sizes(content: bytes, random: Random) -> bytes:
    """The directory of the archive says another size, offset, method or checksum than the entry has."""
    changed = bytearray(content)
    at = content.find(b"PK\x01\x02")
    field = random.choice([(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (42, "<I")])
    value = random.choice([0, 1, 99, 0x7FFF]) if field[1] == "<H" else random.choice([0, 1, 2**31, 2**32 - 1, 10**6])
    struct.pack_into(field[1], changed, at + field[0], value)
    return bytes(changed)


# ---- .hdf5


def of_hdf5(change: Callable[[h5py.File, str, Random], None]) -> Damage:
    """Make a function of an open file and the name of one of its arrays a damage."""

    def edit(path: Path, random: Random) -> None:
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
            change(file, random.choice(sorted(names)), random)

    edit.__name__ = change.__name__
    HDF5.append(edit)
    return edit


@of_hdf5
def an_odd_array_in_hdf5(file: h5py.File, name: str, random: Random) -> None:
    array = file[name][()]
    del file[name]
    try:
        file[name] = odd_array(array, random)
    except TypeError:  # of no type that HDF5 has
        file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())


@of_hdf5
def a_link_to_elsewhere(file: h5py.File, name: str, random: Random) -> None:
    """Links into another file, raw data of another file, a dataset made of another file's, links that lead nowhere."""
    other, shape = Path(file.filename).with_name("secret.bin"), file[name].shape
    del file[name]
    match random.randrange(6):
        case 0:
            with h5py.File(other, "w") as secret:
                secret["x"] = np.ones(shape, np.float32)
            file[name] = h5py.ExternalLink(random.choice([other.name, str(other)]), "/x")
        case 1:
            other.write_bytes(b"\0\0\x80?" * int(np.prod(shape)))
            file.create_dataset(name, shape, "f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
        case 2:
            with h5py.File(other, "w") as secret:
                secret["x"] = np.ones(shape, np.float32)
            virtual = h5py.VirtualLayout(shape, "f4")
            virtual[:] = h5py.VirtualSource(str(other), "x", shape)
            file.create_virtual_dataset(name, virtual)
        case 3:
            file[name] = h5py.SoftLink(random.choice(["/nothing", name, "/" + name, "/"]))
        case 4:
            file[name] = h5py.ExternalLink("nothing.hdf5", "/x")
        case 5:
            file.create_group(name)[name] = file["/"]


@of_hdf5
def no_array_in_hdf5(file: h5py.File, name: str, random: Random) -> None:
    """Datasets that hold nothing, a group, very many rows that were never written, references, lists of any length."""
    del file[name]
    match random.randrange(7):
        case 0:
            file[name] = h5py.Empty("f4")
        case 1:
            file.create_group(name)
        case 2:
            file.create_dataset(name, (BOMB // 4 // 512, 512), "f4")
        case 3:
            file.create_dataset(name, (10**7, 10**7), "f4", chunks=(1, 512))
        case 4:
            file.create_dataset(name, (3,), h5py.ref_dtype)
        case 5:
            file.create_dataset(name, (3,), h5py.vlen_dtype("f4"))
        case 6:
            file.create_dataset(name, (BOMB // 4 // 512, 512), "f4", chunks=(BOMB // 4 // 512, 512), compression="gzip")


# ---- .safetensors


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a .safetensors file, and the bytes of its tensors."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: str, tensors: bytes, length: int | None = None) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


@of_bytes(SAFETENSORS)
def an_odd_tensor_header(content: bytes, random: Random) -> bytes:
    header, tensors = parts(content)
    name = random.choice(list(header))
    match random.randrange(8):
        case 0:
            del header[name]
        case 1:
            header[name] = random.choice(damage.ODD[:-4])
        case 2:
            header[name]["dtype"] = random.choice(["F64", "I32", "BF16", "F8_E4M3", "BOOL", "x"])
        case 3:
            header["x"] = header.pop(name)
        case 4:
            key = random.choice(["shape", "data_offsets", "note"])
            header[name][key] = random.choice([[], [0], [0, 0], [2**62, 2**62], [-1, 4], "x", None, [1] * 40])
        case 5:
            other = random.choice(list(header))
            header[name], header[other] = header[other], header[name]
        case 6:
            return joined(json.dumps(header), tensors, random.choice([0, 1, 10, 2**40, 2**63, 2**64 - 1]))
        case 7:
            text = random.choice(["[" * 100_000, '{"a":' * 10_000, "{}", "null", "\0", json.dumps(header)[:-1]])
            return joined(text, tensors)
    return joined(json.dumps(header, default=str), tensors)


@of_bytes(SAFETENSORS)
def odd_tensors(content: bytes, random: Random) -> bytes:
    """Weights of NaN, infinity or zeros, of the wrong bytes, or another's."""
    header, tensors = parts(content)
    name = random.choice([k for k in header if k != "__metadata__"])
    start, end = header[name]["data_offsets"]
    kind = random.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", random.randbytes(4)])
    changed = (kind * ((end - start) // 4 + 1))[: end - start]
    return joined(json.dumps(header), tensors[:start] + changed + tensors[end:])


@of_bytes(SAFETENSORS)
def an_odd_note(content: bytes, random: Random) -> bytes:
    """What stands beside the tensors, as a value of JSON that is itself text."""
    header, tensors = parts(content)
    notes = header.get("__metadata__", {})
    key = random.choice(list(notes) or ["note"])
    try:
        note = json.loads(notes[key])
        container, place = random.choice(damage._places(note))
        container[place] = random.choice(damage.ODD)
        notes[key] = json.dumps(note)
    except (ValueError, KeyError, IndexError):
        notes[key] = random.choice(["", "x", "{}", "[]", "null", "1", "[" * 5000])
    header["__metadata__"] = notes
    return joined(json.dumps(header), tensors)


# ---- what PyTorch pickles


class Opens:
    """Unpickling it would make a file."""

    def __reduce__(self) -> Any:
        return open, ("planted", "w")


def odd_tensor(tensor: torch.Tensor, random: Random) -> Any:
    return random.choice(
        [
            lambda: tensor[:0],
            lambda: tensor[None],
            lambda: tensor.flatten(),
            lambda: tensor * torch.nan,
            lambda: tensor.to(random.choice([torch.int64, torch.complex64, torch.bool, torch.float64, torch.bfloat16])),
            lambda: tensor.to_sparse(),
            lambda: tensor.to("meta"),
            lambda: torch.zeros(1).expand(10**9, 4),
            lambda: torch.zeros(BOMB // 4 // 512, 512),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: tensor.tolist(),
            lambda: None,
            lambda: "text",
            lambda: 3,
            lambda: {"a": tensor},
            lambda: [tensor],
            lambda: torch.nn.Parameter(tensor),
            lambda: tensor.numpy(),
            lambda: np.float64(3),
            lambda: Path("x"),
            Opens,
            lambda: torch.nested.nested_tensor([tensor, tensor]),
        ]
    )()


def an_odd_pickle(path: Path, random: Random) -> None:
    """Another tensor, or something else, in the place of one of the file's."""
    content = torch.load(path, weights_only=False)
    if isinstance(content, torch.Tensor):
        content = odd_tensor(content, random)
    else:
        values = content["model"] if random.random() < 0.5 else vars(content["opt"])
        key = random.choice(list(values))
        if isinstance(values[key], torch.Tensor):
            values[key] = odd_tensor(values[key], random)
        elif random.random() < 0.2:
            del values[key]
        else:
            values[key] = random.choice(
                [*damage.ODD, 10**6, 10**4, -8, 10**12, 4, "linear", "video_tef", False, Opens()]
            )
    torch.save(content, path, _use_new_zipfile_serialization=random.random() < 0.7)


def other_contents(path: Path, random: Random) -> None:
    content = torch.load(path, weights_only=False)
    if isinstance(content, dict):
        key = random.choice(["model", "opt"])
        match random.randrange(4):
            case 0:
                del content[key]
            case 1:
                content[key] = random.choice([*damage.ODD, Opens()])
            case 2:
                content = content[key]
            case 3:
                content["model"] = {("." * random.randrange(3)) + k: v for k, v in content["model"].items()}
    else:
        content = random.choice([{}, [], {"model": 1}, {"a": content}, (content, content), None, Opens()])
    torch.save(content, path, _use_new_zipfile_serialization=random.random() < 0.7)


PICKLE += [an_odd_pickle, other_contents]
