r"""The soft-DTW divergence of two videos: 0 for equal ones, never below.

Paper    Blondel, Mensch and Vert, "Differentiable Divergences Between Time Series", AISTATS 2021 (arXiv 2010.08354)
Here     [Blondel et al. 2021] soft-DTW itself is no distance: it may be negative, and it is not least for equal videos
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrlib.ops.alignment import soft_dtw
from mrlib.ops.alignment_arguments import checked_features, positive_gamma

DISTANCES = ("sqeuclidean", "log_sqeuclidean")


def soft_dtw_divergence(
    target: Tensor,
    query: Tensor,
    gamma: float = 0.1,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    distance: str = "sqeuclidean",
) -> Tensor:
    r"""Soft-DTW of two videos, less the mean of each with itself; differentiable once.  [Blondel et al. 2021]

    $$D(x, y) = \operatorname{sdtw}(x, y) - \tfrac12 \operatorname{sdtw}(x, x) - \tfrac12 \operatorname{sdtw}(y, y)$$

    with the global topology. The two may differ in length. Equal sequences give exactly 0 and gradient 0, as does a
    length of 0. It is computed in float64, because it is a difference of near numbers.

    "sqeuclidean", $d = \lVert x_i - y_j \rVert^2$, is what is used most; for unit vectors it is twice the cosine
    distance. With it, the difference is a little below 0 for rare sequences, and then 0 is returned, with gradient 0.
    "log_sqeuclidean", $d + \gamma \log(2 - e^{-d / \gamma})$, is above 0 for any two different sequences.

    target, query   (B, T, d), (B, N, d)
    gamma           > 0, in units of the distance
    target_lengths  int (B,)  None: all T
    query_lengths   int (B,)  None: all N
    distance        "sqeuclidean" or "log_sqeuclidean"
    returns         (B,)  >= 0, float64 for float64, else float32
    raises          ValueError, for features of NaN or infinity naming the batch element and the clip; RuntimeError in a
                    backward pass with `create_graph=True`
    """
    gamma = positive_gamma(gamma)
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not {distance!r}")
    x, y, T_b, N_b, _, _ = checked_features(target, query, target_lengths, query_lengths, torch.float64)

    def of(a: Tensor, b: Tensor, a_lengths: Tensor, b_lengths: Tensor) -> Tensor:
        return soft_dtw(_distances(a, b, gamma, distance), gamma, a_lengths, b_lengths)

    with torch.autocast(x.device.type, enabled=False):
        apart = of(x, y, T_b, N_b) - (of(x, x, T_b, T_b) + of(y, y, N_b, N_b)) / 2  # (B,)
    nothing = _equal(x, y, T_b, N_b) | (T_b == 0) | (N_b == 0)
    dtype = torch.promote_types(torch.promote_types(target.dtype, query.dtype), torch.float32)
    return apart.masked_fill(nothing, 0).clamp(min=0).to(dtype)


def _distances(x: Tensor, y: Tensor, gamma: float, distance: str) -> Tensor:
    """All pairs of clips, (B, n, d) and (B, m, d) -> (B, n, m); rounding may leave a zero a little below 0."""
    left = torch.cat([x, x.square().sum(2, keepdim=True), x.new_ones(*x.shape[:2], 1)], 2)  # (B, n, d + 2)
    right = torch.cat([-2 * y, y.new_ones(*y.shape[:2], 1), y.square().sum(2, keepdim=True)], 2)  # (B, m, d + 2)
    d = left @ right.mT  # |x|^2 + |y|^2 - 2 x y in one product
    return d if distance == "sqeuclidean" else d + gamma * (2 - (-d / gamma).exp()).log()


def _equal(x: Tensor, y: Tensor, T_b: Tensor, N_b: Tensor) -> Tensor:
    """bool (B,): the sequences, with 0 on padding, are the same to the last bit."""
    shorter = min(x.shape[1], y.shape[1])
    return (T_b == N_b) & (x[:, :shorter] == y[:, :shorter]).flatten(1).all(1)
