"""What a run writes to its folder, how it is resumed from there, and which folders are refused."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import checkpoint, files, metrics, papers
from mrlib.train import fit, main, predict_all
from mrlib.training.run_state import RunState
from tests.support.runs import COMMAND, ONE_THREAD, contents, open_world, run, small, stop_at_rename

SETTINGS = {"seed": 0, "paper": {"stages": [{"epochs": 1}, {"epochs": 2}]}, "val": None}


@pytest.fixture(scope="module")
def world():
    return open_world()


def test_a_run_writes_checkpoints_history_predictions_and_metrics(world, tmp_path):
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


def test_a_run_stopped_at_any_write_and_resumed_ends_with_the_same_bytes(world, tmp_path, monkeypatch):
    """Two stages, stopped before, and in another run after, each of the renames by which files appear."""
    first = replace(small().stages[0], name="first", epochs=2)
    second = replace(first, name="second", epochs=1, start=("first", "best"))
    paper = replace(small(), stages=(first, second))
    run(world, paper, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for number in itertools.count(1):
        for after in (False, True):
            folder = tmp_path / f"{number}-{after}"
            with monkeypatch.context() as patch:
                targets = stop_at_rename(patch, number, after=after)
                try:
                    run(world, paper, folder)
                except KeyboardInterrupt:
                    pass
                else:
                    assert number == len(targets) + 1 > 11
                    return
            run(world, paper, folder)
            assert contents(folder) == expected, (number, after)


def test_a_run_killed_with_sigkill_and_resumed_ends_with_the_same_bytes(tmp_path):
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


def step(model, optimiser):
    optimiser.zero_grad()
    model(torch.ones(3)).square().sum().backward()
    optimiser.step()


def test_a_resumed_optimiser_takes_the_step_that_it_would_have_taken(tmp_path):
    model = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    state = RunState(tmp_path)
    state.open(SETTINGS, resume=True)
    step(model, optimiser)
    state.steps = 1
    state.end_epoch({"stage": "train", "epoch": 1}, 1.0, 0.5, last=False)
    state.save(model, "train", optimiser=optimiser)
    step(model, optimiser)

    resumed, resumed_model = RunState(tmp_path), nn.Linear(3, 2)
    resumed_optimiser = torch.optim.Adam(resumed_model.parameters())
    resumed.open(SETTINGS, resume=True)
    resumed.restore_weights(resumed_model)
    resumed.restore_optimiser(resumed_optimiser)
    assert (resumed.stage, resumed.epoch, resumed.steps) == (0, 1, 1)
    assert (resumed.history.rows, resumed.history.times) == (state.history.rows, state.history.times)
    step(resumed_model, resumed_optimiser)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed_model.parameters(), strict=True))


def test_the_last_epoch_of_a_stage_leads_to_the_next_stage():
    state = RunState(None)
    state.end_epoch({"stage": "train", "epoch": 1}, 1.0, 0.5, last=False)
    assert (state.stage, state.epoch) == (0, 1)
    state.end_epoch({"stage": "train", "epoch": 2}, 2.0, 0.25, last=True)
    assert (state.stage, state.epoch) == (1, 0)
    frame = state.history.frame()
    assert frame[["epoch", "train_s", "val_s"]].to_numpy().tolist() == [[1, 1.0, 0.5], [2, 2.0, 0.25]]


def test_without_a_folder_the_weights_of_a_stage_stay_as_they_were_saved():
    state, model = RunState(None), nn.Linear(3, 2)
    weights = model.weight.detach().clone()
    state.save(model, "train", ("last",))
    nn.init.zeros_(model.weight)
    assert torch.equal(state.weights_of("train", "last")["weight"], weights)


def test_opening_a_folder_removes_files_whose_writing_was_cut_off(tmp_path):
    RunState(tmp_path).open(SETTINGS, resume=True)
    leftover = tmp_path / "train" / f".last.json.x{files.PARTIAL}"
    leftover.parent.mkdir()
    leftover.touch()
    (tmp_path / "train" / "last.json").touch()
    RunState(tmp_path).open(SETTINGS, resume=True)
    assert sorted(contents(tmp_path)) == ["run.json", "train/last.json"]


@pytest.mark.parametrize("leftover", [f".run.json.x{files.PARTIAL}", f".run.json.0123abcd{files.PARTIAL}", ".lock"])
def test_a_run_killed_in_its_very_first_write_starts_anew(leftover, world, tmp_path):
    (tmp_path / leftover).write_text("{")
    run(world, small(epochs=1), tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_second_process_is_told_who_is_in_the_folder(world, tmp_path):
    """At once, and it leaves the run of the first one alone."""
    run(world, small(epochs=1), tmp_path / "run")
    before = contents(tmp_path / "run")
    with (
        RunState(tmp_path / "run").locked(),
        pytest.raises(ValueError, match=rf"out_dir .*run is in use by process {os.getpid()} on .* since "),
    ):
        run(world, small(epochs=1), tmp_path / "run", seed=1)
    assert contents(tmp_path / "run") == before


def test_run_json_records_threads_and_processes_and_another_number_warns(world, tmp_path):
    run(world, small(epochs=1), tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    assert (settings["threads"], settings["processes"]) == ([torch.get_num_threads()], [1])
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings | {"threads": [61]}) + "\n")
    with pytest.warns(UserWarning, match=f"with threads: 61, and goes on with {torch.get_num_threads()}; the bytes"):
        run(world, small(epochs=1), tmp_path)
    assert json.loads(file.read_text()) == settings | {"threads": [61, torch.get_num_threads()]}
    del settings["threads"], settings["processes"]
    file.write_text(json.dumps(settings) + "\n")
    run(world, small(epochs=1), tmp_path)  # of an earlier version, which did not record them


DAMAGE = {"empty": b"", "cut": b'{"seed": ', "binary": b"\xff\x00\x80", "nested": 100_000 * b"[", "list": b"[1]\n"}
DAMAGE |= {
    "null": b"null\n",
    "number": b'{"seed": ' + 5000 * b"1" + b"}",
    "long": b'{"a": "' + 5_000_000 * b"x" + b'"}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "resume.safetensors", "times.jsonl", "train/best.safetensors"])
def test_a_damaged_file_of_a_run_is_refused_with_its_name_and_a_way_out(content, name, finished, tmp_path, world):
    """Or, of the seconds that it took, an empty file is one without rows."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    if (name, content) == ("times.jsonl", b""):
        run(world, small(epochs=1), tmp_path / "run")
        return
    with pytest.raises(ValueError, match=f"{name}.*give another out_dir"):
        run(world, small(epochs=1), tmp_path / "run")


@pytest.mark.parametrize("threads", [[[1]], [1, 1], [], [0], [True], "1", None])
def test_numbers_of_threads_that_are_none_are_refused(threads, finished, tmp_path, world):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threads": threads}) + "\n")
    with pytest.raises(ValueError, match=r"run.json is damaged: threads is .*; give another out_dir"):
        run(world, small(epochs=1), tmp_path / "run")


@pytest.mark.parametrize("name", ["history.jsonl", "predictions.jsonl", "metrics.json", "train/best.json"])
def test_a_damaged_file_that_a_run_only_writes_is_written_again(name, finished, tmp_path, world):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\xff\x00")
    run(world, small(epochs=1), tmp_path / "run")
    if name != "train/best.json":
        assert contents(tmp_path / "run") == contents(finished)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(world, small(epochs=1), folder)
    return folder


def test_kept_weights_of_another_model_are_refused(world, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    other = papers.build(small(channels=3), world[0])
    checkpoint.save(other, tmp_path / "run" / "train" / "best")
    with pytest.raises(ValueError, match=r"best.safetensors does not fit the model of stage 'train': it has .*out_dir"):
        run(world, small(epochs=1), tmp_path / "run")


def test_a_run_without_a_result_writes_no_metrics(tmp_path):
    state = RunState(tmp_path)
    state.finish({}, None)
    assert not contents(tmp_path)
    state.finish({"brief": {}}, None)
    assert sorted(contents(tmp_path)) == ["history.jsonl", "metrics.json"]


def test_a_folder_is_refused_with_every_setting_that_differs(tmp_path):
    RunState(tmp_path).open(SETTINGS, resume=True)
    settings = {"seed": 1, "paper": {"stages": [{"epochs": 1}, {"epochs": 3}]}, "probes": {}}
    with pytest.raises(ValueError) as error:
        RunState(tmp_path).open(settings, resume=True)
    differences = "seed was 0 and is 1; paper.stages[1].epochs was 2 and is 3; probes was None and is {}"
    assert f"holds a run of other settings: {differences}. Give another out_dir" in str(error.value)
    with pytest.raises(ValueError, match="stages was .* and is "):
        RunState(tmp_path).open(SETTINGS | {"paper": {"stages": [{"epochs": 1}]}}, resume=True)


def test_many_and_long_differences_take_one_line(tmp_path):
    RunState(tmp_path).open(SETTINGS | {"seed": list(range(1000))} | {f"a{i}": i for i in range(9)}, resume=True)
    with pytest.raises(ValueError, match=r"seed was \[0, 1, 2, .*, \.\.\.\] and is 0; .*; and 5 more. Give") as error:
        RunState(tmp_path).open(SETTINGS, resume=True)
    assert len(str(error.value)) < 400


def test_a_folder_of_another_run_is_refused_and_stays_unchanged(world, tmp_path):
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


def test_a_folder_of_a_run_on_other_data_is_refused(world, tmp_path):
    """Another annotation of one sample, or another initial model."""
    run(world, small(epochs=1), tmp_path)
    first = replace(world[0].samples[0], relevant_windows=[[0.0, 2.0]])
    other = replace(world[0], samples=[first, *world[0].samples[1:]], _annotations=None)
    with pytest.raises(ValueError, match="train.digest was"):
        run((other, world[1]), small(epochs=1), tmp_path)
    retriever = papers.build(small(epochs=1), world[0], seed=9)
    with pytest.raises(ValueError, match="model.seed was 0 and is 9"):
        fit(retriever, *world, small(epochs=1), tmp_path, device="cpu", progress=False)


def test_a_full_disk_stops_the_run_and_leaves_no_incomplete_file(tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        f"from mrlib.train import main; main({[*COMMAND, '--epochs', '2', '--out', str(tmp_path / 'run')]!r})"
    )
    process = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, capture_output=True, text=True)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert (
        "cannot write" in process.stderr
        and "last.safetensors" in process.stderr
        and "free some space" in process.stderr
    )
    assert sorted(contents(tmp_path / "run")) == ["run.json"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limits[0] != 5000
    main([*COMMAND, "--epochs", "2", "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert "metrics.json" in contents(tmp_path / "run")
