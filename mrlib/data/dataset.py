"""A dataset is samples plus two banks; `batch` looks any of its samples up with one gather."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mrlib.data import Batch, Labels, Sample, Widths
from mrlib.data.bank import Bank
from mrlib.ops.spans import inside


@dataclass(frozen=True, eq=False)
class MomentDataset:
    """Annotated (video, query) pairs with their features."""

    name: str  # "sim", "qvhighlights", ...
    split: str
    samples: list[Sample]
    target: Bank  # an item per video, all streams concatenated
    video: Tensor  # int64 (S,) the item of `target` that sample s searches in
    query: Bank  # an item per query
    query_item: Tensor  # int64 (S,) the item of `query` that sample s searches with
    query_joint: Tensor | None  # (Q, J) every query as one vector of the joint space, a row per item of `query`
    streams: dict[str, slice]  # name -> columns of `target`
    joint: str | None  # the stream that lives in the joint space
    clip_s: float
    settings: dict[str, Any] = field(default_factory=dict)  # what it was opened with, for records
    _annotations: tuple[Tensor, ...] | None = field(default=None, repr=False)

    def __post_init__(self):
        if not self.samples:
            raise ValueError(f"{self.name} {self.split} has no samples")
        if self._annotations is None:
            object.__setattr__(self, "_annotations", self._annotated())

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
        return self.labelled and self._annotations[4].shape[1] > 0

    def subset(self, indices: Sequence[int]) -> MomentDataset:
        """The samples at these positions as a dataset of their own; the banks are shared."""
        rows = torch.as_tensor(indices, dtype=torch.long, device=self.video.device)
        return replace(
            self,
            samples=[self.samples[i] for i in rows.tolist()],
            video=self.video[rows],
            query_item=self.query_item[rows],
            _annotations=tuple(a[rows] for a in self._annotations),
        )

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """The samples at these positions.

        indices  int64 (B,)  positions in `samples`
        """
        indices = torch.as_tensor(indices, dtype=torch.long, device=self.video.device)
        return self.gather(self.target.index(self.video[indices]), indices)

    def gather(
        self, rows: Tensor, indices: Tensor, *, labels: Labels | None = None, duration_s: Tensor | None = None
    ) -> Batch:
        """A batch whose targets are put together from any rows of the bank: spliced, synthesised or as they are.

        rows        int64 (B, T)  rows of `target.rows`; -1 is padding, at the end only
        indices     int64 (B,)    the samples that the queries, numbers and durations are taken from
        labels      of the videos thus made; None: the annotations of `indices`, whose clips `rows` then are
        duration_s  (B,)          of the videos thus made; None: those of `indices`
        """
        target, mask = self.target.gather(rows), rows >= 0
        words = self.query.index(self.query_item[indices])
        if labels is None and self.labelled:
            labels = self.labels(indices)
        samples = [self.samples[i] for i in indices.tolist()]
        if duration_s is None:
            duration_s = torch.tensor([s.duration for s in samples], dtype=torch.float32, device=rows.device)
        joint = self.joint is not None
        return Batch(
            target=target,
            target_mask=mask,
            query=self.query.gather(words),
            query_mask=words >= 0,
            target_joint=target[..., self.streams[self.joint]] if joint else None,
            query_joint=self.query_joint[self.query_item[indices]].float() if joint else None,
            video=self.video[indices],
            duration_s=duration_s,
            clip_s=duration_s.new_full((len(indices),), self.clip_s),
            labels=labels,
            samples=samples,
        )

    def labels(self, indices: Tensor) -> Labels:
        """What the annotators said of the samples at these positions, int64 (B,), of their videos as they are.

        Where they labelled clips and set no window, as on TVSum, the saliency is 0..12 whatever their number, and
        relevant (ours) are the clips that together they put above the lower median of the video.
        """
        windows, counts, saliency, scored, wrong, wrong_counts, high = (a[indices] for a in self._annotations)
        n = self.target.lengths[self.video[indices]]
        T = int(n.max())
        spans = windows[:, : max(1, int(counts.max()))]
        span_mask = torch.arange(spans.shape[1], device=n.device) < counts[:, None]
        relevant = (inside(spans, n, T) & span_mask[..., None]).any(1)
        scores = torch.zeros(relevant.shape, device=n.device)
        shared = min(relevant.shape[1], saliency.shape[1])
        scores[:, :shared] = saliency[:, :shared]
        relevant[:, : high.shape[1]] |= high[:, :T]
        confusing = None
        if self.mined:
            there = torch.arange(wrong.shape[1], device=n.device) < wrong_counts[:, None]
            confusing = (inside(wrong, n, T) & there[..., None]).any(1) & ~relevant
        return Labels(spans, span_mask, relevant, scores, scored, wrong=confusing)

    def clips(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The clips of every annotated window, then of every mined one, of the samples at these positions.

        indices  int64 (B,)
        returns  first clip and number of clips, int64 (B, W, 2), in the order of the annotation; bool (B, W), there is
                 such a window; bool (B, W), it is mined: it confuses a model and answers nothing
        """
        windows, counts, _, _, wrong, wrong_counts, _ = (a[indices] for a in self._annotations)
        n = self.target.lengths[self.video[indices]]
        shown = inside(torch.cat([windows, wrong], 1), n, int(n.max()))
        true, mined = (
            torch.arange(x.shape[1], device=n.device) < c[:, None]
            for x, c in ((windows, counts), (wrong, wrong_counts))
        )
        kind = torch.cat([torch.zeros_like(true), torch.ones_like(mined)], 1)
        return torch.stack([shown.long().argmax(-1), shown.sum(-1)], -1), torch.cat([true, mined], 1), kind

    def digest(self) -> str:
        """Of the samples and some hundred rows of their features: equal for equal data."""
        lines = json.dumps([s.as_line() for s in self.samples])
        digest = hashlib.blake2b(lines.encode(), digest_size=8)
        for items, bank in ((self.video, self.target), (self.query_item, self.query)):
            some = items[:: max(1, len(items) // 100)]
            first = bank.at(some, some.new_zeros(len(some), 1))[:, 0]
            digest.update(bank.rows[first].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> MomentDataset:
        """The same with banks and annotations resident on `device`."""
        return replace(
            self,
            target=self.target.to(device),
            video=self.video.to(device),
            query=self.query.to(device),
            query_item=self.query_item.to(device),
            query_joint=None if self.query_joint is None else self.query_joint.to(device),
            _annotations=tuple(a.to(device) for a in self._annotations),
        )

    def _annotated(self) -> tuple[Tensor, ...]:
        """Windows as fractions (S, W, 2), how many (S,), summed saliency (S, L), whether there is any (S,); of
        `wrong_spans`, mined windows in seconds, fractions (S, V, 2) and how many (S,); clips that are relevant where no
        sample has windows, bool (S, L)."""
        votes = [_votes(s) for s in self.samples]
        without = [s.qid for s in self.samples if s.relevant_windows is None]
        silent = [s.qid for s, v in zip(self.samples, votes, strict=True) if s.relevant_windows is None and v is None]
        if len(silent) == len(self):
            return ()
        lacking, what = (silent, "labels") if len(without) == len(self) else (without, "windows")
        if lacking:
            mixed = "; those with labels of clips go into a file of their own" if len(silent) < len(lacking) else ""
            raise ValueError(
                f"{self.name} {self.split}: {len(lacking)} of {len(self)} samples have no {what}, {lacking[:5]}{mixed}"
            )
        clips = self.target.lengths[self.video].cpu()
        has_saliency = torch.tensor([s.saliency_scores is not None or bool(without) for s in self.samples])
        saliency = torch.zeros(len(self), int(clips.max()) if has_saliency.any() else 0)
        high = torch.zeros(len(self), int(clips.max()) if without else 0, dtype=torch.bool)
        for i, s in enumerate(self.samples):
            if votes[i] is not None:
                total = votes[i][: clips[i]].sum(1)
                saliency[i, : len(total)] = total / (4 * votes[i].shape[1]) * 12
                high[i, : len(total)] = total > total.median()
            elif s.saliency_scores is not None and s.relevant_clip_ids:
                ids, scores = torch.tensor(s.relevant_clip_ids), torch.tensor(s.saliency_scores).sum(1)
                kept = ids < clips[i]  # a clip without features cannot be ranked
                saliency[i, ids[kept]] = scores[kept].float()
        windows = self._fractions([s.relevant_windows or [] for s in self.samples], clips, 1)
        wrong = self._fractions([s.extra.get("wrong_spans") or [] for s in self.samples], clips, 0)
        return tuple(a.to(self.video.device) for a in (*windows, saliency, has_saliency, *wrong, high))

    def _fractions(self, windows_s: list[list[list[float]]], clips: Tensor, least: int) -> tuple[Tensor, Tensor]:
        """Windows of every sample as fractions of its clips, (S, W, 2), and how many there are, (S,).

        least  W is this or more
        """
        counts = torch.tensor([len(windows) for windows in windows_s])
        spans = torch.zeros(len(self), max(least, int(counts.max())), 2, dtype=torch.float64)
        for i, windows in enumerate(windows_s):
            if windows:
                spans[i, : counts[i]] = torch.tensor(windows, dtype=torch.float64)
        spans = (spans / (clips * self.clip_s)[:, None, None]).clamp(0, 1)
        # features may end before the video does: a window after them is the last clip
        last = (1 - 1 / clips.double())[:, None].expand(spans.shape[:2])
        spans[..., 0] = spans[..., 0].where(spans[..., 0] < 1, last)
        return spans.float(), counts


def _votes(sample: Sample) -> Tensor | None:
    """What each annotator of a sample without windows gives its clips, 0..4, (L, A); None: there are no labels."""
    labels = sample.extra.get("label")
    if sample.relevant_windows is not None or not isinstance(labels, list):
        return None
    return torch.tensor(labels, dtype=torch.float64) - 1
