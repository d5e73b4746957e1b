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
        (["--threads", "-1"], "'-1' is not a whole number from 1 to 1024"),
        (["--threads", "0"], "'0' is not a whole number from 1 to 1024"),
        (["--threads", "1e9"], "'1e9' is not a whole number from 1 to 1024"),
        (["--out", ""], "the name of the folder is empty"),
    ],
)
def test_a_malformed_option_is_refused_with_its_value(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["f2sgd", "--out", "nowhere", *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "mps"], "device 'mps' is not supported; known: auto, cpu, cuda"),
        (["--device", "xpu"], "device 'xpu' is not supported"),
        (["--device", "meta"], "device 'meta' is not supported"),
        (["--device", "cpu:7"], "there is no device 'cpu:7'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--seed", str(10**30)], "seed must be a whole number of 64 bits"),
        (["--data", "n=abc"], "n must be a whole number"),
        (["--data", "n=1e9"], "n must be a whole number"),
        (["--data", f"n={10**12}"], "n must be a whole number from 1 to 1000000"),
        (["--data", "blur=abc"], "blur must be a number"),
        (["--data", "blur=Infinity"], "blur must be a number"),
        (["--data", "n_train=NaN"], "n_train must be a number"),
        (["--data", "seed=abc"], "seed must be a whole number"),
        (["--data", "streams=5"], "streams must be some of"),
        (["--data", "streams=[[1]]"], "streams must be some of"),
        (["--data", 'preset={"a": 1}'], "unknown preset {'a': 1}"),
        (["--data", "absent=maybe"], "absent must be true or false"),
        (["--data", "root=/etc"], "data must not have 'root'"),
        (["--data", "split=test"], "data must not have 'split'"),
        (["--data", "colour=1"], "unknown knob"),
        (["--set", "size=paper"], "settings must not have 'size'"),
        (["--set", "name=matr"], "settings must not have 'name'"),
        (["--set", "epochs=many"], "epochs must be a whole number"),
        (["--set", "batch_size=1.5"], "batch_size must be a whole number"),
        (["--set", f"channels={10**30}"], "the model would have more than"),
        (["--set", "channels=-1"], "channels must be at least 1"),
        (["--set", "lr=fast"], "lr must be a number"),
        (["--set", f"a={5000 * '1'}"], "unknown setting 'a'"),
        (["--set", f"kernel={1000 * '['}"], "kernel must be"),
        (["--out", "/dev/null"], "/dev/null is a file; give a folder"),
        (["--out", "/dev/null/run"], "cannot lock out_dir /dev/null/run: Not a directory"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "a\0b"], "null"),
        (["--dataset", "none"], "unknown dataset 'none'"),
        (["--dataset", "tacos", "--root", "/nowhere", "--data", "colour=1"], "tacos has no option colour"),
        (["--score", "none"], "unknown split 'none'"),
        (["--probe", "none"], "probe 'none' is neither"),
        (["--preset", "none"], "unknown preset 'none'"),
        (["--size", "huge"], "unknown size 'huge'"),
        (["--epochs", "0"], "epochs must be a whole number from 1 on"),
    ],
)
def test_a_wrong_value_is_one_line(words, message, tmp_path, monkeypatch):
    """The whole command, as far as it goes; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    data = [] if "--dataset" in words or "--data" in words else ["--data", "n=8"]
    with pytest.raises(SystemExit) as end:
        main(["f2sgd", "--size", "small", *data, "--out", "run", "--device", "cpu", *words])
    assert str(end.value).startswith("error: ") and message in str(end.value) and "\n" not in str(end.value)
    assert not list(tmp_path.iterdir())


def test_words_of_another_command_are_parsed_or_refused():
    assert cli.parse_words(["f2sgd", "--out", "x", "--seed", "3"]).seed == 3
    for words in (["--help"], ["f2sgd", "--out"], ["f2sgd", "--out", "x", "--see", "3"], []):
        with pytest.raises(ValueError, match="argument"):
            cli.parse_words(words)


def test_repeated_options_add_settings(tmp_path):
    command = [*COMMAND, "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run"), "--data", "seed=5"]
    main([*command, "--set", "candidates=3"])
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["train"]["samples"], settings["train"]["seed"]) == (48, 5)
    options = settings["paper"]["detector"]["options"]
    assert (options["kernel"], options["candidates"]) == (5, 3)
