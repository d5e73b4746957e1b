"""HDF5 files that lead elsewhere, hold no numbers or are not stored as a whole are refused by name."""

import h5py
import numpy as np
import pytest

from mrlib.data.arrays import read_rows
from mrlib.data.hdf5 import has_key, open_hdf5
from mrlib.data.problems import DataError, MissingKey
from tests.support.files import random, save_hdf5

ROWS = random(0, 5, 3)
SECRET = "features of another file"


def external(file, secret):
    file["v"] = h5py.ExternalLink(str(secret), "/v")


def external_group(file, secret):
    file["v"] = h5py.ExternalLink(str(secret), "/")


def soft_to_external(file, secret):
    file["away"] = h5py.ExternalLink(str(secret), "/")
    file["v"] = h5py.SoftLink("/away/v")


def only_of_a_group(file, secret):
    file.create_group("v")["one"] = h5py.ExternalLink(str(secret), "/v")


def in_circles(file, secret):
    file["v"], file["w"] = h5py.SoftLink("/w"), h5py.SoftLink("/v")


def external_storage(file, secret):
    file.create_dataset("v", (5, 3), "f4", external=[(str(secret), 0, 60)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((5, 3), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "v", (5, 3))
    file.create_virtual_dataset("v", layout)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (external, "external link"),
        (external_group, "external link"),
        (soft_to_external, "external link"),
        (only_of_a_group, "external link"),
        (in_circles, "external link"),
        (external_storage, "external storage"),
        (virtual, "virtual dataset"),
    ],
)
def test_nothing_outside_the_file_is_read(make, kind, tmp_path):
    secret = tmp_path / "secret.h5"
    save_hdf5(secret, {"v": ROWS})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, secret)
    with pytest.raises(DataError, match=r"a\.h5: .* never (read|followed); copy the array") as error:
        read_rows(tmp_path / "a.h5", "v")
    assert error.value.problem.kind == kind


def test_links_within_the_file_are_followed(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["real/rows"] = ROWS
        file["absolute"], file["real/relative"] = h5py.SoftLink("/real/rows"), h5py.SoftLink("rows")
        file["hard"] = file["real/rows"]
        file["dangling"] = h5py.SoftLink("/nowhere")
    for key in ("absolute", "real/relative", "hard", "real/rows"):
        np.testing.assert_array_equal(read_rows(tmp_path / "a.hdf5", key)[0], ROWS)
    with pytest.raises(MissingKey):
        read_rows(tmp_path / "a.hdf5", "dangling")
    assert has_key(tmp_path / "a.hdf5", "hard") and not has_key(tmp_path / "a.hdf5", "soft")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (h5py.Empty("f4"), "shape"),
        (np.float32(1), "shape"),
        (np.zeros((5, 3), "i8"), "dtype"),
        (np.zeros((5, 3), bool), "dtype"),
        (np.zeros((5, 3), "c8"), "dtype"),
        (np.array(["a", "b"], object), "pickled"),
        (np.zeros(5, [("x", "f4"), ("y", "f4")]), "dtype"),
        (np.zeros((0, 3), "f4"), "shape"),
        (np.zeros(3, "f4"), "shape"),
    ],
)
def test_content_that_is_no_rows_of_numbers_is_refused(content, kind, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["v"] = content
        file["type"] = np.dtype("f4")
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / "a.hdf5", "v")
    assert error.value.problem.kind == kind, error.value
    with pytest.raises(MissingKey):
        read_rows(tmp_path / "a.hdf5", "type")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (20, 30)},
        {"chunks": (200, 64), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (200, 64), "compression": "gzip"},  # pieces of 51 KB
        {"chunks": (400, 1000), "compression": "gzip", "shuffle": True, "fletcher32": True},  # unpacked beforehand
        {"compression": "lzf"},
    ],
)
def test_rows_are_read_however_they_are_packed(options, tmp_path):
    rows = random(0, 400, 1000)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("v", data=rows, **options)
    np.testing.assert_array_equal(read_rows(tmp_path / "a.hdf5", "v")[0], rows)
    with open_hdf5(tmp_path / "a.hdf5", "") as stored:  # the only array of the file
        assert stored.shape == (400, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaleoffset": 3, "chunks": (5, 3)}, "packed in an unusual way"),
        ({"chunks": (1, 1), "shape": (400, 400)}, "stored in 160000 pieces"),
        ({"chunks": (5, 3), "shape": (15, 3)}, "was never written as a whole"),
        ({"shape": (15, 3)}, "was never written as a whole"),
    ],
)
def test_rows_that_are_stored_oddly_or_in_part_are_refused(options, message, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        made = file.create_dataset("v", **({"shape": (5, 3), "dtype": "f4"} | options))
        if options.get("chunks") == (5, 3):
            made[:5] = ROWS
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "a.hdf5", "v")


def test_a_file_with_changed_bytes_is_read_or_refused_by_name(tmp_path):
    save_hdf5(tmp_path / "whole.hdf5", {"v": ROWS, "w": ROWS})
    whole = (tmp_path / "whole.hdf5").read_bytes()
    random_ = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for at in random_.integers(0, len(content), 8):
            content[at] = random_.integers(256)
        (tmp_path / "a.hdf5").write_bytes(content)
        try:
            assert read_rows(tmp_path / "a.hdf5", "v")[0].shape[1] > 0
        except DataError as error:
            assert str(tmp_path / "a.hdf5") in str(error)
