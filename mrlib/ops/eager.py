"""Functions that torch.compile leaves as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: inside a compiled model, the function runs uncompiled, between two compiled parts.

    `torch.compiler.disable` does the same, but it imports torch's compiler where it is applied, which takes as long as
    importing torch; this decorator imports it where a compiled model is traced.
    """
    outside_graph = torch._disable_dynamo(
        function
    )  # the lazy form of `torch.compiler.disable`, which torch itself uses

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (outside_graph if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call
