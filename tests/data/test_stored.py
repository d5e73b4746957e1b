"""Arrays in files that are damaged or that lie about themselves: refused by name, before they cost memory."""

import io
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch

from mrlib.data.arrays import Limit, open_array, read_rows
from mrlib.data.problems import DataError, MissingKey
from mrlib.data.stored import MOST_NUMBERS
from tests.support.files import random, save_npy, save_npz
from tests.support.memory import costs

ROWS = random(0, 5, 3)
HUGE = (300_000, 1024)  # 1.2 GB as float32
ZEROS = bytes(150 << 20)


def read(file, key="features"):
    with open_array(file, key) as stored:
        return stored.read(0, stored.shape[0])


def header(shape, dtype="<f4", fortran=False):
    """The first bytes of an .npy file."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return out.getvalue()


def entry(file, name, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_read_piece_by_piece(name, order, tmp_path):
    rows = np.asarray(random(0, 7, 3), order=order)
    if name == "a.npy":
        save_npy(tmp_path / name, rows)
    elif name == "a.npz":
        save_npz(tmp_path / name, features=rows)
    else:
        torch.save(torch.from_numpy(rows), tmp_path / name)
    with open_array(tmp_path / name, "" if name != "a.npz" else "features") as stored:
        assert stored.shape == (7, 3) and stored.dtype == np.float32
        pieces = [stored.read(0, 2), stored.read(2, 3), stored.read(3, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), rows)


def test_a_key_may_be_left_out_where_there_is_only_one_array(tmp_path):
    save_npz(tmp_path / "one.npz", anything=ROWS)
    save_npz(tmp_path / "many.npz", other=ROWS + 1, features=ROWS)
    save_npz(tmp_path / "unclear.npz", a=ROWS, b=ROWS)
    torch.save({"anything": torch.from_numpy(ROWS)}, tmp_path / "one.pt")
    for name in ("one.npz", "many.npz", "one.pt"):
        np.testing.assert_array_equal(read(tmp_path / name, ""), ROWS)
    with pytest.raises(MissingKey, match=r"no array ''; the keys there are \['a', 'b'\]"):
        read(tmp_path / "unclear.npz", "")


DAMAGED_NPY = {
    "an unknown version": b"\x93NUMPY\x07\x00" + header((5, 3))[8:] + bytes(60),
    "a header of 4 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{",
    "a header that is no dict": b"\x93NUMPY\x01\x00" + struct.pack("<H", 10) + b"[1, 2, 3]\n" + bytes(60),
    "a header nested deeply": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"[" * 9000,
    "more rows than bytes": header((6, 3)) + bytes(60),
    "a shape of 10^30 rows": header((10**30, 3)) + bytes(60),
    "a negative shape": header((-5, 3)) + bytes(60),
    "a shape of truths": header((True, 3)) + bytes(60),
    "nothing after the magic": b"\x93NUMPY\x01\x00",
}


@pytest.mark.parametrize("content", DAMAGED_NPY.values(), ids=DAMAGED_NPY)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_array_with_a_damaged_header_is_refused(name, content, tmp_path):
    file = tmp_path / name
    if name == "a.npy":
        file.write_bytes(content)
    else:
        entry(file, "features.npy", content)
    with pytest.raises(DataError, match=rf"{name}: unreadable: .*download it again"):
        read(file)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("|O", "pickled"), ("<c8", "dtype"), ("|b1", "dtype"), ("<U3", "dtype"), ("|S3", "dtype"), ("<M8[s]", "dtype")],
)
def test_numbers_of_other_types_are_refused_before_they_are_read(dtype, kind, tmp_path):
    (tmp_path / "a.npy").write_bytes(header((5, 3), dtype))  # there is nothing to read
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.npy")
    assert error.value.problem.kind == kind


def test_records_and_single_numbers_are_refused(tmp_path):
    save_npy(tmp_path / "a.npy", np.zeros(3, [("x", "f4")]))
    save_npy(tmp_path / "b.npy", np.float32(1))
    torch.save(torch.tensor(1.0), tmp_path / "c.pt")
    for name, kind in (("a.npy", "dtype"), ("b.npy", "shape"), ("c.pt", "shape")):
        with pytest.raises(DataError) as error:
            read_rows(tmp_path / name)
        assert error.value.problem.kind == kind


def test_an_entry_that_is_no_array_is_refused(tmp_path):
    for name, content in (("features", b"some text"), ("features.npy", b"some text")):
        entry(tmp_path / "a.npz", name, content)
        with pytest.raises(DataError, match="no .npy array"):
            read(tmp_path / "a.npz")
    entry(tmp_path / "a.npz", "features.npy", header((5, 3)) + bytes(60), zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="packed in an unusual way"):
        read(tmp_path / "a.npz")


def test_an_entry_whose_bytes_have_changed_is_refused(tmp_path):
    save_npz(tmp_path / "a.npz", features=ROWS)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(ROWS.tobytes()[:12]) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="unreadable: BadZipFile: Bad CRC-32"):
        read(tmp_path / "a.npz")


class TestTensors:
    """Files that torch saved."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_tensors_of_every_floating_type_are_read(self, dtype, zipped, tmp_path):
        rows = torch.from_numpy(ROWS).to(dtype)
        torch.save(rows.requires_grad_(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        np.testing.assert_array_equal(read_rows(tmp_path / "a.pt")[0], rows.detach().float().numpy())

    @pytest.mark.parametrize(
        ("saved", "kind"),
        [
            (torch.zeros(5, 3, dtype=torch.int64), "dtype"),
            (torch.zeros(5, 3, dtype=torch.complex64), "dtype"),
            (torch.zeros(5, 3).to_sparse(), "dtype"),
            (torch.empty(5, 3, device="meta"), "dtype"),
            ([torch.zeros(5, 3)], "pickled"),
            ("some text", "pickled"),
            (torch.nn.Linear(2, 2), "pickled"),
            ({"a": torch.zeros(5, 3), "b": torch.zeros(5, 3)}, "missing key"),
            (torch.zeros(1, 1).expand(10**6, 10**6), "size"),  # a view of one number
        ],
    )
    def test_other_content_is_refused(self, saved, kind, tmp_path):
        torch.save(saved, tmp_path / "a.pt")
        with pytest.raises(DataError) as error:
            read_rows(tmp_path / "a.pt")
        assert error.value.problem.kind == kind, error.value

    def test_a_file_cut_off_anywhere_is_refused(self, tmp_path):
        torch.save(torch.from_numpy(ROWS), tmp_path / "whole.pt")
        content = (tmp_path / "whole.pt").read_bytes()
        for end in range(1, len(content), 37):
            (tmp_path / "a.pt").write_bytes(content[:end])
            with pytest.raises(DataError, match="download it again"):
                read_rows(tmp_path / "a.pt")


def sparse(start):
    """Declares 1.2 GB, of which the disk holds nothing."""

    def write(file):
        with file.open("wb") as out:
            out.write(start)
            out.truncate(len(start) + 4 * HUGE[0] * HUGE[1])

    return write


def packed(file):
    """150 MB of zeros, packed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("features.npy", header((150 * 256, 1024)) + ZEROS)


def lying(file):
    """The directory declares few bytes, the packed data are 150 MB."""
    packed(file)
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", len(header((5, 3))) + 60)
    file.write_bytes(content)


def directory(file):
    """More entries than an archive of arrays has."""
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(8000):
            archive.writestr(f"{i:0150}", b"")


def never_written(**options):
    def write(file):
        with h5py.File(file, "w") as content:
            content.create_dataset("features", HUGE, "f4", **options)

    return write


def piece(file):
    """A piece of 60 bytes that unpacks to 150 MB."""
    with h5py.File(file, "w") as content:
        made = content.create_dataset("features", (5, 3), "f4", chunks=(5, 3), compression="gzip")
        made.id.write_direct_chunk((0, 0), zlib.compress(ZEROS, 1))


def tensor(file):
    """A tensor of one number whose storage is 150 MB, packed."""
    torch.save(torch.zeros(1), file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for each, content in entries.items():
            archive.writestr(each, ZEROS if each.endswith("data/0") else content)


BOMBS = {
    "sparse.npy": sparse(header(HUGE)),
    "fortran.npy": sparse(header(HUGE, fortran=True)),
    "wide.npy": sparse(header((5, 10**7))),
    "packed.npz": packed,
    "lying.npz": lying,
    "directory.npz": directory,
    "contiguous.hdf5": never_written(),
    "chunked.h5": never_written(chunks=(1000, 1024)),
    "one_piece.hdf5": never_written(chunks=HUGE, compression="gzip"),
    "piece.hdf5": piece,
    "tensor.pt": tensor,
    "old.pt": sparse(b"\x80\x02"),
}


def test_a_file_that_would_fill_the_memory_is_refused_for_less_than_100_mb_and_2_s(tmp_path):
    """And the largest array that a video of two minutes may have, in numbers of eight bytes, costs no more."""
    save_npz(tmp_path / "warm.npz", features=ROWS)
    for name, write in BOMBS.items():
        write(tmp_path / name)
    limit = Limit.of_video(clips=60, rows=60)
    largest = np.zeros((limit.rows, MOST_NUMBERS // limit.rows))
    np.savez_compressed(tmp_path / "largest.npz", features=largest)
    setup = (
        "from pathlib import Path\nfrom mrlib.data.arrays import Limit, open_array, read_rows\nimport h5py, torch\n"
        f"limit = Limit.of_video(60, 60)\nread_rows(Path({str(tmp_path / 'warm.npz')!r}), 'features')"
    )
    files = [tmp_path / name for name in (*BOMBS, "largest.npz")]
    found = costs(setup, [f"read_rows(Path({str(file)!r}), 'features', limit=limit)" for file in files])
    for file, cost in zip(files, found, strict=True):
        if file.name == "largest.npz":
            assert cost.said == "done"
        else:
            assert cost.said.startswith(f"DataError: {file}: "), cost.said
            assert cost.seconds < 2, file
        assert cost.size < 100e6, f"{file}: {cost.size / 1e6:.0f} MB"
