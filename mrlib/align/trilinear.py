r"""Trilinear fusion, cross-attention from clips to words, and an encoder that runs twice (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622); the network is
         TR-DETR's (Sun et al., AAAI 2024)
Here     `TrilinearFusion`  [AMR, fusion]; `TrilinearAligner` puts it before the layers of QD-DETR and encodes twice
         [AMR, encoder]; its losses are those of the saliency, two contrasts and the discrimination  [AMR, losses]
Departs  SooLab/AMR counts padding in the softmax over clips that weighs highlights, in the mean of the video and as
         irrelevant clips of the contrast, and its attention masks land on other samples: `SeenPadding`. It separates
         relevant from mined clips by their cosine to the mean of the video, which does not depend on the query:
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
from mrlib.ops.recompute import recomputed

TEMPERATURE = 0.07  # of both contrasts and of the discrimination


class HiddenPadding:
    """Excludes padding from attention, softmax and means."""

    def visible_words(self, mask: Tensor, query_mask: Tensor) -> None:
        """`Words.visible`, here all real words; masks bool (B, T), (B, N)."""
        return None

    def counted(self, mask: Tensor) -> Tensor:
        """Clips in the softmax that weighs highlights and in the clip contrast; bool (B, T) -> bool (B, T)."""
        return mask

    def mean(self, clips: Tensor, mask: Tensor) -> Tensor:
        """The mean clip; (B, T, d), bool (B, T) -> (B, d)."""
        return masked_mean(clips, mask)


class SeenPadding:
    """Includes padding in attention, softmax and means, as released. Methods as in `HiddenPadding`."""

    def __init__(self, heads: int):
        self.heads = heads

    def visible_words(self, mask: Tensor, query_mask: Tensor) -> Tensor:
        return released_masks(mask, query_mask, self.heads)  # bool (B, heads, T, N)

    def counted(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask)

    def mean(self, clips: Tensor, mask: Tensor) -> Tensor:
        return clips.mean(1)


def near_sentence(sentence: Tensor, video: Tensor, mask: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """The reference of the discrimination: the sentence. Samples that have both relevant and mined clips count.

    sentence  (B, d)  the last word
    video     (B, d)  the mean clip
    mask      bool (B, T)
    both      bool (B,)  samples that have both relevant and mined clips
    returns   the reference (B, d), and the samples that count, bool (B,)
    """
    return sentence, both


def near_video(sentence: Tensor, video: Tensor, mask: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """The reference as released: the mean of the video. All samples that have clips count.

    Arguments and results are those of `near_sentence`.
    """
    return video, mask.any(1)


def products(clips: Tensor, vector: Tensor) -> Tensor:
    """The products of the clips with a vector of their sample; (B, T, d), (B, d) -> (B, T).

    A cosine divides these by the lengths, since normalised clips would be a copy of all of them.
    """
    return (clips @ vector[..., None])[..., 0]


class TrilinearFusion(nn.Module):
    r"""Every clip is fused with the words that match it and with the whole query.  [AMR, fusion]

    $$S_{tn} = V_t^\top w_C + Y_n^\top w_Q + V_t^\top (w_m \odot Y_n), \quad A = \mathrm{softmax}_n(S), \quad
    \bar A = \mathrm{softmax}_t(S)$$
    $$P = A Y, \quad Q = A \bar A^\top V, \quad X = W_1 [V; P; V \odot P; V \odot Q] + b_1, \quad
    V' = \mathrm{ReLU}(W_2 [X; u] + b_2)$$

    V are the clips and Y the words. u is the mean of the words weighted by $\mathrm{softmax}_n(Y w_p)$. Dropout is
    applied to V and Y in S only.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        # w_C, w_Q, w_m, w_p
        self.clip, self.word, self.both, self.pool = (nn.Parameter(torch.empty(width)) for _ in range(4))
        for weight in (self.clip, self.word, self.pool):
            nn.init.xavier_uniform_(weight[:, None])
        nn.init.xavier_uniform_(self.both[None, None])
        self.dropout = Dropout(dropout)
        self.mix, self.out = nn.Linear(4 * width, width), nn.Linear(2 * width, width)  # W_1, W_2

    def forward(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Tensor:
        """target (B, T, d), mask bool (B, T), query (B, N, d), query_mask bool (B, N) -> (B, T, d)."""
        v, y = self.dropout(target), self.dropout(query)  # (B, T, d), (B, N, d)
        score = (v @ self.clip)[:, :, None] + (y @ self.word)[:, None] + (v * self.both) @ y.mT  # (B, T, N)
        over_words = masked_softmax(score, query_mask[:, None], 2)  # A (B, T, N)
        over_clips = masked_softmax(score, mask[:, :, None], 1)  # A-bar (B, T, N)
        p, q = over_words @ query, over_words @ (over_clips.mT @ target)  # P, Q (B, T, d)
        x = self.mix(torch.cat([target, p, target * p, target * q], -1))  # (B, T, 4 d) -> (B, T, d)
        weights = masked_softmax(query @ self.pool, query_mask, 1)  # (B, N)
        sentence = weights[:, None] @ query  # u (B, 1, d)
        # W_2 [X; u] in two parts, because u is the same for all clips
        of_clips, of_sentence = self.out.weight.chunk(2, 1)  # (d, d), (d, d)
        return (F.linear(x, of_clips) + F.linear(sentence, of_sentence, self.out.bias)).relu()  # (B, T, d)


class TrilinearAligner(Projected):
    r"""Fusion, layers from words to clips, and an encoder that runs twice.  [AMR, encoder]

    $$E = \mathrm{Enc}(H), \quad \sigma_t = \tfrac{1}{\sqrt d} \mathbf 1^\top (W_s E_t + b_s), \quad
    \omega = \mathrm{softmax}_t(\sigma), \quad Z = \mathrm{Enc}(E + \omega \odot H)$$

    H are the clips after the layers from words to clips, σ is the saliency, and Z are the clips for the detector.
    `query_global` is the last word.
    """

    def __init__(
        self,
        widths: Widths,
        sizes: Sizes,
        layers: Sequence[T2VLayer],
        encoder: Sequence[EncoderLayer],
        *,
        padding: HiddenPadding | SeenPadding,
        against: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = near_sentence,
    ):
        """The layers have these sizes.

        layers   from words to clips
        encoder  over the clips
        padding  how padding takes part
        against  the reference that relevant clips must be nearer to than mined clips: `near_sentence` or `near_video`
        """
        super().__init__(widths.target, widths.query, sizes)
        self.padding, self.against = padding, against
        self.fusion = TrilinearFusion(sizes.width, sizes.dropout)
        self.layers, self.encoder = nn.ModuleList(layers), nn.ModuleList(encoder)
        self.saliency = nn.Linear(sizes.width, sizes.width)

    def forward(self, batch: Batch) -> Aligned:
        """Fuse, attend to the words, encode twice. Cache: `target`, the projected clips (B, T, d)."""
        mask, query_mask = batch.target_mask, batch.query_mask
        target, query = self.project(batch.target, mask, batch.query)  # (B, T, d), (B, N, d)
        positions = sine_positions(mask, self.width)  # (B, T, d)
        words = Words(query, query, query_mask, self.padding.visible_words(mask, query_mask))
        x = recomputed(mask.shape[1], self.fusion, target, mask, query, query_mask)  # (B, T, d)
        for layer in self.layers:
            x = layer(x, positions, words)  # H (B, T, d)
        encoded = self._encode(x, positions, mask)  # E (B, T, d)
        # 1^T (W_s E_t + b_s) is one product with the sum of the rows of W_s
        weight, bias = self.saliency.weight.sum(0, keepdim=True), self.saliency.bias.sum()[None]  # (1, d), (1,)
        relevance = F.linear(encoded, weight, bias)[..., 0] / self.width**0.5  # sigma (B, T)
        highlights = masked_softmax(relevance, self.padding.counted(mask), 1)  # omega (B, T)
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
        """x, positions (B, T, d), mask bool (B, T) -> (B, T, d)."""
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Losses of the saliency and of the projected features before the fusion.  [AMR, losses]

        margin        `saliency.margin` of two pairs of clips per sample
        contrast      `saliency.rank_contrast` of the clips of each sample
        vtc           `batch_contrast` of last words and mean clips
        ctc           clips are near the mean word if and only if they are relevant
        discriminate  relevant clips are nearer to the reference than mined clips; 0 if no sample counts

        A null query counts in ctc, where none of its clips is relevant, and takes no part in vtc and discriminate; it
        has no pair for margin and adds nothing to contrast.
        """
        mask, clips = aligned.mask, aligned.cache["target"].float()
        video, sentence = self.padding.mean(clips, mask), aligned.query_global.float()  # (B, d)
        return {
            "margin": saliency.margin(aligned.saliency, saliency.ranking_pairs(batch)),
            "contrast": saliency.rank_contrast(aligned.saliency, saliency.saliency_labels(batch), mask),
            "vtc": batch_contrast(sentence, video, mask.any(1) & batch.labels.answered, TEMPERATURE),
            "ctc": self._clip_contrast(clips, aligned.query.float(), batch),
            "discriminate": self._discrimination(clips, sentence, video, batch),
        }

    def _clip_contrast(self, clips: Tensor, query: Tensor, batch: Batch) -> Tensor:
        """The mean binary cross-entropy of relevant clips, by their product with the mean word over 0.07.

        Clips and words are normalised first, the mean word is not. clips (B, T, d), query (B, N, d); returns a scalar
        """
        mean_word = masked_mean(F.normalize(query, dim=-1), batch.query_mask)  # (B, d)
        logits = products(clips, mean_word) / clips.norm(dim=-1).clamp(min=1e-12) / TEMPERATURE  # (B, T)
        logits = logits.masked_fill(~batch.target_mask, 0)
        counted = self.padding.counted(batch.target_mask)
        # (B, T)
        each = F.binary_cross_entropy_with_logits(logits, batch.labels.relevant.to(logits.dtype), reduction="none")
        return (each * counted).sum() / shared_count(counted.sum())

    def _discrimination(self, clips: Tensor, sentence: Tensor, video: Tensor, batch: Batch) -> Tensor:
        r"""The mean of $\mathrm{softplus}((n - p) / 0.07)$ over the samples that count.

        p and n are the mean cosines of relevant and of mined clips with the reference that `against` gives.
        clips (B, T, d); sentence, video (B, d); returns a scalar
        """
        mask = batch.target_mask
        relevant = batch.labels.relevant & mask
        mined = torch.zeros_like(relevant) if batch.labels.wrong is None else batch.labels.wrong & mask  # (B, T)
        reference, rows = self.against(sentence, video, mask, mined.any(1) & relevant.any(1))  # (B, d), (B,)
        rows = rows & batch.labels.answered
        lengths, length = (x.norm(dim=-1).clamp(min=1e-8) for x in (clips, reference))  # (B, T), (B,)
        cosine = products(clips, reference) / lengths / length[:, None]  # (B, T)
        p, n = (masked_mean(cosine[..., None], which)[:, 0] for which in (relevant, mined))  # (B,), (B,)
        return (F.softplus((n - p) / TEMPERATURE) * rows).sum() / shared_count(rows.sum())


def build_trilinear(
    widths: Widths, *, encoder_layers: int, padding: str, against: str, beta: float | None = None, **options: Any
) -> TrilinearAligner:
    """The aligner "trilinear".

    encoder_layers  number of layers of the encoder; `layers` counts those from words to clips
    padding         "hidden", or "seen" as in the official code
    against         the reference that relevant clips must be nearer to than mined clips: the "sentence", or the "video"
                    as in the official code
    beta            weight of the clips against their dynamics, see `Dynamics`; None: no dynamics
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
        against=near_sentence if against == "sentence" else near_video,
    )
