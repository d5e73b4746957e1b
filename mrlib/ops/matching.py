"""Which prediction answers for which window: the assignment of least cost, one to one [Kuhn 1955].

Set prediction [DETR, Carion et al. 2020] trains every window's own query and tells all others that they are background.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def match(cost: Tensor, mask: Tensor) -> Tensor:
    """The query of every window, so that the sum of the costs is least and no query has two windows.

    Of more windows than queries, those are left over whose assignment would cost most. For one window the answer is
    an argmin; else the costs of the whole batch go to the host, once. A cost that is not a number is as good as none.

    cost     (..., K, W)  of query k for window w; of several layers at once, of a whole batch
    mask     bool (..., W)  windows that are there
    returns  int64 (..., W), -1 where no query answers
    """
    K, W = cost.shape[-2:]
    mask = mask.expand(*cost.shape[:-2], W)
    if K == 0 or W == 0:
        return mask.new_full(mask.shape, -1, dtype=torch.long)
    cost = cost.detach().float().nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30)
    if W == 1:
        return torch.where(mask, cost.argmin(-2), -1)
    from scipy.optimize import linear_sum_assignment  # here, for its import takes a fifth of torch's

    # mask and costs in one piece, for a transfer is a wait
    host = torch.cat([cost, mask.to(cost.dtype)[..., None, :]], -2).flatten(0, -3).cpu().numpy()
    cost, there = host[:, :-1], host[:, -1] > 0
    found = np.where(there, cost.argmin(1), -1)
    for i in np.flatnonzero(there.sum(1) > 1):
        windows = np.flatnonzero(there[i])
        query, window = linear_sum_assignment(cost[i][:, windows])
        found[i] = -1
        found[i, windows[window]] = query
    return torch.from_numpy(found).to(mask.device).reshape(mask.shape)
