r"""Align the query video with the target video, before and after fusion (MATR).

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439)
Here     [MATR §3.2] the cost C is `cosine_cost`; `DualStageAligner` aligns before and after fusion, and its decoder
         reads the clips that the second alignment selects; L_align^pre and L_align^post are its losses. The recursion
         under both is `mrlib.ops.alignment`
Ours     the alignment is soft-DTW with free ends on the target, the only kind that selects a part of it; losses are
         per query clip. The paper gives neither gamma nor topology nor normalisation
Departs  vl2g/MATR takes -log softmax as the cost, `contrastive_cost`, and a weighted mean as the soft minimum with
         fixed ends on the target, METHODS["mean"]. Its selection of clips crashes, and its heads never read the decoder
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.joint import Joint, JointEncoder, build_joint_encoder
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import DecoderLayer, full_precision, masked_mean
from mrlib.ops import alignment
from mrlib.ops.counts import shared_count

DROP_QUANTILE = 0.3  # quantile of a pair's costs that dropping a clip costs; the percentile of the released plots


def cosine_cost(target: Tensor, query: Tensor) -> Tensor:
    r"""The cosine distance of target clip $i$ and query clip $j$.  [MATR §3.2, unnumbered]

    $$C_{ij} = 1 - \frac{\langle e^t_i, e^q_j \rangle}{\lVert e^t_i \rVert \lVert e^q_j \rVert}$$

    target   (B, T, d)  features of the clips we search in
    query    (B, N, d)  features of the clips we search with
    returns  (B, T, N)  float32 or float64, also under autocast; 0 same direction, 2 opposite
    """
    with torch.autocast(target.device.type, enabled=False):
        target, query = full_precision(target), full_precision(query)
        return 1 - F.normalize(target, dim=-1, eps=1e-8) @ F.normalize(query, dim=-1, eps=1e-8).mT


def contrastive_cost(target: Tensor, query: Tensor, target_mask: Tensor, query_mask: Tensor) -> Tensor:
    r"""The released code's cost: minus the log probability that query clip $j$ shows target clip $i$.

    $-\log(p_{ij} + 10^{-5})$ with $p_{\cdot j}$ the softmax, at temperature 0.1, of the cosines with all target clips
    and of the pair's smallest cosine, which stands for "none of them".

    target (B, T, d), query (B, N, d), masks bool (B, T), (B, N); returns (B, T, N), 0 on padding
    """
    similarity = 1 - cosine_cost(target, query)  # (B, T, N)
    real = target_mask[:, :, None] & query_mask[:, None]  # (B, T, N)
    least = similarity.masked_fill(~real, torch.inf).amin((1, 2)).nan_to_num(posinf=0.0)  # (B,)
    none = least[:, None, None].expand(-1, 1, similarity.shape[2])  # (B, 1, N)
    logits = torch.cat([similarity.masked_fill(~target_mask[:, :, None], -torch.inf), none], 1) / 0.1  # (B, T + 1, N)
    p = logits.softmax(1)[:, :-1]  # (B, T, N)
    return -(p + 1e-5).log().masked_fill(~real, 0)


def masked_cosine_cost(target: Tensor, query: Tensor, target_mask: Tensor, query_mask: Tensor) -> Tensor:
    """`cosine_cost` with the arguments of `contrastive_cost`; it ignores the masks."""
    return cosine_cost(target, query)


class Comparison(NamedTuple):
    """The inputs of one alignment."""

    target: Tensor  # (B, T, d)
    query: Tensor  # (B, N, d)
    cost: Tensor  # (B, T, N)


def drop_cost(cost: Tensor, target_lengths: Tensor, query_lengths: Tensor) -> Tensor:
    """The cost of dropping a target clip in Drop-DTW: the 0.3 quantile of the pair's costs, without gradient.

    cost (B, T, N), lengths (B,); returns (B,), 0 for an empty pair
    """
    i, j = (torch.arange(size, device=cost.device) for size in cost.shape[1:])  # (T,), (N,)
    real = (i[:, None] < target_lengths[:, None, None]) & (j < query_lengths[:, None, None])  # (B, T, N)
    values = cost.detach().masked_fill(~real, torch.nan).flatten(1)  # (B, T N)
    return values.nanquantile(DROP_QUANTILE, dim=1).nan_to_num()


class Method(NamedTuple):
    """A way to align; n and m are the lengths (B,) of the targets and of the queries."""

    value: Callable[[Comparison, float, Tensor, Tensor], Tensor]  # (comparison, gamma, n, m) -> total cost (B,)
    path: Callable[[Comparison, Tensor, Tensor], Tensor]  # (comparison, n, m) -> matched clips, bool (B, T, N)


def _soft_dtw(topology: str) -> Method:
    """Soft-DTW for the value, and DTW for the path."""
    return Method(
        lambda c, gamma, n, m: alignment.soft_dtw(c.cost, gamma, n, m, topology=topology),
        lambda c, n, m: alignment.hard_alignment(c.cost, n, m, topology=topology),
    )


METHODS: Mapping[str, Method] = {
    "subsequence": _soft_dtw("subsequence"),
    "global": _soft_dtw("global"),
    "otam": _soft_dtw("otam"),
    "mean": Method(
        lambda c, gamma, n, m: alignment.mean_dtw(c.cost, gamma, n, m),
        lambda c, n, m: alignment.hard_alignment(c.cost, n, m, topology="global"),
    ),
    "drop": Method(
        lambda c, gamma, n, m: alignment.drop_dtw(c.cost, drop_cost(c.cost, n, m), gamma, n, m),
        lambda c, n, m: alignment.drop_alignment(c.cost, drop_cost(c.cost, n, m), n, m),
    ),
    "tcc": Method(
        lambda c, gamma, n, m: alignment.tcc(c.target, c.query, n, m) * m,  # `tcc` is a mean over the query
        lambda c, n, m: alignment.tcc_alignment(c.target, c.query, n, m),
    ),
}


def projected(joint: Joint) -> tuple[Tensor, Tensor]:
    """Target and query before fusion, (B, T, d) and (B, N, d)."""
    return joint.target_projected, joint.query_projected


def with_token_type(joint: Joint) -> tuple[Tensor, Tensor]:
    """Target and query before fusion with their token types, as released, (B, T, d) and (B, N, d)."""
    return joint.target_typed, joint.query_typed


def aligned_part(mask: Tensor, path: Tensor | None) -> Tensor:
    """The clips that the decoder reads: from the first clip of the path to the last.

    mask     bool (B, T)  the real clips
    path     bool (B, T, N)  matched clips; None: there is no alignment, and the decoder reads all real clips
    returns  bool (B, T)
    """
    if path is None:
        return mask
    start, end = alignment.span_of(path)  # (B,), (B,)
    t = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    return (t >= start[:, None]) & (t < end[:, None])  # (B, T)


def whole_target(mask: Tensor, path: Tensor | None) -> Tensor:
    """The clips that the decoder reads, as released: all real clips. Arguments are those of `aligned_part`."""
    return mask


class DualStageAligner(nn.Module):
    """Target and query are aligned, fused and aligned again; a decoder reads the aligned part.  [MATR §3.2]

    The alignments give losses, and the second also selects the clips that the decoder reads; the features themselves do
    not change.
    """

    def __init__(
        self,
        fuse: JointEncoder,
        *,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        decoder_layers: int = 4,
        moment_queries: int = 10,
        gamma: float = 0.1,
        align: Method | None,
        stages: tuple[str, ...] = ("pre", "post"),
        cost: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        before: Callable[[Joint], tuple[Tensor, Tensor]] = projected,
        memory: Callable[[Tensor, Tensor | None], Tensor] = aligned_part,
    ):
        """Two alignments around a joint encoder `fuse`, and a decoder after it.

        heads, hidden, dropout, decoder_layers  of the decoder
        moment_queries  l, number of learned tokens of the decoder; 0: no decoder, no `context`
        gamma           smoothing of the alignment, above 0
        align           one of `METHODS`; None: no alignment
        stages          which alignments there are: "pre", before fusion, and "post", after it
        cost            cost(target, query, target_mask, query_mask) -> (B, T, N)
        before          what the alignment before fusion compares: `projected` or `with_token_type`
        memory          the clips that the decoder reads: `aligned_part` or `whole_target`
        """
        super().__init__()
        require(math.isfinite(gamma) and gamma > 0, "gamma", gamma, "above 0")
        require(type(moment_queries) is int and moment_queries >= 0, "moment_queries", moment_queries, "0 or more")
        require(type(decoder_layers) is int and decoder_layers >= 1, "decoder_layers", decoder_layers, "1 or more")
        self.fuse, self.width, self.gamma = fuse, fuse.width, gamma
        self.align, self.stages = align, stages if align is not None else ()
        self.cost, self.before, self.memory = cost, before, memory
        self.decoder = self.moment_queries = self.norm = None
        if moment_queries:
            self.moment_queries = nn.Embedding(moment_queries, fuse.width)
            self.decoder = nn.ModuleList(
                DecoderLayer(fuse.width, heads, hidden, dropout) for _ in range(decoder_layers)
            )
            self.norm = nn.LayerNorm(fuse.width)

    def forward(self, batch: Batch) -> Aligned:
        """Cache: a `Comparison` for each stage; `paths` has the same stages."""
        mask, query_mask = batch.target_mask, batch.query_mask
        joint = self.fuse(batch.target, mask, batch.query, query_mask)
        inputs = {"pre": self.before(joint), "post": (joint.target, joint.query)}
        comparisons = {
            stage: Comparison(*inputs[stage], self.cost(*inputs[stage], mask, query_mask)) for stage in self.stages
        }
        lengths = mask.sum(1), query_mask.sum(1)  # (B,), (B,)
        with torch.no_grad():
            paths = {stage: self.align.path(comparison, *lengths) for stage, comparison in comparisons.items()}
        return Aligned(
            target=joint.target,
            mask=mask,
            query=joint.query,
            query_mask=query_mask,
            query_global=masked_mean(joint.query, query_mask),  # (B, d)
            context=self._decode_context(joint.target, joint.target_positions, mask, paths.get("post")),  # (B, l, d)
            paths=paths,
            cache=comparisons,
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """L_align^pre and L_align^post: the mean over samples of the cost per query clip.

        0 for a stage without an alignment. A query that runs backwards is put into its original order before. A null
        query, which is nowhere in its video, is not aligned: it adds nothing and is not counted.
        """
        lengths = batch.lengths, batch.query_mask.sum(1)  # (B,), (B,)
        answered = batch.labels.answered  # (B,)
        count = shared_count(((lengths[1] > 0) & answered).sum())
        backwards = batch.labels.backwards
        values = {f"align_{name}": aligned.target.new_zeros(()) for name in ("pre", "post")}
        for name, comparison in aligned.cache.items():
            if backwards is not None:
                comparison = with_reversed_queries(comparison, backwards, lengths[1])
            value = self.align.value(comparison, self.gamma, *lengths) / lengths[1].clamp(min=1)  # (B,)
            values[f"align_{name}"] = value.masked_fill(~answered, 0).sum() / count
        return values

    def _decode_context(self, target: Tensor, positions: Tensor, mask: Tensor, path: Tensor | None) -> Tensor | None:
        """E_t^l (B, l, d): the moment queries, decoded from the clips that `memory` selects.

        target, positions (B, T, d), mask bool (B, T); path as in `aligned_part`
        """
        if self.decoder is None:
            return None
        moment_queries = self.moment_queries.weight.expand(len(target), -1, -1)  # (B, l, d)
        memory_mask, x = self.memory(mask, path), torch.zeros_like(moment_queries)  # (B, T), (B, l, d)
        for layer in self.decoder:
            x = layer(x, moment_queries, target, positions, memory_mask)  # (B, l, d)
        return self.norm(x)


def with_reversed_queries(comparison: Comparison, backwards: Tensor, query_lengths: Tensor) -> Comparison:
    """A comparison with the query clips of the `backwards` samples in reverse order.

    backwards bool (B,), query_lengths (B,); shapes stay, and so does padding
    """
    target, query, cost = comparison
    j = torch.arange(query.shape[1], device=backwards.device)  # (N,)
    last = query_lengths[:, None] - 1  # (B, 1)
    order = torch.where(backwards[:, None] & (j <= last), last - j, j)  # (B, N)
    query = query.gather(1, order[..., None].expand_as(query))  # (B, N, d)
    return Comparison(target, query, cost.gather(2, order[:, None].expand_as(cost)))


def build_dual_stage(
    widths: Widths,
    *,
    decoder_layers: int,
    moment_queries: int,
    gamma: float,
    align: str,
    pre: bool,
    post: bool,
    cost: str,
    typed: bool,
    memory: str,
    beta: float | None = None,
    **encoder: Any,
) -> DualStageAligner:
    """The aligner "dual_stage".

    decoder_layers  number of layers of the decoder
    moment_queries  number of learned tokens of the decoder; 0: no decoder
    gamma           smoothing of the alignment
    align           one of `METHODS`, or "none"
    pre, post       whether there is an alignment before and after fusion
    cost            "cosine" or "contrastive"
    typed           whether the alignment before fusion includes the token types, as released
    memory          what the decoder reads: the "part" that is aligned, or the "whole" target
    beta, encoder   options of `build_joint_encoder`; the decoder shares `heads`, `hidden` and `dropout`
    """
    require(align in (*METHODS, "none"), "align", align, f"one of {', '.join(METHODS)}, none")
    require(cost in ("cosine", "contrastive"), "cost", cost, "cosine or contrastive")
    require(memory in ("part", "whole"), "memory", memory, "part or whole")
    shared = {name: encoder[name] for name in ("heads", "hidden", "dropout")}
    return DualStageAligner(
        build_joint_encoder(widths, beta=beta, **encoder),
        **shared,
        decoder_layers=decoder_layers,
        moment_queries=moment_queries,
        gamma=gamma,
        align=METHODS.get(align),
        stages=tuple(name for name, wanted in (("pre", pre), ("post", post)) if wanted),
        cost=contrastive_cost if cost == "contrastive" else masked_cosine_cost,
        before=with_token_type if typed else projected,
        memory=aligned_part if memory == "part" else whole_target,
    )
