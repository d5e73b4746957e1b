r"""One Transformer over target and query together: the joint encoder of UniVTG, which MATR builds on.

Paper    Lin et al., "UniVTG: Towards Unified Video-Language Temporal Grounding", ICCV 2023 (arXiv 2307.16715)
Here     `JointEncoder` projects both, marks which is which and lets all attend to all  [UniVTG]; `JointAligner`
         adds the saliency, the cosine of a clip with the pooled query, and its two contrasts  [UniVTG]
Any      query is a sequence of vectors, so words and the clips of a query video go the same way
Departs  the released network masks nothing but attention's keys; so does this one, for what stands on padding is
         undefined in `Aligned`. Its stochastic depth is left out
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.projected import Projected, Sizes
from mrlib.align.saliency import scores_of
from mrlib.align.text_to_video import Words
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, LearnedPositions, sine_positions
from mrlib.ops.counts import shared_count
from mrlib.settings import require


class Joint(NamedTuple):
    """Target and query on their way through a joint encoder."""

    target_projected: Tensor  # (B, T, d) before the token type
    query_projected: Tensor  # (B, N, d)
    target_typed: Tensor  # (B, T, d) with the token type
    query_typed: Tensor  # (B, N, d)
    target: Tensor  # (B, T, d) after the encoder
    query: Tensor  # (B, N, d)
    target_positions: Tensor  # (B, T, d)


class JointEncoder(Projected):
    """Projections of both, token types, and Transformer layers over [target; query].  [MATR §3.2], [UniVTG]"""

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        *,
        pre_norm: bool = False,
        query_positions: str = "sine",
        places: int = 75,
        mix: nn.Module | None = None,
    ):
        """One stack of layers of these sizes.

        query_positions  "sine", "learned" (`places` of them) or "none"
        mix              a module `mix(x, positions, words) -> (B, T, d)`: the clips as the first layer gets them, from
                         those with the token type; None: themselves
        """
        super().__init__(widths, sizes)
        known = ("sine", "learned", "none")
        require(query_positions in known, "query_positions", query_positions, f"one of {', '.join(known)}")
        require(type(sizes.layers) is int and sizes.layers >= 0, "layers", sizes.layers, "0 or more")
        width, self.query_positions = sizes.width, query_positions
        self.token_type = nn.Embedding(2, width)  # 0 query, 1 target
        nn.init.normal_(self.token_type.weight, std=0.02)
        learned = query_positions == "learned"
        self.places = LearnedPositions(places, width, sizes.input_dropout) if learned else None
        self.layers = nn.ModuleList(EncoderLayer(*sizes.layer, pre_norm) for _ in range(sizes.layers))
        self.norm, self.mix = nn.LayerNorm(width) if pre_norm else nn.Identity(), mix

    def forward(self, batch: Batch) -> Joint:
        target, query = self.project(batch)
        target_typed, query_typed = target + self.token_type.weight[1], query + self.token_type.weight[0]
        target_positions = sine_positions(batch.target_mask, self.width)
        if self.query_positions == "sine":
            query_positions = sine_positions(batch.query_mask, self.width)
        else:
            query_positions = self.places(query_typed) if self.places is not None else torch.zeros_like(query_typed)
        clips = target_typed
        if self.mix is not None:
            words = Words(query_typed + query_positions, query_typed, batch.query_mask)
            clips = self.mix(target_typed, target_positions, words)
        x, positions = torch.cat([clips, query_typed], 1), torch.cat([target_positions, query_positions], 1)
        mask = torch.cat([batch.target_mask, batch.query_mask], 1)
        for layer in self.layers:
            x = layer(x, positions, mask)
        fused = self.norm(x).split([target.shape[1], query.shape[1]], dim=1)
        return Joint(target, query, target_typed, query_typed, *fused, target_positions)


class JointAligner(nn.Module):
    """Target and query through one encoder; saliency is a clip's cosine with the pooled query.  [UniVTG]"""

    def __init__(self, encoder: JointEncoder, *, temperature: float = 0.07):
        """temperature  of both contrasts"""
        super().__init__()
        self.encoder, self.width, self.temperature = encoder, encoder.width, temperature
        self.pool = nn.Linear(encoder.width, 1, bias=False)

    def forward(self, batch: Batch) -> Aligned:
        joint = self.encoder(batch)
        weights = self.pool(joint.query_typed)[..., 0].masked_fill(~batch.query_mask, -1e30).softmax(-1)
        whole = (weights[..., None] * joint.query_typed).sum(1)
        saliency = F.cosine_similarity(joint.target_typed, whole[:, None], dim=-1)
        return Aligned(
            joint.target,
            batch.target_mask,
            joint.query,
            batch.query_mask,
            whole,
            saliency,
            cache={"target": joint.target_typed},
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Contrasts at one relevant clip per sample, drawn at random.  [UniVTG]

        inter  the clip with the queries of the batch and the query with the clips of the batch, both directions summed;
               of several processes each sees the batch that it has
        intra  the clip with those of lower label in its video, and, as released, with what stands at the same time in
               the other videos
        """
        score = scores_of(batch)
        relevant = batch.labels.relevant & batch.target_mask
        rows = relevant.any(1)  # a row of padding teaches nothing
        count = shared_count(rows.sum())
        chosen = torch.multinomial(relevant.float() + ~rows[:, None], 1)  # (B, 1)
        clip = aligned.cache["target"].gather(1, chosen[..., None].expand(-1, -1, self.width))[:, 0]
        similarity = F.normalize(clip, dim=-1) @ F.normalize(aligned.query_global, dim=-1).mT / self.temperature
        similarity = similarity.masked_fill(~(rows[:, None] & rows), -1e30)
        inter = sum(side.log_softmax(1).diagonal() for side in (similarity, similarity.mT))
        lower = batch.target_mask & (score < score.gather(1, chosen))
        lower = lower.scatter(1, chosen, True) & rows[:, None]
        logits = aligned.saliency.float().masked_fill(~lower, -1e30) / self.temperature
        intra = sum(logits.log_softmax(axis).gather(1, chosen)[:, 0] for axis in (1, 0))
        return {"inter": -(inter * rows).sum() / count, "intra": -(intra * rows).sum() / count}
