r"""Few prototypes stand for all words, and from them meaning walks back into every clip (UVCOM).

Paper    Xiao et al., "Bridging the Gap: A Unified Video Comprehension Framework for Moment Retrieval and Highlight
         Detection", CVPR 2024 (arXiv 2311.16464)
Here     `prototypes` gathers words, and clips, around a few vectors; `walk` brings those of the words to the clips,
         `Local` looks at neighbours; `UvcomAligner` puts them between the layers and the encoder of QD-DETR, with a
         loss of its own, the similarity  [UVCOM]
Ours     padding is hidden everywhere; the released code gathers it too, and between its convolutions it is not zero.
         The walk solves for the prototypes, of which there are a few, and not for the clips, which is the same
Departs  EasonXiao-888/UVCOM takes, late in training, the query that is least like the video as the foreign one; here it
         is the next one's throughout. Its own detector, which starts from the words, is left out: any may follow
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrlib.align import Aligned
from mrlib.align.projected import Sizes
from mrlib.align.text_to_video import T2VLayer, TextToVideoAligner, Words
from mrlib.align.trilinear import batch_contrast
from mrlib.data import Batch, Widths
from mrlib.layers import MLP, EncoderLayer, masked_mean, sine_positions
from mrlib.ops.counts import shared_count
from mrlib.ops.spans import inside

ITERATIONS, SIGMA = 5, 1.2  # of the prototypes
OMEGA, SHARPNESS = 0.5, 5.0  # of the walk
TEMPERATURE = 1.0  # of the similarity


def unit(x: Tensor) -> Tensor:
    """x over its length; in float32 at least, in which all that divides by lengths or sums is done here."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-6)


def over_vectors(share: Tensor, mask: Tensor) -> Tensor:
    """Shares (B, K, N), not negative, of the vectors that are there, bool (B, N), so that they sum to 1; else 0."""
    share = share * mask[:, None]
    return share / share.sum(2, keepdim=True).clamp(min=1e-9)


def prototypes(start: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    r"""Means of what is near to each of K vectors, five times anew.  [UVCOM]

    $$\gamma_{kt} = \mathrm{softmax}_k\left(-\frac{\lVert \hat\mu_k - \hat x_t \rVert^2}{2 \cdot 1.2^2}\right), \quad
    \mu_k \leftarrow \frac{\sum_t \gamma_{kt} x_t}{\sum_t \gamma_{kt}}$$

    A hat is a vector over its length. Of vectors of length 1 the squared distance is 2 less twice the product. 1.2 is
    wide for these: of an untrained network all K come out as nearly one, wherever they began.

    start    (K, d)  $\mu$ to begin with
    x        (B, N, d)
    mask     bool (B, N)
    returns  (B, K, d)
    """
    with torch.autocast(x.device.type, enabled=False):
        directions, mu = unit(x), start.expand(len(x), -1, -1)
        for _ in range(ITERATIONS):
            gamma = (unit(mu) @ directions.mT / SIGMA**2).softmax(1)
            mu = over_vectors(gamma, mask) @ x.to(gamma.dtype)
        return mu


def walk(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    r"""Where a random walk between clips and prototypes of the words comes to rest.  [UVCOM]

    $$\zeta_{kt} = \mathrm{softmax}_k(5 \langle \hat E_k, \hat x_t \rangle), \quad
    \bar\zeta_{kt} = \frac{\zeta_{kt}}{\sum_s \zeta_{ks}}, \quad
    X_r = (1 - \omega) (I - \omega^2 \zeta^\top \bar\zeta)^{-1} (\omega \zeta^\top E + X), \quad \omega = \tfrac12$$

    With R what stands in the last bracket, the inverse times R is $R + \omega^2 \zeta^\top
    (I_K - \omega^2 \bar\zeta \zeta^\top)^{-1} \bar\zeta R$, of a matrix as large as there are prototypes.

    x        (B, T, d)  X, the clips
    text     (B, K, d)  E, the prototypes of the words
    mask     bool (B, T)
    returns  (B, T, d)
    """
    with torch.autocast(x.device.type, enabled=False):
        to_clips = (SHARPNESS * unit(text) @ unit(x).mT).softmax(1)
        to_text = over_vectors(to_clips, mask)
        r = OMEGA * to_clips.mT @ text.to(to_clips.dtype) + x.to(to_clips.dtype)
        back = torch.eye(text.shape[1], device=x.device, dtype=r.dtype) - OMEGA**2 * to_text @ to_clips.mT
        return (1 - OMEGA) * (r + OMEGA**2 * to_clips.mT @ torch.linalg.solve(back, to_text @ r))


class Local(nn.Module):
    """Each clip and its two neighbours: three convolutions, of which the middle one is three clips wide.  [UVCOM]"""

    def __init__(self, width: int):
        super().__init__()
        self.before, self.after = nn.Linear(width, width), nn.Linear(width, width)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        for layer in (self.before, self.neighbours, self.after):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, d) -> (B, T, d); beyond the last real clip there is nothing, as before the first."""
        return self.after(self.neighbours((self.before(x) * mask[..., None]).mT).mT)


@dataclass(frozen=True, kw_only=True)
class UvcomSizes(Sizes):
    """The released numbers; `hidden` is the width inside the projections of the similarity too.  [UVCOM]"""

    layers: int = 3  # of each of three stacks: clips to words, words to clips, encoder
    text_prototypes: int = 5
    target_prototypes: int = 30


class UvcomAligner(TextToVideoAligner):
    r"""Clips take up words and words clips; what prototypes and neighbours tell goes into the clips' encoder.  [UVCOM]

    $$X, Y' = \mathrm{T2V}(X, Y), \mathrm{V2T}(Y, X), \quad X \leftarrow X + \mathrm{walk}(X + \mathrm{Local}(X), E^t)$$

    The global token of the encoder is the one of the clips' prototypes $E^v$ with the highest mean cosine to the
    words' $E^t$.
    """

    def __init__(self, widths: Widths, sizes: UvcomSizes):
        width, layers = sizes.width, range(sizes.layers)
        into_clips, into_words = ([T2VLayer(*sizes.layer) for _ in layers] for _ in range(2))
        super().__init__(widths, sizes, into_clips, [EncoderLayer(*sizes.layer) for _ in layers])
        self.back = nn.ModuleList(into_words)
        self.local = Local(width)
        # one of these becomes the global token, after it has gathered clips
        self.global_token = nn.Parameter(torch.empty(sizes.target_prototypes, width))
        self.text_tokens = nn.Parameter(torch.empty(sizes.text_prototypes, width))
        for tokens in (self.global_token, self.text_tokens):
            nn.init.xavier_uniform_(tokens)
        self.project_words = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.clip_sense, self.text_sense = (MLP(width, width, 3, sizes.hidden) for _ in range(2))

    def fuse(self, target: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor) -> tuple[Tensor, ...]:
        """Clips in the light of a query, and how relevant they are to it.  [UVCOM]

        Returns too, for the loss, the global token after the encoder (B, d), the clips before it (B, T, d) and the
        words in the light of the clips (B, N, d).
        """
        positions = sine_positions(mask, self.width)
        words, x = Words(query, query, query_mask), target
        clips, y, nowhere = Words(target + positions, target, mask), query, torch.zeros_like(query)
        for layer, back in zip(self.layers, self.back, strict=True):
            x, y = layer(x, positions, words), back(y, nowhere, clips)
        text, gathered = prototypes(self.text_tokens, y, query_mask), prototypes(self.global_token, x, mask)
        x = x + walk(x + self.local(x, mask), text, mask).to(x.dtype)
        whole, encoded = self.encode(nearest(gathered, text), x, positions, mask)
        return encoded, self.relevance(whole, encoded), whole[:, 0], x, y

    def losses(self, aligned: Aligned, batch: Batch) -> dict[str, Tensor]:
        r"""Those of QD-DETR's saliency, and the similarity: half of each of two terms.  [UVCOM]

        Of the global token and the mean word, the symmetric InfoNCE over the batch; of several processes each sees the
        batch that it has. Of every clip t of the first window, $-\log \mathrm{softmax}_t$ of its cosine to the mean
        word over the clips of its video, summed and divided by the number of all clips.
        """
        mask, (whole, clips, words) = aligned.mask, aligned.cache["more"]
        text = unit(self.text_sense(masked_mean(self.project_words(words), aligned.query_mask)))
        between = batch_contrast(text, unit(self.clip_sense(whole)), mask.any(1), TEMPERATURE)
        cosine = (unit(self.clip_sense(clips)) @ text[..., None])[..., 0] / TEMPERATURE
        likely = cosine.masked_fill(~mask, torch.finfo(cosine.dtype).min).log_softmax(1).masked_fill(~mask, 0)
        spans, there = batch.labels.spans[:, :1], batch.labels.span_mask[:, :1, None]
        first = (inside(spans, mask.sum(1), mask.shape[1]) & there).any(1)
        within = -(likely * first).sum() / shared_count(mask.sum())
        return super().losses(aligned, batch) | {"similarity": (between + within) / 2}


def nearest(gathered: Tensor, text: Tensor) -> Tensor:
    """Of some prototypes (B, K, d) the one that is most like those of the words (B, K', d) on average: (B, 1, d)."""
    best = (unit(gathered) @ unit(text).mT).mean(2).argmax(1)
    return gathered.gather(1, best[:, None, None].expand(-1, 1, gathered.shape[2]))
