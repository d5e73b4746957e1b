"""Official checkpoints of Moment-DETR, QD-DETR and TD-DETR, against a second implementation of the networks."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from mrlib import checkpoint, papers
from mrlib.checkpoint import load_official
from mrlib.data import Widths
from tests.reference.official_detr import Official, losses, make_opt, matching
from tests.reference.official_univtg import save
from tests.support.batches import batch_and_rows
from tests.support.modules import count

BATCHES = {"words": {}, "a query longer than its target": {"lengths": [3, 5, 2], "words": 11}, "one word": {"words": 1}}
OPTIONS = {
    "as released": {},
    "wide": {"hidden_dim": 24, "dim_feedforward": 40, "nheads": 6},
    "deep": {"enc_layers": 3, "dec_layers": 3},
    "one layer, one head, one query": {"enc_layers": 1, "dec_layers": 1, "nheads": 1, "num_queries": 1},
    "one projection": {"n_input_proj": 1},
    "three projections": {"n_input_proj": 3},
    "no endpoints": {"ctx_mode": "video", "v_feat_dim": 7},
    "learned positions": {"use_txt_pos": True},
    "contrastive heads that no prediction reads": {"contrastive_align_loss": True},
}
PAPERS = ["moment_detr", "qd_detr", "td_detr"]
NETWORKS = {f"{paper}: {name}": (paper, o) for paper in PAPERS for name, o in OPTIONS.items()}
NETWORKS |= {
    "moment_detr: pre-norm": ("moment_detr", {"pre_norm": True}),
    "moment_detr: pre-norm, learned positions": ("moment_detr", {"pre_norm": True, "use_txt_pos": True}),
    "td_detr: clips only": ("td_detr", {"beta": 1.0}),
    "td_detr: changes only": ("td_detr", {"beta": 0}),
}


def saved(tmp_path, paper, **options):
    """A network with random parameters, and the file of its checkpoint."""
    torch.manual_seed(0)
    network = Official(make_opt(**options), paper).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            scale = 0.3 if p.ndim == 1 else 1.5 / p[0].numel() ** 0.5
            p.copy_(("norm" in name.lower() and name.endswith("weight")) + scale * torch.randn_like(p))
    return network, save(network, tmp_path / "model.ckpt")


def outputs_of(retriever, batch):
    aligned, outputs = retriever(batch)
    return {"logits": outputs["logits"], "spans": outputs["spans_cw"], "saliency": aligned.saliency}


def assert_outputs_equal(outputs, expected, mask, rows=slice(None)):
    for name in ("logits", "spans"):
        torch.testing.assert_close(outputs[name][:, rows], expected[name], atol=1e-5, rtol=1e-5)
    saliency = expected["saliency"][expected["mask"]]
    torch.testing.assert_close(outputs["saliency"][rows][mask], saliency, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, tmp_path):
    """[Moment-DETR], [QD-DETR], [TD-DETR Eq. 6] As released, of a padded batch; corrected, of each sample alone."""
    paper, options = NETWORKS[name]
    network, path = saved(tmp_path, paper, **options)
    released, corrected = load_official(path, paper), load_official(path, paper, corrected=True)
    assert not released.training
    for sizes in BATCHES.values():
        batch, targets, queries = batch_and_rows(**sizes)
        assert_outputs_equal(outputs_of(released, batch), network(targets, queries), batch.target_mask)
        outputs = outputs_of(corrected, batch)
        for b, (target, query) in enumerate(zip(targets, queries, strict=True)):
            row = slice(b, b + 1)
            assert_outputs_equal(outputs, network([target], [query]), batch.target_mask[row], row)


@torch.no_grad()
def test_beta_is_the_papers_if_the_options_have_none(tmp_path):
    """[TD-DETR Eq. 6]"""
    network, path = saved(tmp_path, "td_detr")
    batch, _, _ = batch_and_rows()
    with_beta = outputs_of(load_official(path, "td_detr"), batch)
    delattr(network.opt, "beta")
    without_beta = outputs_of(load_official(save(network, path), "td_detr"), batch)
    assert all(torch.equal(without_beta[name], x) for name, x in with_beta.items())


@torch.no_grad()
def test_the_released_and_the_corrected_masks_give_different_spans(tmp_path):
    """[QD-DETR] The released masks mix samples; Moment-DETR has no such masks."""
    for paper, differs in (("qd_detr", True), ("td_detr", True), ("moment_detr", False)):
        _, path = saved(tmp_path, paper)
        batch, _, _ = batch_and_rows()
        pair = [outputs_of(load_official(path, paper, corrected=c), batch)["spans"] for c in (False, True)]
        assert ((pair[0] - pair[1]).abs().amax((0, 2, 3)) > 1e-5).any().item() == differs


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("contrastive", [False, True])
def test_losses_are_those_of_the_official_network(paper, layer, contrastive, tmp_path):
    """[Moment-DETR], [QD-DETR] The reference matches by exhaustive search and sums in loops."""
    network, path = saved(tmp_path, paper, contrastive_align_loss=contrastive)
    clips = [[(2, 6), (7, 9)], [(0, 3)], [(0, 2), (3, 4), (7, 12)]]
    batch, targets, queries = batch_and_rows([9, 4, 12], windows=clips)
    g = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 12, (3, 12), generator=g).float() * batch.target_mask
    pairs = torch.tensor([[[3, 2], [4, 0]], [[1, 0], [2, 3]], [[11, 0], [3, 5]]])
    batch = replace(batch, labels=replace(batch.labels, saliency=scores, pairs=pairs))
    windows = [[(s / n, e / n) for s, e in sample] for sample, n in zip(clips, [9, 4, 12], strict=True)]
    retriever = load_official(path, paper)
    with torch.no_grad():
        out = network(targets, queries)
        aligned, outputs = retriever(batch)
        terms = {name: x[layer] for name, x in retriever.detector.layer_losses(outputs, batch).items()}
        terms |= retriever.aligner.losses(aligned, batch)
        matched = retriever.detector.match(outputs, retriever.detector.truth(batch))[layer]
    for b, sample in enumerate(windows):
        moment_queries = matching(out["logits"][layer, b], out["spans"][layer, b], sample, paper)
        assert matched[b].tolist() == [*moment_queries, *[-1] * (3 - len(sample))]
    expected = losses(out, windows, pairs, scores, layer, paper)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_network_with_contrastive_alignment_trains_on(tmp_path):
    """[Moment-DETR] Its projections, its temperature and the weight of its loss are those of the file."""
    options = {"contrastive_align_loss": True, "temperature": 0.5, "contrastive_align_loss_coef": 0.3}
    network, path = saved(tmp_path, "moment_detr", **options)
    for corrected, hides_padding in ((False, False), (True, True)):
        retriever = load_official(path, "moment_detr", corrected)
        contrast = retriever.detector.contrast
        assert (contrast.temperature, contrast.hides_padding) == (0.5, hides_padding)
        assert torch.equal(contrast.queries.weight, network.contrastive_align_projection_query.weight)
        assert torch.equal(contrast.words.bias, network.contrastive_align_projection_txt.bias)
        paper = papers.get(**retriever.recipe["paper"])
        assert paper.stages[0].weights == {"l1": 10.0, "giou": 1.0, "class": 4.0, "contrastive_align": 0.3}
        checkpoint.save(retriever, tmp_path / "ours")
        again = checkpoint.load(tmp_path / "ours").detector.contrast
        assert torch.equal(again.queries.weight, contrast.queries.weight) and again.temperature == 0.5
        batch, _, _ = batch_and_rows([9, 4, 12], windows=[[(2, 6)], [(0, 3)], [(7, 12)]])
        aligned, outputs = retriever.train()(batch)
        retriever.losses(aligned, outputs, batch)["contrastive_align"].backward()
        assert all(p.grad.abs().sum() > 0 for p in contrast.parameters())


def test_a_network_without_contrastive_alignment_has_none(tmp_path):
    _, path = saved(tmp_path, "moment_detr")
    assert load_official(path, "moment_detr").detector.contrast is None
    for paper in ("qd_detr", "td_detr"):  # whose loss is a constant, since it reads no word
        _, path = saved(tmp_path, paper, contrastive_align_loss=True)
        assert load_official(path, paper).detector.contrast is None


@pytest.mark.parametrize("name", ["moment_detr: learned positions", "qd_detr: as released", "td_detr: deep"])
@torch.no_grad()
def test_a_loaded_model_can_be_saved_and_loaded_again(name, tmp_path):
    paper, options = NETWORKS[name]
    _, path = saved(tmp_path, paper, **options)
    batch, _, _ = batch_and_rows()
    for corrected in (False, True):
        retriever = load_official(path, paper, corrected)
        checkpoint.save(retriever, tmp_path / "ours")
        assert checkpoint.load(tmp_path / "ours").predict(batch) == retriever.predict(batch)


@pytest.mark.parametrize("paper", PAPERS)
def test_an_option_that_is_missing_or_does_not_agree_with_the_tensors_is_refused(paper, tmp_path):
    network, path = saved(tmp_path, paper)
    sizes = ("hidden_dim", "dim_feedforward", "enc_layers", "dec_layers", "nheads", "n_input_proj", "num_queries")
    for name in (*sizes, "v_feat_dim", "t_feat_dim"):
        network.opt = make_opt(**{name: {"hidden_dim": 32, "nheads": 3}.get(name, getattr(make_opt(), name) + 1)})
        with pytest.raises(ValueError, match=r"model.ckpt does not (fit|describe)"):
            load_official(save(network, path), paper)
    flags = ("ctx_mode", "use_txt_pos", "pre_norm", "input_dropout", "dropout", "span_loss_type", "position_embedding")
    for name in (*sizes, "v_feat_dim", "t_feat_dim", *flags):
        network.opt = make_opt()
        delattr(network.opt, name)
        with pytest.raises(ValueError, match=f"model.ckpt does not describe .*: opt has no {name}; give a checkpoint"):
            load_official(save(network, path), paper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"span_loss_type": "ce"}, "span_loss_type of opt must be l1, not 'ce'"),
        ({"position_embedding": "learned"}, "position_embedding of opt must be sine or v2, not 'learned'"),
        ({"a_feat_dim": 50}, "a_feat_dim of opt must be None: sound is not read, not 50"),
        ({"pre_norm": True}, "pre_norm of opt must be False"),
        ({"num_queries": 0}, "num_queries of opt must be 1 or more"),
        ({"beta": "0.7"}, "beta of opt must be of type float, not '0.7'"),
        ({"beta": 1.5}, "beta must be None or a number from 0 to 1, not 1.5"),
    ],
)
def test_an_option_that_is_not_supported_is_refused(changes, message, tmp_path):
    paper = "td_detr" if "beta" in changes else "qd_detr"
    network, path = saved(tmp_path, paper)
    network.opt = make_opt(**changes)
    with pytest.raises(ValueError, match=f"model.ckpt does not describe .*: {message}"):
        load_official(save(network, path), paper)


def test_a_checkpoint_of_another_paper_is_refused(tmp_path):
    for paper, other in permutations(PAPERS, 2):
        _, path = saved(tmp_path, paper)
        with pytest.raises(
            ValueError, match=f"holds a network of {paper}, not of {other}; load it with paper='{paper}'$"
        ):
            load_official(path, other)


def test_numbers_of_parameters_are_those_of_the_released_networks():
    """[Moment-DETR], [QD-DETR], [TD-DETR Eq. 4] For SlowFast and CLIP; ours lack the unread positions of 32 words."""
    unread = 32 * 256 + 2 * 256
    opt = make_opt(hidden_dim=256, dim_feedforward=1024, nheads=8, num_queries=10, max_q_l=32)
    opt.v_feat_dim, opt.t_feat_dim = 2818, 512
    networks = (("moment_detr", 2, 92, 4_823_305), ("qd_detr", 2, 178, 7_585_573), ("td_detr", 4, 349, 14_961_195))
    for paper, layers, tensors, parameters in networks:
        opt.enc_layers = opt.dec_layers = layers
        with torch.device("meta"):
            released = Official(opt, paper)
            ours = papers.build(papers.get(paper), Widths(2816, 512, 512))
        assert (len(released.state_dict()), count(released)) == (tensors, parameters)
        assert count(ours) + unread == parameters
    with torch.device("meta"):
        deep = papers.build(papers.get("qd_detr", layers=4, decoder_layers=4), Widths(2816, 512, 512))
        static = papers.build(papers.get("td_detr", beta=None), Widths(2816, 512, 512))
        narrow = papers.build(papers.get("qd_detr"), Widths(512, 512, 512))
    assert [count(network) + unread for network in (deep, static, narrow)] == [13_377_835, 13_377_835, 6_991_141]
