"""Runs that signals stop at a step, and go on from it."""

import functools
import itertools
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from mrlib.training import stopping
from mrlib.training.trainer import Trainer
from tests.support.processes import in_processes
from tests.support.runs import COMMAND, ONE_THREAD, contents, open_world, run, small

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    return open_world()


def signal_in_step(monkeypatch, number, *signals):
    """Let this process get signals in the training step of that number, counted from 1 over all runs from now on."""
    steps, train_step = itertools.count(1), Trainer._train_step

    def interrupted(self, batch, where):
        values = train_step(self, batch, where)
        if next(steps) == number:
            for each in signals:
                signal.raise_signal(each)
        return values

    monkeypatch.setattr(Trainer, "_train_step", interrupted)


@pytest.fixture(scope="module")
def two_stages():
    """Two stages of two and one epochs, of three steps each; the second has a teacher and starts from the first."""
    first = replace(small().stages[0], name="first", epochs=2)
    second = replace(first, name="second", epochs=1, start=("first", "best"))
    return replace(small(), stages=(first, second))


@pytest.fixture(scope="module")
def whole(world, two_stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(world, two_stages, folder), contents(folder)


@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_that_ctrl_c_stops_at_any_step_goes_on_to_the_same_bytes(
    step, world, two_stages, whole, tmp_path, capsys
):
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, step, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"^stopped after step .* and the same command goes on from it$"):
            run(world, two_stages, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    place = f"step {(step - 1) % 3 + 1} of 3 in epoch {(step - 1) % 6 // 3 + 1} of stage"
    assert place in line and str(tmp_path) in line
    assert ".lock" not in contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        steps, train_step = [], Trainer._train_step
        patch.setattr(Trainer, "_train_step", lambda self, *given: steps.append(1) or train_step(self, *given))
        history, weights = run(world, two_stages, tmp_path)
    assert len(steps) == 9 - step
    assert contents(tmp_path) == whole[1] and history.rows == whole[0][0].rows
    assert all(torch.equal(weights[name], whole[0][1][name]) for name in weights)


def test_sigterm_ends_with_its_status_and_without_a_folder_nothing_is_saved(world, monkeypatch, capsys):
    signal_in_step(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run(world, small(epochs=1))
    assert end.value.code == 143
    assert capsys.readouterr().err == "stopped after step 2 of 3 in epoch 1 of stage 'train'; nothing is saved\n"


def test_a_second_ctrl_c_stops_at_once(world, tmp_path, monkeypatch, capsys):
    """In the middle of a step, so that there is nothing new to save."""
    signal_in_step(monkeypatch, 2, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(world, small(epochs=1), tmp_path)
    assert sorted(contents(tmp_path)) == ["run.json"] and capsys.readouterr().err == ""


def test_earlier_handlers_are_restored_and_ignored_signals_stay_ignored(world):
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append("mine")), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.at_next_step(None):
            signal.raise_signal(signal.SIGINT)
            assert stopping.requested(CPU) == 0
            signal.raise_signal(signal.SIGTERM)
            assert stopping.requested(CPU) == signal.SIGTERM
        assert stopping.requested(CPU) == 0
        signal.raise_signal(signal.SIGTERM)
        assert got == ["mine"]
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_a_run_inside_another_one_leaves_the_signal_to_it(capsys):
    """As the two models of a stage that mines: the outer run names its own folder."""
    with pytest.raises(KeyboardInterrupt, match="outer holds"), stopping.at_next_step("outer"):
        signal.raise_signal(signal.SIGINT)
        with stopping.at_next_step("inner"):
            raise stopping.Stopped(stopping.requested(CPU), "after step 1")


def test_in_another_thread_signals_are_not_touched(world):
    found = []

    def train() -> None:
        with stopping.at_next_step(None):
            found.append((signal.getsignal(signal.SIGINT), stopping.requested(CPU)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGINT), 0)]


def stop_second_rank(rank, folder):
    """A run that is never stopped, and one in which rank 1 gets the signal in its second step; then it goes on."""
    world, paper = open_world(), small(epochs=2)
    run(world, paper, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            signal_in_step(patch, 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(world, paper, folder / "stopped")
    run(world, paper, folder / "stopped")
    return str(stopped.value)


def test_two_processes_stop_at_the_same_step_and_go_on_to_the_same_bytes(tmp_path):
    (tmp_path / "ranks").mkdir()
    for line in in_processes(functools.partial(stop_second_rank, folder=tmp_path), tmp_path / "ranks"):
        assert "after step 2 of 3 in epoch 1" in line
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_ends_with_one_line_and_the_status_of_the_signal(number, status, tmp_path):
    command = [sys.executable, "-m", "mrlib.train", *COMMAND, "--epochs", "1000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "history.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    (line,) = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == status
    assert line.startswith("stopped after step ") and line.endswith("the same command goes on from it")


def test_a_command_that_is_stopped_before_it_trains_says_so(capfd):
    for number, status, name in ((signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")):
        with pytest.raises(SystemExit) as end, stopping.with_status():
            signal.raise_signal(number)
        assert end.value.code == status
        assert capfd.readouterr().err == f"stopped by {name}; the same command goes on from what is saved\n"
