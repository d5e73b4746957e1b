"""Paste moments of one video into another and search with their query: Splice and Boost, batch by batch (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     [AMR, splice] `splice` replaces clips of a sample's video, the background, by clips from the windows of
         another sample, the donor. Mined windows, the donor's `wrong_spans`, are pasted too but answer nothing: Boost
Departs  SooLab/AMR, utils/augment_data.py, writes ten fixed copies of every video to disk, without a seed. We splice a
         batch when it is needed: new moments in every epoch, no files. There are two `PLACEMENTS`:
         "official" as released, from left to right; the first window without room is dropped, and all windows after it,
                    so windows get lost and the end of a video has more of them. The donor may be of the same video
         "uniform"  ours: the donor is of another video, and every layout of the pastes is equally likely
         In the release a pasted mined window is background without a label; here it is `labels.wrong`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.arguments import require
from mrlib.data import Batch, Labels, MomentDataset, Sample
from mrlib.ops.draw import Draw

Numbers = Callable[[str, int], Tensor]  # (what they decide, how many) -> uniform in [0, 1), float64 (B, how many)


def splice(indices: Tensor, dataset: MomentDataset, draw: Draw, *, placement: str = "uniform") -> Batch:
    """Paste moments of a donor into the video of every sample, and search it with the donor's query.  [AMR, splice]

    `video` (its number) and `duration_s` come from the background; query, saliency and windows come from the donor.
    `labels.negative` is the next row if its query concerns neither background nor donor, else -1.

    Each sample's `extra` records the splice: "donor", the donor's video; "pasted", for every paste its first clip and
    the donor's clips; "wrong_spans", the pasted mined windows in seconds. A sample without a donor, or whose donor has
    no true window with room, is unchanged; its `extra` has "kept", the reason, instead. `counts` gives for every sample
    the true windows "pasted" and "dropped" because they had no room, the mined ones "pasted_mined" and "dropped_mined",
    and "kept_no_donor" and "kept_no_window", 0 or 1.

    placement  one of `PLACEMENTS`
    raises     ValueError for another placement, or if no sample has windows
    """
    require(placement in PLACEMENTS, "placement", placement, f"one of {', '.join(PLACEMENTS)}")
    if not any(sample.relevant_windows for sample in dataset.samples):
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows to splice; use the identity")

    def numbers(name: str, count: int) -> Tensor:
        return draw(name, indices, count)

    choose_donors, place = PLACEMENTS[placement]
    n = dataset.target.lengths[dataset.video[indices]]  # (B,)
    donors, has_donor = choose_donors(numbers, indices, dataset)  # (B,)
    windows = _windows(donors, has_donor, dataset)  # (B, W)
    start, length = place(numbers, windows, n)  # (B, W)
    spliced = ((length > 0) & ~windows.mined).any(1)  # (B,)
    pastes = _paste(numbers, windows, start, length * spliced[:, None], int(n.max()))  # (B, W), (B, T)
    counts = _counts(windows, pastes, has_donor, spliced)
    donors = torch.where(spliced, donors, indices)
    batch = _batch(indices, donors, dataset, pastes, spliced)
    return replace(batch, samples=_samples(indices, donors, has_donor, dataset, pastes), counts=counts)


def splice_official(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """`splice` with the released placement and choice of donors.  [AMR, splice]"""
    return splice(indices, dataset, draw, placement="official")


@dataclass(frozen=True)
class _Windows:
    """The windows of the donors, ordered by start; of equal starts, the true window first."""

    first: Tensor  # int64 (B, W) first clip in the donor's video
    clips: Tensor  # int64 (B, W) number of clips; 0 on padding and without a donor
    mined: Tensor  # bool (B, W)


@dataclass(frozen=True)
class _Pastes:
    """The donors' clips that replace clips of the backgrounds."""

    start: Tensor  # int64 (B, W) first clip of every window's paste
    length: Tensor  # int64 (B, W) its clips; 0 if nothing is pasted
    mined: Tensor  # bool (B, W)
    origin: Tensor  # int64 (B, T) the donor's clip at this place; -1 if the background's own
    in_mined: Tensor  # bool (B, T) the clip is of a mined window

    @property
    def true(self) -> Tensor:
        """bool (B, W) the pastes that answer the query."""
        return (self.length > 0) & ~self.mined


# ---- donors and their windows


def _any_other_sample(numbers: Numbers, indices: Tensor, dataset: MomentDataset) -> tuple[Tensor, Tensor]:
    """A donor for every sample: any sample but itself, all equally likely.  [AMR, splice, official]

    returns  int64 (B,), the sample itself if there is no other; bool (B,), it has a donor
    """
    k, has_donor = _number_outside(numbers, indices, indices + 1, len(dataset))
    return torch.where(has_donor, k, indices), has_donor


def _sample_of_another_video(numbers: Numbers, indices: Tensor, dataset: MomentDataset) -> tuple[Tensor, Tensor]:
    """A donor for every sample: any sample of another video, all equally likely; returns as `_any_other_sample`."""
    videos, order = _by_video(dataset.video)  # (S,)
    own_video = dataset.video[indices]  # (B,)
    first, end = torch.searchsorted(videos, own_video), torch.searchsorted(videos, own_video, right=True)
    k, has_donor = _number_outside(numbers, first, end, len(dataset))
    return torch.where(has_donor, order[k], indices), has_donor


def _number_outside(numbers: Numbers, first: Tensor, end: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """An integer from 0 to total - 1 outside first .. end - 1, int64 (B,); bool (B,), there is such an integer."""
    others = total - (end - first)  # (B,)
    k = (numbers("donor", 1)[:, 0] * others).long()
    return torch.where(k >= first, k + (end - first), k).clamp(max=total - 1), others > 0


@lru_cache(maxsize=2)
def _by_video(video: Tensor) -> tuple[Tensor, Tensor]:
    """Samples sorted by their video: the videos, and the samples; cached because sorting a training set is slow."""
    return video.sort(stable=True)


def _windows(donors: Tensor, has_donor: Tensor, dataset: MomentDataset) -> _Windows:
    clips, mask, mined = dataset.window_clips(donors)  # (B, W', 2), (B, W')
    first, count = clips.unbind(-1)
    after_all = 2 * int(dataset.target.lengths.max())
    order = torch.where(mask, 2 * first + mined, after_all).argsort(dim=1, stable=True)
    order = order[:, : max(1, int(mask.sum(1).max()))]  # (B, W)
    count = (count * mask).gather(1, order) * has_donor[:, None]
    return _Windows(first.gather(1, order), count, (mined & mask).gather(1, order))


# ---- placements: (numbers, windows, clips of the backgrounds (B,)) -> first clip and number of clips, int64 (B, W)


def _evenly(numbers: Numbers, windows: _Windows, n: Tensor) -> tuple[Tensor, Tensor]:
    """Paste 1 to m of the m clips of each window; given the lengths, all layouts are equally likely.  [AMR, splice]

    Pastes are separated by a clip of background. If they do not fit, the longest are dropped, mined ones first; the
    number of clips is 0 for a dropped window.
    """
    length = 1 + (numbers("length", windows.clips.shape[1]) * windows.clips.minimum(n[:, None])).long()
    length = length * (windows.clips > 0)  # (B, W)
    kept = _fitting(length, windows.mined, n)
    length = length * kept
    # a paste and the clip after it are one slot, and so is every other clip of background; which slots are pastes?
    slots, count = n + 1 - length.sum(1), kept.sum(1)  # (B,)
    u = numbers("place", int(n.max()))  # (B, T)
    t = torch.arange(u.shape[1], device=n.device)
    rank = u.masked_fill(t >= slots[:, None], torch.inf).argsort(dim=1, stable=True).argsort(1)
    chosen = torch.where(rank < count[:, None], t, len(t)).sort(1).values  # (B, T) slots of the pastes, in order
    k = (kept.cumsum(1) - 1).clamp(min=0)  # (B, W)
    return chosen.gather(1, k) + length.cumsum(1) - length, length


def _fitting(length: Tensor, mined: Tensor, n: Tensor) -> Tensor:
    """The pastes that stay when the longest are dropped, mined ones first, until all fit; bool (B, W)."""
    order = (length + mined * int(n.max())).argsort(dim=1, descending=True, stable=True)
    taken = (length + (length > 0)).gather(1, order)  # a paste and the clip of background after it
    remaining = taken.flip(1).cumsum(1).flip(1)  # this paste and all that are dropped later
    fits = remaining <= n[:, None] + 1  # no clip has to follow the last paste
    return torch.zeros_like(mined).scatter(1, order, fits & (taken > 0))


def _in_turn(numbers: Numbers, windows: _Windows, n: Tensor) -> tuple[Tensor, Tensor]:
    """Each paste is somewhere after the one before; true and mined windows alike.  [AMR, splice, official]

    The first window that does not fit whole is dropped with all windows after it.
    """
    W = windows.clips.shape[1]
    place, share = numbers("place", W), numbers("length", W)  # (B, W)
    next_free, has_room = torch.zeros_like(n), torch.ones_like(n, dtype=torch.bool)  # (B,)
    start, length = torch.zeros_like(windows.clips), torch.zeros_like(windows.clips)  # (B, W)
    for k in range(W):
        m = windows.clips[:, k]  # (B,)
        space = n - m - next_free
        has_room = has_room & (space >= 0) & (m > 0)
        start[:, k] = next_free + (place[:, k] * (space + 1)).long()
        length[:, k] = (1 + (share[:, k] * m).long()) * has_room
        next_free = torch.where(has_room, start[:, k] + length[:, k] + 1, next_free)
    return start, length


class _Placement(NamedTuple):
    choose_donors: Callable[[Numbers, Tensor, MomentDataset], tuple[Tensor, Tensor]]
    place: Callable[[Numbers, _Windows, Tensor], tuple[Tensor, Tensor]]


PLACEMENTS = {
    "uniform": _Placement(_sample_of_another_video, _evenly),
    "official": _Placement(_any_other_sample, _in_turn),
}


# ---- the spliced batch


def _paste(numbers: Numbers, windows: _Windows, start: Tensor, length: Tensor, T: int) -> _Pastes:
    """Paste `length` random clips of every window, in their order, from clip `start` on; both (B, W)."""
    # the clips of all windows of a sample in a row: element e is clip i of window k
    ends = windows.clips.cumsum(1)  # (B, W)
    E, W = int(ends[:, -1].max()), ends.shape[1]
    e = torch.arange(E, device=ends.device).expand(len(ends), -1)  # (B, E)
    k = torch.searchsorted(ends, e.contiguous(), right=True)
    mask, k = k < W, k.clamp(max=W - 1)
    i = e - (ends - windows.clips).gather(1, k)
    # of the clips of each window, those with the lowest numbers
    order = torch.where(mask, k + numbers("clip", E), torch.inf).argsort(dim=1, stable=True)
    chosen = torch.zeros_like(mask).scatter(1, order, mask & (i < length.gather(1, k)))
    # chosen clip c of a sample is clip c - (chosen clips of the windows before) of its paste
    shift = (start - (length.cumsum(1) - length)).gather(1, k)
    t = torch.where(chosen, chosen.cumsum(1) - 1 + shift, T)  # (B, E); T is cut off below
    origin = ends.new_full((len(ends), T + 1), -1).scatter_(1, t, windows.first.gather(1, k) + i)
    in_mined = torch.zeros_like(origin, dtype=torch.bool).scatter_(1, t, windows.mined.gather(1, k))
    return _Pastes(start, length, windows.mined, origin[:, :T], in_mined[:, :T])


def _counts(windows: _Windows, pastes: _Pastes, has_donor: Tensor, spliced: Tensor) -> dict[str, Tensor]:
    """`counts` of the batch, int64 (B,) each."""
    real, pasted = windows.clips > 0, pastes.length > 0  # (B, W)
    return {
        "pasted": pastes.true.sum(1),
        "dropped": (real & ~pasted & ~windows.mined).sum(1),
        "pasted_mined": (pasted & windows.mined).sum(1),
        "dropped_mined": (real & ~pasted & windows.mined).sum(1),
        "kept_no_donor": (~has_donor).long(),
        "kept_no_window": (has_donor & ~spliced).long(),
    }


def _batch(indices: Tensor, donors: Tensor, dataset: MomentDataset, pastes: _Pastes, spliced: Tensor) -> Batch:
    """The spliced videos with the donors' queries and labels; a sample that is not spliced is its own donor."""
    bank, background, video = dataset.target, dataset.video[indices], dataset.video[donors]
    rows = torch.where(pastes.origin >= 0, bank.at(video, pastes.origin.clamp(min=0)), bank.index(background))  # (B, T)
    labels = _labels(dataset.labels(donors), pastes, bank.lengths[background], spliced)
    next_row = torch.arange(len(indices), device=indices.device).roll(-1)  # (B,)
    next_video = video[next_row]
    unrelated = (next_video != video) & (next_video != background)
    duration_s = [dataset.samples[i].duration for i in indices.tolist()]
    batch = dataset.gather(
        rows,
        donors,
        labels=replace(labels, negative=torch.where(unrelated, next_row, -1)),
        duration_s=torch.tensor(duration_s, dtype=torch.float32, device=indices.device),
    )
    return replace(batch, video=background)


def _labels(annotated: Labels, pastes: _Pastes, n: Tensor, spliced: Tensor) -> Labels:
    """The donors' annotations moved to their pastes; unchanged for samples that are not spliced.

    annotated  the donors' labels on their own videos
    n          int64 (B,)  clips of the backgrounds
    """
    T, W = pastes.origin.shape[1], annotated.spans.shape[1]
    relevant = (pastes.origin >= 0) & ~pastes.in_mined  # (B, T)
    saliency = annotated.saliency.gather(1, pastes.origin.clamp(min=0)) * relevant
    spans, span_mask = _spans(pastes, n, W)
    moved = spliced[:, None]  # (B, 1)
    wrong = None
    if annotated.wrong is not None:
        wrong = torch.where(moved, pastes.in_mined, _padded_or_cut(annotated.wrong, T))
    return Labels(
        spans=torch.where(moved[..., None], spans, annotated.spans),
        span_mask=torch.where(moved, span_mask, annotated.span_mask),
        relevant=torch.where(moved, relevant, _padded_or_cut(annotated.relevant, T)),
        saliency=torch.where(moved, saliency, _padded_or_cut(annotated.saliency, T)),
        saliency_mask=annotated.saliency_mask,
        wrong=wrong,
    )


def _spans(pastes: _Pastes, n: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The true pastes as spans, (B, width, 2), 0 on padding, and their mask, (B, width)."""
    spans = torch.stack([pastes.start, pastes.start + pastes.length], -1) / n[:, None, None]  # (B, W, 2)
    order = (~pastes.true).long().argsort(dim=1, stable=True)[:, :width]  # true pastes first
    spans, span_mask = spans.gather(1, order[..., None].expand(-1, -1, 2)), pastes.true.gather(1, order)
    padding = width - order.shape[1]
    span_mask = F.pad(span_mask, (0, padding))  # (B, width)
    return F.pad(spans, (0, 0, 0, padding)) * span_mask[..., None], span_mask


def _padded_or_cut(x: Tensor, T: int) -> Tensor:
    """(B, any length) -> (B, T), with zeros at the end."""
    return F.pad(x, (0, T - x.shape[1]))


# ---- the samples of the batch


def _samples(
    indices: Tensor, donors: Tensor, has_donor: Tensor, dataset: MomentDataset, pastes: _Pastes
) -> list[Sample]:
    """The annotation of every spliced video in seconds, with the record of the splice in `extra`."""
    samples = []
    columns = (indices, donors, has_donor, pastes.origin, pastes.start, pastes.length, pastes.mined)
    for index, donor, donated, origin, *pasted in zip(*(x.tolist() for x in columns), strict=True):
        background = dataset.samples[index]
        parts = [(start, start + length, mined) for start, length, mined in zip(*pasted, strict=True) if length]
        if parts:
            samples.append(_spliced_sample(background, dataset.samples[donor], origin, parts, dataset.clip_s))
        else:
            reason = "no window had room" if donated else "no donor"
            samples.append(replace(background, extra=background.extra | {"kept": reason}))
    return samples


def _spliced_sample(
    background: Sample, donor: Sample, origin: list[int], parts: list[tuple[int, int, bool]], clip_s: float
) -> Sample:
    """One sample.

    origin  the donor's clip at every place of the background, -1 for the background's own
    parts   the pastes: first clip, the clip after the last, whether the window is mined
    """
    windows_s: dict[bool, list[list[float]]] = {False: [], True: []}  # true windows, mined windows
    for start, end, mined in parts:
        windows_s[mined].append([min(t * clip_s, background.duration) for t in (start, end)])
    extra: dict[str, Any] = {"donor": donor.vid, "pasted": [[start, origin[start:end]] for start, end, _ in parts]}
    if windows_s[True]:
        extra["wrong_spans"] = windows_s[True]
    places = [t for start, end, mined in parts if not mined for t in range(start, end)]
    ids, scores = _scored_clips(donor, places, origin)
    return Sample(
        qid=donor.qid,
        query=donor.query,
        duration=background.duration,
        vid=background.vid,
        relevant_windows=windows_s[False],
        relevant_clip_ids=ids,
        saliency_scores=scores,
        extra=extra,
    )


def _scored_clips(
    donor: Sample, places: list[int], origin: list[int]
) -> tuple[list[int] | None, list[list[int]] | None]:
    """The places whose clip is among the donor's `relevant_clip_ids`, and their scores; None if the donor has none."""
    if donor.relevant_clip_ids is None:
        return None, None
    position = {clip: i for i, clip in enumerate(donor.relevant_clip_ids)}
    ids = [t for t in places if origin[t] in position]
    if donor.saliency_scores is None:
        return ids, None
    return ids, [donor.saliency_scores[position[origin[t]]] for t in ids]
