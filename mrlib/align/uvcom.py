r"""Prototypes summarise the words, and a random walk carries the prototypes into the clips (UVCOM).

Paper    Xiao et al., "Bridging the Gap: A Unified Video Comprehension Framework for Moment Retrieval and Highlight
         Detection", CVPR 2024 (arXiv 2311.16464)
Here     `prototypes` clusters words, or clips, around a few vectors; `random_walk` carries the prototypes of the words
         into the clips, `LocalConvolution` convolves neighbouring clips; `UvcomAligner` puts them between the layers
         and the encoder of QD-DETR and adds a loss, the similarity  [UVCOM]
Ours     padding is hidden everywhere; the released code clusters it too, and does not zero it between its convolutions.
         The walk solves a system of the size of the prototypes instead of the clips, with the same result
Departs  late in training EasonXiao-888/UVCOM takes the query that is least like the video as the negative query; here
         it is always the query of the next row. Its own detector, which starts from the words, is left out
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.contrast import batch_contrast
from mrlib.align.fused import Fused, GlobalTokenAligner, from_sizes
from mrlib.align.words import T2VLayer, Words
from mrlib.data import Batch, Widths
from mrlib.layers import MLP, EncoderLayer, Sizes, masked_mean, normalised_shares, sine_positions, unit_vectors
from mrlib.ops.counts import shared_count
from mrlib.ops.spans import inside

ITERATIONS, SIGMA = 5, 1.2  # of `prototypes`
OMEGA, SHARPNESS = 0.5, 5.0  # of `random_walk`
TEMPERATURE = 1.0  # of the loss "similarity"


def prototypes(start: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    r"""Soft k-means: P vectors, each moved to the weighted mean of the vectors near it, five times.  [UVCOM]

    $$\gamma_{pt} = \mathrm{softmax}_p\left(-\frac{\lVert \hat\mu_p - \hat x_t \rVert^2}{2 \cdot 1.2^2}\right), \quad
    \mu_p \leftarrow \frac{\sum_t \gamma_{pt} x_t}{\sum_t \gamma_{pt}}$$

    A hat marks a unit vector; the squared distance of two unit vectors is 2 minus twice their product. 1.2 is wide for
    these: in an untrained network all P results are nearly equal, wherever they start.

    start    (P, d)  initial $\mu$
    x        (B, N, d)
    mask     bool (B, N)
    returns  (B, P, d)
    """
    with torch.autocast(x.device.type, enabled=False):
        directions, mu = unit_vectors(x), start.expand(len(x), -1, -1)  # (B, N, d), (B, P, d)
        for _ in range(ITERATIONS):
            gamma = (unit_vectors(mu) @ directions.mT / SIGMA**2).softmax(1)  # (B, P, N)
            mu = normalised_shares(gamma, mask) @ x.to(gamma.dtype)  # (B, P, d)
        return mu


def random_walk(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    r"""The stationary point of a random walk between clips and prototypes of the words.  [UVCOM]

    $$\zeta_{pt} = \mathrm{softmax}_p(5 \langle \hat E_p, \hat x_t \rangle), \quad
    \bar\zeta_{pt} = \frac{\zeta_{pt}}{\sum_s \zeta_{ps}}, \quad
    X_r = (1 - \omega) (I - \omega^2 \zeta^\top \bar\zeta)^{-1} (\omega \zeta^\top E + X), \quad \omega = \tfrac12$$

    With R the last bracket, the inverse times R is $R + \omega^2 \zeta^\top
    (I_P - \omega^2 \bar\zeta \zeta^\top)^{-1} \bar\zeta R$, which solves a P x P system.

    x        (B, T, d)  X, the clips
    text     (B, P, d)  E, the prototypes of the words
    mask     bool (B, T)
    returns  (B, T, d)
    """
    with torch.autocast(x.device.type, enabled=False):
        to_clips = (SHARPNESS * unit_vectors(text) @ unit_vectors(x).mT).softmax(1)  # zeta (B, P, T)
        to_text = normalised_shares(to_clips, mask)  # zeta-bar (B, P, T)
        r = OMEGA * to_clips.mT @ text.to(to_clips.dtype) + x.to(to_clips.dtype)  # (B, T, d)
        back = torch.eye(text.shape[1], device=x.device, dtype=r.dtype) - OMEGA**2 * to_text @ to_clips.mT  # (B, P, P)
        return (1 - OMEGA) * (r + OMEGA**2 * to_clips.mT @ torch.linalg.solve(back, to_text @ r))


class LocalConvolution(nn.Module):
    """Three convolutions over time, of kernel sizes 1, 3 and 1.  [UVCOM]"""

    def __init__(self, width: int):
        super().__init__()
        self.before, self.after = nn.Linear(width, width), nn.Linear(width, width)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        for layer in (self.before, self.neighbours, self.after):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, d), mask bool (B, T) -> (B, T, d); the middle convolution reads zeros on padding."""
        return self.after(self.neighbours((self.before(x) * mask[..., None]).mT).mT)


@dataclass(frozen=True, kw_only=True)
class UvcomSizes(Sizes):
    """The released sizes; `hidden` is also the inner width of the projections for the similarity.  [UVCOM]"""

    layers: int = 3  # of each of three stacks: from words to clips, from clips to words, encoder
    text_prototypes: int = 5  # P', of the words
    target_prototypes: int = 30  # P, of the clips


class UvcomAligner(GlobalTokenAligner):
    r"""Clips attend to words and words to clips; prototypes and neighbours refine the clips.  [UVCOM]

    $$X', Y' = \mathrm{T2V}(X, Y), \mathrm{V2T}(Y, X), \quad X'' = X' + \mathrm{walk}(X' + \mathrm{Local}(X'), E^t)$$

    All layers of T2V attend to the projected words Y, all layers of V2T to the projected clips X. $E^t$ are prototypes
    of the words Y', $E^v$ of the clips X'. The encoder reads X'' and a global token, the one of $E^v$ with the highest
    mean cosine to $E^t$.
    """

    def __init__(self, widths: Widths, sizes: UvcomSizes):
        width, layers = sizes.width, range(sizes.layers)
        into_clips, into_words = ([T2VLayer(*sizes.layer) for _ in layers] for _ in range(2))
        super().__init__(widths, sizes, into_clips, [EncoderLayer(*sizes.layer) for _ in layers])
        self.back = nn.ModuleList(into_words)  # V2T; the parent's `layers` are T2V
        self.local = LocalConvolution(width)
        # initial prototypes of the clips, one of which becomes the global token
        self.global_token = nn.Parameter(torch.empty(sizes.target_prototypes, width))
        self.text_tokens = nn.Parameter(torch.empty(sizes.text_prototypes, width))
        for tokens in (self.global_token, self.text_tokens):
            nn.init.xavier_uniform_(tokens)
        self.project_words = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        # projections of clips and of words for the similarity
        self.clip_sense, self.text_sense = (MLP(width, width, 3, sizes.hidden) for _ in range(2))

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> Fused:
        """Projected clips (B, T, d) and words (B, N, d) -> clips (B, T, d) and their saliency (B, T).  [UVCOM]

        Cache: `token`, the encoded global token (B, d); `clips`, the clips before the encoder (B, T, d); `words`, the
        words after they attended to the clips (B, N, d).
        """
        positions = sine_positions(mask, self.width)  # (B, T, d)
        words, x = Words(query, query, query_mask), target
        clips, y, no_positions = Words(target + positions, target, mask), query, torch.zeros_like(query)
        for layer, back in zip(self.layers, self.back, strict=True):
            x, y = layer(x, positions, words), back(y, no_positions, clips)  # (B, T, d), (B, N, d)
        text = prototypes(self.text_tokens, y, query_mask)  # E^t (B, P', d)
        candidates = prototypes(self.global_token, x, mask)  # E^v (B, P, d)
        x = x + random_walk(x + self.local(x, mask), text, mask).to(x.dtype)  # X'' (B, T, d)
        token, encoded = self.encode(nearest(candidates, text), x, positions, mask)  # (B, 1, d), (B, T, d)
        cache = {"token": token[:, 0], "clips": x, "words": y}
        return Fused(encoded, self.relevance(token, encoded), cache)

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        r"""The saliency losses of QD-DETR, and "similarity", the mean of two terms.  [UVCOM]

        Between videos: the symmetric InfoNCE of encoded global token and mean word over the batch. Within a video: for
        every clip t of the first window, $-\log \mathrm{softmax}_t$ of its cosine to the mean word over the clips of
        its video, summed and divided by the number of clips of the batch. A null query takes no part in the first term
        and has no window in the second.
        """
        mask, cache = aligned.mask, aligned.cache
        mean_word = masked_mean(self.project_words(cache["words"]), aligned.query_mask)  # (B, d)
        text = unit_vectors(self.text_sense(mean_word))  # (B, d)
        token = unit_vectors(self.clip_sense(cache["token"]))  # (B, d)
        between = batch_contrast(text, token, mask.any(1) & batch.labels.answered, TEMPERATURE)
        cosine = (unit_vectors(self.clip_sense(cache["clips"])) @ text[..., None])[..., 0] / TEMPERATURE  # (B, T)
        log_share = cosine.masked_fill(~mask, torch.finfo(cosine.dtype).min).log_softmax(1)  # (B, T)
        spans, annotated = batch.labels.spans[:, :1], batch.labels.span_mask[:, :1, None]  # (B, 1, 2), (B, 1, 1)
        first = (inside(spans, mask.sum(1), mask.shape[1]) & annotated).any(1)  # (B, T), False on padding
        within = -(log_share * first).sum() / shared_count(mask.sum())
        return self.saliency_losses(aligned, batch) | {"similarity": (between + within) / 2}


def nearest(candidates: Tensor, text: Tensor) -> Tensor:
    """The candidate with the highest mean cosine to the prototypes of the words.

    candidates (B, P, d), text (B, P', d); returns (B, 1, d)
    """
    best = (unit_vectors(candidates) @ unit_vectors(text).mT).mean(2).argmax(1)  # (B,)
    return candidates.gather(1, best[:, None, None].expand(-1, 1, candidates.shape[2]))


build_uvcom = from_sizes(UvcomAligner, UvcomSizes)
