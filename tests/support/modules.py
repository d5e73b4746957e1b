"""Modules: what goes into them and comes out of them, how large they are, other weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mrlib.data import Batch
from mrlib.retriever import MomentRetriever


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


def count(module: nn.Module) -> int:
    """The number of its parameters."""
    return sum(p.numel() for p in module.parameters())


def shaken(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with no parameter as it was initialised."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return module.eval()


def outputs_of(retriever: MomentRetriever, batch: Batch) -> dict[str, Tensor]:
    """Of a retriever of clips: probabilities, spans and saliency, by the names of the official network."""
    aligned, outputs = retriever(batch)
    ours = {"prob": outputs["logits"].sigmoid(), "spans": outputs["spans"], "saliency": aligned.saliency}
    return {name: x for name, x in ours.items() if x is not None}
