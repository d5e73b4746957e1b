"""The arguments of the alignments, checked: costs, lengths, features, smoothing, and the band."""

from __future__ import annotations

import math
import numbers

import numpy as np
import torch
from torch import Tensor

from mrlib.ops.alignment_plain import valid
from mrlib.ops.finite import refuse

TOPOLOGIES = ("global", "subsequence", "otam")
LEAST_GAMMA, MOST_GAMMA = 1e-100, 1e100  # costs and gradients in units of gamma are numbers


def is_positive(x: float) -> bool:
    """Whether x is a finite number above 0; a tensor is none."""
    if not isinstance(x, numbers.Real) or isinstance(x, bool):
        return False
    try:
        return 0 < float(x) < math.inf
    except OverflowError:  # an integer that no float64 can hold
        return False


def positive_gamma(gamma: float) -> float:
    """The smoothing of an alignment; ValueError if it is not a finite number above 0, from 1e-100 to 1e100."""
    if not is_positive(gamma):
        raise ValueError(f"gamma must be a finite number above 0, not {gamma!r:.99}: gamma -> 0 is hard_alignment")
    if not LEAST_GAMMA <= float(gamma) <= MOST_GAMMA:
        raise ValueError(f"gamma must lie in {LEAST_GAMMA}..{MOST_GAMMA}, not {gamma!r}: gamma -> 0 is hard_alignment")
    return float(gamma)


def checked_cost(
    cost: Tensor, target_lengths: Tensor | None, query_lengths: Tensor | None, topology: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Validated arguments: the cost in float32 or float64, and both lengths, int64 (B,), on its device.

    raises  ValueError for another shape, dtype, length or topology; NotFiniteError, which is a ValueError, for a cost
            within the lengths that is NaN or -inf
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}, not {topology!r}")
    if not _is_table(cost):
        kind = f"{cost.dtype} of shape {tuple(cost.shape)}" if isinstance(cost, Tensor) else type(cost).__name__
        raise ValueError(f"cost must be a floating-point tensor (B, T, N), not {kind}; dense, and with data")
    T_b = checked_lengths("target_lengths", target_lengths, cost, 1)
    N_b = checked_lengths("query_lengths", query_lengths, cost, 2)
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    values = cost.detach()
    if not _sum(values) > -math.inf:  # NaN if a cost is NaN, NaN or -inf if one is -inf; or on padding, or overflow
        wrong = (values.isnan() | (values == -torch.inf)) & valid(values, T_b, N_b)
        refuse("the cost", values, wrong, ("batch element", "target clip", "query clip"))
    return cost, T_b, N_b


def _sum(values: Tensor) -> float:
    """The sum of all values; on the CPU by NumPy, because a forked process cannot use the threads of PyTorch."""
    if values.device.type != "cpu":
        return float(values.sum())
    with np.errstate(over="ignore", invalid="ignore"):
        return float(values.numpy().sum())


def _is_table(x: Tensor) -> bool:
    """Whether x is a dense floating-point tensor of three dimensions."""
    return (
        isinstance(x, Tensor)
        and x.ndim == 3
        and x.is_floating_point()
        and x.layout == torch.strided
        and x.device.type != "meta"
    )


def checked_lengths(name: str, lengths: Tensor | None, x: Tensor, dim: int) -> Tensor:
    """Validated lengths, int64 (B,); None stands for the size of x (B, ...) in dimension `dim`."""
    B, most = x.shape[0], x.shape[dim]
    if lengths is None:
        return torch.full((B,), most, device=x.device)
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        raise ValueError(f"{name} must be an integer tensor (B,), not {getattr(lengths, 'dtype', type(lengths))}")
    if lengths.shape != (B,):
        raise ValueError(f"{name} must have shape ({B},) for a cost {tuple(x.shape)}, not {tuple(lengths.shape)}")
    lengths = lengths.to(x.device, torch.int64)
    if not bool(((lengths >= 0) & (lengths <= most)).all()):
        raise ValueError(f"{name} must lie in 0..{most} for a cost {tuple(x.shape)}, not {lengths.tolist()}")
    return lengths


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_band(band: int | None) -> int | None:
    """The band of an alignment; ValueError if it is no whole number of clips, 0 or more."""
    if band is None:
        return None
    if not isinstance(band, numbers.Integral) or isinstance(band, bool) or band < 0:
        raise ValueError(f"band must be a whole number of clips, 0 or more, or None for no band; not {band!r}")
    return int(band)


def checked_features(
    target: Tensor,
    query: Tensor,
    target_lengths: Tensor | None,
    query_lengths: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Validated features: target and query in one dtype, at least `dtype`, with 0 on padding; lengths and masks.

    returns  target (B, T, d), query (B, N, d), T_b and N_b int64 (B,), bool (B, T) and (B, N)
    raises   ValueError for another shape, dtype or length; NotFiniteError, which is a ValueError, for a clip whose norm
             is no number
    """
    for name, x in (("target", target), ("query", query)):
        if not _is_table(x):
            raise ValueError(f"{name} must be a floating-point tensor of three dimensions (batch, clips, features)")
    if len(target) != len(query) or target.shape[2] != query.shape[2] or target.device != query.device:
        raise ValueError(
            f"target {tuple(target.shape)} and query {tuple(query.shape)} differ in batch or features, or device"
        )
    T_b = checked_lengths("target_lengths", target_lengths, target, 1)
    N_b = checked_lengths("query_lengths", query_lengths, query, 1)
    dtype = torch.promote_types(torch.promote_types(target.dtype, query.dtype), dtype)
    target_mask = torch.arange(target.shape[1], device=target.device) < T_b[:, None]  # (B, T)
    query_mask = torch.arange(query.shape[1], device=query.device) < N_b[:, None]  # (B, N)
    target = target.to(dtype).masked_fill(~target_mask[:, :, None], 0)
    query = query.to(dtype).masked_fill(~query_mask[:, :, None], 0)
    for name, x in (("target", target), ("query", query)):
        norm = torch.linalg.vector_norm(x.detach(), dim=2)  # (B, T) or (B, N)
        refuse(f"the norm of the {name}", norm, ~norm.isfinite(), ("batch element", "clip"))
    return target, query, T_b, N_b, target_mask, query_mask
