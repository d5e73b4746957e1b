"""The registry of papers: what `register` adds; a new paper with an official checkpoint is one file and one line."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.papers import qd_detr
from mrlib.train import fit, predict_all
from tests.reference.official_univtg import make_opt, random_network
from tests.support.batches import batch_and_rows
from tests.support.modules import outputs_of

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


# ---- a new paper

FILE = '''
"""UniVTG's encoder with fewer layers, and heads that its official code calls by other names."""

from mrlib.papers import Choice, Optimiser, Paper, Stage
from mrlib.papers.release import Release
from mrlib.papers.univtg import PAPER as BASE, RELEASE as UNIVTG, joint_settings

ADAMW = Optimiser("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1)
PAPER = Paper(
    name="new_paper",
    title="A New Paper (2026)",
    aligner=Choice("joint", {**BASE.aligner.options, "layers": 1}),
    detector=BASE.detector,
    stages=(Stage("train", epochs=100, batch_size=32, weights={"fg": 10.0, "l1": 10.0}, optimiser=ADAMW),),
)
PRESETS = {
    "small": {
        "width": 16,
        "hidden": 16,
        "heads": 2,
        "dropout": 0.0,
        "input_dropout": 0.0,
        "epochs": 4,
        "batch_size": 8,
        "lr": 2e-3,
        "curve": "cosine",
        "warmup": 0.1,
    },
    "official": {"timestamps": "edge", "padding": "seen", "length": "duration"},
}
RELEASE = Release(
    preset="official",
    settings=joint_settings,
    names=(*UNIVTG.names, (r"^class_embed\\.", "foreground_head."), (r"^span_embed\\.", "offset_head.")),
    transposed=UNIVTG.transposed,
    unread=UNIVTG.unread,
    corrected={"padding": "hidden"},
)
'''


@pytest.fixture
def new_paper(tmp_path, monkeypatch):
    """The paper is registered from a package of its own; afterwards the tables are as before."""
    before = [dict(table) for table in TABLES]
    package = tmp_path / "my_papers"
    package.mkdir()
    (package / "new_paper.py").write_text(FILE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for table in TABLES:
            patch.setitem(table, "new_paper", None)  # so that the entry is removed again
        papers.register(import_module("my_papers.new_paper"))
        yield
        for name in ("my_papers.new_paper", "my_papers"):
            del sys.modules[name]
    assert [dict(table) for table in TABLES] == before


def test_a_new_paper_is_built_trained_saved_and_loaded(new_paper, tmp_path):
    paper = papers.get("new_paper", "small")
    assert (paper.aligner.options["layers"], paper.aligner.options["width"]) == (1, 16)
    data = papers.open_split(paper, "sim", split="train", n=16)
    retriever = papers.build(paper, data)
    history = fit(retriever, data, data, paper, tmp_path / "run", device="cpu", progress=False)
    assert len(history.rows) == 4 and history.rows[-1]["loss"] < history.rows[0]["loss"]
    loaded = checkpoint.load(tmp_path / "run" / "train" / "best")
    assert predict_all(loaded, data) == predict_all(retriever, data)


@torch.no_grad()
def test_an_official_checkpoint_of_a_new_paper_is_loaded(new_paper, tmp_path):
    """Its outputs are those of the official network, as released for a padded batch."""
    network = random_network(make_opt(enc_layers=1), "univtg")
    tensors = {
        name.replace("class_embed.", "foreground_head.").replace("span_embed.", "offset_head."): tensor
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path / "model.ckpt"
    torch.save({"model": tensors, "opt": argparse.Namespace(**vars(network.opt))}, path)
    retriever = checkpoint.load_official(path, "new_paper")
    batch, targets, queries = batch_and_rows()
    expected, mask = network(targets, queries), batch.target_mask
    for name, output in outputs_of(retriever, batch).items():
        torch.testing.assert_close(output[mask], expected[name][mask], atol=1e-5, rtol=1e-5)
    torch.save({"model": network.state_dict(), "opt": network.opt}, path)
    with pytest.raises(ValueError, match=r"12 missing: foreground_head\.\S+, .*; 12 unexpected: "):
        checkpoint.load_official(path, "new_paper")
