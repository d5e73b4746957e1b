r"""Bring the query video and the target video together, twice (MATR).

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     [MATR §3.2] the cost C is `cosine_cost`; `DualStageAligner` aligns before and after fusion, and its decoder
         reads the clips that the second alignment selects; L_align^pre and L_align^post are its losses. The recursion
         under both is `mrlib.ops.alignment`
Ours     the alignment is soft-DTW with free ends on the target, the only kind that selects a part of it; losses are
         per query clip. The paper gives neither gamma nor topology nor normalisation
Departs  vl2g/MATR takes -log softmax as the cost, a weighted mean as the soft minimum and both ends of the target as
         given; those are `cost="contrastive"`, `align="mean"`. Its selection of clips crashes, and its heads never
         see the decoder
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.joint import JointEncoder
from mrlib.data import Batch
from mrlib.layers import DecoderLayer, masked_mean
from mrlib.ops import alignment
from mrlib.ops.counts import shared_count
from mrlib.settings import require

DROP_QUANTILE = 0.3  # of a pair's costs, what dropping a clip costs; the percentile of the released plots


def cosine_cost(target: Tensor, query: Tensor) -> Tensor:
    r"""How unlike target clip $i$ is to query clip $j$.  [MATR §3.2, unnumbered]

    $$C_{ij} = 1 - \frac{\langle e^t_i, e^q_j \rangle}{\lVert e^t_i \rVert \lVert e^q_j \rVert}$$

    target   (B, T, d)  features of the clips we search in
    query    (B, N, d)  features of the clips we search with
    returns  (B, T, N)  float32 or float64, also under autocast; 0 same direction, 2 opposite
    """
    with torch.autocast(target.device.type, enabled=False):
        target, query = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (target, query))
        return 1 - F.normalize(target, dim=-1, eps=1e-8) @ F.normalize(query, dim=-1, eps=1e-8).mT


def contrastive_cost(target: Tensor, query: Tensor, target_mask: Tensor, query_mask: Tensor) -> Tensor:
    r"""The released code's cost: how improbable it is that query clip $j$ shows target clip $i$ and no other.

    $-\log(p_{ij} + 10^{-5})$ with $p_{\cdot j}$ the softmax, at temperature 0.1, of the cosines with all target clips
    and of the pair's smallest cosine, which stands for "none of them".

    target (B, T, d), query (B, N, d), masks bool (B, T), (B, N); returns (B, T, N), 0 on padding
    """
    similarity = 1 - cosine_cost(target, query)
    real = target_mask[:, :, None] & query_mask[:, None]
    least = similarity.masked_fill(~real, torch.inf).amin((1, 2)).nan_to_num(posinf=0.0)
    none = least[:, None, None].expand(-1, 1, similarity.shape[2])
    logits = torch.cat([similarity.masked_fill(~target_mask[:, :, None], -torch.inf), none], 1) / 0.1
    p = logits.softmax(1)[:, :-1]
    return -(p + 1e-5).log().masked_fill(~real, 0)


class Stage(NamedTuple):
    """One of the two alignments of a batch."""

    target: Tensor  # (B, T, d) what is compared
    query: Tensor  # (B, N, d)
    cost: Tensor  # (B, T, N)


class Method(NamedTuple):
    """A way to align: what it costs, and which clips then belong together."""

    value: Callable[[DualStageAligner, Stage, Tensor, Tensor], Tensor]  # -> (B,)
    path: Callable[[Stage, Tensor, Tensor], Tensor]  # -> bool (B, T, N)


def _recursion(topology: str) -> Method:
    return Method(
        lambda self, s, n, m: alignment.soft_dtw(s.cost, self.gamma, n, m, topology=topology),
        lambda s, n, m: alignment.hard_alignment(s.cost, n, m, topology=topology),
    )


METHODS = {
    "subsequence": _recursion("subsequence"),
    "global": _recursion("global"),
    "otam": _recursion("otam"),
    "mean": Method(
        lambda self, s, n, m: alignment.mean_dtw(s.cost, self.gamma, n, m),
        lambda s, n, m: alignment.hard_alignment(s.cost, n, m, topology="global"),
    ),
    "drop": Method(
        lambda self, s, n, m: alignment.drop_dtw(s.cost, drop_cost(s.cost, n, m), self.gamma, n, m),
        lambda s, n, m: alignment.drop_alignment(s.cost, drop_cost(s.cost, n, m), n, m),
    ),
    "tcc": Method(
        lambda self, s, n, m: alignment.tcc(s.target, s.query, n, m) * m,  # a mean over the query already
        lambda s, n, m: alignment.tcc_alignment(s.target, s.query, n, m),
    ),
}


def drop_cost(cost: Tensor, target_lengths: Tensor, query_lengths: Tensor) -> Tensor:
    """What leaving a target clip out costs in Drop-DTW: a quantile of the pair's own costs, no gradient; (B,)."""
    t, n = (torch.arange(size, device=cost.device) for size in cost.shape[1:])
    real = (t[:, None] < target_lengths[:, None, None]) & (n < query_lengths[:, None, None])
    values = cost.detach().masked_fill(~real, torch.nan).flatten(1)
    return values.nanquantile(DROP_QUANTILE, dim=1).nan_to_num()


class DualStageAligner(nn.Module):
    """Target and query aligned before fusion, fused, aligned again; tokens describe the part found.  [MATR §3.2]"""

    def __init__(
        self,
        fuse: JointEncoder,
        *,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        layers: int = 4,
        moment_queries: int = 10,
        gamma: float = 0.1,
        align: str = "subsequence",
        pre: bool = True,
        post: bool = True,
        cost: str = "cosine",
        typed: bool = False,
        memory: str = "part",
    ):
        """Two alignments around a joint encoder, and a decoder after it.

        layers, heads, hidden, dropout  of the decoder
        moment_queries  its tokens; 0: no decoder, no `context`
        align      one of `METHODS`, or "none"
        pre, post  whether there is an alignment before and after fusion
        cost       "cosine" or "contrastive"
        typed      align before fusion with the token types, as released; False: without
        memory     what the decoder reads: the "part" that is aligned, or the "whole" target
        """
        super().__init__()
        require(align in (*METHODS, "none"), "align", align, f"one of {', '.join(METHODS)}, none")
        require(cost in ("cosine", "contrastive"), "cost", cost, "cosine or contrastive")
        require(memory in ("part", "whole"), "memory", memory, "part or whole")
        require(math.isfinite(gamma) and gamma > 0, "gamma", gamma, "above 0")
        require(type(moment_queries) is int and moment_queries >= 0, "moment_queries", moment_queries, "0 or more")
        self.fuse, self.width, self.gamma, self.typed, self.memory = fuse, fuse.width, gamma, typed, memory
        self.align, self.cost = align, cost
        self.stages = [name for name, there in (("pre", pre), ("post", post)) if there and align != "none"]
        require(type(layers) is int and layers >= 1, "decoder_layers", layers, "1 or more")
        self.decoder = self.moment_queries = self.norm = None
        if moment_queries:
            self.moment_queries = nn.Embedding(moment_queries, fuse.width)
            self.decoder = nn.ModuleList(DecoderLayer(fuse.width, heads, hidden, dropout) for _ in range(layers))
            self.norm = nn.LayerNorm(fuse.width)

    def forward(self, batch: Batch) -> Aligned:
        joint = self.fuse(batch)
        before = (
            (joint.target_typed, joint.query_typed) if self.typed else (joint.target_projected, joint.query_projected)
        )
        compared = {"pre": before, "post": (joint.target, joint.query)}
        stages = {name: Stage(*compared[name], self._cost(*compared[name], batch)) for name in self.stages}
        lengths = batch.lengths, batch.query_mask.sum(1)
        with torch.no_grad():
            paths = {name: METHODS[self.align].path(stage, *lengths) for name, stage in stages.items()}
        return Aligned(
            joint.target,
            batch.target_mask,
            joint.query,
            batch.query_mask,
            query_global=masked_mean(joint.query, batch.query_mask),
            context=self._describe(joint.target, joint.target_positions, batch.target_mask, paths.get("post")),
            paths=paths,
            cache=stages,
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """L_align^pre and L_align^post, per query clip, 0 where there is no such alignment.

        A query that runs backwards is aligned turned round.
        """
        lengths = batch.lengths, batch.query_mask.sum(1)
        count = shared_count((lengths[1] > 0).sum())
        backwards = batch.labels.backwards
        values = {f"align_{name}": aligned.target.new_zeros(()) for name in ("pre", "post")}
        for name, stage in aligned.cache.items():
            if backwards is not None:
                stage = turned(stage, backwards, lengths[1])
            value = METHODS[self.align].value(self, stage, *lengths) / lengths[1].clamp(min=1)
            values[f"align_{name}"] = value.sum() / count
        return values

    def _cost(self, target: Tensor, query: Tensor, batch: Batch) -> Tensor:
        if self.cost == "cosine":
            return cosine_cost(target, query)
        return contrastive_cost(target, query, batch.target_mask, batch.query_mask)

    def _describe(self, target: Tensor, positions: Tensor, mask: Tensor, path: Tensor | None) -> Tensor | None:
        """E_t^l (B, l, d): what the moment queries read from the clips from the first aligned one to the last."""
        if self.decoder is None:
            return None
        if self.memory == "part" and path is not None:
            start, end = alignment.span_of(path)
            t = torch.arange(target.shape[1], device=target.device)
            mask = (t >= start[:, None]) & (t < end[:, None])
        asked = self.moment_queries.weight.expand(len(target), -1, -1)
        x = torch.zeros_like(asked)
        for layer in self.decoder:
            x = layer(x, asked, target, positions, mask)
        return self.norm(x)


def turned(stage: Stage, backwards: Tensor, query_lengths: Tensor) -> Stage:
    """A stage with some queries turned round: the clips of `backwards` (B,) samples in the order that they happened."""
    n = torch.arange(stage.query.shape[1], device=backwards.device)
    last = query_lengths[:, None] - 1
    order = torch.where(backwards[:, None] & (n <= last), last - n, n)
    query = stage.query.gather(1, order[..., None].expand_as(stage.query))
    return Stage(stage.target, query, stage.cost.gather(2, order[:, None].expand_as(stage.cost)))
