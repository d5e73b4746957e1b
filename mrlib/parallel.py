"""What a training on several processes adds to one on one: who am I, wait, average the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def ranks() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait for the others."""
    if ranks()[1] > 1:
        dist.barrier()


def start(device: str, local_rank: int) -> None:
    """Join the processes that torchrun started, each on its own GPU unless `device` is "cpu"."""
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def same_everywhere(module: nn.Module) -> None:
    """Give every rank the weights of the first."""
    if ranks()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(module: nn.Module) -> None:
    """The mean over the ranks; a parameter that no rank used keeps no gradient."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    own = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
    flat = torch.cat([*own, used])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *gradients, used = flat.split([p.numel() for p in parameters] + [len(parameters)])
    for parameter, gradient, use in zip(parameters, gradients, used.tolist(), strict=True):
        if use:
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)


def average(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over the ranks."""
    if ranks()[1] == 1:
        return values
    totals = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return dict(zip(values, (totals / dist.get_world_size()).tolist(), strict=True))


def dealt(parts: Sequence[Any]) -> list[Any]:
    """Of a list dealt out to the ranks like cards, every rank's hand together again, in the order of the list."""
    world = ranks()[1]
    if world == 1:
        return list(parts)
    hands: list[list[Any]] = [[] for _ in range(world)]
    dist.all_gather_object(hands, list(parts))
    return [hands[k % world][k // world] for k in range(sum(map(len, hands)))]
