"""The bank in memory and on disk, compared with plain loops over arrays."""

import os
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mrlib.data import Bank
from mrlib.data.bank import load_bank, save_bank
from tests.support.files import random

ARRAYS = [random(0, 3, 5), random(1, 1, 5), random(2, 4, 5)]


def items(arrays=ARRAYS, vectors=None):
    return zip(arrays, vectors or [None] * len(arrays), strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gather_returns_every_row_and_zeros_on_padding(dtype):
    bank = Bank.from_arrays(ARRAYS, dtype)
    rows = torch.tensor([[7, 0, 3, -1], [2, 2, -1, -1]])
    flat = np.concatenate(ARRAYS)
    expected = [[torch.tensor(flat[r]).to(dtype).float() if r >= 0 else torch.zeros(5) for r in row] for row in rows]
    gathered = bank.gather(rows)
    assert gathered.dtype == torch.float32
    torch.testing.assert_close(gathered, torch.stack([torch.stack(row) for row in expected]), rtol=0, atol=0)


def test_changing_gathered_rows_does_not_change_the_bank():
    bank = Bank.from_arrays(ARRAYS)
    before = bank.rows.clone()
    bank.gather(torch.tensor([[0, 1, -1]])).add_(1)
    assert torch.equal(bank.rows, before)


def test_index_lists_the_rows_of_every_item():
    bank = Bank.from_arrays(ARRAYS)
    assert bank.index(torch.tensor([1, 2, 0])).tolist() == [[3, -1, -1, -1], [4, 5, 6, 7], [0, 1, 2, -1]]
    assert bank.lengths.tolist() == [3, 1, 4]
    assert (len(bank), bank.width) == (3, 5)


def test_items_may_share_rows_and_list_them_in_any_order():
    rows = Bank.from_arrays(ARRAYS).rows
    bank = Bank(rows, torch.tensor([0, 2, 5]), torch.tensor([7, 0, 3, 3, 7])).to("cpu")
    assert bank.index(torch.tensor([0, 1])).tolist() == [[7, 0, -1], [3, 3, 7]]
    assert bank.at(torch.tensor([1, 0]), torch.tensor([[2, 0], [1, 1]])).tolist() == [[7, 3], [0, 0]]
    assert bank.lengths.tolist() == [2, 3] and len(bank) == 2
    assert torch.equal(bank.gather(bank.index(torch.tensor([1])))[0], rows[[3, 3, 7]])


def test_a_bank_moves_with_all_its_tensors():
    bank = Bank(torch.zeros(3, 2), torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1])).to("meta")
    assert {x.device.type for x in (bank.rows, bank.offsets, bank.places)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_bank_loads_unchanged(dtype, tmp_path):
    vectors = [random(10 + i, 3) for i in range(3)]
    save_bank(tmp_path / "b", items(vectors=vectors), 3, dtype)
    bank, loaded_vectors = load_bank(tmp_path / "b")
    assert torch.equal(bank.rows, Bank.from_arrays(ARRAYS, dtype).rows)
    assert bank.offsets.tolist() == [0, 3, 4, 8]
    assert torch.equal(loaded_vectors, torch.tensor(np.stack(vectors)).to(dtype))
    assert sorted(load_file(tmp_path / "b")) == ["offsets", "rows", "vectors"]
    assert os.listdir(tmp_path) == ["b"]


def test_a_bank_saved_without_vectors_loads_without_vectors(tmp_path):
    save_bank(tmp_path / "b", items(), 3, torch.float32)
    assert load_bank(tmp_path / "b")[1] is None


def test_the_rows_of_a_file_are_memory_mapped(tmp_path):
    """A later change of the file changes the rows."""
    save_bank(tmp_path / "b", items(), 3, torch.float32)
    bank, _ = load_bank(tmp_path / "b")
    with (tmp_path / "b").open("r+b") as file:
        file.seek(4096 + 4 * 8)
        file.write(struct.pack("<f", 42.0))
    assert bank.rows[0, 0] == 42


def test_an_error_while_saving_leaves_no_file(tmp_path):
    def broken():
        yield ARRAYS[0], None
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        save_bank(tmp_path / "b", broken(), 3, torch.float32)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * len(b), lambda b: b + b"x"],
    ids=["without its last byte", "cut in the header", "empty", "overwritten", "with an extra byte"],
)
def test_a_damaged_file_is_not_loaded(damage, tmp_path):
    save_bank(tmp_path / "b", items(), 3, torch.float32)
    whole = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(damage(whole))
    assert load_bank(tmp_path / "b") is None


def test_a_missing_file_is_not_loaded(tmp_path):
    assert load_bank(tmp_path / "b") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_in_the_place_of_a_bank_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "b")
    assert load_bank(tmp_path / "b") is None


def test_a_number_too_large_for_half_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too large for float16"):
        save_bank(tmp_path / "b", items([1e5 * ARRAYS[0]]), 1, torch.float16)
    with pytest.raises(ValueError, match="too large for float16"):
        save_bank(tmp_path / "b", items([-1e5 * np.abs(ARRAYS[0])]), 1, torch.float16)


def test_other_types_than_float32_and_float16_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype must be torch.float32 or torch.float16"):
        save_bank(tmp_path / "b", items(), 3, torch.bfloat16)
