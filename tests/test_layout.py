"""`tests` mirrors `mrlib`: every module has a file of tests with its name and in the same folder."""

from pathlib import Path

import pytest

from conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path.relative_to(ROOT / "mrlib") for path in (ROOT / "mrlib").rglob("*.py") if not path.stem.startswith("__")
)
FOLDERS = sorted({module.parent for module in MODULES} - {Path(".")})
# tests of several modules of a folder, or of its `__init__`
COMMON = {"align/test_aligners.py", "data/test_batch.py"}


def test_modules_are_found_in_every_folder():
    assert len(MODULES) > 50 and {"align", "augment", "data", "detect", "ops", "papers", "sim", "training"} <= {
        str(folder) for folder in FOLDERS
    }


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_a_file_of_tests(module):
    path = ROOT / "tests" / module.with_name(f"test_{module.name}")
    assert path.is_file(), f"mrlib/{module} has no {path.relative_to(ROOT)}"
    assert "\ndef test_" in path.read_text("utf-8"), f"{path.relative_to(ROOT)} has no test"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_file_of_tests_in_a_folder_has_a_module(folder):
    for path in sorted((ROOT / "tests" / folder).glob("*.py")):
        name = path.relative_to(ROOT / "tests").as_posix()
        assert path.name.startswith("test_"), f"tests/{name}: what tests share is in tests/support"
        module = ROOT / "mrlib" / folder / path.name.removeprefix("test_")
        assert name in COMMON or module.is_file(), f"tests/{name} is named after no module of mrlib/{folder}"


def test_the_files_that_start_first_exist_and_all_notebooks_are_among_them():
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(LONGEST)
