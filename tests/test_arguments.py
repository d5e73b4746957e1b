"""Checks of settings: plain values, values of the right type, and the messages of errors; defaults of keywords."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mrlib.arguments import has_terminal, is_plain, keyword_defaults, printing, require, require_like


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, "text", [], [1, [2.0, None]], (1, "a"), {}, {"a": {"b": [1]}}], ids=repr
)
def test_values_that_json_restores_are_plain(value):
    assert is_plain(value)


@pytest.mark.parametrize(
    "value", [print, {1: "a"}, {"a": print}, [1, {2}], b"bytes", 1j, np.float64(1.0), torch.tensor(1.0)], ids=repr
)
def test_values_that_json_does_not_restore_are_not_plain(value):
    assert not is_plain(value)


@pytest.mark.parametrize(
    ("before", "value"),
    [(True, False), ("a", "b"), (3, 4), (3, -1), (0.5, 1), (0.5, 2.5), (None, "anything"), ([1], 3), ({}, "a")],
    ids=repr,
)
def test_a_value_of_the_same_kind_is_accepted(before, value):
    """A whole number for a number too; any value for None, a list or a dict, which are checked where they are read."""
    require_like(before, "lr", value)


@pytest.mark.parametrize(
    ("before", "value", "message"),
    [
        (True, 1, "lr must be true or false, not 1"),
        ("a", 1, "lr must be text, not 1"),
        ("a", None, "lr must be text, not None"),
        (3, 4.0, "lr must be a whole number, not 4.0"),
        (3, True, "lr must be a whole number, not True"),
        (0.5, "0.5", "lr must be a number, not '0.5'"),
        (0.5, False, "lr must be a number, not False"),
        (0.5, None, "lr must be a number, not None"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_name(before, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        require_like(before, "lr", value)


def test_require_names_the_setting_the_wanted_and_the_given_value():
    require(True, "width", -1, "above 0")
    with pytest.raises(ValueError, match="^width must be above 0, not 'wide'$"):
        require(False, "width", "wide", "above 0")


def test_keyword_defaults_are_those_of_keyword_only_parameters():
    """Parameters by position, and keywords without a default, are left out."""

    def build(width, heads=8, *, layers, dropout=0.1, beta=None, **options):
        return width, heads, layers, dropout, beta, options

    assert keyword_defaults(build) == {"dropout": 0.1, "beta": None}


def test_a_command_prints_what_no_encoding_has(capsys):
    with printing():
        print("a\ud800 zwölf")
    assert capsys.readouterr().out == "a\\ud800 zwölf\n"


def test_without_an_output_for_errors_there_is_no_terminal(monkeypatch):
    """As where a command is called with 2>&-, or by a program without a console."""
    monkeypatch.setattr(sys, "stderr", None)
    assert not has_terminal()


def test_a_command_whose_reader_has_left_ends_quietly():
    code = "from mrlib.arguments import printing\nwith printing():\n    print(100_000 * 'a')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
