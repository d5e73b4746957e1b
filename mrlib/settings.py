"""Checks of settings, so that a wrong one is refused where it is given and not an hour later."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any


def is_plain(value: Any) -> bool:
    """A number, text, truth value or None, or a list or dict of them: what JSON gives back as it was."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, NoneType)


def require_like(before: Any, name: str, value: Any) -> None:
    """A value of the kind that stood there; None, lists and tables are checked by the class that reads them."""
    if isinstance(before, bool | str):
        require(type(value) is type(before), name, value, "true or false" if isinstance(before, bool) else "text")
    elif isinstance(before, int | float):
        whole = isinstance(before, int)
        fits = type(value) is int or (not whole and type(value) is float)
        require(fits, name, value, "a whole number" if whole else "a number")


def require(fits: bool, name: str, value: Any, wanted: str) -> None:
    """ValueError that names the setting, what it must be and what it is."""
    if not fits:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
