"""Checkpoints of CG-DETR, its own and Lighthouse's, against a second implementation of the network."""

import argparse

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.checkpoint import load_official
from tests.papers.test_moment_detr import BATCHES, assert_outputs_equal, outputs_of
from tests.reference import official_detr
from tests.reference.official_cg_detr import Official, make_opt
from tests.reference.official_univtg import save
from tests.support.batches import batch_and_rows
from tests.support.modules import count

NETWORKS = {
    "as released": {},
    "as in Lighthouse": {"num_prompts": 2},
    "all prompts": {"num_prompts": 4},
    "one of each": {"enc_layers": 1, "dec_layers": 1, "t2v_layers": 1, "dummy_layers": 1, "num_dummies": 1},
    "wide": {"hidden_dim": 24, "dim_feedforward": 40, "n_input_proj": 3},
    "no endpoints": {"ctx_mode": "video", "v_feat_dim": 7},
    "contrastive heads that no prediction reads": {"contrastive_align_loss": True},
}


def saved(tmp_path, network=None, **options):
    """A network with random parameters, and the file of its checkpoint."""
    torch.manual_seed(0)
    network = network or Official(make_opt(**options)).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            scale = 0.3 if p.ndim == 1 else 1.5 / p[0].numel() ** 0.5
            p.copy_(("norm" in name.lower() and name.endswith("weight")) + scale * torch.randn_like(p))
    return network, save(network, tmp_path / "model.ckpt")


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, tmp_path):
    """[CG-DETR] As released, of a padded batch; corrected, of each sample alone."""
    network, path = saved(tmp_path, **NETWORKS[name])
    released, corrected = load_official(path, "cg_detr"), load_official(path, "cg_detr", corrected=True)
    assert not released.training
    for sizes in BATCHES.values():
        batch, targets, queries = batch_and_rows(**sizes)
        assert_outputs_equal(outputs_of(released, batch), network(targets, queries), batch.target_mask)
        outputs = outputs_of(corrected, batch)
        for b, (target, query) in enumerate(zip(targets, queries, strict=True)):
            row = slice(b, b + 1)
            assert_outputs_equal(outputs, network([target], [query]), batch.target_mask[row], row)


@torch.no_grad()
def test_a_loaded_model_can_be_saved_and_loaded_again_and_trains(tmp_path):
    _, path = saved(tmp_path, num_prompts=2)
    batch, _, _ = batch_and_rows()
    retriever = load_official(path, "cg_detr")
    checkpoint.save(retriever, tmp_path / "ours")
    assert checkpoint.load(tmp_path / "ours").predict(batch) == retriever.predict(batch)
    with torch.enable_grad():
        aligned, outputs = retriever.train()(batch)
        sum(retriever.losses(aligned, outputs, batch).values()).backward()
    assert all(p.grad is not None for p in retriever.aligner.layers.parameters())


@pytest.mark.parametrize("paper", ["moment_detr", "qd_detr", "cg_detr"])
@torch.no_grad()
def test_checkpoints_of_lighthouse_are_read(paper, tmp_path):
    """The same networks; the options are named alike, and those that Lighthouse fixes are missing."""
    is_cg = paper == "cg_detr"
    network = Official(make_opt(num_prompts=2)) if is_cg else official_detr.Official(official_detr.make_opt(), paper)
    network, path = saved(tmp_path, network.eval())
    batch, targets, queries = batch_and_rows()
    opt = vars(network.opt).copy()
    for name in ("use_txt_pos", "pre_norm", "contrastive_align_loss", "contrastive_hdim", "temperature", "a_feat_dim"):
        del opt[name]
    opt |= {"model_name": paper, "dset_name": "qvhighlight", "clip_length": 2, "a_feat_dirs": None}
    torch.save({"model": network.state_dict(), "optimizer": {}, "epoch": 3, "opt": argparse.Namespace(**opt)}, path)
    assert_outputs_equal(outputs_of(load_official(path, paper), batch), network(targets, queries), batch.target_mask)
    opt |= {"a_feat_dim": 2048, "ctx_mode": "video_audio_tef"}
    torch.save({"model": network.state_dict(), "opt": opt}, path)
    with pytest.raises(ValueError, match="a_feat_dim of opt must be None: sound is not read, not 2048"):
        load_official(path, paper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nheads": 4}, "nheads of opt must be 8, as its dummy encoder has, not 4"),
        ({"use_txt_pos": True}, "use_txt_pos of opt must be False"),
        ({"pre_norm": True}, "pre_norm of opt must be False"),
        ({"num_prompts": 5}, "best_prompts must be from 1 to prompts, not 5"),
        ({"num_dummies": 10**6}, "num_dummies of opt must be 1 or more, and at most 48"),
        ({"t2v_layers": 10**6}, "t2v_layers of opt must be 1 or more, and at most 64"),
        ({"dummy_layers": "2"}, "dummy_layers of opt must be of type int, not '2'"),
    ],
)
def test_an_option_that_is_not_supported_is_refused(changes, message, tmp_path):
    network, path = saved(tmp_path)
    network.opt = make_opt(**changes)
    with pytest.raises(ValueError, match=f"model.ckpt does not describe .*: {message}"):
        load_official(save(network, path), "cg_detr")


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    network, path = saved(tmp_path)
    model = network.state_dict()
    for name, tensor in (
        ("token_type_embeddings.weight", torch.ones(3)),
        ("global_rep_pos", torch.ones(2, 16)),
        ("dummy_rep_token", torch.ones(2, 16)),
        ("txtproj_encoder.layers.1.linear1.weight", torch.ones(())),
    ):
        with pytest.raises(ValueError, match=f"does not fit .*{name.removesuffix('.weight')}"):
            load_official(save(network, path, model=model | {name: tensor}), "cg_detr")


def test_the_number_of_parameters_is_that_of_the_released_network():
    """[CG-DETR] Without those that only training reads: encoders of moments and sentences, and learned positions."""
    opt = make_opt(hidden_dim=256, dim_feedforward=1024, num_queries=10, dec_layers=3, num_dummies=45, total_prompts=10)
    opt.v_feat_dim, opt.t_feat_dim, opt.max_q_l = 2818, 512, 32
    release = papers.RELEASES["cg_detr"]
    with torch.device("meta"):
        released = Official(opt)
    read = [p for name, p in released.named_parameters() if not name.startswith(release.unread)]
    settings = {"aligner": "cg_detr", "projected": False, "decoder_layers": 3}
    with torch.device("meta"):
        ours = papers.build(papers.get("qd_detr", **settings), papers.models.Widths(2816, 512, 512))
    assert count(ours) == sum(p.numel() for p in read) and count(released) > count(ours)
