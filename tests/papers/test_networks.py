"""Which network a checkpoint holds, and what is said of those that are not here."""

import argparse

import pytest
import torch

from mrlib import papers
from mrlib.checkpoint import load_official
from mrlib.data import Widths
from mrlib.papers.networks import network_of, refusal

ABSENT = {  # names of their tensors
    "eatr": ("event_span_embed.layers.0.weight", "moment_span_embed.layers.0.weight", "saliency_proj.weight"),
    "tr_detr": ("fuser.cq_attention.w4C", "gru_extractor.gru.weight_ih_l0", "saliency_proj1.weight"),
    "uvcom": ("CIM.t2v_encoder.layers.0.self_attn.in_proj_weight", "global_rep_token", "saliency_proj1.weight"),
    "taskweave": ("output_saliency.weight", "saliency_proj_local.weight", "hd_log_var"),
}
TITLES = {"eatr": "EaTR", "tr_detr": "TR-DETR", "uvcom": "UVCOM", "taskweave": "TaskWeave"}


@pytest.mark.parametrize("network", ABSENT)
@pytest.mark.parametrize("paper", ["qd_detr", "moment_detr"])
def test_a_network_that_is_not_here_is_refused_by_name(network, paper, tmp_path):
    """By Lighthouse's `model_name`, or by the names of the tensors alone."""
    path = tmp_path / "best.ckpt"
    for opt in ({}, {"model_name": {"taskweave": "taskweave_hd2mr"}.get(network, network)}):
        content = {"model": {name: torch.ones(2) for name in ABSENT[network]}, "opt": argparse.Namespace(**opt)}
        torch.save(content, path)
        with pytest.raises(ValueError) as error:
            load_official(path, paper)
        said = str(error.value)
        assert said.startswith(f"{path} holds a network of {TITLES[network]}: its ") and "missing" not in said
        assert "known: " in said and "\n" not in said


def test_every_release_is_told_by_the_names_of_its_own_network():
    """Those that lead to another release are told what to load it with."""
    for paper, release in papers.RELEASES.items():
        with torch.device("meta"):
            parts = {} if release.paper is None else {"aligner": paper}
            model = papers.build(papers.get(release.paper or paper, **parts), Widths(24, 12, 16))
        names = [release.official_name(name) for name in model.state_dict()]
        assert network_of(names, {}) == paper and refusal(paper, names, {}) is None
        for other in papers.RELEASES.keys() - {paper}:
            assert refusal(other, names, {}) == (
                f"holds a network of {paper}, not of {other}; load it with paper={paper!r}"
            )


def test_names_that_tell_nothing_are_no_reason_to_refuse():
    assert network_of([], {}) is None and network_of(["a.weight"], {"model_name": 3}) is None
    assert refusal("amr", ["a.weight"], {"model_name": "new"}) is None
    assert refusal("paper_from_elsewhere", ["weightedpool.weight"], {"model_name": "univtg"}) is None
