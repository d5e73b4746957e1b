"""The CSV file of a grid is read, or refused with one message that names it."""

import re
from pathlib import Path

import pytest

from mrlib.grid_file import read_rows

FIGURES = Path(__file__).resolve().parents[1] / "figures"
TABLE = "arm,seed,mIoU,paper,command\nfull,0,1.5,f2sgd-0,python -m x\nNone,1,,f2sgd-1,python -m y\n"


@pytest.mark.parametrize("file", sorted(FIGURES.glob("*_grid.csv")), ids=lambda file: file.name)
def test_committed_grids_are_read(file):
    rows = read_rows(file)
    assert len(rows) == len(file.read_text().splitlines()) - 1 and rows["seed"].dtype.kind == "i"


def test_text_stays_text_and_an_empty_number_is_missing(tmp_path):
    """An arm named "None" or "1" is a name."""
    (tmp_path / "a.csv").write_text(TABLE + '1,0,2,f2sgd-0,"python ""-m"" z"\n\n')
    rows = read_rows(tmp_path / "a.csv")
    assert rows["arm"].tolist() == ["full", "None", "1"] and rows["command"][2] == 'python "-m" z'
    assert rows["mIoU"].tolist()[::2] == [1.5, 2.0] and rows["mIoU"].isna().tolist() == [False, True, False]


def test_a_file_that_a_spreadsheet_wrote_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeff" + TABLE.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert read_rows(tmp_path / "a.csv")["arm"].tolist() == ["full", "None"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no column 'arm'"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (TABLE.encode("utf-16-le"), "no text"),
        (TABLE.replace("seed", "sed").encode(), "it has no column 'seed'"),
        (TABLE.replace("mIoU", "arm").encode(), "two columns have the same name"),
        (TABLE.replace(",1.5", "").encode(), "line 2: 4 fields for 5 columns"),
        (TABLE.replace("1.5", "1.5,2").encode(), "line 2: 6 fields for 5 columns"),
        (TABLE.replace("full,0", "full,").encode(), "row 1: 'seed' is 'nan', not a whole number"),
        (TABLE.replace("None,1", "None,1.5").encode(), "row 2: 'seed' is '1.5', not a whole number"),
        (TABLE.replace("None,1", "None,x").encode(), "row 2: 'seed' is 'x', not a whole number"),
        (TABLE.replace("None,1", "None,1" + 40 * "0").encode(), "not a whole number"),
        (TABLE.replace("1.5", "high").encode(), "row 1: 'mIoU' is 'high', not a number"),
        (TABLE.replace("1.5", '"a\nb"').encode(), r"row 1: 'mIoU' is 'a\nb', not a number"),
        (TABLE.replace("None,1", "full,0").encode(), "row 2 is a second one for arm 'full', seed 0"),
        (TABLE.replace("full", "").encode(), "row 1 has no arm"),
        ((TABLE + '"').encode(), "unexpected end of data"),
        ((TABLE + 200_000 * "x").encode(), "field larger than field limit"),
        (4_000_001 * b"x", "larger than 4000000 bytes"),
    ],
)
def test_a_damaged_file_is_refused(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"a.csv is no grid, or damaged: .*{re.escape(message)}.*; restore the file, or"
    ):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is a PNG picture, not the file of that name; download it again"),
        (b"<!DOCTYPE html><html>arm,seed</html>", "is a web page, not the file of that name; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, .* or download it again"),
    ],
)
def test_a_file_that_is_something_else_is_called_so(content, problem, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv {problem}, or delete it to train its rows again"):
        read_rows(tmp_path / "a.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.csv"):
        read_rows(tmp_path / "a.csv")
