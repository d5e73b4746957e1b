r"""Find the segment around the most query-like clip by a boundary search without learned parameters (A²FA).

Paper    [A2FA Eq. 1] to [A2FA Eq. 5] calls the search dynamic time warping; with two templates on each side it is
         the choice of one split point
Here     `boundaries` gives anchor, left end and right end for a whole batch by prefix sums. With $u, w, z$ the cosines
         of every clip with the first clip, the anchor and the last clip, and indices from 0,
         $$f_L(b) = \sum_{i=1}^{b} u_i + \sum_{j=b+1}^{A} w_j = \sum_{i=0}^{b} (u_i - w_i) + \text{const}$$
         $$f_R(b) = \sum_{i=A}^{b} w_i + \sum_{j=b+1}^{n-1} z_j = \sum_{i=0}^{b} (w_i - z_i) + \text{const}$$
         The query-embedded clips are never formed: the inner product of two of them follows from their cosines with
         the query and from three rows of the Gram matrix of the clips, O(T J) per video
Ties     the smallest anchor and the longest segment win. Sums are in float64, and values within 1e-9 count as equal,
         because a matrix product may give identical clips slightly different cosines
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SAME = 1e-9


def query_embedded(target: Tensor, query: Tensor) -> Tensor:
    r"""Query-embedded clips $v^e_i = c_i q + (1 - c_i) v_i$ with $c_i = \cos(q, v_i)$, of unit vectors.  [A2FA Eq. 1]

    target   (B, T, J)  clips in the joint space
    query    (B, J)     the whole query in the joint space
    returns  (B, T, J)  clips like the query move towards it, the others stay
    """
    v, q = F.normalize(target, dim=-1), F.normalize(query, dim=-1)[:, None]  # (B, T, J), (B, 1, J)
    c = (v * q).sum(-1, keepdim=True)  # (B, T, 1)
    return c * q + (1 - c) * v


@torch.no_grad()
def anchor(target: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    r"""The anchor $A = \arg\max_i \cos(v^e_i, q)$, the smallest index of several equal ones.  [A2FA Eq. 2]

    $\cos(v^e_i, q) = (2c - c^2) / \sqrt{1 - 2c + 4c^2 - 2c^3}$ grows with $c = \cos(q, v_i)$, so the most query-like
    clip is also the most query-like query-embedded clip.

    target   (B, T, J)
    mask     bool (B, T)  padding at the end
    query    (B, J)
    returns  int64 (B,)
    """
    return _first_largest(_cosines(*_unit(target, query)), mask)


@torch.no_grad()
def transitions(target: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The anchor and the sums maximised to its left and to its right, up to constants.  [A2FA Eq. 3], [A2FA Eq. 4]

    target   (B, T, J)
    mask     bool (B, T)  padding at the end
    query    (B, J)
    returns  A      int64 (B,)
             left   float64 (B, T)  $\sum_{i=0}^{b} (u_i - w_i)$ at b, meaningful for b <= A
             right  float64 (B, T)  $\sum_{i=0}^{b} (w_i - z_i)$ at b, meaningful for A <= b < n
    """
    v, q = _unit(target, query)
    c = _cosines(v, q)  # (B, T)
    a, last = _first_largest(c, mask), (mask.sum(1) - 1).clamp(min=0)  # (B,) each
    templates = torch.stack([torch.zeros_like(a), a, last], 1)  # (B, 3)
    gram = v.gather(1, templates[..., None].expand(-1, -1, v.shape[-1])) @ v.mT  # (B, 3, T)
    ci, cj = c.gather(1, templates)[..., None], c[:, None]  # (B, 3, 1), (B, 1, T)
    inner = ci * cj * (3 - ci - cj) + (1 - ci) * (1 - cj) * gram  # <v^e_i, v^e_j>  (B, 3, T)
    norm = (1 - 2 * c + 4 * c**2 - 2 * c**3).sqrt()  # |v^e_j|  (B, T), never below 0.83
    u, w, z = (inner / norm[:, None] / norm.gather(1, templates)[..., None]).unbind(1)  # (B, T) each
    return a, (u - w).cumsum(1), (w - z).cumsum(1)  # [A2FA Eq. 3] and [A2FA Eq. 4]


@torch.no_grad()
def boundaries(target: Tensor, mask: Tensor, query: Tensor, *, right: str = "literal") -> tuple[Tensor, Tensor, Tensor]:
    r"""The anchor and both ends of the segment around it, inclusive: $b^L \le A \le b^R$.  [A2FA Eq. 5]

    target   (B, T, J)
    mask     bool (B, T)  padding at the end
    query    (B, J)
    right    "literal": b^R is the last clip that is assigned to the anchor, so the last clip of a video is outside
             the segment unless it is the anchor. "mirror": b^R is the first clip that is assigned to the last one,
             just as b^L is the last clip that is assigned to the first one
    returns  A, b^L, b^R  int64 (B,) each
    raises   ValueError  if `right` is anything else
    """
    if right not in ("literal", "mirror"):
        raise ValueError(f"right must be 'literal' or 'mirror', not {right!r}")
    a, f_left, f_right = transitions(target, mask, query)
    if right == "mirror":  # the sum ends one clip earlier
        f_right = F.pad(f_right[:, :-1], (1, 0))  # (B, T)
    index = torch.arange(mask.shape[1], device=mask.device)
    left = _first_largest(f_left, index <= a[:, None])
    from_end = _first_largest(f_right.flip(1), (mask & (index >= a[:, None])).flip(1))  # the last maximum, (B,)
    return a, left, mask.shape[1] - 1 - from_end


def _unit(target: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """target (B, T, J) and query (B, J) in float64, divided by their norms."""
    return F.normalize(target.double(), dim=-1), F.normalize(query.double(), dim=-1)


def _cosines(v: Tensor, q: Tensor) -> Tensor:
    """Unit vectors v (B, T, J) and q (B, J) -> (B, T)."""
    return (v @ q[..., None])[..., 0]


def _first_largest(values: Tensor, mask: Tensor) -> Tensor:
    """The first index of the largest value; argmax alone promises none in particular.

    values   (B, T)
    mask     bool (B, T)  the values to consider
    returns  int64 (B,)
    """
    values = values.masked_fill(~mask, -torch.inf)
    return (values >= values.amax(1, keepdim=True) - _SAME).int().argmax(1)
