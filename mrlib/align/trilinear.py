r"""Trilinear fusion of words and clips, words into clips, and an encoder that runs again with highlights lifted (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622); the network is
         TR-DETR's (Sun et al., AAAI 2024)
Here     `TrilinearFusion`  [AMR, fusion]; `TrilinearAligner` puts it before the layers of QD-DETR and encodes twice
         [AMR, encoder]; its losses are those of the saliency, two contrasts and the discrimination  [AMR, losses]
Departs  SooLab/AMR lets padding in: in the softmax over clips that weighs highlights, in the mean of the video, as
         clips that its words must not be near, and by masks that land on other samples: `SeenPadding`. It separates
         mined clips from annotated ones by their distance to the mean of the video, which does not depend on the query:
         `near_video`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned, saliency
from mrlib.align.contrast import batch_contrast
from mrlib.align.dynamics import dynamics
from mrlib.align.words import T2VLayer, Words, released_masks
from mrlib.arguments import require
from mrlib.data import Batch, Widths
from mrlib.layers import Dropout, EncoderLayer, Projected, Sizes, masked_mean, masked_softmax, sine_positions
from mrlib.ops.counts import shared_count

TEMPERATURE = 0.07  # of both contrasts and of the discrimination


class HiddenPadding:
    """Padding takes part in nothing."""

    def visible_words(self, mask: Tensor, query_mask: Tensor) -> None:
        """`Words.seen`: every word of the query."""
        return None

    def counted(self, mask: Tensor) -> Tensor:
        """Clips that the softmax over the video and the clip contrast take in; bool (B, T) -> bool (B, T)."""
        return mask

    def mean(self, clips: Tensor, mask: Tensor) -> Tensor:
        """The mean clip; (B, T, d), bool (B, T) -> (B, d)."""
        return masked_mean(clips, mask)


class SeenPadding:
    """Padding takes part as in the released code. The methods are those of `HiddenPadding`."""

    def __init__(self, heads: int):
        self.heads = heads

    def visible_words(self, mask: Tensor, query_mask: Tensor) -> Tensor:
        return released_masks(mask, query_mask, self.heads)

    def counted(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask)

    def mean(self, clips: Tensor, mask: Tensor) -> Tensor:
        return clips.mean(1)


def near_sentence(sentence: Tensor, video: Tensor, mask: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """What relevant clips must be nearer to than mined clips, (B, d), and the samples that count, bool (B,).

    The last word, and samples that have `both` relevant and mined clips.
    sentence, video (B, d), mask bool (B, T), both bool (B,)
    """
    return sentence, both


def near_video(sentence: Tensor, video: Tensor, mask: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """As `near_sentence`, in the released way: the mean of the video, and every sample that has clips."""
    return video, mask.any(1)


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
        words = masked_softmax(score, query_mask[:, None], 2)  # A (B, T, N)
        clips = masked_softmax(score, mask[:, :, None], 1)  # A-bar (B, T, N)
        p, q = words @ query, words @ (clips.mT @ target)  # (B, T, d)
        x = self.mix(torch.cat([target, p, target * p, target * q], -1))  # (B, T, 4 d) -> (B, T, d)
        weights = masked_softmax(query @ self.pool, query_mask, 1)  # (B, N)
        sentence = (weights[..., None] * query).sum(1, keepdim=True).expand_as(x)  # u (B, T, d)
        return self.out(torch.cat([x, sentence], -1)).relu()


class TrilinearAligner(Projected):
    r"""Fusion, words into clips, clips among themselves twice, the second time with highlights lifted.  [AMR, encoder]

    $$E = \mathrm{Enc}(Y), \quad \sigma_t = \tfrac{1}{\sqrt d} \mathbf 1^\top (W_s E_t + b_s), \quad
    \omega = \mathrm{softmax}_t(\sigma), \quad Z = \mathrm{Enc}(E + \omega \odot Y)$$

    The saliency is σ, the clips for the detector are Z, the whole query is its last word.
    """

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[T2VLayer],
        encoder: Sequence[EncoderLayer],
        *,
        padding: HiddenPadding | SeenPadding,
        near: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = near_sentence,
    ):
        """Two stacks of layers of these sizes.

        padding  how padding takes part
        near     what relevant clips must be nearer to than mined clips: `near_sentence` or `near_video`
        """
        super().__init__(widths.target, widths.query, sizes)
        self.padding, self.near = padding, near
        self.fusion = TrilinearFusion(sizes.width, sizes.dropout)
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.saliency = nn.Linear(sizes.width, sizes.width)

    def forward(self, batch: Batch) -> Aligned:
        """Cache: `target`, the projected clips (B, T, d)."""
        mask, query_mask = batch.target_mask, batch.query_mask
        target, query = self.project(batch.target, mask, batch.query)  # (B, T, d), (B, N, d)
        positions = sine_positions(mask, self.width)  # (B, T, d)
        words = Words(query, query, query_mask, self.padding.visible_words(mask, query_mask))
        x = self.fusion(target, mask, query, query_mask)  # (B, T, d)
        for layer in self.layers:
            x = layer(x, positions, words)
        encoded = self._encode(x, positions, mask)  # E (B, T, d)
        # 1^T (W_s E_t + b_s) is one product with the sum of the rows of W_s
        weight, bias = self.saliency.weight.sum(0, keepdim=True), self.saliency.bias.sum()[None]
        relevance = F.linear(encoded, weight, bias)[..., 0] / self.width**0.5  # (B, T)
        highlights = masked_softmax(relevance, self.padding.counted(mask), 1)  # (B, T)
        last = (query_mask.sum(1) - 1).clamp(min=0)  # (B,)
        return Aligned(
            target=self._encode(encoded + highlights[..., None] * x, positions, mask),  # Z (B, T, d)
            mask=mask,
            query=query,
            query_mask=query_mask,
            query_global=query.gather(1, last[:, None, None].expand(-1, 1, self.width))[:, 0],  # (B, d)
            saliency=relevance,
            cache={"target": target},
        )

    def _encode(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Losses of the saliency and of the projected features before the fusion.  [AMR, losses]

        margin        two pairs of clips per sample
        contrast      clips of each rank against all others
        vtc           the last word against the mean clips of the batch, and the other way round; with several processes
                      each uses its own part of the batch
        ctc           a clip is near the words if and only if it is relevant
        discriminate  relevant clips are nearer than mined ones; 0 where no sample has mined clips
        """
        mask, clips = aligned.mask, aligned.cache["target"].float()
        video, sentence = self.padding.mean(clips, mask), aligned.query_global.float()  # (B, d)
        return {
            "margin": saliency.margin(aligned.saliency, saliency.ranking_pairs(batch)),
            "contrast": saliency.rank_contrast(aligned.saliency, saliency.scores_of(batch), mask),
            "vtc": batch_contrast(sentence, video, mask.any(1), TEMPERATURE),
            "ctc": self._clip_contrast(clips, aligned.query.float(), batch),
            "discriminate": self._discrimination(clips, sentence, video, batch),
        }

    def _clip_contrast(self, clips: Tensor, query: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy of the cosines of clips (B, T, d) with the mean word (B, N, d); scalar."""
        words = masked_mean(F.normalize(query, dim=-1), batch.query_mask)  # (B, d)
        logits = (F.normalize(clips, dim=-1) @ words[..., None])[..., 0] / TEMPERATURE  # (B, T)
        logits = logits.masked_fill(~batch.target_mask, 0)
        counted = self.padding.counted(batch.target_mask)
        each = F.binary_cross_entropy_with_logits(logits, batch.labels.relevant.to(logits.dtype), reduction="none")
        return (each * counted).sum() / shared_count(counted.sum())

    def _discrimination(self, clips: Tensor, sentence: Tensor, video: Tensor, batch: Batch) -> Tensor:
        r"""The mean over samples of $\mathrm{softplus}((n - p) / 0.07)$, mean cosines of mined and relevant clips.

        clips (B, T, d); sentence, video (B, d); returns a scalar
        """
        mask = batch.target_mask
        relevant = batch.labels.relevant & mask
        wrong = torch.zeros_like(relevant) if batch.labels.wrong is None else batch.labels.wrong & mask
        near, rows = self.near(sentence, video, mask, wrong.any(1) & relevant.any(1))
        cosine = F.cosine_similarity(clips, near[:, None], dim=-1)  # (B, T)
        p, n = (masked_mean(cosine[..., None], which)[:, 0] for which in (relevant, wrong))  # (B,)
        return (F.softplus((n - p) / TEMPERATURE) * rows).sum() / shared_count(rows.sum())


def build_trilinear(
    widths: Widths, *, encoder_layers: int, padding: str, against: str, beta: float | None = None, **options: Any
) -> TrilinearAligner:
    """The aligner "trilinear".

    encoder_layers  of the encoder; `layers` counts those from words to clips
    padding         "hidden", or "seen" as in the official code
    against         what relevant clips are nearer to than mined ones: the "sentence"; the "video", as in the official
                    code
    beta            share of the clips where their dynamics flow in; None: no dynamics
    options         of `Sizes`
    """
    require(padding in ("hidden", "seen"), "padding", padding, "hidden or seen")
    require(against in ("sentence", "video"), "against", against, "sentence or video")
    sizes = Sizes(**options)
    layers = [T2VLayer(*sizes.layer, mix) for mix in dynamics(sizes.layers, sizes, beta)]
    return TrilinearAligner(
        widths,
        sizes,
        layers,
        [EncoderLayer(*sizes.layer) for _ in range(encoder_layers)],
        padding=HiddenPadding() if padding == "hidden" else SeenPadding(sizes.heads),
        near=near_sentence if against == "sentence" else near_video,
    )
