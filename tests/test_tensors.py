"""Files of tensors are read back as they were written, or refused."""

import json
import random

import pytest
import safetensors.torch
import torch

from mrlib import tensors

SAVED = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(7),
    "c": torch.zeros(0, 4),
    "h": torch.ones(3).bfloat16(),
}


@pytest.fixture
def file(tmp_path):
    tensors.save_tensors(tmp_path / "a.safetensors", SAVED, "a note, größer")
    return tmp_path / "a.safetensors"


def test_tensors_note_and_checksum_are_read_as_they_were_written(file):
    header, read = tensors.read_header(file), tensors.load_tensors(file)
    assert header.note == "a note, größer" and header.shapes["a"] == ("F32", (2, 3))
    assert header.checksum == tensors.save_tensors(file, SAVED, "a note, größer")
    assert read.keys() == SAVED.keys() and all(torch.equal(read[k], SAVED[k]) for k in SAVED)
    assert header.checksum != tensors.save_tensors(file, SAVED, "another note")
    assert header.checksum != tensors.save_tensors(file, SAVED | {"b": torch.tensor(8)}, "a note, größer")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html>", "a web page"),
        (b"", "an empty file"),
    ],
)
def test_a_file_that_is_something_else_is_called_so(content, kind, file):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.safetensors is {kind}, .*download it again"):
        tensors.read_header(file)


def test_every_bit_that_flips_is_noticed(file):
    whole = file.read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), 300)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            tensors.load_tensors(file)


@pytest.mark.parametrize("content", [b"{}", b"\xff" * 100, b"\x00" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_named(content, file):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a whole safetensors file"):
        tensors.load_tensors(file)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_refused(number, file):
    tensors.save_tensors(file, {"good": torch.ones(2), "bad": torch.tensor([1.0, number])})
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged: bad has numbers that are NaN or infinite"):
        tensors.load_tensors(file)


def test_a_file_of_an_earlier_version_has_a_note_and_no_checksum(file):
    file.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, {"note": "old"}))
    header = tensors.read_header(file)
    assert (header.note, header.checksum) == ("old", None)
    assert torch.equal(tensors.load_tensors(file)["a"], torch.ones(2))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"other": "x"}, {"mrlib": "[]"}, {"mrlib": "{"}, {"mrlib": json.dumps({"note": "", "checksum": 1})}],
)
def test_other_headers_are_refused(metadata, file):
    file.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        tensors.load_tensors(file)


def test_what_does_not_fit_is_named(file):
    expected = SAVED | {"a": torch.zeros(3, 2), "b": torch.tensor(7.0), "d": torch.zeros(1)}
    del expected["c"]
    problems = "has a of shape (2, 3) for (3, 2); it has an unknown c; it has b of type I64 for F32; it lacks d"
    with pytest.raises(ValueError) as error:
        tensors.check_fit(file, tensors.read_header(file).shapes, expected, "the model")
    assert str(error.value) == f"{file} does not fit the model: it {problems}"
    tensors.check_fit(file, tensors.read_header(file).shapes, SAVED, "the model")
