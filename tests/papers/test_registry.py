"""The registry of papers: what `register` adds, and that the files of the package are registered."""

from pathlib import Path
from types import ModuleType

import pytest

from mrlib import papers
from mrlib.papers import qd_detr

TABLES = (papers.PAPERS, papers.PRESETS, papers.RELEASES)


def module_of(**members):
    module = ModuleType("mine")
    vars(module).update(members)
    return module


@pytest.fixture
def empty_tables():
    """The tables are empty for a test, and afterwards as before, in the same order."""
    entries = [dict(table) for table in TABLES]
    for table in TABLES:
        table.clear()
    yield
    for table, before in zip(TABLES, entries, strict=True):
        table.clear()
        table.update(before)


def test_register_adds_the_paper_its_presets_and_its_release(empty_tables):
    papers.register(module_of(PAPER=qd_detr.PAPER, PRESETS=qd_detr.PRESETS, RELEASE=qd_detr.RELEASE))
    for table, member in zip(TABLES, (qd_detr.PAPER, qd_detr.PRESETS, qd_detr.RELEASE), strict=True):
        assert list(table) == ["qd_detr"] and table["qd_detr"] is member


def test_a_module_needs_neither_presets_nor_a_release(empty_tables):
    papers.register(module_of(PAPER=qd_detr.PAPER))
    assert papers.PAPERS == {"qd_detr": qd_detr.PAPER}
    assert papers.PRESETS == {"qd_detr": {}} and papers.RELEASES == {}
    assert papers.get("qd_detr").describe() == qd_detr.PAPER.describe()


def test_a_module_without_a_paper_is_refused(empty_tables):
    with pytest.raises(AttributeError, match="PAPER"):
        papers.register(module_of(PRESETS={}))
    assert not any(TABLES)


@pytest.mark.parametrize("file", sorted(Path(qd_detr.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_every_file_with_a_paper_is_registered_under_its_name(file):
    """A file that is missing in the list of `mrlib/papers/__init__.py` would never be read."""
    has_paper = "\nPAPER = " in file.read_text()
    assert has_paper == (file.stem in papers.PAPERS)
    assert not has_paper or papers.PAPERS[file.stem].name == file.stem
