r"""Words and clips are fused by trilinear attention, words go into clips, and highlights are encoded anew (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622); the network is
         TR-DETR's (Sun et al., AAAI 2024)
Here     `TrilinearFusion` [AMR, fusion]; `TrilinearAligner` puts it before the layers of QD-DETR and encodes twice
         [AMR, encoder]; its losses are the saliency's, two contrasts and the discrimination [AMR, losses]
Departs  SooLab/AMR sees padding: in the softmax over clips that weighs highlights, in the mean of the video, as clips
         that its words must not be near, and by masks that land on other samples: `padding="seen"`. It sets mined clips
         apart from annotated ones by the mean of the video, which the query has no part in: `against="video"`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.projected import Projected, Sizes
from mrlib.align.text_to_video import T2VLayer, Words, released_masks
from mrlib.data import Batch, Widths
from mrlib.layers import Dropout, EncoderLayer, masked_mean, sine_positions
from mrlib.ops.counts import shared_count
from mrlib.settings import require

TEMPERATURE = 0.07  # of both contrasts and of the discrimination


def masked_softmax(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over what is there; where nothing is, all alike.  x and mask broadcast"""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(dim)


class TrilinearFusion(nn.Module):
    r"""Every clip with the words that fit it, and with the whole query.  [AMR, fusion]

    $$S_{tn} = V_t^\top w_C + T_n^\top w_Q + V_t^\top (w_m \odot T_n), \quad A = \mathrm{softmax}_n(S), \quad
    \bar A = \mathrm{softmax}_t(S)$$
    $$P = A T, \quad Q = A \bar A^\top V, \quad X = W_1 [V; P; V \odot P; V \odot Q] + b_1, \quad
    V' = \mathrm{ReLU}(W_2 [X; u] + b_2)$$

    u is the sum of the words weighed by $\mathrm{softmax}_n(T w_p)$. Dropout is on the features of S only.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.clip, self.word, self.both, self.pool = (nn.Parameter(torch.empty(width)) for _ in range(4))
        for weight in (self.clip, self.word, self.pool):
            nn.init.xavier_uniform_(weight[:, None])
        nn.init.xavier_uniform_(self.both[None, None])
        self.dropout = Dropout(dropout)
        self.mix, self.out = nn.Linear(4 * width, width), nn.Linear(2 * width, width)

    def forward(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        """target (B, T, d), query (B, N, d) -> (B, T, d)."""
        v, t = self.dropout(target), self.dropout(query)
        score = (v @ self.clip)[:, :, None] + (t @ self.word)[:, None] + (v * self.both) @ t.mT  # (B, T, N)
        words = masked_softmax(score, query_mask[:, None], 2)
        clips = masked_softmax(score, mask[:, :, None], 1)
        p, q = words @ query, words @ (clips.mT @ target)
        x = self.mix(torch.cat([target, p, target * p, target * q], -1))
        weights = masked_softmax(query @ self.pool, query_mask, 1)
        whole = (weights[..., None] * query).sum(1, keepdim=True).expand_as(x)
        return self.out(torch.cat([x, whole], -1)).relu()


class TrilinearAligner(Projected):
    r"""Fusion, words into clips, clips among themselves twice, the second time with highlights lifted.  [AMR, encoder]

    $$E = \mathrm{Enc}(Y), \quad \sigma_t = \tfrac{1}{\sqrt d} \mathbf 1^\top (W_s E_t + b_s), \quad
    \omega = \mathrm{softmax}_t(\sigma), \quad Z = \mathrm{Enc}(E + \omega \odot Y)$$

    The saliency is σ, what goes on to the detector Z, the query as a whole its last word.
    """

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[T2VLayer],
        encoder: Sequence[EncoderLayer],
        *,
        padding: str = "hidden",
        against: str = "sentence",
    ):
        """Two stacks of layers of these sizes.

        padding  "hidden", or "seen" as in the official code
        against  what annotated clips are to be nearer to than mined ones: the "sentence", its last word; the mean of
                 the "video", as in the official code
        """
        super().__init__(widths, sizes)
        require(padding in ("hidden", "seen"), "padding", padding, "hidden or seen")
        require(against in ("sentence", "video"), "against", against, "sentence or video")
        self.heads, self.padding, self.against = sizes.heads, padding, against
        self.fusion = TrilinearFusion(sizes.width, sizes.dropout)
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.saliency = nn.Linear(sizes.width, sizes.width)

    def forward(self, batch: Batch) -> Aligned:
        mask, query_mask = batch.target_mask, batch.query_mask
        target, query = self.project(batch)
        positions = sine_positions(mask, self.width)
        seen = released_masks(mask, query_mask, self.heads) if self.padding == "seen" else None
        words, x = Words(query, query, query_mask, seen), self.fusion(target, mask, query, query_mask)
        for layer in self.layers:
            x = layer(x, positions, words)
        encoded = self._encode(x, positions, mask)
        # the sum of what W_s gives is one product with the sum of its rows
        one = F.linear(encoded, self.saliency.weight.sum(0, keepdim=True), self.saliency.bias.sum()[None])[..., 0]
        relevance = one / self.width**0.5
        lifted = masked_softmax(relevance, torch.ones_like(mask) if self.padding == "seen" else mask, 1)
        last = (query_mask.sum(1) - 1).clamp(min=0)
        return Aligned(
            self._encode(encoded + lifted[..., None] * x, positions, mask),
            mask,
            query,
            query_mask,
            query_global=query.gather(1, last[:, None, None].expand(-1, 1, self.width))[:, 0],
            saliency=relevance,
            cache={"target": target},
        )

    def _encode(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """What trains the saliency and the projected features before the fusion.  [AMR, losses]

        margin        two pairs of clips per sample
        contrast      clips of each rank against all others
        vtc           the last word with its video, the mean of its clips, against those of the batch, both ways; of
                      several processes each sees the batch that it has
        ctc           every clip near the words if it is relevant, and only then
        discriminate  relevant clips nearer than mined ones, of samples that have some; 0 where none has
        """
        mask, clips = aligned.mask, aligned.cache["target"].float()
        rows, seen = mask.any(1), self.padding == "seen"
        video = clips.mean(1) if seen else masked_mean(clips, mask)
        whole = aligned.query_global.float()
        return {
            "margin": saliency.margin(aligned.saliency, saliency.ranking_pairs(batch)),
            "contrast": saliency.rank_contrast(aligned.saliency, saliency.scores_of(batch), mask),
            "vtc": batch_contrast(whole, video, rows),
            "ctc": self._clip_contrast(clips, aligned.query.float(), batch),
            "discriminate": self._discrimination(clips, whole if self.against == "sentence" else video, batch),
        }

    def _clip_contrast(self, clips: Tensor, query: Tensor, batch: Batch) -> Tensor:
        words = masked_mean(F.normalize(query, dim=-1), batch.query_mask)
        logits = (F.normalize(clips, dim=-1) @ words[..., None])[..., 0] / TEMPERATURE
        logits = logits.masked_fill(~batch.target_mask, 0)
        counted = torch.ones_like(batch.target_mask) if self.padding == "seen" else batch.target_mask
        relevant = (batch.labels.relevant & batch.target_mask).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, relevant, reduction="none")
        return (each * counted).sum() / shared_count(counted.sum())

    def _discrimination(self, clips: Tensor, near: Tensor, batch: Batch) -> Tensor:
        r"""The mean over samples of $\mathrm{softplus}((n - p) / 0.07)$, mean cosines of mined and relevant clips."""
        wrong = batch.labels.wrong
        relevant = batch.labels.relevant & batch.target_mask
        wrong = torch.zeros_like(relevant) if wrong is None else wrong & batch.target_mask
        cosine = F.cosine_similarity(clips, near[:, None], dim=-1)
        p, n = (masked_mean(cosine[..., None], which)[:, 0] for which in (relevant, wrong))
        rows = batch.target_mask.any(1) if self.against == "video" else wrong.any(1) & relevant.any(1)
        return (F.softplus((n - p) / TEMPERATURE) * rows).sum() / shared_count(rows.sum())


def batch_contrast(query: Tensor, video: Tensor, rows: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    r"""Symmetric InfoNCE: each query with its video against all videos of the batch, and the other way.  [AMR, losses]

    query, video  (B, d)
    rows          bool (B,)  samples that are there
    """
    similarity = F.normalize(query, dim=-1) @ F.normalize(video, dim=-1).mT / temperature
    similarity = similarity.masked_fill(~(rows[:, None] & rows), torch.finfo(similarity.dtype).min)
    own = sum(side.log_softmax(1).diagonal() for side in (similarity, similarity.mT))
    return -(own * rows).sum() / 2 / shared_count(rows.sum())
