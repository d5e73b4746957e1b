"""Run a function in several processes of torch.distributed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# What the server imports, every process that it forks has: an optimiser imports torch's compiler, which takes seconds
PRELOADED = ["mrlib.train", "scipy.optimize", "torch._dynamo"]


def in_processes(function: Callable[[int], Any], folder: Path, world: int = 2) -> list[Any]:
    """Call `function(rank)` in `world` processes on the CPU; returns the results in the order of the ranks.

    The processes are forked by a server, which all calls share. They have its environment, not that of the caller.

    function  of a module, or a `partial` of one, so that a process can import it; it returns tensors and plain values
    folder    empty; the processes meet and write their results there
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(_run, (function, str(folder), world), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _run(rank: int, function: Callable[[int], Any], folder: str, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
