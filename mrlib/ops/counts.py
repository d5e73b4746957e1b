"""Divisors of sums in losses, right on one process and on several."""

from __future__ import annotations

import torch
from torch import Tensor

from mrlib import parallel
from mrlib.ops import whole_batch


def shared_count(n: int | Tensor) -> Tensor:
    """The number to divide a sum by, so that gradients averaged over the ranks are those of the whole batch.

    If rank r of R holds n_r items, the mean over all items is the average over the ranks of `sum_r / (Σ n_r / R)`.

    n        number of items of this rank: samples, windows, clips
    returns  float32 scalar without gradient  n for a whole batch; where the batch is dealt out, see
             `mrlib.ops.whole_batch`, its average over the ranks; at least 1 / R
    """
    count, ranks = torch.as_tensor(n).detach().float(), whole_batch.ranks()
    if ranks > 1:
        count = parallel.add_up(count.clone())  # the sum is written into it, and it may share memory with n
    return count.clamp(min=1) / ranks
