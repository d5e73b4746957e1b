"""The options of `python -m mrlib.train`."""

import json

import pytest

from mrlib.train import main
from mrlib.training import cli
from tests.support.runs import COMMAND


def test_only_a_paper_and_a_folder_are_needed():
    options = vars(cli.parse(["f2sgd", "--out", "runs/first"]))
    assert {name: value for name, value in options.items() if value or type(value) is int} == {
        "paper": "f2sgd",
        "dataset": "sim",
        "out": "runs/first",
        "seed": 0,
        "device": "auto",
        "precision": "fp32",
    }


def test_the_value_of_a_setting_is_json_or_else_text():
    words = ["kernel=5", "lr=1e-3", "reweight=false", 'weights={"map": 2}', "keep=mIoU + MR-full-R1@0.5", "head="]
    options = cli.parse(["f2sgd", "--out", "x", "--set", *words, "--data", "streams=joint", "--probe", "a", "b"])
    assert dict(options.set) == {
        "kernel": 5,
        "lr": 1e-3,
        "reweight": False,
        "weights": {"map": 2},
        "keep": "mIoU + MR-full-R1@0.5",
        "head": "",
    }
    assert dict(options.data) == {"streams": "joint"} and options.probe == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "kernel"], "'kernel' is not NAME=VALUE"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--seed", "one"], "invalid int value: 'one'"),
    ],
)
def test_a_malformed_option_is_refused_with_its_value(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["f2sgd", "--out", "nowhere", *words])
    assert message in capsys.readouterr().err


def test_repeated_options_add_settings(tmp_path):
    command = [*COMMAND, "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run"), "--data", "seed=5"]
    main([*command, "--set", "candidates=3"])
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["train"]["samples"], settings["train"]["seed"]) == (48, 5)
    options = settings["paper"]["detector"]["options"]
    assert (options["kernel"], options["candidates"]) == (5, 3)
