"""A dataset: samples and two feature banks; `batch` reads any of the samples with one gather."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrlib.data import Batch, Labels, Sample, Widths
from mrlib.data.agreement import kind_of, labels_of, other_kinds
from mrlib.data.bank import Bank
from mrlib.data.lines import label_scale, shape_defects
from mrlib.ops.spans import inside


class _Annotations(NamedTuple):
    """The annotations of all samples as tensors."""

    windows: Tensor  # (S, W, 2) fractions
    counts: Tensor  # int64 (S,) windows of each sample
    saliency: Tensor  # (S, L) summed scores, 0..12
    scored: Tensor  # bool (S,) the sample has saliency scores
    mined: Tensor  # (S, V, 2) mined windows, `wrong_spans` of the file, fractions
    mined_counts: Tensor  # int64 (S,)
    high: Tensor  # bool (S, L) clips that are relevant, where no sample has windows


@dataclass(frozen=True, eq=False)
class MomentDataset:
    """Annotated (video, query) pairs with their features."""

    name: str  # "sim", "qvhighlights", ...
    split: str
    samples: list[Sample]  # S of them
    target: Bank  # an item per video, all streams concatenated
    video: Tensor  # int64 (S,) the item of `target` that sample s searches in
    query: Bank  # an item per query
    query_item: Tensor  # int64 (S,) the item of `query` that sample s searches with
    query_joint: Tensor | None  # (Q, J) every query as one vector of the joint space, a row per item of `query`
    streams: dict[str, slice]  # name -> columns of `target`
    joint: str | None  # the stream that lives in the joint space
    clip_s: float  # seconds per clip
    settings: dict[str, Any] = field(default_factory=dict)  # the options that it was opened with, for records
    _annotations: _Annotations | tuple[()] | None = field(default=None, repr=False)  # (): the samples have no labels

    def __post_init__(self):
        if not self.samples:
            raise ValueError(f"{self.name} {self.split} has no samples")
        if self._annotations is None:
            object.__setattr__(self, "_annotations", self._stack_annotations())

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def widths(self) -> Widths:
        joint = self.query_joint.shape[1] if self.joint is not None else None
        return Widths(self.target.width, self.query.width, joint)

    @property
    def labelled(self) -> bool:
        """Every sample has windows, or every sample has its annotators' labels of clips."""
        return len(self._annotations) > 0

    @property
    def mined(self) -> bool:
        """Some sample has `wrong_spans`."""
        return self.labelled and self._annotations.mined.shape[1] > 0

    def subset(self, indices: Sequence[int]) -> MomentDataset:
        """A dataset of the samples at these positions; the banks are shared."""
        rows = torch.as_tensor(indices, dtype=torch.long, device=self.video.device)
        return replace(
            self,
            samples=[self.samples[i] for i in rows.tolist()],
            video=self.video[rows],
            query_item=self.query_item[rows],
            _annotations=self._map_annotations(lambda a: a[rows]),
        )

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """A batch of the samples at these positions, their videos unchanged.

        indices  int64 (B,)  positions in `samples`
        """
        indices = torch.as_tensor(indices, dtype=torch.long, device=self.video.device)
        return self.gather(self.target.index(self.video[indices]), indices)

    def gather(
        self, rows: Tensor, indices: Tensor, *, labels: Labels | None = None, duration_s: Tensor | None = None
    ) -> Batch:
        """A batch whose targets consist of any rows of the bank: spliced, synthesised or unchanged videos.

        rows        int64 (B, T)  rows of `target.rows`; -1 is padding, at the end only
        indices     int64 (B,)    the samples whose queries, video numbers and durations the batch has
        labels      of the videos that `rows` form; None: the annotations of `indices`, whose clips `rows` must be
        duration_s  (B,)          of the videos that `rows` form; None: the durations of `indices`
        """
        target, mask = self.target.gather(rows), rows >= 0  # (B, T, D), (B, T)
        items = self.query_item[indices]  # (B,)
        query_rows = self.query.index(items)  # (B, N)
        if labels is None and self.labelled:
            labels = self.labels(indices)
        samples = [self.samples[i] for i in indices.tolist()]
        if duration_s is None:
            duration_s = torch.tensor([s.duration for s in samples], dtype=torch.float32, device=rows.device)
        joint = self.joint is not None
        return Batch(
            target=target,
            target_mask=mask,
            query=self.query.gather(query_rows),  # (B, N, D')
            query_mask=query_rows >= 0,
            target_joint=target[..., self.streams[self.joint]] if joint else None,  # (B, T, D) -> (B, T, J)
            query_joint=self.query_joint[items].float() if joint else None,  # (Q, J) -> (B, J)
            video=self.video[indices],
            duration_s=duration_s,
            clip_s=duration_s.new_full((len(indices),), self.clip_s),
            labels=labels,
            samples=samples,
        )

    def labels(self, indices: Tensor) -> Labels:
        """The labels of the samples at these positions, for unchanged videos.

        indices  int64 (B,)  positions in `samples`

        A null query, whose list of windows is empty, has no span and no relevant clip, and all its clips have the
        saliency 0. Its `saliency_mask` is set, as for every sample, only if the line has saliency scores.

        The saliency is scaled to 0..12 for any number of annotators. Where they labelled clips and set no window, the
        relevant clips are those whose summed label is above the lower median of the video, as on TVSum (our choice), or
        those that half of the annotators or more labelled 1, as on YouTube Highlights.
        """
        windows, counts, saliency, scored, mined, mined_counts, high = self._map_annotations(lambda a: a[indices])
        n = self.target.lengths[self.video[indices]]  # (B,)
        T = int(n.max())
        spans = windows[:, : max(1, int(counts.max()))]  # (B, W, 2)
        span_mask = torch.arange(spans.shape[1], device=n.device) < counts[:, None]  # (B, W)
        relevant = (inside(spans, n, T) & span_mask[..., None]).any(1)  # (B, W, T) -> (B, T)
        scores = torch.zeros(relevant.shape, device=n.device)  # (B, T)
        shared = min(relevant.shape[1], saliency.shape[1])
        scores[:, :shared] = saliency[:, :shared]
        relevant[:, : high.shape[1]] |= high[:, :T]
        in_mined = None
        if self.mined:
            mined_mask = torch.arange(mined.shape[1], device=n.device) < mined_counts[:, None]  # (B, V)
            in_mined = (inside(mined, n, T) & mined_mask[..., None]).any(1) & ~relevant  # (B, V, T) -> (B, T)
        return Labels(spans, span_mask, relevant, scores, scored, wrong=in_mined)

    def window_clips(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First clip and number of clips of every annotated window of samples, then of every mined window.

        indices  int64 (B,)  positions in `samples`
        returns  first clip and number of clips, int64 (B, W, 2), in the order of the annotation; bool (B, W), False on
                 padding; bool (B, W), the window is mined and does not answer the query
        """
        windows, counts, _, _, mined, mined_counts, _ = self._map_annotations(lambda a: a[indices])
        n = self.target.lengths[self.video[indices]]  # (B,)
        covered = inside(torch.cat([windows, mined], 1), n, int(n.max()))  # (B, W, T)
        window_mask, mined_mask = (
            torch.arange(spans.shape[1], device=n.device) < count[:, None]
            for spans, count in ((windows, counts), (mined, mined_counts))
        )
        mask = torch.cat([window_mask, mined_mask], 1)  # (B, W)
        is_mined = torch.cat([torch.zeros_like(window_mask), torch.ones_like(mined_mask)], 1)  # (B, W)
        return torch.stack([covered.long().argmax(-1), covered.sum(-1)], -1), mask, is_mined

    def digest(self) -> str:
        """A digest of the samples and of about a hundred rows of their features; equal for equal data."""
        lines = json.dumps([s.as_line() for s in self.samples])
        digest = hashlib.blake2b(lines.encode(), digest_size=8)
        for items, bank in ((self.video, self.target), (self.query_item, self.query)):
            chosen = items[:: max(1, len(items) // 100)]
            first = bank.at(chosen, chosen.new_zeros(len(chosen), 1))[:, 0]  # the first row of each, (about 100,)
            digest.update(bank.rows[first].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> MomentDataset:
        """The same dataset with its banks and annotations on `device`."""
        return replace(
            self,
            target=self.target.to(device),
            video=self.video.to(device),
            query=self.query.to(device),
            query_item=self.query_item.to(device),
            query_joint=None if self.query_joint is None else self.query_joint.to(device),
            _annotations=self._map_annotations(lambda a: a.to(device)),
        )

    def _map_annotations(self, change: Callable[[Tensor], Tensor]) -> _Annotations | tuple[()]:
        return _Annotations(*map(change, self._annotations)) if self._annotations else ()

    def _stack_annotations(self) -> _Annotations | tuple[()]:
        """The annotations of all samples, () if no sample has any; ValueError if some have none or are malformed."""
        self._check_shapes()
        if not any(map(kind_of, self.samples)):
            return ()
        clips = self.target.lengths[self.video].cpu()  # (S,)
        no_windows = self.samples[0].relevant_windows is None
        scored = torch.tensor([s.saliency_scores is not None or no_windows for s in self.samples])  # (S,)
        saliency = torch.zeros(len(self), int(clips.max()) if scored.any() else 0)  # (S, L)
        high = torch.zeros(len(self), int(clips.max()) if no_windows else 0, dtype=torch.bool)  # (S, L)
        zero_one = no_windows and all(label_scale(labels_of(s)) != "1 to 5" for s in self.samples)
        for i, s in enumerate(self.samples):
            if no_windows:
                total = _votes(s, zero_one)[: clips[i]]
                saliency[i, : len(total)] = total * 12
                high[i, : len(total)] = total >= 0.5 if zero_one else total > total.median()
            elif s.saliency_scores and s.relevant_clip_ids:
                ids, scores = torch.tensor(s.relevant_clip_ids), torch.tensor(s.saliency_scores)  # (C,), (C, A)
                kept = ids < clips[i]  # a clip without features cannot be ranked
                saliency[i, ids[kept]] = scores[kept].sum(1).float() * (3 / scores.shape[1])
        windows = self._fractions([s.relevant_windows or [] for s in self.samples], clips, 1)
        mined = self._fractions([s.extra.get("wrong_spans") or [] for s in self.samples], clips, 0)
        return _Annotations(*(a.to(self.video.device) for a in (*windows, saliency, scored, *mined, high)))

    def _check_shapes(self) -> None:
        """ValueError, naming the sample and the field, for annotations that cannot be stacked."""
        for sample in self.samples:
            for defect in shape_defects(sample):
                raise ValueError(f"{self.name} {self.split}: qid {sample.qid!r}: {defect.field} {defect.message}")
        if others := other_kinds(dict(enumerate(self.samples))):
            i, defect = next(iter(others.items()))
            first = f"the first is qid {self.samples[i].qid!r}: {defect.field}: {defect.message}"
            raise ValueError(
                f"{self.name} {self.split}: {len(others)} of {len(self)} samples differ from the others; {first}"
            )

    def _fractions(self, windows_s: list[list[list[float]]], clips: Tensor, least: int) -> tuple[Tensor, Tensor]:
        """The windows of every sample as fractions of its clips, (S, W, 2), and their number, (S,).

        least  W is at least this
        """
        counts = torch.tensor([len(windows) for windows in windows_s])
        spans = torch.zeros(len(self), max(least, int(counts.max())), 2, dtype=torch.float64)
        for i, windows in enumerate(windows_s):
            if windows:
                spans[i, : counts[i]] = torch.tensor(windows, dtype=torch.float64)
        spans = (spans / (clips * self.clip_s)[:, None, None]).clamp(0, 1)
        # features may end before the video does; a window after their end becomes the last clip
        last = (1 - 1 / clips.double())[:, None].expand(spans.shape[:2])  # (S, W)
        spans[..., 0] = spans[..., 0].where(spans[..., 0] < 1, last)
        return spans.float(), counts


def _votes(sample: Sample, zero_one: bool) -> Tensor:
    """The mean label of the clips of a sample without windows, float64 (L,), from 0 to 1.

    zero_one  the labels are 0 and 1; False: they are 1 to 5
    """
    labels = torch.tensor(labels_of(sample), dtype=torch.float64)  # (L, A)
    return labels.mean(1) if zero_one else (labels - 1).sum(1) / (4 * labels.shape[1])
