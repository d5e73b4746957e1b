"""Distributed training helpers: rank, barrier, broadcast of weights, averages over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) if there is only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait until every rank has arrived."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def start(device: str, local_rank: int) -> None:
    """Join the processes that torchrun started, each on a GPU of its own unless `device` is "cpu"."""
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def broadcast_weights(module: nn.Module) -> None:
    """Give every rank the weights of rank 0."""
    if rank_and_world()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients over the ranks; a parameter without a gradient on every rank keeps none."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    local = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
    flat = torch.cat([*local, used])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *gradients, used = flat.split([p.numel() for p in parameters] + [len(parameters)])
    for parameter, gradient, use in zip(parameters, gradients, used.tolist(), strict=True):
        if use:
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)


def average(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over the ranks."""
    if rank_and_world()[1] == 1:
        return values
    totals = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return dict(zip(values, (totals / dist.get_world_size()).tolist(), strict=True))


def gather(parts: Sequence[Any]) -> list[Any]:
    """Gather a list that was split round-robin over the ranks, in its original order."""
    world = rank_and_world()[1]
    if world == 1:
        return list(parts)
    shares: list[list[Any]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, list(parts))
    return [shares[k % world][k // world] for k in range(sum(map(len, shares)))]
