"""`fit` and `experiment`: the same bytes for the same seed, probes, what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch

from mrlib import baselines, checkpoint, papers
from mrlib.data import open_dataset
from mrlib.probes import PROBES, mask_moments
from mrlib.retriever import MomentRetriever, Training
from mrlib.train import experiment, fit, headline, main, predict_all, scores_of
from tests.support.files import line, moment_detr, write_lines
from tests.support.runs import SIZE, contents, open_world, run, small, stop_at_rename


@pytest.fixture(scope="module")
def world():
    return open_world()


@pytest.fixture(scope="module")
def probes(world):
    return {"masked": PROBES["masked_mean"](world[1]), "context": PROBES["dynamic_context"](world[1])}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(world, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(world, small(epochs=2), tmp_path / name, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["train/last.safetensors"] != contents(tmp_path / "c")["train/last.safetensors"]


def test_probes_are_scored_after_every_epoch_and_do_not_change_the_run(world, probes, tmp_path):
    plain, weights = run(world, small(), tmp_path / "plain")
    probed, probed_weights = run(world, small(), tmp_path / "probed", probes=probes)
    assert all(torch.equal(weights[k], probed_weights[k]) for k in weights)
    without_probes = [{k: v for k, v in r.items() if not k.startswith(("masked/", "context/"))} for r in probed.rows]
    assert without_probes == plain.rows
    last = checkpoint.load(tmp_path / "probed" / "train" / "last")
    best = checkpoint.load(tmp_path / "probed" / "train" / "best")
    for name, probe in probes.items():
        scores = headline(scores_of(predict_all(last, probe), probe))
        assert {k: probed.rows[-1][f"{name}/{k}"] for k in scores} == scores
        assert probed.result["probes"][name] == scores_of(predict_all(best, probe), probe)
    assert {k: v for k, v in probed.result.items() if k != "probes"} == plain.result
    assert json.loads((tmp_path / "probed" / "metrics.json").read_text()) == probed.result
    with pytest.raises(ValueError, match="names 'masked/mIoU', which is no score of its epochs; they have"):
        run(world, small(keep="masked/mIoU"), probes=probes)


def test_a_run_is_resumed_only_with_the_same_probes(world, probes, tmp_path, monkeypatch):
    run(world, small(), tmp_path / "whole", probes=probes)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_rename(patch, 9)
        run(world, small(), tmp_path / "stopped", probes=probes)
    assert len((tmp_path / "stopped" / "history.jsonl").read_text().splitlines()) < 3
    with pytest.raises(ValueError, match=r"probes.masked was .* and is None"):
        run(world, small(), tmp_path / "stopped", probes={"context": probes["context"]})
    other_mask = {"masked": mask_moments(world[1], "zero"), "context": probes["context"]}
    with pytest.raises(ValueError, match=r"probes.masked.probes\[0\].mode was 'mean' and is 'zero'"):
        run(world, small(), tmp_path / "stopped", probes=other_mask)
    run(world, small(), tmp_path / "stopped", probes=probes)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_probes_are_scored_without_validation_data(world, probes, tmp_path):
    history, _ = run((world[0], None), small(epochs=1), tmp_path, probes=probes)
    assert history.result.keys() == {"probes"} and "masked/MR-full-mAP" in history.rows[0]
    assert not (tmp_path / "predictions.jsonl").exists() and (tmp_path / "metrics.json").is_file()


def test_every_probe_works_with_query_videos():
    paper = papers.get("matr", "small", epochs=1, stages=["finetune"])
    options = {"size": "small", "query": "video", "streams": paper.streams}
    videos = [open_dataset("sim", split=split, n=24, **options) for split in ("train", "val")]
    retriever = papers.build(paper, videos[0])
    probes = {name: probe(videos[1]) for name, probe in PROBES.items()}
    history = fit(retriever, *videos, paper, device="cpu", progress=False, probes=probes)
    assert all(0 <= history.rows[0][f"{name}/MR-full-mAP"] <= 100 for name in PROBES)


def test_an_experiment_scores_probes_of_the_scored_split_and_other_splits(tmp_path, capsys):
    """`val_shift` is `val` if no action has a home. Each probe also has the scores of a fixed list of windows."""
    data = {"n": 40, "streams": "joint"}
    paper = {"settings": {"kernel": 5, "channels": 2, "epochs": 1}, "data": data, "device": "cpu"}
    names = ["val_shift", "masked_zero"]
    scores, _, retriever = experiment("f2sgd", size="small", score="test", probes=names, **paper)
    train, test, shift = (open_dataset("sim", split=split, **SIZE, n=40) for split in ("train", "test", "val_shift"))
    for name, probe in zip(names, (shift, mask_moments(test, "zero")), strict=True):
        expected = scores_of(predict_all(retriever, probe), probe)
        fixed = headline(scores_of(baselines.FixedList(train)(probe), probe))
        assert scores["probes"][name] == expected | {"beside": {"fixed list": fixed}}

    command = ["f2sgd", "--size", "small", "--data", "n=40", "--set", "kernel=5", "channels=2", "--epochs", "1"]
    command += ["--score", "test", "--device", "cpu", "--probe", "val_shift", "--probe", "masked_zero"]
    main([*command, "--out", str(tmp_path / "run")])
    printed = json.loads(capsys.readouterr().out)["probes"]
    assert printed == {n: headline(scores["probes"][n]) | {"beside": scores["probes"][n]["beside"]} for n in names}
    with pytest.raises(SystemExit, match="'val_shifted' is neither a split nor one of masked_noise, .*: unknown split"):
        main([*command[:-1], "val_shifted", "--out", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_a_finished_run_is_not_trained_again(world, tmp_path):
    first, weights = run(world, small(epochs=1), tmp_path)
    again, kept_weights = run(world, small(epochs=1), tmp_path)
    assert (again.rows, again.result) == (first.rows, first.result)
    assert all(torch.equal(weights[k], kept_weights[k]) for k in weights)


def test_settings_given_with_their_defaults_resume_the_same_run(world, tmp_path):
    first, _ = run(world, small(epochs=1), tmp_path)
    again, _ = run(world, small(epochs=1, reweight=True, head="linear"), tmp_path)
    assert again.rows == first.rows


def test_a_run_that_cannot_be_saved_is_refused_before_training(world, tmp_path):
    paper = small(epochs=1)
    retriever = papers.build(paper, world[0])
    bare = MomentRetriever(retriever.aligner, retriever.detector)
    with pytest.raises(ValueError, match="made by mrlib.build"):
        fit(bare, *world, paper, tmp_path / "bare", device="cpu", progress=False)
    unregistered = replace(paper, given={})
    with pytest.raises(ValueError, match="made by mrlib.build"):
        fit(papers.build(unregistered, world[0]), *world, unregistered, tmp_path / "bare", device="cpu", progress=False)
    assert not (tmp_path / "bare").exists()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        run(world, paper, tmp_path / "file")
    run(world, paper, tmp_path / "cut")
    (tmp_path / "cut" / "run.json").write_text('{"paper"')
    with pytest.raises(ValueError, match="run.json is damaged"):
        run(world, paper, tmp_path / "cut")


@pytest.mark.parametrize("split", ["train", "val", "probe 'other'"])
def test_samples_that_no_file_may_hold_are_refused_before_the_first_step(split, world, tmp_path):
    """Made by hand, they have not passed the check of annotation files."""
    late = replace(world[1].samples[3], relevant_windows=[[0, world[1].samples[3].duration + 2]])
    dataset = world[split != "train"]
    wrong = replace(dataset, samples=[*dataset.samples[:3], late, *dataset.samples[4:]], _annotations=None)
    data = (wrong, world[1]) if split == "train" else (world[0], wrong if split == "val" else world[1])
    probes = {"other": wrong} if "probe" in split else {}
    with pytest.raises(ValueError, match=f"the {split} data, sim .*: qid .*: relevant_windows .* ends a clip or more"):
        run(data, small(), tmp_path / "run", probes=probes)
    assert not (tmp_path / "run").exists()


def test_a_score_that_validation_cannot_give_is_refused_before_the_first_step(world, tmp_path):
    """Without saliency there are no highlights; with labels of clips alone there are no moments."""
    bare = [replace(s, relevant_clip_ids=None, saliency_scores=None) for s in world[1].samples]
    unscored = replace(world[1], samples=bare, _annotations=None)
    with pytest.raises(ValueError, match="names 'HL-min-Good-mAP', which is no score of its epochs; they have MR-full"):
        run((world[0], unscored), small(keep="HL-min-Good-mAP"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    clips = [[i % 2] for i in range(32)]
    labels = [replace(s, relevant_windows=None, extra={"label": clips}) for s in bare]
    with pytest.raises(ValueError, match="names 'MR-full-mAP', which is no score of its epochs; they have HL-mAP"):
        run((world[0], replace(world[1], samples=labels, _annotations=None)), small(keep="MR-full-mAP"))


@pytest.mark.parametrize(("options", "name"), [({"score": "test"}, "test"), ({"probes": ["test"]}, "probe 'test'")])
def test_a_split_without_annotations_that_is_to_be_scored_is_refused_before_anything_is_trained(
    options, name, tmp_path, monkeypatch
):
    """As the test split of QVHighlights was for years."""
    for split in ("train", "val", "test"):
        moment_detr(tmp_path, split=split)
    unlabelled = [{k: line(i)[k] for k in ("qid", "query", "duration", "vid")} for i in (1, 2)]
    write_lines(tmp_path / "highlight_test_release.jsonl", unlabelled)
    monkeypatch.setattr("mrlib.train.fit", None)
    with pytest.raises(ValueError, match=f"the {name} data, qvhighlights test, has no annotated samples to score"):
        experiment("qd_detr", size="small", dataset="qvhighlights", root=str(tmp_path), **options)


def test_a_query_that_is_scored_comes_once(world):
    twice = world[1].subset([0, 1, 0])
    with pytest.raises(ValueError, match="the val data, sim val: qid .* comes twice on video"):
        run((world[0], twice), small())


def test_wrong_arguments_are_refused(world, capsys):
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        run(world, small(), precision="fp8")
    with pytest.raises(ValueError, match="names 'MR-mAP', which is no score of its epochs; they have"):
        run(world, small(keep="MR-mAP"))
    with pytest.raises(ValueError, match=r"name \['mapp'\], which are no loss terms; the terms are map"):
        run(world, small(weights={"mapp": 2.0}))
    with pytest.raises(ValueError, match="unknown device 'tpu9'"):
        fit(papers.build(small(), world[0]), *world, small(), device="tpu9")
    unlabelled = replace(world[1], samples=[replace(s, relevant_windows=None) for s in world[1].samples])
    unlabelled = replace(unlabelled, _annotations=None)
    with pytest.raises(ValueError, match="the val data, sim val, has no annotated samples to score"):
        run((world[0], unlabelled), small())
    with pytest.raises(ValueError, match="the probe 'other' data, sim val, has no annotated samples to score"):
        run(world, small(), probes={"other": unlabelled})
    prepared = papers.build(small(), world[0])
    prepared.recipe["prepared"] = ["active_queries"]
    with pytest.raises(ValueError, match="already changed by a stage of an earlier training run"):
        fit(prepared, *world, small(), device="cpu")
    with pytest.raises(ValueError, match="built for another aligner or detector"):
        fit(papers.build(small(), world[0]), *world, small(kernel=7), device="cpu")
    with pytest.raises(SystemExit, match="unknown dataset 'imagenet'"):
        main(["f2sgd", "--dataset", "imagenet", "--out", "nowhere"])
    with pytest.raises(SystemExit):
        main(["f2sgd", "--out", "nowhere", "--set", "kernel"])
    assert "'kernel' is not NAME=VALUE" in capsys.readouterr().err
    assert not os.path.exists("nowhere")


def test_a_retriever_knows_the_data_of_its_training(tmp_path):
    """Streams, normalisation, longest video and query as the dataset has them; the encoder if the folder says it."""
    for split in ("train", "val"):
        moment_detr(tmp_path, [line(1), line(2, vid="video_b", duration=18)], split=split)
    (tmp_path / "encoder.json").write_text(json.dumps({"encoder": "mine", "clip_s": 2.0}))
    data = open_dataset("qvhighlights", tmp_path, streams=["slowfast", "clip"], normalize=["clip"])
    paper = papers.get("qd_detr", "small", epochs=1)
    retriever = papers.build(paper, data)
    fit(retriever, data, None, paper, device="cpu", progress=False)
    assert retriever.training_data == Training(
        streams={"slowfast": 6, "clip": 4},
        clip_s=2.0,
        clips=10,
        normalize=("clip",),
        query="text",
        tokens=32,
        encoder={"encoder": "mine", "clip_s": 2.0},
    )


def test_a_retriever_of_simulated_features_knows_that_they_are_as_they_are(tmp_path):
    world = open_world()
    history, _ = run(world, small(epochs=1), tmp_path / "run")
    training = checkpoint.load(tmp_path / "run" / "train" / "best").training_data
    assert (training.streams, training.normalize, training.encoder) == ({"appearance": 128}, (), None)
    assert (training.clips, training.query, training.tokens) == (32, "text", None)
