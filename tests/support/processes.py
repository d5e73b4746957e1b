"""Several processes of torch.distributed, for tests of what they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(function: Callable[[int], Any], folder: Path, world: int = 2) -> list[Any]:
    """What `function(rank)`, of a module, returns in each of so many processes on the CPU, in the order of the ranks.

    folder  empty; the processes meet there and leave their results, which must be tensors and plain values
    """
    mp.spawn(_run, (function, str(folder), world), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _run(rank: int, function: Callable[[int], Any], folder: str, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
