"""From files on disk to a `Batch`, which is all that aligners, detectors and losses read.

    annotations + features -> MomentDataset -> augment -> Batch -> align -> Aligned -> detect -> Moments

Letters   B batch, T target clips, N query vectors (words or clips), D D' their widths, J joint width,
          W annotated windows, P ranking pairs
Times     seconds end in `_s`; a bare time is a fraction of the n_b real clips, n_b * clip_s_b seconds
Masks     True on real entries, False on padding
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # the evaluator and the readers of annotations work without torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One annotated (video, query) pair: a line in the QVHighlights schema."""

    qid: int | str
    query: str
    duration: float  # seconds
    vid: str
    relevant_windows: list[list[float]] | None = None  # [[start, end], ...] in seconds; []: nothing answers the query
    relevant_clip_ids: list[int] | None = None  # clips that the annotators scored
    saliency_scores: list[list[int]] | None = None  # for each scored clip, one score 0..4 of each annotator
    extra: dict[str, Any] = field(default_factory=dict)  # all other fields of the line

    def as_line(self) -> dict[str, Any]:
        """The line that the sample was read from, as a dict without the fields that are None."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {k: v for k, v in known.items() if v is not None} | self.extra


@dataclass(frozen=True)
class Widths:
    """The widths of a dataset's vectors, which a model needs to be built."""

    target: int  # D
    query: int  # D'
    joint: int | None  # J; None if no stream lives in a joint language-vision space


class _Tensors:
    """Tensor fields that are moved and indexed together."""

    def to(self, device: torch.device | str) -> Self:
        """The same with all tensors on `device`."""
        return self._each(lambda x: x if isinstance(x, list) else x.to(device))

    def __getitem__(self, rows: slice) -> Self:
        """The same for some samples of the batch."""
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable) -> Self:
        """The same with every field changed that is not None; of a dict, every value."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        named = {k: {name: change(x) for name, x in v.items()} for k, v in values.items() if isinstance(v, dict)}
        plain = {k: change(v) for k, v in values.items() if v is not None and k not in named}
        return replace(self, **named, **plain)


@dataclass(frozen=True)
class Labels(_Tensors):
    """The annotations of a batch; losses read them, models do not."""

    spans: Tensor  # (B, W, 2) start and end of every window, fractions of n_b * clip_s_b
    span_mask: Tensor  # bool (B, W)
    relevant: Tensor  # bool (B, T) clips inside a window; in videos with labelled clips and no window, the better half
    saliency: Tensor  # (B, T) summed score of three annotators, 0..12; scaled to that range for another number of them
    saliency_mask: Tensor  # bool (B,) the sample has saliency scores
    pairs: Tensor | None = None  # int64 (B, P, 2) clips of which the first ranks above the second; -1: none
    negative: Tensor | None = None  # int64 (B,) row of the whole batch whose query concerns another video; -1: none
    wrong: Tensor | None = None  # bool (B, T) clips of mined windows
    backwards: Tensor | None = None  # bool (B,) the query is a video that runs backwards

    @property
    def answered(self) -> Tensor:
        """bool (B,) False for a null query, which has nothing to find: no window and no labelled clip."""
        return self.span_mask.any(1) | self.relevant.any(1) | self.saliency.any(1)

    def __getitem__(self, rows: slice) -> Labels:
        """The same for some samples of the batch; `negative` is -1 if its row is not among them."""
        labels = super().__getitem__(rows)
        if self.negative is None:
            return labels
        kept = self.negative.new_tensor(range(len(self.negative)))[rows]
        new_row = self.negative.new_full(self.negative.shape, -1)
        new_row[kept] = kept.new_tensor(range(len(kept)))
        return replace(labels, negative=new_row[labels.negative].masked_fill(labels.negative < 0, -1))


@dataclass(frozen=True)
class Batch(_Tensors):
    """One batch on one device."""

    target: Tensor  # (B, T, D) clip features of the video searched in, all streams, no endpoint features; 0 on padding
    target_mask: Tensor  # bool (B, T)
    query: Tensor  # (B, N, D') token features of the sentence, or clip features of the query video; 0 on padding
    query_mask: Tensor  # bool (B, N)
    target_joint: Tensor | None  # (B, T, J) the columns of `target` that live in the joint space
    query_joint: Tensor | None  # (B, J) the whole query in the joint space
    video: Tensor  # int64 (B,) equal numbers mean the same video
    duration_s: Tensor  # (B,) length of the video, seconds
    clip_s: Tensor  # (B,) length of a clip, seconds
    labels: Labels | None
    samples: list[Sample]  # for metrics and pictures; no model reads it
    counts: dict[str, Tensor] = field(default_factory=dict)  # (B,) each; what the augmenter did, for the run's records

    def __len__(self) -> int:
        return len(self.target)

    @property
    def lengths(self) -> Tensor:
        """n_b, the number of real clips, int64 (B,)."""
        return self.target_mask.sum(1)

    def unlabelled(self) -> Batch:
        """The same batch without annotations, so that no prediction can depend on them."""
        samples = [Sample(s.qid, s.query, s.duration, s.vid) for s in self.samples]
        return replace(self, labels=None, samples=samples)


_MEMBERS = {
    "load_annotations": "mrlib.data.annotations",
    "Bank": "mrlib.data.bank",
    "MomentDataset": "mrlib.data.dataset",
    "open_dataset": "mrlib.datasets",
}
_SUBMODULES = (
    "agreement",
    "annotations",
    "arrays",
    "bank",
    "cache",
    "check",
    "clips",
    "dataset",
    "digests",
    "documents",
)
_SUBMODULES += ("ego4d", "features", "glove", "hdf5", "layouts", "lenient", "lines", "pairs", "problems")
_SUBMODULES += ("search", "sources", "sportsmoments", "stand_in", "stored")


def __getattr__(name: str):
    if name in _MEMBERS:
        return getattr(import_module(_MEMBERS[name]), name)
    if name in _SUBMODULES:
        return import_module(f"mrlib.data.{name}")
    raise AttributeError(f"module 'mrlib.data' has no attribute {name!r}")
