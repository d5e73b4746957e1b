"""Checks of arguments and settings: a wrong value is refused where it is given, with a message that names it."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any


def is_plain(value: Any) -> bool:
    """Whether a value survives a round trip through JSON: a number, text, bool or None, or lists and dicts of them."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, NoneType)


def require_like(before: Any, name: str, value: Any) -> None:
    """ValueError unless `value` has the kind of `before`; None, lists and dicts are checked where they are read."""
    if isinstance(before, bool | str):
        require(type(value) is type(before), name, value, "true or false" if isinstance(before, bool) else "text")
    elif isinstance(before, int | float):
        needs_int = isinstance(before, int)
        fits = type(value) is int or (not needs_int and type(value) is float)
        require(fits, name, value, "a whole number" if needs_int else "a number")


def require(fits: bool, name: str, value: Any, wanted: str) -> None:
    """ValueError, naming the setting, what it must be and what it is, unless it fits."""
    if not fits:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function that have a default, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def shown(value: Any, most: int = 80) -> str:
    """A value as one line of about `most` characters: a plain value as Python writes it, others by their type."""
    if type(value) is str:
        return repr(value if len(value) <= most else value[: most - 3] + "...")
    if type(value) is int and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value) if type(value) in (int, float, bool, NoneType) else f"a {type(value).__name__}"


def has_terminal() -> bool:
    """Whether a progress bar can be seen: stderr is a terminal, and not closed."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def printing() -> Iterator[None]:
    """What a command does whose work is to print; a decorator of its `main`.

    Any text can be printed: what the encoding of the output lacks, as a broken file name, is escaped. If the reader of
    the output has left, as `head` does, the command ends quietly. A warning takes one line.
    """
    before = warnings.formatwarning
    warn_in_one_line()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which Python flushes when it ends
        sys.exit(128 + 13)  # as if ended by SIGPIPE
    finally:
        warnings.formatwarning = before


def warn_in_one_line() -> None:
    """Let a command print a warning as one line, without the line of code it comes from."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
