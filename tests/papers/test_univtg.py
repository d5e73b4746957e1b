"""Official checkpoints of UniVTG and of MATR, which extends it, against a second implementation of the network."""

import argparse
from dataclasses import replace

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.checkpoint import load_official
from mrlib.data import Widths
from tests.reference.official_univtg import Official, losses, make_opt, random_network, save, saved
from tests.support.batches import LENGTHS, batch_and_rows
from tests.support.modules import count, outputs_of

BATCHES = {
    "words": {},
    "a query longer than its target": {"lengths": [3, 5, 2], "words": 11},
    "one query clip": {"words": 1},
}
OPTIONS = {
    "as released": {},
    "wide": {"hidden_dim": 24, "dim_feedforward": 40, "nheads": 6},
    "deep": {"enc_layers": 4},
    "one layer, one head": {"enc_layers": 1, "nheads": 1},
    "one projection": {"n_input_proj": 1},
    "three projections": {"n_input_proj": 3},
    "no endpoints": {"ctx_mode": "video", "v_feat_dim": 7},
    "learned positions": {"use_txt_pos": True},
    "pre-norm": {"pre_norm": True},
    "clips of a second": {"clip_length": 1.0},
}
# name -> (paper, options of the checkpoint, options of the reference network)
NETWORKS = {
    f"{paper}: {name}": (paper, options, {}) for paper in ("univtg", "matr") for name, options in OPTIONS.items()
}
NETWORKS |= {
    "matr: ten moment queries that nothing reads": ("matr", {}, {"moment_queries": 10}),
    "matr: wide heads": ("matr", {}, {"wide_heads": True}),
    "matr: wide heads, ten moment queries": ("matr", {"dec_layers": 3}, {"wide_heads": True, "moment_queries": 10}),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, tmp_path):
    """As released, of a padded batch; corrected, of each sample alone."""
    paper, options, parts = NETWORKS[name]
    network, path = saved(tmp_path, paper, parts=parts, **options)
    released, corrected = load_official(path, paper), load_official(path, paper, corrected=True)
    assert not released.training
    for sizes in BATCHES.values():
        batch, targets, queries = batch_and_rows(**sizes)
        together, mask = network(targets, queries), batch.target_mask
        for key, value in outputs_of(released, batch).items():
            torch.testing.assert_close(value[mask], together[key][mask], atol=1e-5, rtol=1e-5)
        ours = outputs_of(corrected, batch)
        for b, (target, query) in enumerate(zip(targets, queries, strict=True)):
            alone = network([target], [query])
            for key, value in ours.items():
                torch.testing.assert_close(value[b, : len(target)], alone[key][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_is_seen_as_released_and_hidden_when_corrected(tmp_path):
    """The two ways of loading differ, and only for samples that have padding."""
    for paper in ("univtg", "matr"):
        _, path = saved(tmp_path, paper)
        batch, _, _ = batch_and_rows()
        pair = [outputs_of(load_official(path, paper, corrected=c), batch)["spans"] for c in (False, True)]
        longest = max(LENGTHS)
        for b, n in enumerate(LENGTHS):
            difference = (pair[0][b, :n] - pair[1][b, :n]).abs().max()
            assert difference == 0 if n == longest else difference > 1e-3


@pytest.mark.parametrize(
    "name", ["univtg: as released", "univtg: learned positions", "matr: wide heads, ten moment queries"]
)
@torch.no_grad()
def test_a_loaded_model_can_be_saved_and_loaded_again(name, tmp_path):
    paper, options, parts = NETWORKS[name]
    _, path = saved(tmp_path, paper, parts=parts, **options)
    batch, _, _ = batch_and_rows()
    for corrected in (False, True):
        retriever = load_official(path, paper, corrected)
        checkpoint.save(retriever, tmp_path / "ours")
        loaded = checkpoint.load(tmp_path / "ours")
        assert loaded.recipe == retriever.recipe
        for key, value in outputs_of(retriever, batch).items():
            assert torch.equal(outputs_of(loaded, batch)[key], value)
        assert loaded.predict(batch) == retriever.predict(batch)


def test_a_loaded_model_can_be_trained_further(tmp_path):
    _, path = saved(tmp_path, "univtg")
    retriever, (batch, _, _) = load_official(path, "univtg").train(), batch_and_rows()
    aligned, outputs = retriever(batch)
    sum(retriever.losses(aligned, outputs, batch).values()).backward()
    assert all(p.requires_grad and p.grad is not None for p in retriever.parameters())


def test_losses_of_univtg_are_those_of_the_official_network(tmp_path):
    """Each sample has one relevant clip, so that no clip is drawn at random; other clips score at most as much."""
    network, path = saved(tmp_path, "univtg")
    batch, targets, queries = batch_and_rows([9, 4, 12], windows=[[(2, 6)], [(0, 3)], [(7, 12)]])
    chosen, T = [4, 0, 11], 12
    scores = torch.randint(0, 12, (3, T), generator=torch.Generator().manual_seed(3)).float() * batch.target_mask
    relevant = torch.zeros(3, T, dtype=torch.bool)
    relevant[[0, 1, 2], chosen] = True
    scores[[0, 1, 2], chosen] = torch.tensor([6.0, 9.0, 4.0])
    batch = replace(batch, labels=replace(batch.labels, relevant=relevant, saliency=scores))
    retriever = load_official(path, "univtg")
    with torch.no_grad():
        ours = retriever.losses(*retriever(batch), batch)
        expected = losses(network(targets, queries), [(2 / 9, 6 / 9), (0.0, 3 / 4), (7 / 12, 1.0)], scores, chosen)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "name", ["hidden_dim", "dim_feedforward", "enc_layers", "nheads", "n_input_proj", "v_feat_dim"]
)
def test_an_option_that_does_not_agree_with_the_tensors_is_refused(name, tmp_path):
    for paper in ("univtg", "matr"):
        network, path = saved(tmp_path, paper)
        setattr(network.opt, name, {"hidden_dim": 32, "nheads": 3}.get(name, getattr(network.opt, name) + 1))
        save(network, path)
        with pytest.raises(ValueError, match=r"model.ckpt does not (fit|describe)"):
            load_official(path, paper)


NEEDED = [
    "hidden_dim",
    "dim_feedforward",
    "enc_layers",
    "nheads",
    "n_input_proj",
    "v_feat_dim",
    "t_feat_dim",
    "ctx_mode",
]
NEEDED += ["use_txt_pos", "pre_norm", "input_dropout", "dropout", "span_loss_type", "position_embedding", "clip_length"]


@pytest.mark.parametrize("paper", ["univtg", "matr"])
def test_an_option_that_is_missing_is_named(paper, tmp_path):
    network, path = saved(tmp_path, paper)
    options = vars(network.opt)
    for name in NEEDED:
        network.opt = argparse.Namespace(**{k: v for k, v in options.items() if k != name})
        with pytest.raises(ValueError, match=f"model.ckpt does not describe .*: opt has no {name}; give a checkpoint"):
            load_official(save(network, path), paper)
    network.opt = argparse.Namespace(**{k: options[k] for k in NEEDED})
    assert load_official(save(network, path), paper)


def test_options_of_optional_parts_are_needed_if_the_network_has_the_part(tmp_path):
    for paper, name, options, parts in (
        ("univtg", "max_q_l", {"use_txt_pos": True}, {}),
        ("matr", "dec_layers", {}, {"wide_heads": True}),
        ("matr", "num_queries", {}, {"wide_heads": True, "moment_queries": 10}),
    ):
        network, path = saved(tmp_path, paper, parts=parts, **options)
        delattr(network.opt, name)
        with pytest.raises(ValueError, match=f"opt has no {name}; give a checkpoint"):
            load_official(save(network, path), paper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"span_loss_type": "ce"}, "span_loss_type of opt must be l1, not 'ce'"),
        ({"position_embedding": "learned"}, "position_embedding of opt must be sine or v2, not 'learned'"),
        ({"ctx_mode": "tef", "v_feat_dim": 2}, "ctx_mode of opt must be with video"),
        ({"clip_length": 5}, "clip_length of opt must be 1 or 2 seconds, not 5"),
        ({"hidden_dim": "16"}, "hidden_dim of opt must be of type int, not '16'"),
        ({"nheads": 5}, "5 heads cannot share a width of 16"),
        ({"n_input_proj": 0}, "n_input_proj of opt must be 1 or more, and at most 64, not 0"),
        ({"v_feat_dim": 2}, "v_feat_dim of opt must be the width of the video's features, not 2"),
    ],
)
def test_an_option_that_is_not_supported_is_refused(changes, message, tmp_path):
    network, path = saved(tmp_path)
    network.opt = make_opt(**changes)
    with pytest.raises(ValueError, match=f"model.ckpt does not describe .*: {message}"):
        load_official(save(network, path), "univtg")


def test_wide_heads_over_a_pre_norm_decoder_are_refused(tmp_path):
    _, path = saved(tmp_path, "matr", parts={"wide_heads": True}, pre_norm=True)
    with pytest.raises(ValueError, match="pre_norm of opt must be False where heads read the decoder"):
        load_official(path, "matr")


def test_unread_tensors_are_optional_and_unknown_tensors_are_refused(tmp_path):
    """Unread modules are known by name; in a module that is read, every tensor is checked."""
    network, path = saved(tmp_path, "matr")
    unread = ("transformer.decoder", "query_embed", "transformer.vid_proj", "span_embed.", "class_embed.")
    unread += ("txt_position_embed", "weightedpool")
    model = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(unread)}
    assert len(model) < len(network.state_dict())
    assert load_official(save(network, path, model=model), "matr")
    wide = random_network(make_opt(), "matr", wide_heads=True)
    model = wide.state_dict() | {"transformer.decoder.layers.2.norm1.weight": torch.ones(16)}
    with pytest.raises(ValueError, match=r"1 unexpected: transformer.decoder.layers.2.norm1.weight$"):
        load_official(save(wide, path, model=model), "matr")
    _, path = saved(tmp_path, "univtg", pre_norm=True)
    with pytest.raises(ValueError, match="holds a network of univtg, not of matr; load it with paper='univtg'"):
        load_official(path, "matr")


def test_numbers_of_parameters_are_those_of_the_paper_and_of_the_released_code():
    """At the paper's widths; ours has the part of the released network that its predictions depend on."""
    wide = {"hidden_dim": 1024, "dim_feedforward": 1024, "enc_layers": 4, "dec_layers": 4, "nheads": 8}
    opt = make_opt(**wide, v_feat_dim=514, t_feat_dim=512, max_q_l=75)
    with torch.device("meta"):
        released = Official(opt, "matr")
        assert (len(released.state_dict()), count(released)) == (166, 85_168_149)
        for settings, parameters in (
            ({}, 82_981_891),
            ({"fusion": "channel"}, 89_273_347),
            ({"preset": "official_code"}, 40_963_079),
        ):
            assert count(papers.build(papers.get("matr", **settings), Widths(512, 512, 512))) == parameters
