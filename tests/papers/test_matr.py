"""MATR, and UniVTG where they share code: both training stages, files in the official layout, unusual videos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib import checkpoint, files, metrics, papers
from mrlib.data import open_dataset
from mrlib.sim import export
from mrlib.train import fit, main, predict_all
from tests.support.runs import contents, trained

QUICK = {"width": 16, "hidden": 16, "layers": 1, "moment_queries": 2, "heads": 2, "epochs": 2}


def small(**settings):
    return papers.get("matr", "small", **QUICK | {"pretrain.epochs": 2} | settings)


def open_pair(paper, n=48, **options):
    return papers.open_split(paper, "sim", split="train", n=n, **options), papers.open_split(
        paper, "sim", split="val", n=20
    )


def test_matr_has_the_papers_numbers():
    """[MATR, settings]: AdamW 1e-4, decay 1e-4, 200 epochs of 1,200 pairs, width 1,024, four layers, ten queries."""
    paper = papers.get("matr")
    pretrain, finetune = paper.stages
    assert (finetune.epochs, finetune.batch_size, pretrain.batch_size) == (200, 1200, 600)
    assert (pretrain.augment, pretrain.data, finetune.start) == ("clip_query", "videos", ("pretrain", "last"))
    for stage in paper.stages:
        o = stage.optimiser
        assert (o.method, o.lr, o.weight_decay, o.clip) == ("adamw", 1e-4, 1e-4, 0.1) and not stage.weights
    options = paper.aligner.options
    assert [options[k] for k in ("width", "layers", "decoder_layers", "moment_queries")] == [1024, 4, 4, 10]
    assert (options["dropout"], options["input_dropout"], paper.query) == (0.1, 0.5, "video")
    assert papers.get("matr", preset="paper").describe() == paper.describe()
    sports = papers.get("matr", preset="sportsmoments").stages[-1]
    assert (sports.epochs, sports.batch_size) == (40, 40)


def test_a_run_stopped_between_its_stages_ends_with_the_same_files(tmp_path, monkeypatch):
    """It stops at the first file of the second stage; the same clips are drawn again, in the same order."""
    paper, data = small(), open_pair(small())
    _, history = trained(paper, data, tmp_path / "whole")
    assert [(r["stage"], r["epoch"]) for r in history.rows] == [
        ("pretrain", 1), ("pretrain", 2), ("finetune", 1), ("finetune", 2),
    ]  # fmt: skip
    rename = files.os.replace

    def stop(source, target):
        if "finetune" in str(target):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(paper, data, tmp_path / "killed")
    assert (tmp_path / "killed" / "pretrain" / "last.safetensors").is_file()
    monkeypatch.setattr(files.os, "replace", rename)
    trained(paper, data, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_fine_tuning_starts_from_the_last_pre_trained_weights(tmp_path):
    """At a learning rate of 0 it also ends with them."""
    retriever, _ = trained(small(**{"finetune.lr": 0.0}), open_pair(small()), tmp_path)
    last = checkpoint.load(tmp_path / "pretrain" / "last").state_dict()
    assert all(torch.equal(last[k], v) for k, v in retriever.state_dict().items())
    untrained = papers.build(small(), open_pair(small())[0]).state_dict()
    assert not all(torch.equal(last[k], v) for k, v in untrained.items())


def test_pre_training_needs_no_labels_and_fine_tuning_does():
    train, val = open_pair(small())
    samples = [replace(s, relevant_windows=None) for s in train.samples]
    unlabelled = replace(train, samples=samples, _annotations=None)
    paper = small(stages=["pretrain"])
    with_labels, _ = trained(paper, (train, val))
    without_labels, _ = trained(paper, (unlabelled, val))
    parameters = zip(with_labels.parameters(), without_labels.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in parameters)
    with pytest.raises(ValueError, match="no annotated samples for stage 'finetune' to learn from"):
        trained(small(), (unlabelled, val))


def test_the_kept_epoch_has_the_largest_sum_of_miou_and_r1(tmp_path):
    _, history = trained(small(epochs=4), open_pair(small()), tmp_path)
    rows = [r for r in history.rows if r["stage"] == "finetune"]
    kept = json.loads((tmp_path / "finetune" / "best.json").read_text())["notes"]["epoch"]
    sums = [r["mIoU"] + r["MR-full-R1@0.5"] for r in rows]
    assert kept == 1 + sums.index(max(sums))


def test_query_clips_for_word_queries_are_refused_before_a_file_is_written(tmp_path):
    paper = small(query="text", streams=["motion", "appearance"])
    data = papers.open_split(paper, "sim", split="train", n=8)
    assert data.query.width == data.widths.joint, "words of the simulator are as wide as its joint space"
    motion = papers.open_split(small(query="text", streams=["motion"]), "sim", split="train", n=8)
    retriever = papers.build(paper, motion)
    with pytest.raises(ValueError, match="only where queries are rows of the joint stream"):
        fit(retriever, motion, None, paper, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_univtg_trains_on_video_queries_and_on_sentences():
    for query in ("video", "text"):
        paper = papers.get("univtg", "small", query=query, epochs=1, width=16, hidden=16, layers=1, heads=2)
        data = open_pair(paper)
        _, history = trained(paper, data)
        assert set(history.rows[0]) >= {"loss/fg", "loss/l1", "loss/iou", "loss/inter", "loss/intra"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Query videos in the layout of the official release, with cases that the simulator does not have.

    A target of one clip, a query of one clip, and a query longer than its target.
    """
    root = tmp_path_factory.mktemp("activitynet_vrl")
    for split in ("train", "val"):
        export(open_dataset("sim", split=split, n=20, query="video", streams="joint"), root)
        path = root / f"activitynet_vrl_{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, clips, query_clips in zip(lines, (1, 20, 3), (3, 1, 9), strict=False):
            target, query = root / f"target_vid_clip/{line['vid']}.npz", root / f"query_vid_clip/qid{line['qid']}.npz"
            features, rows = np.load(target)["features"][:clips], np.load(query)["last_hidden_state"]
            np.savez(target, features=features)
            np.savez(query, last_hidden_state=np.resize(rows, (query_clips, rows.shape[1])))
            line |= {"duration": 2.0 * clips - 0.5, "relevant_windows": [[0.5, min(2.0 * clips - 0.5, 3.2)]]}
            line.pop("relevant_clip_ids"), line.pop("saliency_scores")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_files_in_the_official_layout_train_from_the_command_line(folder, tmp_path, capsys):
    words = [f"{k}={json.dumps(v)}" for k, v in QUICK.items() if k != "epochs"]
    command = ["matr", "--dataset", "activitynet_vrl", "--root", str(folder), "--epochs", "1", "--device", "cpu"]
    main([*command, "--set", *words, "decoder_layers=1", "batch_size=8", "--out", str(tmp_path / "run")])
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() >= {"mIoU", "MR-full-R1@0.5"} and set(printed["beside"]) == {"whole video", "centred 60 %"}
    lines = metrics.read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert len(lines) == 20 and all(line["pred_relevant_windows"] for line in lines)


@pytest.mark.parametrize("name", ["matr", "univtg"])
def test_predictions_for_very_short_videos_and_queries_lie_inside_the_video(folder, name):
    """One at a time and in a batch: one clip of target, one of query, a query longer than the target."""
    paper = papers.get(name, "small", **{k: v for k, v in QUICK.items() if k not in ("moment_queries", "epochs")})
    data = open_dataset("activitynet_vrl", folder, "train", streams="joint")
    retriever = papers.build(paper, data)
    together = predict_all(retriever, data)
    for i in range(3):
        (alone,) = retriever.predict(data.batch([i]))
        for line in (alone, together[i]):
            assert 0 < len(line["pred_relevant_windows"]) <= 10
            assert all(0 <= s <= e <= data.samples[i].duration for s, e, _ in line["pred_relevant_windows"])
        np.testing.assert_allclose(
            alone["pred_relevant_windows"][0], together[i]["pred_relevant_windows"][0], rtol=1e-3, atol=2e-3
        )
    sum(retriever.losses(*retriever(data.batch([0, 1, 2])), data.batch([0, 1, 2])).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in retriever.parameters())


def test_a_row_of_padding_leaves_gradients_and_other_predictions_finite(folder):
    paper = small()
    data = open_dataset("activitynet_vrl", folder, "train", streams="joint")
    batch = data.batch([3, 4, 5])
    empty = torch.tensor([[True], [False], [True]])
    batch = replace(batch, target_mask=batch.target_mask & empty, query_mask=batch.query_mask & empty)
    retriever = papers.build(paper, data)
    sum(retriever.losses(*retriever(batch), batch).values()).backward()
    assert all(p.grad.isfinite().all() for p in retriever.parameters() if p.grad is not None)
    lines = retriever.predict(batch)
    assert lines[1]["pred_relevant_windows"] == [] and lines[0]["pred_relevant_windows"]


def test_eight_samples_can_be_overfitted():
    """The predictions on the training samples nearly equal the annotations."""
    paper = papers.get("matr", "small", stages=["finetune"], epochs=150, batch_size=8, align="none")
    data = papers.open_split(paper, "sim", split="train", n=8)
    retriever = papers.build(paper, data)
    fit(retriever, data, None, paper, device="cpu", progress=False)
    scores = metrics.moment_scores(predict_all(retriever, data), [s.as_line() for s in data.samples])
    assert scores["all"]["mIoU"] > 90
