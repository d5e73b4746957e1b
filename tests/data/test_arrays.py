"""Arrays are read from files that numpy and h5py wrote, and checked; norms by hand."""

import numpy as np
import pytest

from mrlib.data.arrays import as_rows, normalized_rows, read_array, read_rows, same_width
from mrlib.data.problems import DataError, MissingFile, MissingKey
from tests.support.files import random, save_hdf5, save_npy, save_npz

ROWS = random(0, 5, 3)


def test_an_array_is_read_from_every_kind_of_file(tmp_path):
    save_npy(tmp_path / "a.npy", ROWS)
    save_npz(tmp_path / "a.npz", features=ROWS, others=ROWS + 1)
    save_hdf5(tmp_path / "a.hdf5", {"video": ROWS, "deep/er/video": ROWS + 1, "alone/c3d_features": ROWS + 2})
    for file, key, offset in (
        ("a.npy", "", 0),
        ("a.npy", "a key is not needed", 0),
        ("a.npz", "features", 0),
        ("a.npz", "others", 1),
        ("a.hdf5", "video", 0),
        ("a.hdf5", "deep/er/video", 1),
        ("a.hdf5", "alone", 2),  # a group that holds nothing but the array
        ("a.hdf5", "alone/c3d_features", 2),
    ):
        np.testing.assert_array_equal(read_array(tmp_path / file, key), ROWS + np.float32(offset), err_msg=file + key)


@pytest.mark.parametrize(
    ("file", "key", "keys"),
    [
        ("a.npz", "feature", "['features']"),
        ("a.hdf5", "other", "['many', 'video']"),
        ("a.hdf5", "video/deeper", "[]"),
        ("a.hdf5", "many", "['one', 'two']"),  # a group of two arrays
        ("a.hdf5", "many/three", "['one', 'two']"),
    ],
)
def test_a_missing_key_is_refused_with_the_keys_of_the_file(file, key, keys, tmp_path):
    save_npz(tmp_path / "a.npz", features=ROWS)
    save_hdf5(tmp_path / "a.hdf5", {"video": ROWS, "many/one": ROWS, "many/two": ROWS})
    with pytest.raises(MissingKey) as error:
        read_array(tmp_path / file, key)
    assert str(error.value) == f"{tmp_path / file}: missing key: no array {key!r}; the keys there are {keys}"


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.hdf5"])
def test_a_missing_truncated_or_pickled_file_is_named(name, tmp_path):
    file = tmp_path / name
    with pytest.raises(MissingFile, match=f"{name}: missing file"):
        read_array(file, "features")
    if name == "a.hdf5":
        save_hdf5(file, {"features": ROWS})
    else:
        write = save_npy if name == "a.npy" else lambda path, array: save_npz(path, features=array)
        write(file, np.array([{"a": 1}], dtype=object))
        with pytest.raises(DataError, match=f"{name}: pickled: holds no plain array"):
            read_array(file, "features")
        write(file, ROWS)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name}: unreadable: .*cut off or damaged"):
        read_array(file, "features")
    for broken, kind in ((b"", "an empty file"), (b"something else", "a text that begins with 'something else'")):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=f"{name}: download: is {kind}.*download it again"):
            read_array(file, "features")


def test_rows_are_float32_and_the_parts_of_a_row_are_concatenated(tmp_path):
    file = tmp_path / "a.npy"
    for dtype in (np.float16, np.float32, np.float64):
        rows = as_rows(ROWS.astype(dtype), file)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, ROWS.astype(dtype).astype(np.float32))
    stacked = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    np.testing.assert_array_equal(as_rows(stacked, file, parts=4), np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(as_rows(stacked.reshape(3, 8), file, parts=4), np.arange(24).reshape(3, 8))


@pytest.mark.parametrize(
    ("array", "parts", "kind", "message"),
    [
        (np.zeros((2, 3), int), 1, "dtype", "int64 where floating-point features are expected"),
        (np.zeros(3), 1, "shape", r"\(3,\) where \(rows, width\) is expected"),
        (np.zeros((0, 3)), 1, "shape", r"\(0, 3\) where"),
        (np.zeros((3, 0)), 1, "shape", r"\(3, 0\) where"),
        (np.zeros((2, 3, 4)), 1, "shape", r"\(2, 3, 4\) where"),
        (np.zeros((1, 4, 1)), 1, "shape", r"\(1, 4, 1\) where"),  # four rows, or one
        (np.zeros((1, 2, 4)), 1, "shape", r"\(1, 2, 4\) where"),
        (np.zeros((2, 3, 4)), 4, "shape", r"\(2, 3, 4\) where \(rows, 4, width\) is expected"),
        (np.zeros((2, 6)), 4, "shape", r"\(2, 6\) where"),
        (np.array([[0.0], [np.nan], [1.0], [-np.inf]]), 1, "nan", "NaN or Inf in 2 of 4 rows, the first is 1"),
        (np.array([[0.0, 1e300]]), 1, "nan", "NaN or Inf in 1 of 1 rows, the first is 0"),  # too large for float32
    ],
)
def test_arrays_that_are_not_feature_rows_are_refused(array, parts, kind, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        as_rows(array, tmp_path / "a.npy", parts=parts)
    assert error.value.problem.kind == kind


def test_rows_of_another_width_are_refused(tmp_path):
    assert same_width((5, 3), None, tmp_path) == same_width((2, 3), 3, tmp_path) == 3
    with pytest.raises(DataError, match="vectors of width 3 where others have 4"):
        same_width((5, 3), 4, tmp_path)


def test_rows_are_divided_by_their_norm():
    """By hand: (3, 4) has norm 5, plus 1e-5; each of two parts is divided by its own norm; zeros stay zeros."""
    rows = np.array([[3.0, 4.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)
    whole = rows[0] / (np.sqrt(25.25) + 1e-5)
    np.testing.assert_allclose(normalized_rows(rows), [whole, np.zeros(4)], rtol=1e-6)
    parts = [3 / 5.00001, 4 / 5.00001, 0, 0.5 / 0.50001]
    np.testing.assert_allclose(normalized_rows(rows, 2), [parts, np.zeros(4)], rtol=1e-6)
    assert normalized_rows(rows).dtype == np.float32 and rows[0, 0] == 3


@pytest.mark.parametrize("shape", [(3, 1, 1, 2), (3, 1, 2), (3, 2, 1, 1)])
def test_axes_of_length_one_around_the_width_do_not_matter(shape, tmp_path):
    """I3D features of Charades are saved as (rows, 1, 1, width)."""
    array = np.arange(6, dtype=np.float32)
    save_npy(tmp_path / "a.npy", array.reshape(shape))
    rows, count = read_rows(tmp_path / "a.npy")
    assert count == 3
    np.testing.assert_array_equal(rows, array.reshape(3, 2))
    save_npy(tmp_path / "a.npy", array.reshape(1, 1, 1, 6))
    assert read_rows(tmp_path / "a.npy")[0].shape == (1, 6)
