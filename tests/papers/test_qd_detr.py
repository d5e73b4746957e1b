"""The released networks themselves: what they gave for a batch, with losses, matching and gradients."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlib.checkpoint import load_official
from mrlib.data import Batch, Labels, Sample
from mrlib.official import RELEASES, _renamed

FOLDER = Path(os.environ.get("MRLIB_DATA", "")) / "official_fixtures" / "qd_detr"
pytestmark = pytest.mark.skipif(
    not ("MRLIB_DATA" in os.environ and FOLDER.is_dir()),
    reason="set MRLIB_DATA to a folder with official_fixtures/qd_detr",
)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("qd_detr") / "model.ckpt"
    path.write_bytes(gzip.decompress((FOLDER / "model.ckpt.gz").read_bytes()))
    return path


def arrays(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.fixture(scope="module")
def batch():
    """The fixture's inputs; the last two of its video features are the ends of each clip, which models append."""
    x, y = arrays("inputs"), arrays("targets")
    mask, words = x["src_vid_mask"].bool(), x["src_txt_mask"].bool()
    B, n = len(mask), mask.sum(1)
    given = [y[f"span_labels.{b}"] for b in range(B)]
    spans, there = torch.zeros(B, 3, 2), torch.zeros(B, 3, dtype=torch.bool)
    for b, windows in enumerate(given):
        centre, half = windows[:, 0], windows[:, 1] / 2
        spans[b, : len(windows)] = torch.stack([centre - half, centre + half], -1)
        there[b, : len(windows)] = True
    scores = y["saliency_all_labels"]
    pairs = torch.stack([y["saliency_pos_labels"], y["saliency_neg_labels"]], -1)
    every = torch.ones(B, dtype=torch.bool)
    return Batch(
        target=x["src_vid"][..., :-2] * mask[..., None],
        target_mask=mask,
        query=x["src_txt"],
        query_mask=words,
        target_joint=None,
        query_joint=None,
        video=torch.arange(B),
        duration_s=n * 2.0,
        clip_s=torch.full((B,), 2.0),
        labels=Labels(spans, there, scores > 0, scores, every, pairs=pairs),
        samples=[Sample(b, "", 2.0 * int(n[b]), str(b)) for b in range(B)],
    )


def alone(batch, b):
    """One sample, without padding."""
    n, words = int(batch.lengths[b]), int(batch.query_mask[b].sum())
    row, clips = slice(b, b + 1), batch.unlabelled()[b : b + 1]
    return Batch(
        **vars(clips)
        | {"target": batch.target[row, :n], "target_mask": batch.target_mask[row, :n]}
        | {"query": batch.query[row, :words], "query_mask": batch.query_mask[row, :words]}
    )


def check(aligned, outputs, expected, prefix="", row=slice(None), clips=None):
    for ours, theirs in (("logits", "pred_logits"), ("spans_cw", "pred_spans")):
        for layer, name in ((-1, theirs), (0, f"aux_outputs.0.{theirs}")):
            if prefix + name in expected:
                torch.testing.assert_close(outputs[ours][layer][row], expected[prefix + name], **CLOSE)
    saliency, theirs = aligned.saliency[row], expected[f"{prefix}saliency_scores"]
    mask = aligned.mask[row]
    torch.testing.assert_close(saliency[mask], theirs[mask[:, : theirs.shape[1]]], **CLOSE)


@torch.no_grad()
def test_a_batch_gives_what_the_released_network_gave(checkpoint, batch):
    """[QD-DETR] Spans, logits and saliency, of the first decoder layer too."""
    check(*load_official(checkpoint, "qd_detr")(batch), arrays("outputs"))


@torch.no_grad()
def test_corrected_a_batch_gives_what_the_released_network_gave_each_sample_alone(checkpoint, batch):
    """[QD-DETR] The released masks mix samples; without padding there is nothing to mix."""
    expected, corrected = arrays("outputs"), load_official(checkpoint, "qd_detr", corrected=True)
    released = load_official(checkpoint, "qd_detr")
    aligned, outputs = corrected(batch)
    for b in range(len(batch)):
        n = int(batch.lengths[b])
        row = slice(b, b + 1)
        theirs = {k: v for k, v in expected.items() if k.startswith(f"alone{b}.")}
        together = torch.zeros(1, batch.target.shape[1])
        together[:, :n] = theirs[f"alone{b}.saliency_scores"]
        check(aligned, outputs, theirs | {f"alone{b}.saliency_scores": together}, f"alone{b}.", row)
        check(*corrected(alone(batch, b)), theirs, f"alone{b}.")
        check(*released(alone(batch, b)), theirs, f"alone{b}.")


def test_losses_matching_and_gradients_are_those_of_the_released_network(checkpoint, batch):
    """[QD-DETR] Every term, of both decoder layers, and the norm of every parameter's gradient."""
    retriever = load_official(checkpoint, "qd_detr")
    told = json.loads((FOLDER / "losses.json").read_text())
    theirs, weights = told["criterion"], told["weight_dict"]
    aligned, outputs = retriever(batch)
    detector = retriever.detector
    matched = detector.match(outputs, detector.truth(batch))
    for layer, name in ((1, "last"), (0, "aux_0")):
        for b, (queries, windows) in enumerate(told["matching_pred_then_target"][name]):
            expected = [-1] * matched.shape[2]
            for query, window in zip(queries, windows, strict=True):
                expected[window] = query
            assert matched[layer, b].tolist() == expected
    terms = detector.layer_losses(outputs, batch)
    for ours, name in (("l1", "loss_span"), ("giou", "loss_giou"), ("class", "loss_label")):
        torch.testing.assert_close(terms[ours], torch.tensor([theirs[f"{name}_0"], theirs[name]]), **CLOSE)
    saliency = retriever.aligner.losses(aligned, batch)
    torch.testing.assert_close(sum(saliency.values()).item(), theirs["loss_saliency"], **CLOSE)
    sums = retriever.losses(aligned, outputs, batch)
    ours = {"l1": weights["loss_span"], "giou": weights["loss_giou"], "class": weights["loss_label"]}
    total = sum(ours.get(name, weights["loss_saliency"]) * term for name, term in sums.items())
    torch.testing.assert_close(total.item(), told["total"], **CLOSE)
    total.backward()
    names = {_renamed(n, RELEASES["qd_detr"].names): p for n, p in retriever.named_parameters()}
    # None: the positions of words, which nothing reads
    read = {name: norm for name, norm in told["grad_norm"].items() if norm is not None}
    assert read.keys() == names.keys() and len(told["grad_norm"]) == len(read) + 3
    for name, norm in read.items():
        ours = names[name].grad.norm().item()
        torch.testing.assert_close(ours, norm, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@torch.no_grad()
def test_saliency_for_the_foreign_query_is_the_released_networks(checkpoint, batch):
    """[QD-DETR] Every video is asked the next one's question."""
    retriever = load_official(checkpoint, "qd_detr")
    aligned, _ = retriever(batch)
    rows = torch.tensor([1, 2, 0])
    _, foreign = retriever.aligner.fuse(
        aligned.cache["target"], aligned.mask, aligned.query[rows], aligned.query_mask[rows]
    )
    expected = arrays("outputs")["saliency_scores_neg"]
    torch.testing.assert_close(foreign[aligned.mask], expected[aligned.mask], **CLOSE)


def test_the_checkpoint_is_read_whole(checkpoint):
    """[QD-DETR] The released network has positions of 32 words too, which nothing reads."""
    meta = json.loads((FOLDER / "meta.json").read_text())
    parameters = sum(p.numel() for p in load_official(checkpoint, "qd_detr").parameters())
    assert parameters + 32 * 256 + 2 * 256 == meta["parameters"]
