"""What goes into modules and comes out of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    given: tuple[Any, ...]
    gave: Any


def watched(modules: Iterable[nn.Module]) -> list[list[Call]]:
    """The calls of each module from now on."""
    seen: list[list[Call]] = []
    for module in modules:
        calls: list[Call] = []
        module.register_forward_hook(lambda _, given, gave, calls=calls: calls.append(Call(given, gave)))
        seen.append(calls)
    return seen
