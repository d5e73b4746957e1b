"""Grids: one row for each arm and seed, which its command reproduces."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from mrlib import grid, jobs, locks, papers
from mrlib.grid import Arm
from mrlib.train import main
from tests.support.executors import dask_cluster, opened
from tests.support.runs import ONE_THREAD

TINY = {"epochs": 1, "kernel": 3, "channels": 2}
ARMS = {"full": Arm("f2sgd", TINY, {"n": 32}), "raw": Arm("f2sgd", TINY | {"aligner": "raw"}, {"n": 32})}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "00_grid.csv"
    return path, grid.run(path, ARMS, [0, 1])


def test_every_arm_and_seed_has_a_row(written):
    path, rows = written
    assert rows[["arm", "seed"]].values.tolist() == [["full", 0], ["full", 1], ["raw", 0], ["raw", 1]]
    assert grid.read(path, ARMS, [0, 1]).equals(rows)
    assert rows["parameters"].gt(0).all() and rows["MR-full-mAP"].between(0, 100).all()


def test_the_command_of_a_row_prints_its_scores(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = written[1].iloc[1]
    words = shlex.split(row["command"])
    assert words[:3] == ["python", "-m", "mrlib.train"]
    main([*words[3:], "--device", "cpu"])
    printed = capsys.readouterr().out
    assert '"whole video"' in printed and '"centred 60 %"' in printed
    assert f'"MR-full-mAP": {row["MR-full-mAP"]}' in printed and f'"MR-full-R1@0.5": {row["MR-full-R1@0.5"]}' in printed


def test_a_row_and_its_command_have_the_probes_of_the_arm(written, tmp_path):
    plain = ARMS["full"]
    arm = replace(plain, probes=("val_shift", "masked_mean"))
    assert "--probe" not in plain.command(0) and "--probe val_shift masked_mean --score test" in arm.command(0)
    assert arm.identity(0)["paper"] == plain.identity(0)["paper"]
    row = grid.run(tmp_path / "probed.csv", {"full": arm}, [0]).iloc[0]
    scores = written[1].iloc[0]
    assert row["MR-full-mAP"] == scores["MR-full-mAP"]
    columns = [f"{name}/{score}" for name in arm.probes for score in grid.PROBED]
    assert row[columns].between(0, 100).all() and not set(columns) & set(scores.index)
    assert grid.read(tmp_path / "probed.csv", {"full": arm}, [0]).iloc[0]["command"] == arm.command(0)
    with pytest.raises(ValueError, match="no row for arm 'full', seed 0"):
        grid.read(tmp_path / "probed.csv", {"full": plain}, [0])


def test_a_row_in_the_file_is_not_trained_again(written, monkeypatch):
    path, rows = written

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(jobs.subprocess, "Popen", never)
    assert grid.run(path, ARMS, [0, 1]).equals(rows)


def test_a_row_of_other_settings_does_not_count(written):
    path, _ = written
    with pytest.raises(ValueError, match="no row for arm 'full', seed 0, with these settings"):
        grid.read(path, {"full": Arm("f2sgd", TINY | {"kernel": 5})}, [0])
    with pytest.raises(ValueError, match="no row for arm 'full', seed 7"):
        grid.read(path, ARMS, [0, 7])


def test_a_summary_has_mean_and_spread():
    rows = pd.DataFrame({"arm": ["b", "b", "a", "a"], "seed": [0, 1, 0, 1], "x": [1.0, 3.0, 5.0, 5.0]})
    table = grid.summary(rows, ["x"])
    assert table.index.tolist() == ["b", "a"]
    assert table["x", "mean"].tolist() == [2, 5] and table["x", "spread"].tolist() == [2**0.5, 0]


def test_a_row_of_another_preset_does_not_count(written, monkeypatch):
    path, _ = written
    monkeypatch.setitem(papers.PRESETS["f2sgd"], "small", papers.PRESETS["f2sgd"]["small"] | {"lr": 0.5})
    with pytest.raises(ValueError, match="no row for arm 'full', seed 0"):
        grid.read(path, ARMS, [0, 1])


def test_the_fingerprint_of_a_row_depends_on_settings_that_differ_from_their_default(monkeypatch):
    """So a new field with a default changes no fingerprint."""
    arm = Arm("f2sgd")
    before = arm.identity(0)["paper"]
    assert '"start"' not in json.dumps(grid._changed(papers.get("f2sgd", "small")))
    stage = papers.PAPERS["f2sgd"].stages[0]
    slower = replace(stage, optimiser=replace(stage.optimiser, weight_decay=0.5))
    monkeypatch.setitem(papers.PAPERS, "f2sgd", replace(papers.PAPERS["f2sgd"], stages=(slower,)))
    assert arm.identity(0)["paper"] != before


def test_a_row_that_is_trained_again_has_the_same_scores(written):
    """In another process, by the command of the row."""
    scores = grid.retrain_row(written[0], "raw", 1)
    row = written[1].set_index(["arm", "seed"]).loc[("raw", 1)]
    assert {"MR-full-R1@0.5", "MR-full-mAP", "mIoU", "HL-min-VeryGood-mAP"} <= set(scores.index)
    assert scores["row"].to_dict() == {name: row[name] for name in scores.index}
    assert scores["again"].equals(scores["row"].rename("again"))
    both_seeds = written[1][written[1]["arm"] == "raw"]["MR-full-mAP"]
    assert scores["spread"]["MR-full-mAP"] == both_seeds.std()


def test_the_command_line_trains_rows_again_and_prints_scores_that_differ(written, tmp_path, capsys):
    path = tmp_path / "00_grid.csv"
    rows = written[1].assign(**{"MR-full-mAP": written[1]["MR-full-mAP"] + 1})
    rows.to_csv(path, index=False)
    with pytest.raises(SystemExit) as end:
        grid.main([str(path), "--arm", "full", "--seed", "1", "--any", "1"])
    printed = capsys.readouterr().out
    assert end.value.code == 1 and "full, seed 1: 14 of 15 scores are the same" in printed and "MR-full-mAP" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -c \"open('{0}', 'w')\" --out x", "is not a command of mrlib.train"),
        ("touch {0}", "is not a command of mrlib.train"),
        ("python -m mrlib.train f2sgd --size small --score test --out x; touch {0}", "unrecognized arguments"),
        ("python -m mrlib.metrics {0} {0}", "is not a command of mrlib.train"),
        ("python -i -m mrlib.train f2sgd --out x", "is not a command of mrlib.train"),
        ("python -m mrlib.train f2sgd --size small --score test --out x --dataset tacos", "the option 'dataset'"),
        ("python -m mrlib.train f2sgd --size small --score test --out x --root {0}", "the option 'root'"),
        ("python -m mrlib.train f2sgd --size small --score test --out x --device cuda", "the option 'device'"),
        ("python -m mrlib.train f2sgd --size small --score test --out x --no-resume", "the option 'no_resume'"),
        ("python -m mrlib.train f2sgd --size small --out x", "lacks the option 'score'"),
        ("python -m mrlib.train f2sgd --size small --score test", "the following arguments are required: --out"),
        ("python -m mrlib.train --help", "arguments are required"),
        ("python -m mrlib.train f2sgd 'x", "No closing quotation"),
        ("", "no command"),
    ],
)
def test_a_row_runs_nothing_but_a_training_run_of_its_arm(command, message, written, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was run")

    monkeypatch.setattr(jobs.subprocess, "Popen", never)
    path, victim = tmp_path / "00_grid.csv", tmp_path / "victim"
    written[1].assign(command=command.format(victim)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"00_grid.csv.*{re.escape(message)}"):
        grid.retrain_row(path, "full", 0)
    with pytest.raises(SystemExit) as end:
        grid.main([str(path), "--any", "1"])
    assert str(end.value).startswith(f"error: {path}") and "\n" not in str(end.value)
    assert not victim.exists()


def test_the_command_of_an_arm_says_which_arm_it_is():
    settings = {"epochs": 1, "aligner": "raw", "weights": {"map": 2.0}, "beta": None, "reweight": False}
    for arm in (ARMS["full"], Arm("amr", settings, {"preset": "blur"}, "paper", "val", ("val_shift", "masked_mean"))):
        assert Arm.from_command(arm.command(3)) == (arm, 3)


LONG = Arm("f2sgd", {"epochs": 30, "kernel": 3, "channels": 2}, {"n": 64})


@pytest.fixture(scope="module")
def whole():
    """The row of LONG when nothing stops it, without its seconds."""
    return {name: value for name, value in grid.train(LONG, 0).items() if name != "train_s"}


RUN = """
import signal
import sys
from mrlib import grid
from mrlib.grid import Arm
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    arm = Arm("f2sgd", {"epochs": 30, "kernel": 3, "channels": 2}, {"n": 64})
    print(grid.run(sys.argv[1], {"long": arm}, [0], processes=1))
"""


def children(pid):
    return [int(x) for file in Path(f"/proc/{pid}/task").glob("*/children") for x in file.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_its_row_goes_on(number, whole, tmp_path):
    """The row goes on where it was, and its scores are those of a whole run."""
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "00_grid.csv")]
    env = ONE_THREAD | {"PYTHONPATH": str(Path(grid.__file__).resolve().parents[1])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".00_grid.csv.runs/*/resume.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(number)
    process.wait(60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    assert workers and not (tmp_path / "00_grid.csv").exists()
    history = next(tmp_path.glob(".00_grid.csv.runs/*/history.jsonl"))
    assert 0 < len(history.read_text().splitlines()) < 30
    again = grid.run(tmp_path / "00_grid.csv", {"long": LONG}, [0], processes=1).iloc[0].to_dict()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00_grid.csv", "run.py"]
    assert {k: again[k] for k in whole} == whole


SCORES = ["MR-full-mAP", "MR-full-R1@0.5", "steps", "parameters", "torch", "paper", "command"]


@pytest.mark.parametrize("kind", ["threads", "dask"])
def test_rows_of_any_executor_are_those_of_this_machine(kind, written, tmp_path):
    """Two rows at the same time, whose random numbers do not mix; the executor stays open."""
    with opened(kind) as executor:
        rows = grid.run(tmp_path / "00_grid.csv", ARMS, [0], executor)
        assert executor.submit(abs, -1).result() == 1
    assert rows[SCORES].equals(written[1].query("seed == 0").reset_index(drop=True)[SCORES])
    assert [file.name for file in tmp_path.iterdir()] == ["00_grid.csv"]


def long_run(folder: Path) -> Path:
    """The folder of the training run of LONG beside a grid."""
    return folder / ".00_grid.csv.runs" / grid._digest(json.dumps(LONG.identity(0)))


def epochs(run: Path) -> int:
    """How many epochs a training run has done."""
    history = run / "history.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def process_of(run: Path) -> int:
    """The process of a training run, when it has done an epoch."""
    deadline = time.monotonic() + 300
    while not epochs(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads((run / ".lock").read_text())["process"]


def test_a_row_that_is_lost_is_named_and_goes_on_from_its_saved_step(written, whole, tmp_path):
    """Its process is killed with the lock of its folder; the other row is written."""
    path, arms = tmp_path / "00_grid.csv", {"long": LONG, "raw": ARMS["raw"]}

    killer = threading.Thread(target=lambda: os.kill(process_of(long_run(tmp_path)), signal.SIGKILL))
    killer.start()
    with pytest.raises(RuntimeError, match="^1 of 2 rows were trained.*from its last saved step") as failure:
        grid.run(path, arms, [0])
    killer.join()
    assert f"arm 'long', seed 0: its process was killed by SIGKILL\n    {LONG.command(0)}" in str(failure.value)
    row = grid.read(path, {"raw": ARMS["raw"]}, [0]).iloc[0]
    assert row["MR-full-mAP"] == written[1].set_index(["arm", "seed"]).loc[("raw", 0), "MR-full-mAP"]
    assert 0 < epochs(long_run(tmp_path)) < 30
    again = grid.run(path, arms, [0]).iloc[0].to_dict()
    assert {k: again[k] for k in whole} == whole
    assert [file.name for file in tmp_path.iterdir()] == ["00_grid.csv"]


def test_a_row_whose_worker_dies_goes_on_at_another_worker_of_dask(whole, tmp_path):
    """The first one's process saves its last step and frees the row's folder."""
    with dask_cluster() as cluster:
        executor = cluster.get_client().get_executor()
        killer = threading.Thread(target=lambda: os.kill(parent(process_of(long_run(tmp_path))), signal.SIGKILL))
        killer.start()
        row = grid.run(tmp_path / "00_grid.csv", {"long": LONG}, [0], executor).iloc[0].to_dict()
        killer.join()
    assert {k: row[k] for k in whole} == whole


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_row_with_an_error_is_named_when_the_others_are_written(tmp_path):
    arms = {"bad": Arm("f2sgd", TINY, {"n": 32, "nothing": 1}), "raw": ARMS["raw"]}
    with pytest.raises(RuntimeError) as failure:
        grid.run(tmp_path / "00_grid.csv", arms, [0])
    lines = str(failure.value).splitlines()
    assert lines[0].startswith("1 of 2 rows were trained and are in ")
    assert lines[1].startswith("arm 'bad', seed 0: ") and "nothing" in lines[1]
    assert lines[2] == f"    {arms['bad'].command(0)}" and len(lines) == 3
    assert len(grid.read(tmp_path / "00_grid.csv", {"raw": ARMS["raw"]}, [0])) == 1


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    for options, message in (
        ({"executor": 2}, "executor must be a concurrent.futures.Executor, not 2"),
        ({"executor": closed}, "executor takes no calls: .* after shutdown; give one that is open"),
        ({"processes": 0}, "processes must be a whole number from 1, not 0"),
        ({"seeds": [0.5]}, "seed must be a whole number, not 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.run(tmp_path / "00_grid.csv", ARMS, **{"seeds": [0], **options})
        assert not any(tmp_path.iterdir())


def test_a_script_that_does_not_guard_its_run_is_told_so(tmp_path):
    """A worker imports the script, and would wait for the run that waits for it."""
    (tmp_path / "run.py").write_text(RUN.replace('if __name__ == "__main__":', "if True:"))
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "00_grid.csv")]
    env = ONE_THREAD | {"PYTHONPATH": str(Path(grid.__file__).resolve().parents[1])}
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1 and "put what it does under if __name__ == '__main__':" in process.stderr


PARTS = """
import sys
from concurrent.futures import ProcessPoolExecutor
from mrlib import grid, papers

papers.DETECTORS["mine"] = lambda width: papers.DETECTORS["boundary"](width)

if __name__ == "__main__":
    arm = grid.Arm("f2sgd", {"epochs": 1, "aligner": "raw", "detector": "mine"}, {"n": 32})
    with ProcessPoolExecutor(1) as executor:
        print(grid.run(sys.argv[1], {"mine": arm}, [0], executor)["MR-full-mAP"][0])
"""


def test_an_arm_may_have_a_part_of_the_script(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    command = [sys.executable, str(tmp_path / "parts.py"), str(tmp_path / "00_grid.csv")]
    env = ONE_THREAD | {"PYTHONPATH": str(Path(grid.__file__).resolve().parents[1])}
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert 0 <= float(process.stdout) <= 100


def test_a_worker_with_another_version_of_mrlib_is_refused():
    identity = ARMS["raw"].identity(0) | {"paper": "f2sgd-00000000"}
    with pytest.raises(ValueError, match="mrlib of .* has other settings for this arm; install the same version"):
        grid.train_row(ARMS["raw"].plain(), 0, identity=identity)


def test_an_arm_of_any_class_is_submitted_as_plain_values(written, tmp_path):
    """One of a notebook cannot be imported by a worker."""

    class Own(Arm):
        pass

    raw = ARMS["raw"]
    arm = Own("f2sgd", MappingProxyType(raw.settings), MappingProxyType(raw.data))
    with opened("spawn") as executor:
        row = grid.run(tmp_path / "00_grid.csv", {"raw": arm}, np.arange(1), executor).iloc[0]
    assert row["MR-full-mAP"] == written[1].set_index(["arm", "seed"]).loc[("raw", 0), "MR-full-mAP"]


def test_what_a_kill_after_the_last_row_leaves_is_removed(written, tmp_path):
    """Of rows that the file holds; another arm that was killed can still go on."""
    file, runs = tmp_path / "00_grid.csv", tmp_path / ".00_grid.csv.runs"
    file.write_bytes(written[0].read_bytes())
    done, other = (
        runs / grid._digest(json.dumps(arm.identity(0))) for arm in (ARMS["full"], Arm("f2sgd", {"epochs": 2}))
    )
    for folder in (done, other):
        folder.mkdir(parents=True)
    grid.run(file, ARMS, [0, 1])
    assert list(runs.iterdir()) == [other]
    other.rmdir()
    grid.run(file, ARMS, [0, 1])
    assert list(tmp_path.iterdir()) == [file]


def test_a_second_run_of_a_file_waits_and_trains_nothing_twice(written, tmp_path, monkeypatch, capsys):
    """The first one writes the file while the second one waits for it."""
    path = tmp_path / "00_grid.csv"
    held = threading.Event()

    def first() -> None:
        with locks.hold(tmp_path / ".00_grid.csv.lock", "the grid"):
            held.set()
            time.sleep(0.5)
            shutil.copy(written[0], path)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, **__: pytest.fail("trained again"))
    assert grid.run(path, ARMS, [0, 1]).equals(written[1])
    assert f"grid {path} is in use by process {os.getpid()} on" in capsys.readouterr().err
    thread.join()


def test_a_damaged_file_is_refused_before_anything_is_trained(written, tmp_path):
    path = tmp_path / "00_grid.csv"
    path.write_bytes(written[0].read_bytes()[:-200])
    for call in (lambda: grid.run(path, ARMS, [0]), lambda: grid.read(path, ARMS, [0])):
        with pytest.raises(ValueError, match="00_grid.csv is no grid, or damaged"):
            call()
    with pytest.raises(ValueError, match="00_grid.csv is no grid, or damaged"):
        grid.retrain_row(path, "full", 0)
    with pytest.raises(SystemExit, match="error: .*00_grid.csv is no grid, or damaged"):
        grid.main([str(path)])


def test_training_an_unknown_row_again_is_refused(written, tmp_path):
    path = written[0]
    with pytest.raises(ValueError, match=r"no row for arm 'full', seed 7; it has the seeds \[0, 1\]"):
        grid.retrain_row(path, "full", 7)
    with pytest.raises(ValueError, match=r"no row for arm 'no', seed 0; it has \['full', 'raw'\]"):
        grid.retrain_row(path, "no", 0)
    with pytest.raises(SystemExit, match="has no such row; its arms are full, raw"):
        grid.main([str(path), "--arm", "no"])
    fewer = tmp_path / "fewer.csv"
    written[1].drop(columns="mIoU").to_csv(fewer, index=False)
    with pytest.raises(ValueError, match="fewer.csv has no column 'mIoU'"):
        grid.retrain_row(fewer, "full", 0)
    broken = tmp_path / "broken.csv"
    written[1].assign(command=written[1]["command"].str.replace("f2sgd", "nothing")).to_csv(broken, index=False)
    with pytest.raises(RuntimeError, match="unknown paper"):
        grid.retrain_row(broken, "full", 0)
