"""Highlights alone, as TVSum has them: from files in the official layout to a model that ranks clips better."""

import json
import math

import numpy as np
import pytest

from mrlib import papers
from mrlib.data import open_dataset
from mrlib.train import fit, headline, main, predict_all, scores_of
from tests.support.files import labelled, tvsum

SCORE = "HL-top5-mAP"
TINY = {"width": 16, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.0, "input_dropout": 0.0}
TINY |= {"moment_queries": 2, "decoder_layers": 1}
RECIPE = {"lr": 1e-3, "batch_size": 4, "keep": SCORE, "weights": {"l1": 0.0, "giou": 0.0, "class": 0.0}}


def write(root, split, domains, seed, clips=24):
    """Videos in which all five annotators agree but for one point about what is good, in stretches of three clips."""
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
    """QD-DETR as it is, but small and with the weights of its spans at 0."""
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


def test_the_command_trains_on_a_domain(root, tmp_path, capsys):
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


def test_an_epoch_cannot_be_kept_by_a_score_of_moments(root):
    train, val = (open_dataset("tvsum", root, split, domain="VU") for split in ("train", "val"))
    paper = papers.get("qd_detr", epochs=1, **TINY, batch_size=2)
    with pytest.raises(ValueError, match=f"keeps by 'MR-full-mAP', which is none of .*{SCORE}"):
        fit(papers.build(paper, train), train, val, paper, device="cpu", progress=False)
