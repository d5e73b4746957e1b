"""Layers of long videos that keep their inputs only and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
_LONG = 512  # vectors


def recomputed(length: int, function: Callable[P, Tensor], *args: P.args, **kwargs: P.kwargs) -> Tensor:
    """function(*args, **kwargs); over a length of more than 512, nothing inside is kept for the backward pass.

    There it runs once more, with the same dropout, which takes about a quarter of a step. On the CPU only: on a GPU the
    time counts for more than the memory.
    """
    long = length > _LONG and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not long or not all(x.device.type == "cpu" for x in args if isinstance(x, Tensor)):
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)
