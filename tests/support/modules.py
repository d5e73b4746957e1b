"""Modules: their calls, their number of parameters, other weights, the outputs of retrievers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mrlib.data import Batch
from mrlib.retriever import MomentRetriever


class Call(NamedTuple):
    """The arguments and the result of one call of a module."""

    given: tuple[Any, ...]
    gave: Any


def watched(modules: Iterable[nn.Module]) -> list[list[Call]]:
    """The calls of each module from now on; the lists grow with every call."""
    all_calls: list[list[Call]] = []
    for module in modules:
        calls: list[Call] = []
        module.register_forward_hook(lambda _, given, gave, calls=calls: calls.append(Call(given, gave)))
        all_calls.append(calls)
    return all_calls


def count(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


def shaken(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, after a random change of all its parameters."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return module.eval()


def outputs_of(retriever: MomentRetriever, batch: Batch) -> dict[str, Tensor]:
    """Probabilities, spans and saliency of a boundary detector, under the names of `official_univtg.Official`."""
    aligned, outputs = retriever(batch)
    named = {"prob": outputs["logits"].sigmoid(), "spans": outputs["spans"], "saliency": aligned.saliency}
    return {name: x for name, x in named.items() if x is not None}
