r"""One Transformer over target and query together: the joint encoder of UniVTG, which MATR builds on.

Paper    Lin et al., "UniVTG: Towards Unified Video-Language Temporal Grounding", ICCV 2023 (arXiv 2307.16715)
Here     `JointEncoder` projects both, adds a token type to each and lets all vectors attend to all  [UniVTG];
         `JointAligner` adds the saliency, a clip's cosine with the pooled query, and its two contrasts  [UniVTG].
         The query is a sequence of vectors: words, or the clips of a query video. As released, padding is masked as a
         key of attention and nowhere else, since it is undefined in `Aligned`
Departs  the stochastic depth of the released network is left out
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.contrast import batch_contrast
from mrlib.align.dynamics import dynamics
from mrlib.align.saliency import saliency_labels
from mrlib.align.words import Words
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import EncoderLayer, LearnedPositions, Projected, Sizes, masked_softmax, sine_positions
from mrlib.ops.counts import shared_count
from mrlib.ops.whole_batch import drawn, own, whole


class Joint(NamedTuple):
    """Target and query before and after a joint encoder."""

    target_projected: Tensor  # (B, T, d) before the token type
    query_projected: Tensor  # (B, N, d)
    target_typed: Tensor  # (B, T, d) with the token type
    query_typed: Tensor  # (B, N, d)
    target: Tensor  # (B, T, d) encoded
    query: Tensor  # (B, N, d)
    target_positions: Tensor  # (B, T, d) positions of the clips


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
        """Projections and `sizes.layers` layers of these sizes.

        pre_norm         LayerNorm before attention and feed-forward and at the end, instead of after each sum
        query_positions  "sine", "learned" or "none"
        places           number of learned positions
        mix              a module `mix(x, positions, words) -> (B, T, d)` from the clips with their token type to the
                         clips that enter the first layer; None: they enter as they are
        """
        super().__init__(widths.target, widths.query, sizes)
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

    def forward(self, target: Tensor, target_mask: Tensor, query: Tensor, query_mask: Tensor) -> Joint:
        """target (B, T, D), target_mask bool (B, T); query (B, N, D'), query_mask bool (B, N)."""
        target, query = self.project(target, target_mask, query)  # (B, T, d), (B, N, d)
        target_typed, query_typed = target + self.token_type.weight[1], query + self.token_type.weight[0]
        target_positions = sine_positions(target_mask, self.width)  # (B, T, d)
        query_positions = self._positions(query_typed, query_mask)  # (B, N, d)
        clips = target_typed  # (B, T, d)
        if self.mix is not None:
            clips = self.mix(clips, target_positions, Words(query_typed + query_positions, query_typed, query_mask))
        x = torch.cat([clips, query_typed], 1)  # (B, T + N, d)
        positions = torch.cat([target_positions, query_positions], 1)  # (B, T + N, d)
        mask = torch.cat([target_mask, query_mask], 1)  # (B, T + N)
        for layer in self.layers:
            x = layer(x, positions, mask)
        encoded = self.norm(x).split([target.shape[1], query.shape[1]], dim=1)  # (B, T, d), (B, N, d)
        return Joint(target, query, target_typed, query_typed, *encoded, target_positions)

    def _positions(self, query: Tensor, mask: Tensor) -> Tensor:
        """query (B, N, d), mask bool (B, N) -> (B, N, d)."""
        if self.query_positions == "sine":
            return sine_positions(mask, self.width)
        return torch.zeros_like(query) if self.places is None else self.places(query)


def build_joint_encoder(widths: Widths, *, beta: float | None, query_positions: str, **options: Any) -> JointEncoder:
    """A joint encoder.

    beta             weight of the clips against their dynamics, see `Dynamics`; None: no dynamics
    query_positions  of `JointEncoder`
    options          `pre_norm`, `places`, and those of `Sizes`
    """
    pre_norm, places = options.pop("pre_norm"), options.pop("places")
    sizes = Sizes(**options)
    mix = dynamics(1, sizes, beta)[0]
    return JointEncoder(widths, sizes, pre_norm=pre_norm, query_positions=query_positions, places=places, mix=mix)


class JointAligner(nn.Module):
    r"""Target and query through one encoder; the saliency compares clips with the pooled query.  [UniVTG]

    $$s_t = \cos(V_t, g), \quad g = \sum_n \mathrm{softmax}_n(\langle w, Y_n \rangle)\, Y_n$$

    V and Y are the clips and the query before the encoder, with their token types; w is learned.
    """

    def __init__(self, encoder: JointEncoder, *, temperature: float = 0.07):
        """temperature  of both contrasts"""
        super().__init__()
        self.encoder, self.width, self.temperature = encoder, encoder.width, temperature
        self.pool = nn.Linear(encoder.width, 1, bias=False)  # w

    def forward(self, batch: Batch) -> Aligned:
        """Cache: `target`, the clips with their token type (B, T, d)."""
        joint = self.encoder(batch.target, batch.target_mask, batch.query, batch.query_mask)
        logits = self.pool(joint.query_typed)[..., 0]  # (B, N)
        pool_weights = masked_softmax(logits, batch.query_mask, -1)  # (B, N)
        pooled = (pool_weights[..., None] * joint.query_typed).sum(1)  # g (B, d)
        return Aligned(
            target=joint.target,
            mask=batch.target_mask,
            query=joint.query,
            query_mask=batch.query_mask,
            query_global=pooled,
            saliency=F.cosine_similarity(joint.target_typed, pooled[:, None], dim=-1),  # (B, T)
            cache={"target": joint.target_typed},
        )

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Two contrasts of one relevant clip per sample, drawn at random.  [UniVTG]

        Each is a sum of two cross-entropies, averaged over the samples with a relevant clip, so without null queries.

        inter  the drawn clip against the queries of the batch, and its query against the drawn clips of the batch
        intra  the drawn clip against the clips of its video with a lower label; and, as released, against the clips at
               its index in the other videos that have a lower label than the clip drawn there, or are that clip
        """
        scores = saliency_labels(batch)  # (B, T)
        relevant = batch.labels.relevant & batch.target_mask  # (B, T)
        rows = relevant.any(1)  # (B,), a sample without a relevant clip adds nothing
        count = shared_count(rows.sum())
        chosen = drawn(lambda weights: torch.multinomial(weights, 1), relevant.float() + ~rows[:, None])  # (B, 1)
        clip = aligned.cache["target"].gather(1, chosen[..., None].expand(-1, -1, self.width))[:, 0]  # (B, d)
        inter = 2 * batch_contrast(clip, aligned.query_global, rows, self.temperature)  # a sum over both directions
        lower = batch.target_mask & (scores < scores.gather(1, chosen))  # (B, T)
        lower = lower.scatter(1, chosen, True) & rows[:, None]  # (B, T)
        logits = aligned.saliency.float().masked_fill(~lower, -1e30) / self.temperature  # (B, T)
        shares = logits.log_softmax(1), own(whole(logits).log_softmax(0))  # (B, T) each
        intra = sum(share.gather(1, chosen)[:, 0] for share in shares)  # (B,)
        return {"inter": inter, "intra": -(intra * rows).sum() / count}


def build_joint(widths: Widths, *, temperature: float, beta: float | None = None, **encoder: Any) -> JointAligner:
    """The aligner "joint".

    temperature    of both contrasts
    beta, encoder  options of `build_joint_encoder`
    """
    return JointAligner(build_joint_encoder(widths, beta=beta, **encoder), temperature=temperature)
