"""The one-to-one assignment of least total cost between predictions and annotated windows [Kuhn 1955].

Set prediction [DETR, Carion et al. 2020] trains each prediction on the window assigned to it; predictions without a
window are trained as background.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mrlib.ops.finite import refuse

_INFINITE = torch.finfo(torch.float32).max  # stands for +inf in costs in which inf stands for NaN


@torch.no_grad()
def match(cost: Tensor, mask: Tensor) -> Tensor:
    """The prediction assigned to every window; the sum of the costs is minimal and no prediction gets two windows.

    If there are more windows than predictions, the windows that would cost most get none. For one window the answer is
    an argmin on the device of the cost; otherwise the costs of the whole batch go to the CPU in one transfer. A cost of
    -inf is chosen first, of +inf after all finite costs, and NaN last of all; losses call `checked_cost` before.

    cost     (..., K, W)  of prediction k for window w; leading dimensions such as layers and batch
    mask     bool (..., W)  real windows; leading dimensions broadcast to those of the cost
    returns  int64 (..., W)  index k, or -1 where a window gets no prediction
    """
    K, W = cost.shape[-2:]
    mask = mask.expand(*cost.shape[:-2], W)  # (..., W)
    if K == 0 or W == 0:
        return mask.new_full(mask.shape, -1, dtype=torch.long)
    cost = cost.detach().float().nan_to_num(nan=torch.inf, posinf=_INFINITE, neginf=-torch.inf)
    if W == 1:
        return torch.where(mask, cost.argmin(-2), -1)
    from scipy.optimize import linear_sum_assignment  # here, because its import takes a fifth of the time of torch's

    # mask and costs in one tensor, because each transfer waits for the device
    host = torch.cat([cost, mask.to(cost.dtype)[..., None, :]], -2).flatten(0, -3).cpu().numpy()  # (R, K + 1, W)
    costs, real = host[:, :-1], host[:, -1] > 0  # (R, K, W), (R, W)
    assigned = np.where(real, costs.argmin(1), -1)  # (R, W), right for rows with at most one window
    for row in np.flatnonzero(real.sum(1) > 1):
        windows = np.flatnonzero(real[row])
        predictions, columns = linear_sum_assignment(_finite(costs[row][:, windows]))
        assigned[row] = -1
        assigned[row, windows[columns]] = predictions
    return torch.from_numpy(assigned).to(mask.device).reshape(mask.shape)


def _finite(cost: np.ndarray) -> np.ndarray:
    """Costs (K, W) with finite stand-ins: one of -inf, `_INFINITE` or inf outweighs all that come before it."""
    large = np.abs(cost) >= _INFINITE
    if not large.any():
        return cost
    cost = cost.astype(np.float64)
    low, high = (cost[~large].min(), cost[~large].max()) if not large.all() else (0.0, 0.0)
    step = (high - low + 1) * (min(cost.shape) + 1)  # more than all finite costs can differ by
    stand_ins = {-np.inf: low - step, _INFINITE: high + step, np.inf: high + 2 * step * (min(cost.shape) + 1)}
    for large_cost, stand_in in stand_ins.items():
        cost[cost == large_cost] = stand_in
    return cost


@torch.no_grad()
def checked_cost(cost: Tensor, mask: Tensor) -> Tensor:
    """The cost of a loss that is about to match.

    cost    (L, B, K, W), mask bool (B, W)  as for `match`, the leading dimensions decoder layers and batch
    raises  NotFiniteError, a ValueError and a FloatingPointError, that names the batch element whose cost is NaN
    """
    if bool(cost.detach().sum().isnan()):
        axes = ("decoder layer", "batch element", "moment query", "window")
        refuse("the cost of matching", cost, cost.isnan() & mask[:, None], axes)
    return cost
