"""The command line of `mrlib.train`: its options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from mrlib import papers
from mrlib.probes import PROBES

MOST_THREADS = 1024


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options as attributes; arguments: None for those of the process."""
    return _add_options(
        argparse.ArgumentParser(prog="python -m mrlib.train", description="Train a paper through its stages.")
    ).parse_args(arguments)


def parse_words(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command that is not the process's own; ValueError if one is wrong."""
    return _add_options(_Strict(add_help=False, allow_abbrev=False)).parse_args(words)


class _Strict(argparse.ArgumentParser):
    """A parser that raises ValueError where others end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    add = parser.add_argument
    pairs: dict[str, Any] = {"type": _setting, "nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    add("paper", help=f"one of {', '.join(papers.PAPERS)}")
    add("--dataset", default="sim", help="sim, or the name of a dataset on disk")
    add("--root", help="folder of the dataset; default: its folder in $MRLIB_DATA")
    add("--size", help="small or paper; default: small for sim, paper for files")
    add("--preset", help="a named set of settings of the paper; default: the dataset's")
    add("--epochs", type=int, help="of the last stage; earlier ones are scaled")
    add("--set", **pairs, help="settings of the paper")
    add("--data", **pairs, help="settings of the dataset")
    add("--out", type=_folder, required=True, help="folder for checkpoints, history and predictions")
    add("--no-resume", action="store_true", help="refuse a folder that holds a run")
    add("--score", metavar="SPLIT", help="split whose scores are printed; default: validation")
    probes = f"score more data too: other splits, or the scored split changed by {', '.join(PROBES)}"
    add("--probe", nargs="+", action="extend", default=[], metavar="NAME", help=probes)
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    threads = "CPU threads; default: 1 for small models, which are no faster on more, else all"
    add("--threads", type=_threads, metavar="N", help=threads)
    add("--precision", default="fp32", choices=["fp32", "bf16"])
    add("--compile", action="store_true", help="run the model through torch.compile")
    return parser


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return text


def _threads(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_THREADS}")
    return int(text)


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a pair; a value that is not JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
