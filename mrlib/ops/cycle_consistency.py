r"""Temporal cycle consistency (TCC): each query clip returns to itself through the target.

Paper    Dwibedi et al., "Temporal Cycle-Consistency Learning", CVPR 2019; the ablation of [MATR §3.2] compares it
Here     [TCC] `tcc` is the loss, `tcc_alignment` the nearest neighbours
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.ops.alignment_arguments import checked_features, is_positive

LEAST_TEMPERATURE = 1e-30  # a cosine divided by it is a number in float32


def tcc(
    target: Tensor,
    query: Tensor,
    target_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    r"""Temporal cycle consistency: a loss that is small if each query clip returns to itself through the target.  [TCC]

    The cycle is query -> target -> query, because target clips of the background have no partner. With $\tilde e_j$
    the soft nearest neighbour of query clip j in the target, and $\mu_j, \sigma_j^2$ the mean and variance of the
    position $m / N$ in the query of the soft nearest neighbour of $\tilde e_j$, the loss is the mean over j of
    $(j / N - \mu_j)^2 / \sigma_j^2 + 0.001 \log \sigma_j$.

    target       (B, T, d)
    query        (B, N, d)
    temperature  > 0, divides the cosines
    returns      (B,)  0 for a query of fewer than two clips or an empty target
    raises       ValueError, for features of NaN or infinity naming the batch element and the clip
    """
    if not is_positive(temperature) or float(temperature) < LEAST_TEMPERATURE:
        raise ValueError(f"temperature must be a finite number above 0, at least 1e-30, not {temperature!r}")
    target, query, T_b, N_b, target_mask, query_mask = checked_features(target, query, target_lengths, query_lengths)
    if 0 in target.shape or 0 in query.shape:
        return target[:, :0].sum((1, 2)) + query[:, :0].sum((1, 2))
    never = torch.finfo(query.dtype).min
    with torch.autocast(target.device.type, enabled=False):
        alpha = (_cosine(query, target) / temperature).masked_fill(~target_mask[:, None], never).softmax(2)  # (B, N, T)
        returning = _cosine(alpha @ target, query)  # (B, N, N)
        beta = (returning / temperature).masked_fill(~query_mask[:, None], never).softmax(2)
        clips = N_b.clamp(min=1)[:, None]  # (B, 1)
        position = torch.arange(1, query.shape[1] + 1, device=query.device) / clips.to(query.dtype)  # m / N  (B, N)
        mu = (beta * position[:, None]).sum(2)  # (B, N)
        variance = (beta * (position[:, None] - mu[:, :, None]) ** 2).sum(2).clamp(min=1e-4)
        error = (position - mu) ** 2 / variance + 0.0005 * variance.log()
        loss = error.masked_fill(~query_mask, 0).sum(1) / clips[:, 0]  # (B,)
        return loss.masked_fill((N_b < 2) | (T_b < 1), 0)


@torch.no_grad()
def tcc_alignment(
    target: Tensor, query: Tensor, target_lengths: Tensor | None = None, query_lengths: Tensor | None = None
) -> Tensor:
    """Match each query clip with its nearest target clip, the earliest of equal ones.  [TCC]

    target   (B, T, d)
    query    (B, N, d)
    returns  bool (B, T, N)
    raises   ValueError as `tcc`
    """
    target, query, _, _, target_mask, query_mask = checked_features(target, query, target_lengths, query_lengths)
    if 0 in target.shape or 0 in query.shape:
        return torch.zeros(*target.shape[:2], query.shape[1], dtype=torch.bool, device=target.device)
    with torch.autocast(target.device.type, enabled=False):
        cosine = _cosine(target, query).masked_fill(~target_mask[:, :, None], -torch.inf)  # (B, T, N)
    nearest = (cosine == cosine.amax(1, keepdim=True)).int().argmax(1, keepdim=True)  # (B, 1, N)
    path = torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, nearest, True)
    return path & target_mask[:, :, None] & query_mask[:, None]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs, (B, n, d) and (B, m, d) -> (B, n, m)."""
    return F.normalize(a, dim=-1, eps=1e-8) @ F.normalize(b, dim=-1, eps=1e-8).mT
