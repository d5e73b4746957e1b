"""Devices, and distributed training helpers: rank, barrier, broadcast of weights, averages over the ranks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) if there is only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def _together() -> Iterator[None]:
    """All ranks exchange something in this block; if one has ended, a ConnectionError says so."""
    try:
        yield
    except RuntimeError as error:
        message = "another process of this run has ended; start the run again to go on from its last saved state"
        raise ConnectionError(message) from error


def barrier() -> None:
    """Wait until every rank has arrived."""
    if rank_and_world()[1] > 1:
        with _together():
            dist.barrier()


def on_first(action: Callable[[], Any]) -> None:
    """Let rank 0 act while the others wait; if it raises a ValueError or OSError, every rank raises it."""
    rank, world = rank_and_world()
    errors: list[Exception | None] = [None]
    if rank == 0:
        try:
            action()
        except (ValueError, OSError) as error:
            errors[0] = error
    if world > 1:
        with _together():
            dist.broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]


def find_device(name: str) -> torch.device:
    """The device of a name, "auto": CUDA if available; ValueError for one that this PyTorch does not find."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; known: auto, cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; known: auto, cpu, cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this PyTorch finds no CUDA device; take device auto or cpu")
    if device.index is not None and device.index >= (torch.cuda.device_count() if device.type == "cuda" else 1):
        raise ValueError(f"there is no device {name!r}; take device auto or cpu")
    return device


def start(device: str, local_rank: int) -> None:
    """Join the processes that torchrun started, each on a GPU of its own unless `device` is "cpu".

    raises  ConnectionError if the processes do not meet
    """
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    with _together():
        store, rank, world = next(rendezvous("env://"))
        store = dist.PrefixStore(_name_of_start(store, rank, world), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def _name_of_start(store: dist.Store, rank: int, world: int) -> str:
    """A new name on which all ranks agree, whatever an earlier start has left in the store.

    After a restart, the store of torchrun still has the addresses of processes that have ended, and others would wait
    for them. Each rank asks rank 0 under a name of its own. Rank 0 answers until all have confirmed, since what it
    reads first may be the question of a process that has ended. The number of restarts is no such name: several
    machines may count differently.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"ask/{rank}", name)
        agreed = store.get(f"answer/{name}").decode()  # waits for it
        store.set(f"confirm/{agreed}/{rank}", "")
        return agreed
    waiting = set(range(1, world))
    while waiting:
        for other in waiting:
            store.set(f"answer/{store.get(f'ask/{other}').decode()}", name)
        waiting = {other for other in waiting if not store.check([f"confirm/{name}/{other}"])}
        time.sleep(0.01 if waiting else 0)
    return name


def start_if_several(device: str) -> None:
    """`start`, if the variables of torchrun say that there are several processes; ValueError if they are wrong."""
    world, local_rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_RANK"))
    if world in ("", "1"):
        return
    if not (world.isdecimal() and local_rank.isdecimal()):
        named = f"WORLD_SIZE is {world!r} and LOCAL_RANK {local_rank!r}"
        raise ValueError(f"{named}; start several processes with torchrun, or unset both")
    start(device, int(local_rank))


def end() -> None:
    """Leave the processes that `start` has joined."""
    if rank_and_world()[1] > 1:
        dist.destroy_process_group()


def broadcast_weights(module: nn.Module) -> None:
    """Give every rank the weights of rank 0."""
    if rank_and_world()[1] > 1:
        with _together():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def add_up(x: Tensor) -> Tensor:
    """The sum of a tensor over the ranks; `x`, of the same shape and type everywhere, is overwritten with it."""
    with _together():
        dist.all_reduce(x)
    return x


def share_out(x: Tensor) -> list[Tensor]:
    """The tensor of every rank, in the order of the ranks; they have the same shape and type."""
    shares = [torch.empty_like(x) for _ in range(rank_and_world()[1])]
    with _together():
        dist.all_gather(shares, x)
    return shares


def of_first(x: Tensor) -> Tensor:
    """The tensor of rank 0; those of all ranks have the same shape and type."""
    x = x.contiguous()
    with _together():
        dist.broadcast(x, 0)
    return x


def average_gradients(module: nn.Module) -> None:
    """Average the gradients over the ranks; a parameter without a gradient on every rank keeps none."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    local = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([*local, used])  # in the type of the most precise, at least float32
    add_up(flat)
    flat /= dist.get_world_size()
    *gradients, used = flat.split([p.numel() for p in parameters] + [len(parameters)])
    for parameter, gradient, use in zip(parameters, gradients, used.tolist(), strict=True):
        if use:
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)


def average(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over the ranks."""
    if rank_and_world()[1] == 1:
        return values
    totals = add_up(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    return dict(zip(values, (totals / dist.get_world_size()).tolist(), strict=True))


def largest(value: int, device: torch.device) -> int:
    """The largest of a whole number of every rank."""
    if rank_and_world()[1] == 1:
        return value
    number = torch.tensor(value, device=device)
    with _together():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def gather(parts: Sequence[Any]) -> list[Any]:
    """Gather a list that was split round-robin over the ranks, in its original order."""
    world = rank_and_world()[1]
    if world == 1:
        return list(parts)
    shares: list[list[Any]] = [[] for _ in range(world)]
    with _together():
        dist.all_gather_object(shares, list(parts))
    return [shares[k % world][k // world] for k in range(sum(map(len, shares)))]
