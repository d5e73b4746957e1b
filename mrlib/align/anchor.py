r"""Anchor-aware feature alignment: clips around the one most similar to the query move towards the query (A²FA).

Paper    "Anchor-Aware Similarity Cohesion in Target Frames Enables Predicting Temporal Moment Boundaries in 2D",
         CVPR 2025
Here     [A2FA Eq. 1] to [A2FA Eq. 5] are `mrlib.ops.boundary_search`; `AnchorAligner` is [A2FA Eq. 6] to [A2FA Eq. 12];
         `RawAligner` and `ConcatAligner` are its baselines
Ours     all vectors are normalised first. The paper gives no initial values: ours are Xavier-uniform matrices, w = 1
         and beta = 1, so that r is about 0.76 everywhere and clips outside the segment keep their directions; with
         beta = 0 the signs of r would be random, and the similarity map a checkerboard. The printed transposes of
         [A2FA Eq. 7] to [A2FA Eq. 9] do not fit together; the shapes here are the only ones that do. No 1/sqrt(d) in
         [A2FA Eq. 7] unless `scale`
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.data import Batch, Widths
from mrlib.layers import masked_softmax
from mrlib.ops.boundary_search import boundaries


class AnchorAligner(nn.Module):
    """All clips are re-weighted; those in the segment around the anchor also move towards the query.

    [A2FA Eq. 6] to [A2FA Eq. 12]

    joint     J, width of the joint space; None is refused
    reweight  False: r = 1 [A2FA Table 6, row 3]
    align     False: alpha = 0, clips are only re-weighted
    right     how the right end of the segment is found, see `boundaries`
    scale     divide the logits of [A2FA Eq. 7] by sqrt(J)

    Seven J x J matrices and two scalars. Products <W q, W' v_i> with all clips are computed as <W'^T W q, v_i>, which
    transforms one vector instead of T clips.
    """

    def __init__(
        self,
        joint: int | None,
        *,
        reweight: bool = True,
        align: bool = True,
        right: str = "literal",
        scale: bool = False,
    ):
        super().__init__()
        self.width = _joint_width(joint)
        self.reweight, self.align, self.right = reweight, align, right
        self.scale = 1 / math.sqrt(joint) if scale else 1.0
        if reweight:
            self.W_q, self.W_k, self.W_v, self.W_r1, self.W_r2 = (_matrix(joint) for _ in range(5))
            self.w, self.beta = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        if align:
            self.W_a1, self.W_a2 = _matrix(joint), _matrix(joint)

    def forward(self, batch: Batch) -> Aligned:
        """Cache: `anchor`, `left`, `right` int64 (B,); `inside` bool (B, T); `reweight` r and `alpha` (B, T)."""
        # the aligner is cheap compared with the detector, so it always runs in full precision
        with torch.autocast(batch.target_joint.device.type, enabled=False):
            return self._forward(batch)

    def _forward(self, batch: Batch) -> Aligned:
        v, q = _unit_rows(batch)  # (B, T, J), (B, J)
        mask = batch.target_mask
        anchor, left, right = boundaries(v, mask, q, right=self.right)  # (B,) each
        index = torch.arange(mask.shape[1], device=mask.device)  # (T,)
        inside = (left[:, None] <= index) & (index <= right[:, None])  # (B, T), m_i = 0 [A2FA Eq. 6]
        r = self.reweighting(v, q, inside) if self.reweight else v.new_ones(v.shape[:2])  # (B, T)
        v_r = r[..., None] * v  # (B, T, J) [A2FA Eq. 10]
        alpha = self.pull(v_r, q, inside) if self.align else v.new_zeros(v.shape[:2])  # (B, T)
        v_a = alpha[..., None] * q[:, None] + (1 - alpha[..., None]) * v_r  # (B, T, J) [A2FA Eq. 12]
        cache = {"anchor": anchor, "left": left, "right": right, "inside": inside, "reweight": r, "alpha": alpha}
        return _aligned(v_a, q, batch, cache)

    def reweighting(self, v: Tensor, q: Tensor, inside: Tensor) -> Tensor:
        r"""$r_i = \tanh(w \langle W^r_1 v_i, W^r_2 g \rangle + \beta)$, g the summary of the segment.  [A2FA Eq. 9]

        v, q     (B, T, J), (B, J)  unit vectors
        inside   bool (B, T)  clips of the segment; at least the anchor
        returns  (B, T)  in (-1, 1), for clips outside the segment too
        """
        logits = _products(v, self.W_q(q) @ self.W_k.weight) * self.scale  # (B, T)
        a = masked_softmax(logits, inside, 1)  # (B, T) [A2FA Eq. 7]
        g = self.W_v((a[:, None] @ v)[:, 0])  # (B, J) [A2FA Eq. 8], the sum before the matrix
        return torch.tanh(self.w * _products(v, self.W_r2(g) @ self.W_r1.weight) + self.beta)  # [A2FA Eq. 9]

    def pull(self, v_r: Tensor, q: Tensor, inside: Tensor) -> Tensor:
        r"""$\alpha_i = \sigma(\langle W^a_1 v^r_i, W^a_2 q \rangle + m_i)$, 0 outside the segment.  [A2FA Eq. 11]

        v_r, q   (B, T, J), (B, J)  re-weighted clips, and the query as a unit vector
        inside   bool (B, T)  clips of the segment, those with m_i = 0
        returns  (B, T)  in [0, 1)
        """
        return torch.sigmoid(_products(v_r, self.W_a2(q) @ self.W_a1.weight)) * inside  # [A2FA Eq. 11]

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """None: the detector's loss trains the aligner through the aligned clips."""
        return {}


class RawAligner(nn.Module):
    """The normalised clips. A detector that reads only the clips never sees the query.  [A2FA Table 6, row 2]

    joint  J, width of the joint space; None is refused
    """

    def __init__(self, joint: int | None):
        super().__init__()
        self.width = _joint_width(joint)

    def forward(self, batch: Batch) -> Aligned:
        v, q = _unit_rows(batch)  # (B, T, J), (B, J)
        return _aligned(v, q, batch, {})

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """None: nothing is learned."""
        return {}


class ConcatAligner(nn.Module):
    """Each clip concatenated with the query, (v_i, q) of width 2 J; nothing is learned.

    The similarity map cannot use the query: cos((v_i, q), (v_j, q)) = (cos(v_i, v_j) + 1) / 2 does not depend on it. A
    detector that projects the clips can.

    joint  J, width of the joint space; None is refused
    """

    def __init__(self, joint: int | None):
        super().__init__()
        self.width = 2 * _joint_width(joint)

    def forward(self, batch: Batch) -> Aligned:
        v, q = _unit_rows(batch)  # (B, T, J), (B, J)
        both = torch.cat([v, q[:, None].expand_as(v)], -1)  # (B, T, 2 J)
        return _aligned(both, torch.cat([q, q], -1), batch, {})

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """None: nothing is learned."""
        return {}


def _joint_width(joint: int | None) -> int:
    """joint; ValueError if it is None."""
    if joint is None:
        raise ValueError(
            "this aligner compares clips with the query in a joint language-vision space, and the dataset has no "
            'stream there: open it with its CLIP stream, streams="joint" (or a tuple of names that includes it)'
        )
    return joint


def _matrix(width: int) -> nn.Linear:
    """A Xavier-uniform width x width matrix."""
    matrix = nn.Linear(width, width, bias=False)
    nn.init.xavier_uniform_(matrix.weight)
    return matrix


def _unit_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Clips (B, T, J) and query (B, J) of the joint space, divided by their norms."""
    return F.normalize(batch.target_joint, dim=-1), F.normalize(batch.query_joint, dim=-1)


def _products(vectors: Tensor, vector: Tensor) -> Tensor:
    """Inner products of vectors (B, T, J) with one vector (B, J) per sample; (B, T)."""
    return (vectors @ vector[..., None])[..., 0]


def _aligned(target: Tensor, q: Tensor, batch: Batch, cache: dict) -> Aligned:
    """Clips and a query of one vector q, both of the aligner's width; `saliency` is their cosine, as in [A2FA Fig. 5].

    target (B, T, d), q (B, d)
    """
    return Aligned(
        target=target,
        mask=batch.target_mask,
        query=q[:, None],  # (B, 1, d)
        query_mask=batch.target_mask.new_ones(len(q), 1),  # (B, 1)
        query_global=q,
        saliency=F.cosine_similarity(target, q[:, None], dim=-1),  # (B, T)
        cache=cache,
    )


def build_anchor(widths: Widths, **options: Any) -> AnchorAligner:
    """The aligner "anchor"; options of `AnchorAligner`."""
    return AnchorAligner(widths.joint, **options)


def build_raw(widths: Widths) -> RawAligner:
    """The aligner "raw"."""
    return RawAligner(widths.joint)


def build_concat(widths: Widths) -> ConcatAligner:
    """The aligner "concat"."""
    return ConcatAligner(widths.joint)
