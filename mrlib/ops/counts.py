"""Divisors of sums in losses, right on one process and on several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def shared_count(n: int | Tensor) -> Tensor:
    """The number to divide a sum by, so that gradients averaged over the ranks are those of the whole batch.

    If rank r of R holds n_r items, the mean over all items is the average over the ranks of `sum_r / (Σ n_r / R)`.

    n        number of items of this rank: samples, windows, clips
    returns  float32 scalar without gradient  n on one process, its average over the ranks on several; at least 1 / R
    """
    count = torch.as_tensor(n).detach().float()
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp(min=1)
    count = count.clone()  # all_reduce writes into it, and it may share memory with n
    dist.all_reduce(count)
    return count.clamp(min=1) / dist.get_world_size()
