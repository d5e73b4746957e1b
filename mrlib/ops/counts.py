"""Counts that losses divide by, right in one process and in many."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def shared_count(n: int | Tensor) -> Tensor:
    """What to divide a sum by, so that gradients averaged over the ranks are those of the whole batch.

    With ranks r of R holding n_r items, the mean over all items is the average of `sum_r / (Σ n_r / R)`.

    n        items of this rank: samples, windows, clips
    returns  float32 scalar  n in one process, its average over the ranks in many; at least 1 / R
    """
    count = torch.as_tensor(n).detach().float()
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp(min=1)
    count = count.clone()
    dist.all_reduce(count)
    return count.clamp(min=1) / dist.get_world_size()
