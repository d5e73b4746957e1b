"""The tables of parts: their names, the parts that a user adds, training sets and preparations."""

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.augment import identity
from mrlib.data import Widths
from tests.support import toy
from tests.support.worlds import world

NAMES = {
    "ALIGNERS": "anchor raw concat separate joint joint_memory text_to_video trilinear dual_stage "
    "taskweave uvcom cg_detr",
    "DETECTORS": "similarity_map boundary pyramid detr dab dab_quality tan",
    "AUGMENTERS": "identity clip_query clip_alone splice splice_official synthesize synthesize_official",
    "TRAINING_SETS": "pairs videos ten_passes",
    "PREPARATIONS": "active_queries released_queries",
}
WIDTHS = Widths(24, 12, 16)


@pytest.mark.parametrize("table", NAMES)
def test_names_of_parts_do_not_change(table):
    """Checkpoints hold them."""
    assert list(getattr(papers, table)) == NAMES[table].split()


@pytest.mark.parametrize("slot", ["aligner", "detector"])
def test_every_part_can_replace_the_one_of_a_paper(slot):
    """The detector is built with the width of the aligner."""
    for name in papers.ALIGNERS if slot == "aligner" else papers.DETECTORS:
        paper = papers.get("qd_detr", "small", **{slot: name})
        assert getattr(paper, slot).name == name
        retriever = papers.build(paper, WIDTHS)
        assert isinstance(getattr(retriever, slot), nn.Module) and retriever.aligner.width >= 1


def test_parts_that_a_user_adds_are_built_by_name(monkeypatch):
    """The aligner gets the widths of the dataset, the detector the width of the aligner; both get their options."""
    toy.register(monkeypatch.setitem)
    arguments = []
    build_toy = papers.DETECTORS["toy"]

    def build_mine(width, *, reach=3):
        arguments.append((width, reach))
        return build_toy(width)

    monkeypatch.setitem(papers.DETECTORS, "mine", build_mine)
    paper = papers.get("toy", detector="mine", reach=5)
    retriever = papers.build(paper, WIDTHS)
    assert isinstance(retriever.aligner, toy.ToyAligner) and isinstance(retriever.detector, toy.ToyDetector)
    assert arguments == [(16, 5)] and retriever.aligner.dropout.p == 0.5
    with pytest.raises(ValueError, match="unknown setting 'range'"):
        papers.get("toy", detector="mine", range=5)


def test_training_sets_are_each_pair_each_video_or_all_pairs_ten_times():
    """Five videos of 9 clips and one of 3, which is too short for a query clip; seven queries."""
    data = world([9, 9, 9, 9, 9, 3], [(v, [(0, 2)], [], None) for v in (0, 0, 1, 2, 3, 4, 5)])
    qids = {name: [s.qid for s in make(data).samples] for name, make in papers.TRAINING_SETS.items()}
    assert qids == {"pairs": [*range(7)], "videos": [0, 2, 3, 4, 5], "ten_passes": [*range(7)] * 10}


def test_the_augmenter_identity_leaves_the_samples_unchanged():
    assert papers.AUGMENTERS["identity"] is identity


@pytest.mark.parametrize("name", NAMES["PREPARATIONS"].split())
def test_a_preparation_changes_a_model_and_its_recipe_and_a_teacher_without_its_recipe(name):
    paper = papers.get("amr", "small", width=16, hidden=16, heads=2)
    plain, student, same, teacher = (papers.build(paper, WIDTHS) for _ in range(4))
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    papers.prepare(student, name, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.recipe == plain.recipe | {"prepared": [name]}
    assert len(student.state_dict()) > len(plain.state_dict())
    papers.prepare(same, name, seed=3)
    assert all(torch.equal(x, same.state_dict()[k]) for k, x in student.state_dict().items())
    papers.prepare(teacher, name, teacher=True)
    assert teacher.recipe == plain.recipe
