"""The training loop: reproducible, resumable at every moment, the same on one process and on two."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from mrlib import baselines, checkpoint, files, metrics, papers
from mrlib.augment import identity
from mrlib.data import open_dataset
from mrlib.probes import PROBES, mask_moments
from mrlib.retriever import MomentRetriever
from mrlib.train import History, experiment, fit, headline, main, predict_all, scores_of

SIZE = {"size": "small", "streams": "joint"}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
COMMAND = ["f2sgd", "--size", "small", "--data", "n=48", "--set", "kernel=5", "channels=2", "batch_size=16"]


@pytest.fixture(scope="module")
def world():
    return open_dataset("sim", split="train", n=48, **SIZE), open_dataset("sim", split="val", n=20, **SIZE)


def small(**settings):
    return papers.get("f2sgd", "small", **({"kernel": 5, "channels": 2, "batch_size": 16, "epochs": 3} | settings))


def run(world, paper, out_dir=None, seed=0, **options) -> tuple[History, dict]:
    retriever = papers.build(paper, world[0], seed)
    history = fit(retriever, *world, paper, out_dir, seed=seed, device="cpu", progress=False, **options)
    return history, retriever.state_dict()


def contents(folder):
    """Every file and its bytes, but for the seconds that a run took."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "times.jsonl"
    }


def test_one_seed_gives_the_same_bytes_and_another_does_not(world, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(world, small(epochs=2), tmp_path / name, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["train/last.safetensors"] != contents(tmp_path / "c")["train/last.safetensors"]


def test_a_run_leaves_checkpoints_history_predictions_and_metrics(world, tmp_path):
    history, weights = run(world, small(), tmp_path)
    assert sorted(contents(tmp_path)) == sorted(
        ["history.jsonl", "metrics.json", "predictions.jsonl", "resume.safetensors", "run.json"]
        + [f"train/{which}.{suffix}" for which in ("best", "last") for suffix in ("json", "safetensors")]
    )
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == history.rows and [r["epoch"] for r in rows] == [1, 2, 3]
    assert rows[-1]["loss/map"] < rows[0]["loss/map"]
    best = checkpoint.load(tmp_path / "train" / "best")
    assert all(torch.equal(best.state_dict()[k], weights[k]) for k in weights)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines == predict_all(best, world[1], batch_size=16)
    truth = [s.as_line() for s in world[1].samples]
    scores = metrics.evaluate(lines, truth) | {"moments": metrics.moment_scores(lines, truth)["all"]}
    assert scores == json.loads((tmp_path / "metrics.json").read_text()) == history.result
    assert scores["brief"]["MR-full-mAP"] == max(r["MR-full-mAP"] for r in rows)
    assert set(history.frame().columns) >= {"stage", "epoch", "loss", "train_s", "MR-full-mAP"}


def test_a_run_stopped_at_any_write_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch):
    """Stopped before, and again after, each of the renames by which files appear, in two stages."""
    first = papers.replace(small().stages[0], name="first", epochs=2)
    paper = papers.replace(
        small(), stages=(first, papers.replace(first, name="second", epochs=1, start=("first", "best")))
    )
    run(world, paper, tmp_path / "whole")
    expected, rename = contents(tmp_path / "whole"), os.replace
    moments = 0
    while True:
        for after in (False, True):
            calls = 0

            def stop(source, target, after=after, moment=moments):
                nonlocal calls
                calls += 1
                if calls == moment + 1 and not after:
                    raise KeyboardInterrupt
                rename(source, target)
                if calls == moment + 1:
                    raise KeyboardInterrupt

            folder = tmp_path / f"{moments}-{after}"
            monkeypatch.setattr(files.os, "replace", stop)
            try:
                run(world, paper, folder)
            except KeyboardInterrupt:
                monkeypatch.setattr(files.os, "replace", rename)
                run(world, paper, folder)
            else:
                assert moments == calls > 10
                return
            assert contents(folder) == expected, (moments, after)
        moments += 1


def test_a_run_killed_with_sigkill_goes_on_to_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "mrlib.train", *COMMAND, "--epochs", "6"]
    subprocess.run([*command, "--out", tmp_path / "whole"], env=ONE_THREAD, check=True, capture_output=True)
    killed = subprocess.Popen([*command, "--out", tmp_path / "killed"], env=ONE_THREAD, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "history.jsonl").is_file():
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    rows = (tmp_path / "killed" / "history.jsonl").read_text().splitlines()
    assert len(rows) < 6, "the run was over before it was killed"
    subprocess.run([*command, "--out", tmp_path / "killed"], env=ONE_THREAD, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def probes_of(world):
    return {"masked": PROBES["masked_mean"](world[1]), "context": PROBES["dynamic_context"](world[1])}


def test_probes_are_scored_with_every_epoch_and_decide_nothing(world, tmp_path):
    plain, weights = run(world, small(), tmp_path / "plain")
    probed, same = run(world, small(), tmp_path / "probed", probes=probes_of(world))
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    assert [
        {k: v for k, v in r.items() if "masked/" not in k and "context/" not in k} for r in probed.rows
    ] == plain.rows
    last = checkpoint.load(tmp_path / "probed" / "train" / "last")
    best = checkpoint.load(tmp_path / "probed" / "train" / "best")
    for name, probe in probes_of(world).items():
        scores = headline(scores_of(predict_all(last, probe), probe))
        assert {k: probed.rows[-1][f"{name}/{k}"] for k in scores} == scores
        assert probed.result["probes"][name] == scores_of(predict_all(best, probe), probe)
    assert {k: v for k, v in probed.result.items() if k != "probes"} == plain.result
    assert json.loads((tmp_path / "probed" / "metrics.json").read_text()) == probed.result
    with pytest.raises(ValueError, match="keeps by 'masked/mIoU', which is none of"):
        run(world, small(keep="masked/mIoU"), probes=probes_of(world))


def test_probes_belong_to_a_run_that_is_stopped_and_goes_on(world, tmp_path, monkeypatch):
    run(world, small(), tmp_path / "whole", probes=probes_of(world))
    rename, calls = os.replace, 0

    def stop(source, target):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run(world, small(), tmp_path / "stopped", probes=probes_of(world))
    monkeypatch.setattr(files.os, "replace", rename)
    assert len((tmp_path / "stopped" / "history.jsonl").read_text().splitlines()) < 3
    with pytest.raises(ValueError, match=r"probes.masked was .* and is None"):
        run(world, small(), tmp_path / "stopped", probes={"context": probes_of(world)["context"]})
    other = {"masked": mask_moments(world[1], "zero"), "context": probes_of(world)["context"]}
    with pytest.raises(ValueError, match=r"probes.masked.probes\[0\].mode was 'mean' and is 'zero'"):
        run(world, small(), tmp_path / "stopped", probes=other)
    run(world, small(), tmp_path / "stopped", probes=probes_of(world))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_without_val_probes_are_scored_all_the_same(world, tmp_path):
    retriever = papers.build(small(epochs=1), world[0])
    probes = probes_of(world)
    history = fit(retriever, world[0], None, small(epochs=1), tmp_path, device="cpu", progress=False, probes=probes)
    assert history.result.keys() == {"probes"} and "masked/MR-full-mAP" in history.rows[0]
    assert not (tmp_path / "predictions.jsonl").exists() and (tmp_path / "metrics.json").is_file()


def test_a_query_video_is_probed_as_a_sentence_is():
    paper = papers.get("matr", "small", epochs=1, stages=["finetune"])
    options = {"size": "small", "query": "video", "streams": paper.streams}
    videos = [open_dataset("sim", split=split, n=24, **options) for split in ("train", "val")]
    retriever = papers.build(paper, videos[0])
    probes = {name: probe(videos[1]) for name, probe in PROBES.items()}
    history = fit(retriever, *videos, paper, device="cpu", progress=False, probes=probes)
    assert all(0 <= history.rows[0][f"{name}/MR-full-mAP"] <= 100 for name in PROBES)


def test_an_experiment_scores_splits_and_probes_of_the_scored_split(tmp_path, capsys):
    """`val_shift` without homes is `val`; beside each probe stands what a fixed list has there."""
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


def test_a_finished_run_is_not_run_again(world, tmp_path):
    first, weights = run(world, small(epochs=1), tmp_path)
    again, same = run(world, small(epochs=1), tmp_path)
    assert (again.rows, again.result) == (first.rows, first.result)
    assert all(torch.equal(weights[k], same[k]) for k in weights)


def test_a_folder_of_another_run_is_refused_and_left_alone(world, tmp_path):
    run(world, small(epochs=1), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"stages\[0\]\.epochs was 1 and is 2.*another out_dir"):
        run(world, small(epochs=2), tmp_path / "run")
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        run(world, small(epochs=1), tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match="holds a run already"):
        run(world, small(epochs=1), tmp_path / "run", resume=False)
    assert contents(tmp_path / "run") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="other files"):
        run(world, small(epochs=1), tmp_path / "other")


def test_a_folder_of_the_same_settings_on_other_data_is_refused(world, tmp_path):
    """As many samples, the same names, another truth; or another initial model."""
    run(world, small(epochs=1), tmp_path)
    first = replace(world[0].samples[0], relevant_windows=[[0.0, 2.0]])
    other = replace(world[0], samples=[first, *world[0].samples[1:]], _annotations=None)
    with pytest.raises(ValueError, match="train.digest was"):
        run((other, world[1]), small(epochs=1), tmp_path)
    retriever = papers.build(small(epochs=1), world[0], seed=9)
    with pytest.raises(ValueError, match="model.seed was 0 and is 9"):
        fit(retriever, *world, small(epochs=1), tmp_path, device="cpu", progress=False)


def test_settings_spelled_out_are_those_left_alone(world, tmp_path):
    first, _ = run(world, small(epochs=1), tmp_path)
    again, _ = run(world, small(epochs=1, reweight=True, head="linear"), tmp_path)
    assert again.rows == first.rows


def test_what_cannot_be_saved_is_refused_before_training(world, tmp_path):
    paper = small(epochs=1)
    retriever = papers.build(paper, world[0])
    bare = MomentRetriever(retriever.aligner, retriever.detector)
    with pytest.raises(ValueError, match="made by mrlib.build"):
        fit(bare, *world, paper, tmp_path / "bare", device="cpu", progress=False)
    unregistered = papers.replace(paper, given={})
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


def test_a_later_stage_starts_from_the_weights_it_names(world, tmp_path, monkeypatch):
    """A second stage that learns nothing ends with what it started from."""
    base = small()
    for which in ("last", "best"):
        first = papers.replace(base.stages[0], name="first", epochs=3)
        second = papers.replace(first, name="second", epochs=1, start=("first", which))
        second = papers.replace(second, optimiser=papers.Optimiser("adam", 0.0))
        paper = papers.replace(base, stages=(first, second))
        _, weights = run(world, paper, tmp_path / which)
        started = checkpoint.load(tmp_path / which / "first" / which).state_dict()
        assert all(torch.equal(started[k], weights[k]) for k in weights)


def test_loss_terms_are_weighed_by_the_stage(world):
    plain, heavy = (run(world, small(epochs=1, weights=w))[0].rows[0] for w in ({}, {"map": 3.0}))
    assert plain["loss"] == pytest.approx(plain["loss/map"])
    assert heavy["loss"] == pytest.approx(3 * heavy["loss/map"])


def test_every_sample_is_seen_once_an_epoch_in_another_order(world, monkeypatch):
    seen = []

    def watching(indices, dataset, draw):
        seen.append(indices.tolist())
        return identity(indices, dataset, draw)

    monkeypatch.setitem(papers.AUGMENTERS, "watching", watching)
    run(world, small(epochs=2, augment="watching"))
    assert seen.pop(0) == [0], "what cannot be trained on is found first, on one sample"
    epochs = [sum(seen[:3], []), sum(seen[3:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48)) and epochs[0] != epochs[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_queries(world, tmp_path, monkeypatch):
    def spoil(indices, dataset, draw):
        batch = identity(indices, dataset, draw)
        batch.target_joint[0, 0] = torch.nan
        return batch

    monkeypatch.setitem(papers.AUGMENTERS, "spoil", spoil)
    with pytest.raises(FloatingPointError, match=r"map is not finite in stage 'train', epoch 1, step 0.*queries.*\d"):
        run(world, small(augment="spoil"), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_stops_the_run_with_nothing_half_written(tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        f"from mrlib.train import main; main({[*COMMAND, '--epochs', '2', '--out', str(tmp_path / 'run')]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "last.safetensors" in done.stderr and "free some space" in done.stderr
    assert sorted(contents(tmp_path / "run")) == ["run.json"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limits[0] != 5000
    main([*COMMAND, "--epochs", "2", "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert "metrics.json" in contents(tmp_path / "run")


def test_two_processes_train_what_one_does(tmp_path, capsys):
    """20 steps of the same global batches; the last batch of an epoch is odd."""
    command = [*COMMAND, "--set", "kernel=5", "channels=2", "batch_size=10", "--data", "n=47", "--epochs", "4"]
    command += ["--probe", "masked_noise"]
    one, two = ([*command, "--out", str(tmp_path / name)] for name in ("one", "two"))
    main([*one, "--device", "cpu"])
    parallel = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "mrlib.train",
    ]
    done = subprocess.run([*parallel, *two, "--device", "cpu"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    single, double = (checkpoint.load(tmp_path / name / "train" / "last").state_dict() for name in ("one", "two"))
    assert json.loads((tmp_path / "one" / "history.jsonl").read_text().splitlines()[-1])["step"] == 20
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=0, atol=1e-5)
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert results[0] == results[1]
    assert json.loads(done.stdout)["probes"] == json.loads(capsys.readouterr().out)["probes"]


def test_mixed_precision_learns(world):
    history, _ = run(world, small(epochs=4, lr=5e-3), precision="bf16")
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


def test_a_compiled_model_trains_what_a_plain_one_does(world, monkeypatch):
    """Traced by torch.compile and run by its "eager" backend: what the code generator adds is PyTorch's affair."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = (run(world, small(epochs=1), compile=way)[0].rows for way in (False, True))
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


def test_settings_add_up_however_often_the_option_is_given(tmp_path):
    command = [*COMMAND, "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run"), "--data", "seed=5"]
    main([*command, "--set", "candidates=3"])
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["train"]["samples"], settings["train"]["seed"]) == (48, 5)
    options = settings["paper"]["detector"]["options"]
    assert (options["kernel"], options["candidates"]) == (5, 3)


def test_wrong_arguments_are_refused(world, capsys):
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        run(world, small(), precision="fp8")
    with pytest.raises(ValueError, match="keeps by 'MR-mAP', which is none of"):
        run(world, small(keep="MR-mAP"))
    with pytest.raises(ValueError, match=r"weighs \['mapp'\]; the losses are map"):
        run(world, small(weights={"mapp": 2.0}))
    with pytest.raises(ValueError, match="unknown device 'tpu9'"):
        fit(papers.build(small(), world[0]), *world, small(), device="tpu9")
    with pytest.raises(ValueError, match="built for another aligner or detector"):
        fit(papers.build(small(), world[0]), *world, small(kernel=7), device="cpu")
    with pytest.raises(SystemExit, match="unknown dataset 'imagenet'"):
        main(["f2sgd", "--dataset", "imagenet", "--out", "nowhere"])
    with pytest.raises(SystemExit):
        main(["f2sgd", "--out", "nowhere", "--set", "kernel"])
    assert "'kernel' is not NAME=VALUE" in capsys.readouterr().err
    assert not os.path.exists("nowhere")
