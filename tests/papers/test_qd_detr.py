"""QD-DETR against recorded outputs, losses and gradients of the released network; training on highlights alone."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlib import papers
from mrlib.checkpoint import load_official
from mrlib.data import Batch, Labels, Sample, open_dataset
from mrlib.train import fit, headline, main, predict_all, scores_of
from tests.support.batches import alone
from tests.support.files import labelled, tvsum

FOLDER = Path(os.environ.get("MRLIB_DATA", "")) / "official_fixtures" / "qd_detr"
released = pytest.mark.skipif(
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
    """The recorded inputs; the last two video features are the ends of each clip, which our models append."""
    x, y = arrays("inputs"), arrays("targets")
    mask, words = x["src_vid_mask"].bool(), x["src_txt_mask"].bool()
    B, n = len(mask), mask.sum(1)
    spans, span_mask = torch.zeros(B, 3, 2), torch.zeros(B, 3, dtype=torch.bool)
    for b in range(B):
        windows = y[f"span_labels.{b}"]
        centre, half = windows[:, 0], windows[:, 1] / 2
        spans[b, : len(windows)] = torch.stack([centre - half, centre + half], -1)
        span_mask[b, : len(windows)] = True
    scores = y["saliency_all_labels"]
    pairs = torch.stack([y["saliency_pos_labels"], y["saliency_neg_labels"]], -1)
    scored = torch.ones(B, dtype=torch.bool)
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
        labels=Labels(spans, span_mask, scores > 0, scores, scored, pairs=pairs),
        samples=[Sample(b, "", 2.0 * int(n[b]), str(b)) for b in range(B)],
    )


def assert_recorded(aligned, outputs, expected, prefix="", row=slice(None)):
    """The outputs of some rows equal the recorded ones; prefix: of the names of a sample alone."""
    for name, official_name in (("logits", "pred_logits"), ("spans_cw", "pred_spans")):
        for layer, key in ((-1, prefix + official_name), (0, f"{prefix}aux_outputs.0.{official_name}")):
            if key in expected:
                torch.testing.assert_close(outputs[name][layer][row], expected[key], **CLOSE)
    saliency, mask = expected[f"{prefix}saliency_scores"], aligned.mask[row]
    torch.testing.assert_close(aligned.saliency[row][mask], saliency[mask[:, : saliency.shape[1]]], **CLOSE)


@released
@torch.no_grad()
def test_a_batch_gives_what_the_released_network_gave(checkpoint, batch):
    """[QD-DETR] Spans and logits of both decoder layers, and saliency."""
    assert_recorded(*load_official(checkpoint, "qd_detr")(batch), arrays("outputs"))


@released
@torch.no_grad()
def test_corrected_a_batch_gives_what_the_released_network_gave_each_sample_alone(checkpoint, batch):
    """[QD-DETR] The released masks mix samples of a padded batch; of a sample alone they do nothing."""
    expected, corrected = arrays("outputs"), load_official(checkpoint, "qd_detr", corrected=True)
    released = load_official(checkpoint, "qd_detr")
    aligned, outputs = corrected(batch)
    for b in range(len(batch)):
        n = int(batch.lengths[b])
        row = slice(b, b + 1)
        prefix = f"alone{b}."
        recorded = {k: v for k, v in expected.items() if k.startswith(prefix)}
        padded = torch.zeros(1, batch.target.shape[1])
        padded[:, :n] = recorded[f"{prefix}saliency_scores"]
        assert_recorded(aligned, outputs, recorded | {f"{prefix}saliency_scores": padded}, prefix, row)
        assert_recorded(*corrected(alone(batch, b)), recorded, prefix)
        assert_recorded(*released(alone(batch, b)), recorded, prefix)


@released
def test_losses_matching_and_gradients_are_those_of_the_released_network(checkpoint, batch):
    """[QD-DETR] Every term, of both decoder layers, and the norm of every parameter's gradient."""
    retriever = load_official(checkpoint, "qd_detr")
    record = json.loads((FOLDER / "losses.json").read_text())
    losses, weights = record["criterion"], record["weight_dict"]
    aligned, outputs = retriever(batch)
    detector = retriever.detector
    matched = detector.match(outputs, detector.truth(batch))
    for layer, name in ((1, "last"), (0, "aux_0")):
        for b, (queries, windows) in enumerate(record["matching_pred_then_target"][name]):
            expected = [-1] * matched.shape[2]
            for query, window in zip(queries, windows, strict=True):
                expected[window] = query
            assert matched[layer, b].tolist() == expected
    terms = detector.layer_losses(outputs, batch)
    for name, official_name in (("l1", "loss_span"), ("giou", "loss_giou"), ("class", "loss_label")):
        expected = torch.tensor([losses[f"{official_name}_0"], losses[official_name]])
        torch.testing.assert_close(terms[name], expected, **CLOSE)
    saliency = retriever.aligner.losses(aligned, batch)
    torch.testing.assert_close(sum(saliency.values()).item(), losses["loss_saliency"], **CLOSE)
    sums = retriever.losses(aligned, outputs, batch)
    weight = {"l1": weights["loss_span"], "giou": weights["loss_giou"], "class": weights["loss_label"]}
    total = sum(weight.get(name, weights["loss_saliency"]) * term for name, term in sums.items())
    torch.testing.assert_close(total.item(), record["total"], **CLOSE)
    total.backward()
    parameters = {papers.RELEASES["qd_detr"].official_name(n): p for n, p in retriever.named_parameters()}
    # None: the positions of words, which nothing reads
    norms = {name: norm for name, norm in record["grad_norm"].items() if norm is not None}
    assert norms.keys() == parameters.keys() and len(record["grad_norm"]) == len(norms) + 3
    for name, norm in norms.items():
        gradient = parameters[name].grad.norm().item()
        torch.testing.assert_close(gradient, norm, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@released
@torch.no_grad()
def test_saliency_for_the_foreign_query_is_the_released_networks(checkpoint, batch):
    """[QD-DETR] Every video with the query of the next one."""
    retriever = load_official(checkpoint, "qd_detr")
    aligned, _ = retriever(batch)
    rows = torch.tensor([1, 2, 0])
    queries = aligned.query[rows], aligned.query_mask[rows]
    foreign = retriever.aligner.fuse(aligned.cache["target"], aligned.mask, *queries).saliency
    expected = arrays("outputs")["saliency_scores_neg"]
    torch.testing.assert_close(foreign[aligned.mask], expected[aligned.mask], **CLOSE)


@released
def test_the_checkpoint_is_read_whole(checkpoint):
    """[QD-DETR] Except the positions of 32 words, which nothing reads."""
    meta = json.loads((FOLDER / "meta.json").read_text())
    parameters = sum(p.numel() for p in load_official(checkpoint, "qd_detr").parameters())
    assert parameters + 32 * 256 + 2 * 256 == meta["parameters"]


# ---- highlights alone, as in TVSum: from files in the official layout to a model that ranks clips

SCORE = "HL-top5-mAP"
TINY = {"width": 16, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.0, "input_dropout": 0.0}
TINY |= {"moment_queries": 2, "decoder_layers": 1}
RECIPE = {"lr": 1e-3, "batch_size": 4, "keep": SCORE, "weights": {"l1": 0.0, "giou": 0.0, "class": 0.0}}


def write(root, split, domains, seed, clips=24):
    """Videos whose quality changes every three clips; each of five labels of a clip is within 1 of its quality."""
    rng, lines = np.random.default_rng(seed), []
    for i, domain in enumerate(domains):
        good = rng.integers(2, 5, clips // 3).repeat(3)
        label = (good[:, None] + rng.integers(-1, 2, (clips, 5))).astype(float).tolist()
        name = f"{split}{i}"
        lines.append(labelled(name, vid=name, clips=clips, label=label, domain=domain))
    return tvsum(root, lines, split)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tvsum")
    write(folder, "train", ["BK"] * 16 + ["VU"] * 2, 0)
    return write(folder, "val", ["BK"] * 8 + ["VU"], 1)


def test_a_model_learns_to_rank_clips_by_their_labels(root):
    """A small QD-DETR with the weights of its spans at 0."""
    train, val = (open_dataset("tvsum", root, split, normalize=["i3d"]) for split in ("train", "val"))
    paper = papers.get("qd_detr", epochs=12, **TINY, **RECIPE)
    retriever = papers.build(paper, train)
    before = headline(scores_of(predict_all(retriever, val), val))
    assert set(before) == {SCORE}
    history = fit(retriever, train, val, paper, device="cpu", progress=False)
    assert all(math.isfinite(x) for row in history.rows for x in row.values() if isinstance(x, float))
    assert all(row["loss/l1"] == row["loss/giou"] == 0 for row in history.rows)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    after = headline(history.result)
    assert set(after) == {SCORE} and after[SCORE] == max(row[SCORE] for row in history.rows)
    assert after[SCORE] > before[SCORE] + 10
    lines = predict_all(retriever, val)
    assert [len(line["pred_saliency_scores"]) for line in lines] == [24] * 9


def test_the_command_line_trains_on_one_domain(root, tmp_path, capsys):
    settings = [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in (TINY | RECIPE).items()]
    command = ["qd_detr", "--dataset", "tvsum", "--root", str(root), "--data", "domain=BK", 'normalize=["i3d"]']
    main([*command, "--epochs", "2", "--set", *settings, "--device", "cpu", "--out", str(tmp_path / "run")])
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {SCORE, "beside"} and printed["beside"] == {}
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["train"]["domain"], record["train"]["samples"], record["val"]["samples"]) == ("BK", 16, 8)
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores == {"brief": {SCORE: printed[SCORE]}}
    assert len((tmp_path / "run/predictions.jsonl").read_text().splitlines()) == 8


def test_keeping_an_epoch_by_a_score_of_moments_is_refused(root):
    train, val = (open_dataset("tvsum", root, split, domain="VU") for split in ("train", "val"))
    paper = papers.get("qd_detr", epochs=1, **TINY, batch_size=2)
    with pytest.raises(ValueError, match=f"names 'MR-full-mAP', which is no score of its epochs; they have .*{SCORE}"):
        fit(papers.build(paper, train), train, val, paper, device="cpu", progress=False)
