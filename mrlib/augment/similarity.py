"""How similar two videos are, by all pairs of their clips (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     [TD-DETR Eq. 1] `pair_similarity` of a batch of videos; `most_alike` of a whole dataset
Departs  xyangzhou/TD-DETR takes the mean of the 50 most similar pairs of clips: `top_similarity`
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.arguments import require
from mrlib.data.bank import Bank

TOP = 50  # pairs of clips in the released similarity
TIE = 5e-7  # similarities this close are equal: the rounding of float32 between equal videos
CHUNK = 64  # videos that are compared at a time


@torch.no_grad()
def pair_similarity(features: Tensor, mask: Tensor, mode: str = "mean") -> Tensor:
    r"""Similarity of every two videos: the mean cosine of their clips, pairs of equal index left out.  [TD-DETR Eq. 1]

    $$s_{jl} = \frac{1}{L_j L_l} \sum_p \sum_{q \neq p} \cos(v^j_p, v^l_q) = \frac{1}{L_j L_l} \Big( \langle u_j, u_l
    \rangle - \sum_p \cos(v^j_p, v^l_p) \Big), \quad u_j = \sum_p v^j_p / \lVert v^j_p \rVert$$

    The cosine with a clip of zeros counts as 0, and so does every similarity of a video without clips.

    features  (N, T, D)  of any norm
    mask      bool (N, T)  real clips
    mode      "mean", as printed, or "top50", as released: the mean of the 50 most similar pairs of clips, with those of
              equal index, and with padding as pairs of similarity 0; always divided by 50
    returns   (N, N)  float32, or float64 for float64
    """
    require(mode in SIMILARITIES, "mode", mode, " or ".join(SIMILARITIES))
    return SIMILARITIES[mode](features if features.dtype == torch.float64 else features.float(), mask)


def mean_similarity(features: Tensor, mask: Tensor) -> Tensor:
    """The mean cosine of the clips of every two videos, without pairs of equal index, as printed.  [TD-DETR Eq. 1]

    features  (N, T, D)
    mask      bool (N, T)
    returns   (N, N)
    """
    # the Gram matrices of clips of equal index have the squared norms on their diagonals: no normalised copy is needed
    clips = features.transpose(0, 1)  # (T, N, D)
    same_index = clips @ clips.mT  # (T, N, N)
    scale = _inverse_norm(same_index.diagonal(dim1=1, dim2=2).sqrt(), mask.T)  # (T, N)
    u = (scale.T[:, None] @ features)[:, 0].double()  # (N, D)
    same_index = same_index.mul_(scale[:, :, None]).mul_(scale[:, None]).sum(0)  # (N, N)
    count = mask.sum(1).clamp(min=1)  # (N,)
    return ((u @ u.T - same_index) / (count[:, None] * count)).to(features.dtype)


def top_similarity(features: Tensor, mask: Tensor) -> Tensor:
    """The mean cosine of the `TOP` most similar pairs of clips of every two videos, as released.

    features  (N, T, D)
    mask      bool (N, T)
    returns   (N, N)
    """
    unit = features * _inverse_norm(torch.linalg.vector_norm(features, dim=-1), mask)[..., None]  # (N, T, D)
    T, rows = unit.shape[1], []
    for i, video in enumerate(unit):  # only videos i, i + 1, ...: the matrix is symmetric
        pairs = (unit[i:].flatten(0, 1) @ video.T).view(-1, T * T)  # (N - i, T * T)
        similarity = pairs.topk(min(TOP, T * T), sorted=False).values.sum(1) / TOP
        rows.append(F.pad(similarity, (i, 0)))
    upper = torch.stack(rows)  # (N, N)
    return upper + upper.triu(1).T


SIMILARITIES = {"mean": mean_similarity, "top50": top_similarity}


def _inverse_norm(norm: Tensor, mask: Tensor) -> Tensor:
    """1 / norm; 0 on padding and for clips of zeros."""
    return torch.where(mask & (norm > 0), 1 / norm, 0)


@torch.no_grad()
def most_alike(videos: Tensor, bank: Bank) -> Tensor:
    """The most similar other video of every video, by the mean cosine over all pairs of clips.

    Unlike [TD-DETR Eq. 1], pairs of equal index count too.

    videos   int64 (V,)  items of the bank, each once
    returns  int64 (V,)  items, the first in `videos` of equally similar ones; -1 if there is no other
    """
    means = []
    for chunk in videos.split(CHUNK):
        rows = bank.index(chunk)  # (C, T)
        clips = bank.gather(rows)  # (C, T, D)
        scale = _inverse_norm(torch.linalg.vector_norm(clips, dim=-1), rows >= 0)
        means.append((scale[:, None] @ clips)[:, 0] / (rows >= 0).sum(1, keepdim=True).clamp(min=1))
    means = torch.cat(means)  # (V, D) mean unit vector of every video
    partners = torch.full_like(videos, -1)
    if len(videos) == 1:
        return partners
    for chunk in torch.arange(len(videos), device=videos.device).split(CHUNK):
        similarity = (means[chunk] @ means.T).scatter(1, chunk[:, None], -torch.inf)  # (C, V)
        is_best = similarity >= similarity.max(1, keepdim=True).values - TIE
        partners[chunk] = videos[is_best.int().argmax(1)]
    return partners
