"""Moments of one video pasted into another, with the query that finds them: Splice and Boost on the device (AMR).

Paper    "Augmenting Moment Retrieval: Zero-Dependency Two-Stage Learning", ICCV 2025 (arXiv 2510.19622)
Here     [AMR, splice] `splice` replaces clips of a sample's video, the background, by clips of another sample's
         windows, the donor's. Mined windows, the donor's `wrong_spans`, are pasted too and answer nothing: Boost
Departs  SooLab/AMR, utils/augment_data.py, writes ten fixed copies of every video to disk, without a seed. We make a
         batch when it is needed: new moments in every epoch, no file. Of its two placements
         "official" is its own, in turn from left to right; what finds no room is given up with all that follows, so
                    that windows get lost and the end of a video has more of them. The donor may be of the same video
         "uniform"  is ours: the donor is of another video, and every layout of the pastes is equally likely
         There, a pasted mined window is background without a label; here it is `labels.wrong`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Batch, Labels, MomentDataset, Sample
from mrlib.ops.draw import Draw

PLACEMENTS = ("uniform", "official")
Numbers = Callable[[str, int], Tensor]  # what they decide, how many -> float64 (B, how many)


def splice(indices: Tensor, dataset: MomentDataset, draw: Draw, *, placement: str = "uniform") -> Batch:
    """Every sample's video with moments of another sample in it, asked with the other's query.  [AMR, splice]

    The video, its number in `video` and its duration are the background's; query, saliency and windows the donor's.
    `labels.negative` is the next row where its query is foreign to background and donor.

    What was done is in each sample's `extra`: "donor", its video; "pasted", for every paste its first clip and the
    donor's clips; "wrong_spans", the pasted mined windows in seconds. A sample whose `extra` has "kept" instead stays
    as it is: there was no donor, or no true window of the donor had room. `counts` has, of every sample, the true
    windows "pasted" and "dropped" for want of room, the same of mined ones, "pasted_mined" and "dropped_mined", and
    "kept_no_donor" and "kept_no_window", 0 or 1.

    placement  one of PLACEMENTS
    raises     ValueError where nothing is annotated
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r}; one of {', '.join(PLACEMENTS)}")
    if not any(sample.relevant_windows for sample in dataset.samples):
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows to splice; use the identity")

    def numbers(name: str, count: int) -> Tensor:
        return draw(name, indices, count)

    background = dataset.video[indices]
    n = dataset.target.lengths[background]
    donors, found = _donors(numbers, indices, dataset, same_video=placement == "official")
    first, m, mined = _windows(donors, dataset)
    m = m * found[:, None]
    start, r = (_in_turn if placement == "official" else _evenly)(numbers, m, mined, n)
    spliced = ((r > 0) & ~mined).any(1)
    r = r * spliced[:, None]
    pastes = _pasted(numbers, first, m, start, r, mined, int(n.max()))
    counts = {
        "pasted": pastes.true,
        "dropped": (m > 0) & ~pastes.true & ~mined,
        "pasted_mined": (r > 0) & mined,
        "dropped_mined": (m > 0) & (r == 0) & mined,
        "kept_no_donor": ~found[:, None],
        "kept_no_window": (found & ~spliced)[:, None],
    }
    donors = torch.where(spliced, donors, indices)
    video = dataset.video[donors]
    next_row = torch.arange(len(indices), device=indices.device).roll(-1)
    asked = video[next_row]
    foreign = (asked != video) & (asked != background)
    labels = _labels(dataset.labels(donors), pastes, n, ~spliced[:, None])
    duration_s = [dataset.samples[i].duration for i in indices.tolist()]
    batch = dataset.gather(
        torch.where(
            pastes.origin >= 0, dataset.target.at(video, pastes.origin.clamp(min=0)), dataset.target.index(background)
        ),
        donors,
        labels=replace(labels, negative=torch.where(foreign, next_row, -1)),
        duration_s=torch.tensor(duration_s, dtype=torch.float32, device=indices.device),
    )
    return replace(
        batch,
        video=background,
        samples=_samples(indices, donors, found, dataset, pastes),
        counts={name: each.sum(1) for name, each in counts.items()},
    )


def splice_official(indices: Tensor, dataset: MomentDataset, draw: Draw) -> Batch:
    """`splice` with the released placement and choice of donors.  [AMR, splice]"""
    return splice(indices, dataset, draw, placement="official")


@dataclass(frozen=True)
class _Pastes:
    """What stands where in the background."""

    start: Tensor  # int64 (B, W) first clip of every window's paste
    r: Tensor  # int64 (B, W) clips of it, 0 where nothing is pasted
    mined: Tensor  # bool (B, W)
    origin: Tensor  # int64 (B, T) the donor's clip that stands here, -1 for the background's own
    confusing: Tensor  # bool (B, T) it is of a mined window

    @property
    def true(self) -> Tensor:
        """bool (B, W) the pastes that answer the query."""
        return (self.r > 0) & ~self.mined


@lru_cache(maxsize=2)
def _by_video(video: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted, and the samples in this order; kept, as sorting ten passes of a training set takes long."""
    return video.sort(stable=True)


def _donors(numbers: Numbers, indices: Tensor, dataset: MomentDataset, *, same_video: bool) -> tuple[Tensor, Tensor]:
    """The sample that gives each its moments, every one but itself, or but those of its video, equally likely.

    returns  int64 (B,), the sample itself where there is no other; bool (B,), there is another
    """
    total = len(dataset)
    if same_video:
        order, first, last = None, indices, indices + 1
    else:
        video, order = _by_video(dataset.video)
        own = dataset.video[indices]
        first, last = torch.searchsorted(video, own), torch.searchsorted(video, own, right=True)
    others = total - (last - first)
    k = (numbers("donor", 1)[:, 0] * others).long()
    k = torch.where(k >= first, k + (last - first), k).clamp(max=total - 1)
    donors = k if order is None else order[k]
    return torch.where(others > 0, donors, indices), others > 0


def _windows(samples: Tensor, dataset: MomentDataset) -> tuple[Tensor, Tensor, Tensor]:
    """The windows of some samples in order of their start, a true one before a mined one.

    returns  first clip int64 (B, W); number of clips int64 (B, W), 0 where there is no such window; bool (B, W) mined
    """
    clips, there, mined = dataset.clips(samples)
    first, m = clips.unbind(-1)
    order = torch.where(there, 2 * first + mined, 2 * int(dataset.target.lengths.max())).argsort(dim=1, stable=True)
    order = order[:, : max(1, int(there.sum(1).max()))]
    return first.gather(1, order), (m * there).gather(1, order), (mined & there).gather(1, order)


def _evenly(numbers: Numbers, m: Tensor, mined: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Pastes of 1..m clips such that, for given lengths, every layout is equally likely.  [AMR, splice]

    Where they do not fit with a clip of background between them, the longest are dropped: mined ones first.

    m, mined  (B, W) clips of every window, whether it is mined; n (B,) clips of the background
    returns   first clip int64 (B, W); number of clips int64 (B, W), 0 where dropped
    """
    r = 1 + (numbers("length", m.shape[1]) * m.minimum(n[:, None])).long()
    r = r * (m > 0)
    # each takes its clips and one more; so does the space, as nothing need follow the last
    order = (r + mined * (int(n.max()) + 1)).argsort(dim=1, descending=True, stable=True)
    taken = (r + (r > 0)).gather(1, order)
    remaining = taken.flip(1).cumsum(1).flip(1)
    kept = torch.zeros_like(mined).scatter(1, order, (remaining <= n[:, None] + 1) & (taken > 0))
    r = r * kept
    # n places, one for each paste and each further clip of background: which of them are the pastes?
    places, count = n + 1 - r.sum(1), kept.sum(1)
    u = numbers("place", int(n.max()))
    t = torch.arange(u.shape[1], device=n.device)
    rank = u.masked_fill(t >= places[:, None], torch.inf).argsort(dim=1, stable=True).argsort(1)
    place = torch.where(rank < count[:, None], t, len(t)).sort(1).values
    k = (kept.cumsum(1) - 1).clamp(0, len(t) - 1)
    return place.gather(1, k) + r.cumsum(1) - r, r


def _in_turn(numbers: Numbers, m: Tensor, mined: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Each paste somewhere after the one before; the first that does not fit whole ends it.  [AMR, splice, official]

    m, mined, n and what is returned as for `_evenly`; true and mined windows are treated alike
    """
    place, length = numbers("place", m.shape[1]), numbers("length", m.shape[1])
    begin, open_ = torch.zeros_like(n), torch.ones_like(n, dtype=torch.bool)
    start, r = torch.zeros_like(m), torch.zeros_like(m)
    for k in range(m.shape[1]):
        space = n - m[:, k] - begin
        open_ = open_ & (space >= 0) & (m[:, k] > 0)
        start[:, k] = begin + (place[:, k] * (space + 1)).long()
        r[:, k] = (1 + (length[:, k] * m[:, k]).long()) * open_
        begin = torch.where(open_, start[:, k] + r[:, k] + 1, begin)
    return start, r


def _pasted(numbers: Numbers, first: Tensor, m: Tensor, start: Tensor, r: Tensor, mined: Tensor, T: int) -> _Pastes:
    """Of the m clips of every window, from `first` on, any r in order, pasted from `start` on; all (B, W)."""
    # the clips of all windows of a sample one after the other: element e is clip i of window k
    ends = m.cumsum(1)
    total = int(ends[:, -1].max())
    e = torch.arange(total, device=m.device).expand(len(m), -1)
    k = torch.searchsorted(ends, e.contiguous(), right=True)
    real, k = k < m.shape[1], k.clamp(max=m.shape[1] - 1)
    before = (ends - m).gather(1, k)
    i = e - before
    # of a window's clips, those with the r lowest numbers
    order = torch.where(real, k + numbers("clip", total), torch.inf).argsort(dim=1, stable=True)
    chosen = torch.zeros_like(real).scatter(1, order, real & (i < r.gather(1, k)))
    # the chosen clips of the windows before stand in front of it, and those of its own
    shift = (start - (r.cumsum(1) - r)).gather(1, k)
    t = torch.where(chosen, chosen.cumsum(1) - 1 + shift, T)
    origin = m.new_full((len(m), T + 1), -1).scatter_(1, t, first.gather(1, k) + i)
    confusing = torch.zeros_like(origin, dtype=torch.bool).scatter_(1, t, mined.gather(1, k))
    return _Pastes(start, r, mined, origin[:, :T], confusing[:, :T])


def _labels(said: Labels, pastes: _Pastes, n: Tensor, kept: Tensor) -> Labels:
    """The annotation of the donors moved to where their clips are.

    said  of the donors' own videos; of the samples themselves where they are kept, bool (B, 1)
    n     (B,) clips of the backgrounds
    """
    T = pastes.origin.shape[1]
    relevant = (pastes.origin >= 0) & ~pastes.confusing
    saliency = said.saliency.gather(1, pastes.origin.clamp(min=0)) * relevant
    spans = torch.stack([pastes.start, pastes.start + pastes.r], -1) / n[:, None, None]
    front = (~pastes.true).long().argsort(dim=1, stable=True)[:, : said.spans.shape[1]]
    spans = spans.gather(1, front[..., None].expand(-1, -1, 2))
    span_mask = pastes.true.gather(1, front)
    wider = said.spans.shape[1] - front.shape[1]
    span_mask = F.pad(span_mask, (0, wider))
    spans = F.pad(spans, (0, 0, 0, wider)) * span_mask[..., None]
    return Labels(
        spans=torch.where(kept[..., None], said.spans, spans),
        span_mask=torch.where(kept, said.span_mask, span_mask),
        relevant=torch.where(kept, _fitted(said.relevant, T), relevant),
        saliency=torch.where(kept, _fitted(said.saliency, T), saliency),
        saliency_mask=said.saliency_mask,
        wrong=None if said.wrong is None else torch.where(kept, _fitted(said.wrong, T), pastes.confusing),
    )


def _fitted(x: Tensor, T: int) -> Tensor:
    """(B, T') with zeros behind, or cut, to (B, T)."""
    return F.pad(x, (0, T - x.shape[1]))


def _samples(indices: Tensor, donors: Tensor, found: Tensor, dataset: MomentDataset, pastes: _Pastes) -> list[Sample]:
    """What is asked of every background now, in seconds."""
    made = []
    told = (indices, donors, found, pastes.origin, pastes.start, pastes.r, pastes.mined)
    for index, donor, other, clips, starts, lengths, kinds in zip(*(x.tolist() for x in told), strict=True):
        background, given = dataset.samples[index], dataset.samples[donor]
        parts = [(a, a + x, wrong) for a, x, wrong in zip(starts, lengths, kinds, strict=True) if x]
        if not parts:
            kept = {"kept": "no window had room" if other else "no donor"}
            made.append(replace(background, extra=background.extra | kept))
            continue
        windows_s, wrong_s = (
            [[min(x * dataset.clip_s, background.duration) for x in (a, b)] for a, b, wrong in parts if wrong == kind]
            for kind in (False, True)
        )
        about = {"donor": given.vid, "pasted": [[a, clips[a:b]] for a, b, _ in parts]}
        about |= {"wrong_spans": wrong_s} if wrong_s else {}
        ids = scores = None
        if given.relevant_clip_ids is not None:
            place = {clip: i for i, clip in enumerate(given.relevant_clip_ids)}
            moved = [
                (t, place[clips[t]]) for a, b, wrong in parts if not wrong for t in range(a, b) if clips[t] in place
            ]
            ids = [t for t, _ in moved]
            if given.saliency_scores is not None:
                scores = [given.saliency_scores[i] for _, i in moved]
        made.append(
            Sample(
                qid=given.qid,
                query=given.query,
                duration=background.duration,
                vid=background.vid,
                relevant_windows=windows_s,
                relevant_clip_ids=ids,
                saliency_scores=scores,
                extra=about,
            )
        )
    return made
