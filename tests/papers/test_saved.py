"""What is read of a file of `torch.save`, what is refused, and that nothing foreign is run."""

import argparse
import gzip
import io
import os
import pathlib
import pickle
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from types import ModuleType

import numpy as np
import pytest
import torch

from mrlib.papers.saved import read_saved

FORMATS = [True, False]  # zip, and the format before it


def save(path, content, new=True):
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.fixture
def easy_dict(monkeypatch):
    """A class that is pickled as `easydict.EasyDict`, a dict whose entries are attributes too."""

    class EasyDict(dict):
        def __init__(self, entries):
            for name, value in entries.items():
                setattr(self, name, EasyDict(value) if isinstance(value, dict) else value)

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            super().__setitem__(name, value)

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module = ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    return EasyDict


@pytest.mark.parametrize("new", FORMATS)
def test_tensors_and_plain_values_are_read(new, tmp_path):
    content = {"a": torch.arange(3.0), "b": OrderedDict(c=[1, 2.5, "x", None, True, (3,)]), "e": {4, 5}}
    content |= {"device": torch.device("cuda", 0), "size": torch.Size([2, 3]), "type": torch.float16}
    content["parameter"] = torch.nn.Parameter(torch.ones(2))
    read = read_saved(save(tmp_path / "x.ckpt", content, new))
    assert torch.equal(read.pop("a"), content.pop("a")) and torch.equal(read.pop("parameter"), torch.ones(2))
    del content["parameter"]
    assert read == content


@pytest.mark.parametrize("new", FORMATS)
def test_options_of_any_kind_are_read_as_plain_values(new, tmp_path, easy_dict, monkeypatch):
    content = argparse.Namespace(
        easy=easy_dict({"hidden_dim": 256, "inner": {"lr": 1e-4}}),
        numbers=[np.int64(7), np.float32(0.5), np.float64(-2.25), np.bool_(True), np.str_("clip"), np.uint8(3)],
        big_endian=np.dtype(">i4").type(9),
        types=[np.float32, np.int64],
        posix=pathlib.PurePosixPath("/data/qv"),
        windows=pathlib.PureWindowsPath("C:/data/qv"),
        of_windows=Reduced(pathlib.WindowsPath, ("C:\\", "data")),
        here=tmp_path,
    )
    path = save(tmp_path / "x.ckpt", content, new)
    monkeypatch.delitem(sys.modules, "easydict")
    read = read_saved(path)
    assert read.easy == {"hidden_dim": 256, "inner": {"lr": 1e-4}}
    assert read.numbers == [7, 0.5, -2.25, True, "clip", 3] and read.big_endian == 9
    assert [type(x) for x in read.numbers] == [int, float, float, bool, str, int]
    assert read.types == ["numpy.float32", "numpy.int64"]
    assert (read.posix, read.windows, read.of_windows) == ("/data/qv", "C:\\data\\qv", "C:\\data")
    assert read.here == str(tmp_path)


@pytest.mark.parametrize("new", FORMATS)
@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scalars_of_older_and_newer_numpy_are_read(core, new, tmp_path, monkeypatch):
    def scalar(dtype, data):
        return None

    scalar.__module__, scalar.__qualname__ = core, "scalar"
    module = ModuleType(core)
    module.scalar = scalar
    monkeypatch.setitem(sys.modules, core, module)
    value = np.float32(1.5)
    content = Reduced(scalar, (value.dtype, value.tobytes()))
    path = save(tmp_path / "x.ckpt", content, new)
    assert read_saved(path) == 1.5


def marker(path):
    """A call that makes a folder."""
    return Reduced(os.mkdir, (str(path),))


FOREIGN = {
    "posix.mkdir": lambda path: marker(path),
    "collections.defaultdict": lambda path: defaultdict(list),
    "numpy._core.multiarray._reconstruct": lambda path: np.zeros(3),
    "__builtin__.bytearray": lambda path: Reduced(bytearray, (10**10,)),
    "torch.FloatTensor": lambda path: Reduced(torch.FloatTensor, (10**4, 10**4, 10**3)),
    "__builtin__.eval": lambda path: Reduced(eval, (f"__import__('os').mkdir({str(path)!r})",)),
    "datetime.date": lambda path: __import__("datetime").date(2026, 1, 1),
}


@pytest.mark.parametrize("new", FORMATS)
@pytest.mark.parametrize("name", FOREIGN)
def test_anything_else_is_refused_by_name_and_not_run(name, new, tmp_path):
    """Also what torch would read: calls that only fill memory."""
    path = save(tmp_path / "x.ckpt", {"opt": argparse.Namespace(x=FOREIGN[name](tmp_path / "evil"))}, new)
    with pytest.raises(ValueError) as error:
        read_saved(path)
    said = str(error.value)
    assert said.startswith(f"{path} holds {name}; only tensors, plain values, argparse.Namespace, EasyDict, paths")
    assert "\n" not in said and "nothing else is unpickled" in said and "save its model and opt" in said
    assert not (tmp_path / "evil").exists()


def test_what_the_caller_allows_elsewhere_is_not_read_and_stays_allowed(tmp_path):
    path = save(tmp_path / "x.ckpt", defaultdict(list))
    with torch.serialization.safe_globals([defaultdict, list]):
        with pytest.raises(ValueError, match=r"holds collections\.defaultdict"):
            read_saved(path)
        read_saved(save(tmp_path / "y.ckpt", argparse.Namespace(x=1)))
        assert torch.load(path, weights_only=True) == {}
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


WRONG = {
    "a web page": (b"<!DOCTYPE html><html><title>Quota exceeded</title></html>", "is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "gzip": (gzip.compress(b"x" * 99), "is a gzip file"),
    "empty": (b"", "is an empty file"),
    "text": (b"not a checkpoint" * 99, "is a text that begins with"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "is not a whole checkpoint of PyTorch"),
    "pickle of today": (pickle.dumps({"a": argparse.Namespace(b=1)}, protocol=4), "holds .a pickle of protocol 4"),
    "bytes": (b"\x01\x02\x03\x04" * 99, "is not a whole checkpoint of PyTorch"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_something_else_is_called_so(name, tmp_path):
    content, message = WRONG[name]
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_saved(path)
    assert str(error.value).startswith(f"{path} ") and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="is missing, or no file"):
        read_saved(tmp_path)


def test_a_packed_checkpoint_is_to_be_unpacked(tmp_path):
    path = tmp_path / "model.ckpt.gz"
    path.write_bytes(gzip.compress(save(tmp_path / "model.ckpt", {"model": {}}).read_bytes()))
    with pytest.raises(ValueError, match=r"model\.ckpt\.gz is packed; unpack it by gunzip"):
        read_saved(path)


def zipped(path, parts, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


def test_zip_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x.ckpt is a zip file without data\.pkl"):
        read_saved(zipped(tmp_path / "x.ckpt", {"a.npy": b"x"}))
    with pytest.raises(ValueError, match="is a TorchScript program"):
        read_saved(zipped(tmp_path / "x.ckpt", {"m/data.pkl": b"\x80\x02N.", "m/constants.pkl": b"\x80\x02)."}))


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    sound = io.BytesIO()
    save(sound, {"a": torch.zeros(2**23)})
    with zipfile.ZipFile(sound) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    path = zipped(tmp_path / "x.ckpt", parts, compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(ValueError, match="x.ckpt holds more bytes than it has"):
        read_saved(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("new", FORMATS)
def test_no_cut_is_taken_for_a_whole_file(new, tmp_path):
    path = save(tmp_path / "x.ckpt", {"a": torch.arange(100.0), "opt": argparse.Namespace(b=1)}, new)
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="x.ckpt (is|holds)"):
            read_saved(path)


def test_a_changed_bit_is_noticed(tmp_path):
    path = save(tmp_path / "x.ckpt", {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    start = whole.index(torch.arange(100.0).numpy().tobytes())
    for byte in (start, start + 200, start + 399):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(ValueError, match="its part '.*data/0' is damaged"):
            read_saved(path)


def test_pickles_that_are_longer_than_any_release_are_refused_at_once(tmp_path):
    path = zipped(tmp_path / "x.ckpt", {"m/data.pkl": b"\x80\x02" + b"]" * 10**6 + b"."})
    started = time.perf_counter()
    with pytest.raises(ValueError, match="x.ckpt has pickles of more than 100,000 instructions; save the model"):
        read_saved(path)
    assert time.perf_counter() - started < 2
