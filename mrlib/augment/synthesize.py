"""Mix similar videos in pairs, so that each moment appears in another context (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     [TD-DETR, synthesis] `synthesize` makes two videos of each pair: a video keeps its whole moment and a share
         alpha of its other clips, and gets a share 1 - alpha of the partner's clips. `mrlib.augment.partners` chooses
         the pairs
Departs  xyangzhou/TD-DETR takes the mean of the 50 most similar pairs of clips as the similarity, and the query of the
         next sample as the negative, even if it concerns the partner: `synthesize_official`. Its batches hold a video
         either unchanged or as the two videos made of it; ours hold all three, in the same proportions
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.augment.partners import PARTNERS, released
from mrlib.data import Batch, Labels, MomentDataset, Sample
from mrlib.ops.draw import Draw
from mrlib.ops.matching import match
from mrlib.ops.runs import runs_of_true

FEWEST = 3  # clips of context; fewer are left out  [TD-DETR, released code]
ROWS = 512  # rows of a batch among which negatives are matched; a larger batch is split at random


# ---- the augmenters


def synthesize(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    *,
    alpha: float = 0.7,
    partners: str = "similar",
    jitter: float | None = 0.2,
    originals: bool = True,
) -> Batch:
    """Mix videos in pairs: the unchanged samples, then two videos of each sample and its partner.  [TD-DETR, synthesis]

    Sample i and its partner k give two videos with clips drawn independently: i's part followed by clips of k, with i's
    query; and clips of i followed by k's part, with k's query. A sample's part is everything from the start of its
    first window to the end of its last, its moment, and floor(alpha L) of its L other clips. Of the L clips of the
    other video, its moment included, floor((1 - alpha) L) are added. Both numbers are 0 if they would be below `FEWEST`
    and then vary by `jitter`, each on its own: some of the clips are left out, or some are shown twice. Clips stay in
    their order.

    The moment keeps its length, so windows, saliency and mined clips move with it. A window that ends after the
    features moves as far; its span is cut at the end of the video. `video` of a synthetic row is the number of the
    video that its query concerns, so other queries about that video are no negatives. `labels.negative` is a random row
    whose query concerns neither of the two videos, each row chosen once if possible; -1 if there is none.

    `extra` of a synthetic sample records: "partner", the other video's vid; "own" and "partner_clips", the first clip
    of each part and its clips by their index in the video that they come from; "shift", by how many clips the moment
    moved; "wrong_spans", the mined clips in seconds. Originals keep their `extra`. `counts` is 1 in "synthetic" for a
    synthetic row, and gives its "moment_clips", "own_clips" (without the moment) and "partner_clips"; it is 1 in
    "no_partner" for an original that has no windows or no other video to choose from.

    alpha      share of a video's own context that stays, from 0 to 1
    partners   "similar", the most similar other video of the batch, the first sample of equals; "random", any other
               video of the batch; "table", the most similar video of the whole dataset by `most_alike`, any of its
               samples. The table is computed once for a dataset
    jitter     the numbers of clips are multiplied by 1 - jitter to 1 + jitter; 0 or None: they do not vary
    originals  False: leave out the unchanged samples that have a partner
    raises     ValueError for an unknown choice of partners, a number outside its range, or if no sample has windows
    """
    require(partners in PARTNERS, "partners", partners, f"one of {', '.join(PARTNERS)}")
    method = _Method(PARTNERS[partners], _touched_clips, _random_negatives)
    return _synthesized(indices, dataset, draw, method, alpha, jitter or 0.0, originals)


def synthesize_official(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    *,
    alpha: float = 0.7,
    jitter: float | None = 0.2,
    originals: bool = True,
) -> Batch:
    """`synthesize` as released.  [TD-DETR, synthesis, official]

    The similarity is that of the 50 best pairs of clips, the next row's query is the negative, and a moment loses its
    last clip if a window ends in it at an odd second. A window that is left without a clip is no part of the moment; it
    stays a label. Videos with a similarity over 0.9 are no partners, except in QVHighlights and in the simulated videos
    that resemble it, as long as there are others.
    """
    method = _Method(released, _clips_of_whole_seconds, _next_rows)
    return _synthesized(indices, dataset, draw, method, alpha, jitter or 0.0, originals)


@dataclass(frozen=True)
class _Method:
    """The steps in which the release departs from the paper."""

    # (indices, dataset, draw) -> the partner of every sample, int64 (B,), any number without one; bool (B,), it has one
    partners: Callable[[Tensor, MomentDataset, Draw], tuple[Tensor, Tensor]]
    # (windows in seconds, seconds per clip, clips of the video) -> first clip of the moment and the clip after its last
    moment: Callable[[list[list[float]], float, int], tuple[int, int]]
    # (rows, dataset, draw) -> `labels.negative`, int64 (R,)
    negatives: Callable[[_Rows, MomentDataset, Draw], Tensor]


@dataclass(frozen=True)
class _Rows:
    """The rows of the batch: originals, then the two of each pair."""

    subject: Tensor  # int64 (R,) the sample whose moment and query a row has
    partner: Tensor  # int64 (R,) the sample whose clips are added; of an original, the sample itself
    synthetic: Tensor  # bool (R,)
    draw_key: Tensor  # int64 (R,) key of the row's draws: 3 i for original i, 3 i + 1 and 3 i + 2 for its pair
    alone: Tensor  # bool (R,) originals without a partner

    @property
    def second(self) -> Tensor:
        """bool (R,) the subject's clips come after the partner's."""
        return self.draw_key % 3 == 2


@dataclass(frozen=True)
class _Shown:
    """How often each clip is shown, int64 (R, T) each; an original is all moment."""

    moment: Tensor  # clips of the subject
    context: Tensor  # its other clips
    added: Tensor  # clips of the partner


@dataclass(frozen=True)
class _Mixed:
    """The R videos after mixing; C is the number of clips of the longest."""

    clips: Tensor  # int64 (R,) number of clips
    origin: Tensor  # int64 (R, C) index of each clip in the video that it comes from
    from_subject: Tensor  # bool (R, C) it comes from the subject's video
    shift: Tensor  # int64 (R,) by how many clips the moment moved


def _synthesized(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    method: _Method,
    alpha: float,
    jitter: float,
    originals: bool,
) -> Batch:
    for name, value in (("alpha", alpha), ("jitter", jitter)):
        require(0 <= value <= 1, name, value, "from 0 to 1")
    if not any(sample.relevant_windows for sample in dataset.samples):
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows to keep; use the identity")
    partner, has_partner = method.partners(indices, dataset, draw)  # (B,)
    rows = _rows(indices, partner, has_partner, originals)  # (R,)
    moments = _moments(rows, dataset, method.moment)  # (R, 2)
    shown = _shown(rows, moments, dataset, draw, alpha, jitter)  # (R, T)
    mixed = _mixed(rows, moments[:, 0], shown)  # (R, C)
    labels = replace(_labels(rows, mixed, dataset), negative=method.negatives(rows, dataset, draw))
    batch = dataset.gather(
        _bank_rows(rows, mixed, dataset), rows.subject, labels=labels, duration_s=_durations(rows, mixed, dataset)
    )
    return replace(batch, samples=_samples(rows, mixed, labels, dataset), counts=_counts(rows, shown))


# ---- rows and clips


def _rows(indices: Tensor, partner: Tensor, has_partner: Tensor, originals: bool) -> _Rows:
    unchanged = torch.ones_like(has_partner) if originals else ~has_partner  # (B,)
    single = indices[unchanged]
    pairs = torch.stack([indices, partner], 1)[has_partner]  # (P, 2)
    synthetic = torch.arange(len(single) + pairs.numel(), device=indices.device) >= len(single)  # (R,)
    draw_keys = 3 * pairs[:, :1] + torch.arange(1, 3, device=indices.device)  # (P, 2)
    return _Rows(
        subject=torch.cat([single, pairs.flatten()]),
        partner=torch.cat([single, pairs.flip(1).flatten()]),
        synthetic=synthetic,
        draw_key=torch.cat([3 * single, draw_keys.flatten()]),
        alone=torch.cat([~has_partner[unchanged], torch.zeros_like(synthetic[synthetic])]),
    )


def _moments(
    rows: _Rows, dataset: MomentDataset, moment: Callable[[list[list[float]], float, int], tuple[int, int]]
) -> Tensor:
    """First clip of each subject's moment and the clip after its last, int64 (R, 2); an original is all moment."""
    moments = []
    lengths = dataset.target.lengths[dataset.video[rows.subject]].tolist()
    for i, synthetic, n in zip(rows.subject.tolist(), rows.synthetic.tolist(), lengths, strict=True):
        windows = dataset.samples[i].relevant_windows
        moments.append(moment(windows, dataset.clip_s, n) if synthetic else (0, n))
    return torch.tensor(moments, device=rows.subject.device)


def _touched_clips(windows: list[list[float]], clip_s: float, n: int) -> tuple[int, int]:
    """From the first to the last clip that a window touches; at least one, after the end of the features the last."""
    first = [min(max(math.floor(start / clip_s), 0), n - 1) for start, _ in windows]
    end = [max(min(math.ceil(stop / clip_s), n), a + 1) for a, (_, stop) in zip(first, windows, strict=True)]
    return min(first), max(end)


def _clips_of_whole_seconds(windows: list[list[float]], clip_s: float, n: int) -> tuple[int, int]:
    """Round out to whole seconds, then down to clips: a window may lose its last clip.  [TD-DETR, released code]

    Windows without a clip are left out; if all are, the moment is the clip in which the last one starts.
    """
    first = [min(max(int(math.floor(start) // clip_s), 0), n - 1) for start, _ in windows]
    end = [min(int(math.ceil(stop) // clip_s), n) for _, stop in windows]
    kept = [(a, b) for a, b in zip(first, end, strict=True) if a < b] or [(first[-1], first[-1] + 1)]
    return min(a for a, _ in kept), max(b for _, b in kept)


def _shown(rows: _Rows, moments: Tensor, dataset: MomentDataset, draw: Draw, alpha: float, jitter: float) -> _Shown:
    """Draw the clips of context and partner; T is the length of the longest video, partners included."""
    n, m = (dataset.target.lengths[dataset.video[samples]] for samples in (rows.subject, rows.partner))  # (R,)
    T = int(n.max())  # a partner is the subject of the pair's other row
    t = torch.arange(T, device=n.device)
    moment = (t >= moments[:, :1]) & (t < moments[:, 1:])  # (R, T)
    factor = 1 + jitter * (1 - 2 * draw("jitter", rows.draw_key, 2))  # (R, 2)
    around = (t < n[:, None]) & ~moment
    offered = (t < m[:, None]) & rows.synthetic[:, None]
    return _Shown(
        moment=moment.long(),
        context=_repeats(draw("own", rows.draw_key, T), around, alpha, factor[:, 0]),
        added=_repeats(draw("partner's", rows.draw_key, T), offered, 1 - alpha, factor[:, 1]),
    )


def _repeats(u: Tensor, pool: Tensor, share: float, factor: Tensor) -> Tensor:
    """Draw a share of the clips of a pool; then leave some of them out, or show some of them twice.

    u        float64 (R, T)  in [0, 1); the lowest are drawn
    pool     bool (R, T)  the clips to choose from
    factor   float64 (R,)  multiplies the number of clips, 0 to 2
    returns  int64 (R, T)  how often each clip is shown: 0, 1 or 2
    """
    count = (share * pool.sum(1).double()).floor()  # (R,)
    count = torch.where(count < FEWEST, 0, count)
    once, twice = (count * factor.clamp(max=1)).floor(), (count * (factor - 1).clamp(min=0)).floor()
    rank = u.masked_fill(~pool, torch.inf).argsort(dim=1, stable=True).argsort(1)  # (R, T)
    return (rank < once[:, None]).long() + (rank < twice[:, None])


def _mixed(rows: _Rows, first: Tensor, shown: _Shown) -> _Mixed:
    """Put the shown clips in a row: those of one video, then those of the other; `first` (R,), clip of the moment."""
    subject, second = shown.moment + shown.context, rows.second[:, None]  # (R, T), (R, 1)
    T = subject.shape[1]
    left, right = torch.where(second, shown.added, subject), torch.where(second, subject, shown.added)
    times = torch.cat([left, right], 1)  # (R, 2 T)
    ends = times.cumsum(1)
    clips = ends[:, -1]  # (R,)
    place = torch.arange(int(clips.max()), device=clips.device).expand(len(clips), -1)  # (R, C)
    column = torch.searchsorted(ends, place.contiguous(), right=True)  # (R, C) of `times`; 2 T on padding
    real = place < clips[:, None]
    start = (ends - times).gather(1, first[:, None] + T * second)[:, 0]  # (R,) where the moment starts
    return _Mixed(clips, column % T, real & ((column >= T) == second), start - first)


def _bank_rows(rows: _Rows, mixed: _Mixed, dataset: MomentDataset) -> Tensor:
    """The row of `dataset.target` of every clip, int64 (R, C); -1 on padding."""
    bank = dataset.target
    subject, partner = (
        bank.at(video, mixed.origin.minimum(bank.lengths[video][:, None] - 1))  # in range also if not of this video
        for video in (dataset.video[rows.subject], dataset.video[rows.partner])
    )
    real = torch.arange(mixed.origin.shape[1], device=subject.device) < mixed.clips[:, None]
    return torch.where(real, torch.where(mixed.from_subject, subject, partner), -1)


def _durations(rows: _Rows, mixed: _Mixed, dataset: MomentDataset) -> Tensor:
    """Seconds, (R,)."""
    original_s = torch.tensor([dataset.samples[i].duration for i in rows.subject.tolist()], dtype=torch.float32)
    return torch.where(rows.synthetic, mixed.clips * dataset.clip_s, original_s.to(mixed.clips.device))


def _counts(rows: _Rows, shown: _Shown) -> dict[str, Tensor]:
    """`counts` of the batch, int64 (R,) each."""
    counts = {"synthetic": rows.synthetic.long(), "no_partner": rows.alone.long()}
    clips = {"moment_clips": shown.moment, "own_clips": shown.context, "partner_clips": shown.added}
    return counts | {name: times.sum(1) * rows.synthetic for name, times in clips.items()}


# ---- negatives: (rows, dataset, draw) -> `labels.negative`, int64 (R,)


def _next_rows(rows: _Rows, dataset: MomentDataset, draw: Draw) -> Tensor:
    """The next row, whatever its query concerns.  [TD-DETR, released code]"""
    return torch.arange(len(rows.subject), device=rows.subject.device).roll(-1)


def _random_negatives(rows: _Rows, dataset: MomentDataset, draw: Draw) -> Tensor:
    """For each row, a random row whose query concerns neither of its two source videos; -1 if there is none.

    Each row is the negative of one other if that is possible. The numbers drawn belong to pairs of rows, so the choice
    does not depend on the order of the batch.
    """
    video, other_video = dataset.video[rows.subject], dataset.video[rows.partner]  # (R,)
    negatives = torch.full_like(rows.draw_key, -1)
    order = draw("foreign/order", rows.draw_key, 1)[:, 0].argsort()
    for part in order.split(ROWS):
        draw_key, about = rows.draw_key[part], video[part]  # (P,)
        pair = draw_key[:, None] * 3 * len(dataset) + draw_key  # (P, P)
        u = draw("foreign", pair.flatten()).view(pair.shape)
        allowed = (about != about[:, None]) & (about != other_video[part][:, None])  # (P, P)
        cost = u + ~allowed * len(part)  # one forbidden choice costs more than all allowed ones
        matched = match(cost.T[None], torch.ones_like(allowed[:1]))[0]  # (P,)
        matched_allowed = allowed.gather(1, matched[:, None])[:, 0]
        chosen = torch.where(matched_allowed, matched, cost.argmin(1))
        negatives[part] = torch.where(allowed.any(1), part[chosen], -1)
    return negatives


# ---- labels and samples


def _labels(rows: _Rows, mixed: _Mixed, dataset: MomentDataset) -> Labels:
    """The subjects' annotations, moved to where their clips are."""
    annotated = dataset.labels(rows.subject)

    def moved(x: Tensor) -> Tensor:  # (R, T) -> (R, C)
        return x.gather(1, mixed.origin) * mixed.from_subject

    spans = _moved_spans(rows, mixed, dataset, annotated.spans.shape[1]) * annotated.span_mask[..., None]
    return Labels(
        spans=torch.where(rows.synthetic[:, None, None], spans, annotated.spans),
        span_mask=annotated.span_mask,
        relevant=moved(annotated.relevant),
        saliency=moved(annotated.saliency),
        saliency_mask=annotated.saliency_mask,
        wrong=None if annotated.wrong is None else moved(annotated.wrong),
    )


def _moved_spans(rows: _Rows, mixed: _Mixed, dataset: MomentDataset, W: int) -> Tensor:
    """The subjects' windows, moved by `mixed.shift`, as spans of the new videos, (R, W, 2); any values on padding."""
    windows_s = torch.zeros(len(rows.subject), W, 2, dtype=torch.float64)
    for row, i in enumerate(rows.subject.tolist()):
        windows = dataset.samples[i].relevant_windows
        if windows:
            windows_s[row, : len(windows)] = torch.tensor(windows, dtype=torch.float64)
    clips = mixed.clips[:, None, None].double()  # (R, 1, 1)
    windows_s = windows_s.to(clips.device) + mixed.shift[:, None, None].double() * dataset.clip_s
    spans = windows_s / (clips * dataset.clip_s)
    before = (spans[..., 1] <= 0) & (spans[..., 0] < 0)  # (R, W) before the video: the first clip
    start, end = spans.clamp(0, 1).unbind(-1)
    start = torch.where(start < 1, start, 1 - 1 / clips[..., 0])  # after the end: the last clip
    return torch.stack([start, torch.where(before, 1 / clips[..., 0], end)], -1).float()


def _samples(rows: _Rows, mixed: _Mixed, labels: Labels, dataset: MomentDataset) -> list[Sample]:
    """The annotations in seconds, with the record of the synthesis in `extra`."""
    samples = []
    in_mined = torch.zeros_like(mixed.from_subject) if labels.wrong is None else labels.wrong  # (R, C)
    columns = (rows.subject, rows.partner, rows.synthetic, mixed.clips, mixed.shift)
    columns += (mixed.origin, mixed.from_subject, in_mined)
    for i, k, synthetic, clips, shift, origin, from_subject, mined in zip(*(x.tolist() for x in columns), strict=True):
        sample, partner = dataset.samples[i], dataset.samples[k]
        if synthetic:
            part = range(from_subject.index(True), clips - from_subject[clips - 1 :: -1].index(True))
            sample = _synthetic_sample(sample, partner, origin[:clips], part, mined[:clips], shift, dataset.clip_s)
        samples.append(sample)
    return samples


def _synthetic_sample(
    sample: Sample, partner: Sample, origin: list[int], part: range, mined: list[bool], shift: int, clip_s: float
) -> Sample:
    """The sample of one synthetic video.

    origin  index of each clip in the video that it comes from
    part    the places of the clips that come from the sample's video; all others are the partner's
    mined   whether each clip is mined
    shift   by how many clips the windows move
    """
    first, end = part.start, part.stop
    partner_clips = [end, origin[end:]] if first == 0 else [0, origin[:first]]
    extra: dict[str, Any] = {"partner": partner.vid, "own": [first, origin[first:end]]}
    extra |= {"partner_clips": partner_clips, "shift": shift}
    mined_s = [[a * clip_s, b * clip_s] for a, b in runs_of_true(mined)]
    extra |= {"wrong_spans": mined_s} if mined_s else {}
    ids = scores = None
    if sample.relevant_clip_ids is not None:
        position = {clip: i for i, clip in enumerate(sample.relevant_clip_ids)}
        ids = [t for t in part if origin[t] in position]
        if sample.saliency_scores is not None:
            scores = [sample.saliency_scores[position[origin[t]]] for t in ids]
    return replace(
        sample,
        duration=len(origin) * clip_s,
        relevant_windows=[[start + shift * clip_s, stop + shift * clip_s] for start, stop in sample.relevant_windows],
        relevant_clip_ids=ids,
        saliency_scores=scores,
        extra=extra,
    )
