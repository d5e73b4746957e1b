"""Which video a video is mixed with: the most similar of the batch or of the dataset, or a random one (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     `PARTNERS` and `released`, functions of (indices int64 (B,), dataset, draw) that return the partner of every
         sample, int64 (B,), any number without one, and bool (B,), whether it has one  [TD-DETR Eq. 1]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mrlib.augment.similarity import TIE, mean_similarity, most_alike, top_similarity
from mrlib.data import MomentDataset
from mrlib.ops.draw import Draw

TOO_SIMILAR = 0.9  # a partner with a similarity over this is barred  [TD-DETR, released code]


def most_similar(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    similarity: Callable[[Tensor, Tensor], Tensor] = mean_similarity,
) -> tuple[Tensor, Tensor]:
    """The sample of the batch with the most similar other video; of equally similar ones the lowest index."""
    video, with_windows = dataset.video[indices], _with_windows(indices, dataset)
    allowed = (video[:, None] != video) & with_windows & with_windows[:, None]  # (B, B)
    rows = dataset.target.index(video)  # (B, T)
    scores = similarity(dataset.target.gather(rows), rows >= 0).masked_fill(~allowed, -torch.inf)
    is_best = scores >= scores.max(1, keepdim=True).values - TIE
    first = indices.expand(len(indices), -1).masked_fill(~is_best, len(dataset)).min(1).values  # (B,)
    return first, allowed.any(1)


def _barred(features: Tensor, mask: Tensor) -> Tensor:
    """`top_similarity`, with 0 for every similarity over `TOO_SIMILAR`.  [TD-DETR, released code]"""
    similarity = top_similarity(features, mask)  # (N, N)
    return similarity.masked_fill(similarity > TOO_SIMILAR, 0)


def released(indices: Tensor, dataset: MomentDataset, draw: Draw) -> tuple[Tensor, Tensor]:
    """`most_similar` by the 50 best pairs of clips, as released.  [TD-DETR, synthesis, official]

    Except for QVHighlights, and for the simulated videos that resemble it, a similarity over `TOO_SIMILAR` counts as 0,
    which keeps away videos that show the same.
    """
    like_qvhighlights = dataset.name in ("qvhighlights", "sim")
    return most_similar(indices, dataset, draw, top_similarity if like_qvhighlights else _barred)


def _random(indices: Tensor, dataset: MomentDataset, draw: Draw) -> tuple[Tensor, Tensor]:
    """A random other video of the batch, and a random one of its samples."""
    with_windows = _with_windows(indices, dataset)  # (B,)
    samples = _SamplesByVideo.of(indices[with_windows], dataset)
    videos = samples.video.unique()
    if len(videos) < 2:
        return indices, torch.zeros_like(with_windows)
    u = draw("partner", indices, 2)  # (B, 2) which video, which of its samples
    k = (u[:, 0] * (len(videos) - 1)).long()
    k += k >= torch.searchsorted(videos, dataset.video[indices])  # skip the sample's own video
    return samples.choose(videos[k], u[:, 1]), with_windows


def _from_table(indices: Tensor, dataset: MomentDataset, draw: Draw) -> tuple[Tensor, Tensor]:
    """The most similar other video of the dataset, and a random one of its samples."""
    samples, most_similar = _table(dataset)
    videos = most_similar[dataset.video[indices]]  # (B,)
    u = draw("partner", indices, 2)[:, 1]
    return samples.choose(videos, u), _with_windows(indices, dataset) & (videos >= 0)


PARTNERS = {"similar": most_similar, "random": _random, "table": _from_table}


@dataclass(frozen=True)
class _SamplesByVideo:
    """Some samples, sorted by their video."""

    index: Tensor  # int64 (S,)
    video: Tensor  # int64 (S,)

    @classmethod
    def of(cls, indices: Tensor, dataset: MomentDataset) -> _SamplesByVideo:
        indices = indices.sort().values
        video, order = dataset.video[indices].sort(stable=True)
        return cls(indices[order], video)

    def choose(self, video: Tensor, u: Tensor) -> Tensor:
        """A sample of each video, int64 (B,), by u (B,) in [0, 1); the first of all samples for video -1."""
        first, end = torch.searchsorted(self.video, video), torch.searchsorted(self.video, video, right=True)
        k = first + (u * (end - first)).long()  # (B,)
        return self.index[k]


def _with_windows(indices: Tensor, dataset: MomentDataset) -> Tensor:
    """bool (B,) the sample has annotated windows."""
    return torch.tensor([bool(dataset.samples[i].relevant_windows) for i in indices.tolist()], device=indices.device)


_TABLES: WeakKeyDictionary[MomentDataset, tuple[_SamplesByVideo, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def _table(dataset: MomentDataset) -> tuple[_SamplesByVideo, Tensor]:
    """The samples with windows, and for each video the most similar other video with such a sample; cached.

    returns  samples; int64 (V,) an item of `dataset.target` for every item, -1 if there is none
    """
    if dataset in _TABLES:
        return _TABLES[dataset]
    indices = torch.arange(len(dataset), device=dataset.video.device)
    samples = _SamplesByVideo.of(indices[_with_windows(indices, dataset)], dataset)
    videos = samples.video.unique()
    most_similar = torch.full_like(dataset.target.lengths, -1)
    most_similar[videos] = most_alike(videos, dataset.target)
    _TABLES[dataset] = samples, most_similar
    return samples, most_similar
