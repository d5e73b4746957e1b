"""Two videos that look alike, mixed so that a moment stands in another context (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     [TD-DETR Eq. 1] `pair_similarity` chooses who is mixed; [TD-DETR, synthesis] `synthesize` makes two videos of
         every pair: each keeps its moment whole, a share alpha of its other clips, and a share 1 - alpha of the other's
Departs  xyangzhou/TD-DETR takes the 50 most alike pairs of clips for the likeness, and the text of the next sample as
         the foreign one, which may be the partner's: `synthesize_official`. Its batches hold each video as it is, or
         the two made of it; ours hold all three, the same shares
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from mrlib.data import Bank, Batch, Labels, MomentDataset, Sample
from mrlib.ops.draw import Draw
from mrlib.ops.matching import match

PARTNERS = ("similar", "random", "table")
FEWEST = 3  # clips of context: fewer are left out  [TD-DETR, released code]
TOP = 50  # pairs of clips that the released likeness is the mean of
TIE = 5e-7  # likenesses this close are equal: what float32 leaves of equal videos
CHUNK = 64  # videos
ROWS = 512  # of a batch that foreign queries are shared out among; a larger one is dealt into such parts


@torch.no_grad()
def pair_similarity(features: Tensor, mask: Tensor, mode: str = "mean") -> Tensor:
    r"""How alike every two videos are, by all pairs of their clips but those of equal index.  [TD-DETR Eq. 1]

    $$s_{jl} = \frac{1}{L_j L_l} \sum_p \sum_{q \neq p} \cos(v^j_p, v^l_q) = \frac{1}{L_j L_l} \Big( \langle u_j, u_l
    \rangle - \sum_p \cos(v^j_p, v^l_p) \Big), \quad u_j = \sum_p v^j_p / \lVert v^j_p \rVert$$

    A clip of zeros, like padding, is alike to none; so is a video without clips.

    features  (N, T, D)  of any length
    mask      bool (N, T)  real clips
    mode      "mean", as printed, or "top50", as released: the 50 most alike pairs, those of equal index too, padding
              among them as pairs of likeness 0; always divided by 50
    returns   (N, N)  float32, or float64 for float64
    """
    if mode not in ("mean", "top50"):
        raise ValueError(f"mode {mode!r}; mean or top50")
    features = features if features.dtype == torch.float64 else features.float()
    if mode == "top50":
        return _top(features * _scale(torch.linalg.vector_norm(features, dim=-1), mask)[..., None])
    # clips of equal index, (T, N, N): the norms are on its diagonal, so that nothing is normalised in memory
    clips = features.transpose(0, 1)
    same = clips @ clips.mT
    scale = _scale(same.diagonal(dim1=1, dim2=2).sqrt(), mask.T)
    u = (scale.T[:, None] @ features)[:, 0].double()
    same = same.mul_(scale[:, :, None]).mul_(scale[:, None]).sum(0)
    count = mask.sum(1).clamp(min=1)
    return ((u @ u.T - same) / (count[:, None] * count)).to(features.dtype)


def _scale(norm: Tensor, mask: Tensor) -> Tensor:
    """What makes clips of these norms unit vectors; 0 on padding and where there is no direction."""
    return torch.where(mask & (norm > 0), 1 / norm, 0)


def _top(unit: Tensor) -> Tensor:
    """The released likeness of videos of unit vectors (N, T, D); (N, N)."""
    T, alike = unit.shape[1], []
    for i, video in enumerate(unit):  # with itself and those after; what comes before is the same the other way round
        pairs = (unit[i:].flatten(0, 1) @ video.T).view(-1, T * T)
        most = pairs.topk(min(TOP, T * T), sorted=False).values.sum(1) / TOP
        alike.append(F.pad(most, (i, 0)))
    upper = torch.stack(alike)
    return upper + upper.triu(1).T


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
    """The samples as they are, then two made of each and its partner.  [TD-DETR, synthesis]

    Of a sample i and its partner k come two videos, drawn apart: i's part before k's clips, asked with i's query; and
    i's clips before k's part, asked with k's query. A sample's part is all from its first window to its last, and of
    its L other clips floor(alpha L); of the partner's L, its moment's too, floor((1 - alpha) L). Two or fewer are none.
    Both numbers, taken for themselves, vary: fewer of them, or some twice. Clips stay in order.

    The moment keeps its length, so windows, saliency and mined clips move with the clips. A window that ends after the
    features moves by as much; its span is cut at the end of the video. `video` of what is made is the number of the
    video that the query is about: its other queries are not foreign. `labels.negative` is a random row, every row
    taken once where that can be, whose query is about neither of the videos; -1 where there is none.

    What was made is told in its sample's `extra`: "partner", the other's vid; "own" and "partner_clips", where each
    part begins and its clips, by their index in their own video; "shift", the clips by which the moment moved;
    "wrong_spans", the mined clips, in seconds. Originals keep their own. `counts` has 1 for what is "synthetic" and,
    of that, "moment_clips", "own_clips" besides, and "partner_clips"; and 1 for an original with "no_partner" because
    no other video is there to choose, or because it has no window itself.

    alpha      share of a video's own context that stays, from 0 to 1
    partners   "similar", the most alike other video of the batch, the first of equals; "random", any other video of
               the batch; "table", the most alike of all videos, the same pairs of clips counted, and any of its
               samples. The table is made once for a dataset, from all its features
    jitter     numbers of clips are multiplied with 1 - jitter to 1 + jitter; 0 or None: not at all
    originals  False: only what is made; a sample without a partner stays
    raises     ValueError where nothing is annotated
    """
    if partners not in PARTNERS:
        raise ValueError(f"partners {partners!r}; one of {', '.join(PARTNERS)}")
    return _synthesized(indices, dataset, draw, alpha, partners, jitter or 0.0, originals, official=False)


def synthesize_official(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    *,
    alpha: float = 0.7,
    jitter: float | None = 0.2,
    originals: bool = True,
) -> Batch:
    """`synthesize` as released: another likeness, the next row's query as the foreign one, and moments that lose their
    last clip where a window ends in it at an odd second.  [TD-DETR, synthesis, official]"""
    return _synthesized(indices, dataset, draw, alpha, "top50", jitter or 0.0, originals, official=True)


# ---- who is mixed with whom


def _partners(indices: Tensor, dataset: MomentDataset, draw: Draw, how: str) -> tuple[Tensor, Tensor]:
    """The sample that each is mixed with: of another video, and with a window.

    returns  int64 (B,), the sample itself where there is none; bool (B,), there is one
    """
    video = dataset.video[indices]
    asks = _with_window(dataset, indices)
    if how in ("similar", "top50"):
        allowed = (video[:, None] != video) & asks & asks[:, None]
        rows = dataset.target.index(video)
        alike = pair_similarity(dataset.target.gather(rows), rows >= 0, "mean" if how == "similar" else how)
        alike = alike.masked_fill(~allowed, -torch.inf)
        best = alike >= alike.max(1, keepdim=True).values - TIE
        first = indices.expand(len(indices), -1).masked_fill(~best, len(dataset)).min(1).values
        found = allowed.any(1)
        return torch.where(found, first, indices), found
    u = draw("partner", indices, 2)  # which video, which of its samples
    if how == "random":
        samples = _Samples.of(indices[asks], dataset)
        others = samples.video.unique()
        k = (u[:, 0] * (len(others) - 1)).long()
        k += k >= torch.searchsorted(others, video)
        found = asks & (len(others) > 1)
        chosen = others[k.clamp(max=len(others) - 1)] if len(others) else video
    else:
        samples, similar = _table(dataset)
        chosen = similar[video]
        found = asks & (chosen >= 0)
    return torch.where(found, samples.any_of(torch.where(found, chosen, video), u[:, 1], indices), indices), found


@dataclass(frozen=True)
class _Samples:
    """Samples sorted by their video."""

    index: Tensor  # int64 (S,)
    video: Tensor  # int64 (S,)

    @classmethod
    def of(cls, indices: Tensor, dataset: MomentDataset) -> _Samples:
        indices = indices.sort().values
        video, order = dataset.video[indices].sort(stable=True)
        return cls(indices[order], video)

    def any_of(self, video: Tensor, u: Tensor, otherwise: Tensor) -> Tensor:
        """One of the samples of each of these videos (B,), by u (B,) in [0, 1); `otherwise` (B,) where none is."""
        if len(self.index) == 0:
            return otherwise
        first, last = torch.searchsorted(self.video, video), torch.searchsorted(self.video, video, right=True)
        k = first + (u * (last - first)).long()
        return torch.where(last > first, self.index[k.clamp(max=len(self.index) - 1)], otherwise)


def _with_window(dataset: MomentDataset, indices: Tensor) -> Tensor:
    there = [bool(dataset.samples[i].relevant_windows) for i in indices.tolist()]
    return torch.tensor(there, device=indices.device)


_TABLES: WeakKeyDictionary[MomentDataset, tuple[_Samples, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def _table(dataset: MomentDataset) -> tuple[_Samples, Tensor]:
    """The samples with a window, and the most alike other video that has one, of each video; made once.

    returns  samples; int64 (V,) an item of `dataset.target` for every item, -1 where there is none
    """
    if dataset in _TABLES:
        return _TABLES[dataset]
    everything = torch.arange(len(dataset), device=dataset.video.device)
    samples = _Samples.of(everything[_with_window(dataset, everything)], dataset)
    videos = samples.video.unique()
    similar = torch.full_like(dataset.target.lengths, -1)
    similar[videos] = most_alike(videos, dataset.target)
    _TABLES[dataset] = samples, similar
    return samples, similar


@torch.no_grad()
def most_alike(videos: Tensor, bank: Bank) -> Tensor:
    """Of some videos the other one that is most alike to each, by all pairs of their clips, those of equal index too.

    videos   int64 (V,)  items of the bank, each once
    returns  int64 (V,)  items, of equals the first in `videos`; -1 where there is no other
    """
    means = []
    for some in videos.split(CHUNK):
        rows = bank.index(some)
        clips = bank.gather(rows)
        scale = _scale(torch.linalg.vector_norm(clips, dim=-1), rows >= 0)
        means.append((scale[:, None] @ clips)[:, 0] / (rows >= 0).sum(1, keepdim=True).clamp(min=1))
    means, found = torch.cat(means), torch.full_like(videos, -1)
    for some in torch.arange(len(videos), device=videos.device).split(CHUNK) if len(videos) > 1 else ():
        alike = (means[some] @ means.T).scatter(1, some[:, None], -torch.inf)
        best = alike >= alike.max(1, keepdim=True).values - TIE
        found[some] = videos[best.int().argmax(1)]
    return found


# ---- what is made of them


@dataclass(frozen=True)
class _Mixed:
    """Which clip of which video stands where. An original is all moment, and its partner gives nothing."""

    own: Tensor  # int64 (R,) the sample that asks
    other: Tensor  # int64 (R,) the sample whose clips are around
    synthetic: Tensor  # bool (R,)
    clips: Tensor  # int64 (R,)
    origin: Tensor  # int64 (R, T) index of the clip in its own video
    is_own: Tensor  # bool (R, T) it is of the video that is asked about
    shift: Tensor  # int64 (R,) by how many clips the moment moved


def _synthesized(
    indices: Tensor,
    dataset: MomentDataset,
    draw: Draw,
    alpha: float,
    partners: str,
    jitter: float,
    originals: bool,
    official: bool,
) -> Batch:
    for name, value in (("alpha", alpha), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, not {value!r}")
    if not any(sample.relevant_windows for sample in dataset.samples):
        raise ValueError(f"{dataset.name} {dataset.split} has no annotated windows to keep; use the identity")
    partner, found = _partners(indices, dataset, draw, partners)
    stay = torch.ones_like(found) if originals else ~found
    pairs = torch.stack([indices, partner], 1)[found]
    own, other = torch.cat([indices[stay], pairs.flatten()]), torch.cat([indices[stay], pairs.flip(1).flatten()])
    synthetic = torch.arange(len(own), device=own.device) >= len(own) - pairs.numel()
    # a number of its own for every row that a dataset can give: an original, the first of a pair, the second
    kind = torch.arange(1, 3, device=own.device)
    number = torch.cat([3 * indices[stay], (3 * pairs[:, :1] + kind).flatten()])
    video, around = dataset.video[own], dataset.video[other]
    n, m = dataset.target.lengths[video], dataset.target.lengths[around] * synthetic

    first, last = _moments(own, synthetic, n, dataset, official).unbind(1)
    T = int(n.max())  # of every partner too, which asks in its turn
    t = torch.arange(T, device=own.device)
    moment = (t >= first[:, None]) & (t < last[:, None])
    factor = 1 + jitter * (1 - 2 * draw("jitter", number, 2))
    context = _drawn(draw("own", number, T), (t < n[:, None]) & ~moment, alpha, factor[:, 0])
    added = _drawn(draw("partner's", number, T), t < m[:, None], 1 - alpha, factor[:, 1])
    # how often each clip of the one video and then of the other is shown
    kept, second = context + moment, (number % 3 == 2)[:, None]
    times = torch.cat([torch.where(second, added, kept), torch.where(second, kept, added)], 1)
    ends = times.cumsum(1)
    clips = ends[:, -1]
    place = torch.arange(int(clips.max()), device=own.device).expand(len(own), -1).contiguous()
    shown = torch.searchsorted(ends, place, right=True)  # 2 T after the end
    real, origin = place < clips[:, None], shown % T
    is_own = real & ((shown >= T) == second)
    start = (ends - times).gather(1, first[:, None] + T * second)[:, 0]
    mixed = _Mixed(own, other, synthetic, clips, origin, is_own, start - first)

    bank = dataset.target
    rows = torch.where(is_own, *(bank.at(v, origin.minimum(bank.lengths[v][:, None] - 1)) for v in (video, around)))
    labels = _labels(mixed, dataset)
    negative = torch.arange(len(own), device=own.device).roll(-1)
    negative = negative if official else _foreign(draw, number, video, around, len(dataset))
    duration_s = [dataset.samples[i].duration for i in own.tolist()]
    duration_s = torch.tensor(duration_s, dtype=torch.float32, device=own.device)
    batch = dataset.gather(
        torch.where(real, rows, -1),
        own,
        labels=replace(labels, negative=negative),
        duration_s=torch.where(synthetic, clips * dataset.clip_s, duration_s),
    )
    alone = torch.cat([~found[stay], torch.zeros_like(synthetic[synthetic])])
    told = {"moment_clips": moment, "own_clips": context, "partner_clips": added}
    counts = {"synthetic": synthetic.long(), "no_partner": alone.long()}
    counts |= {name: each.sum(1) * synthetic for name, each in told.items()}
    return replace(batch, samples=_samples(mixed, labels, dataset), counts=counts)


def _moments(own: Tensor, synthetic: Tensor, n: Tensor, dataset: MomentDataset, official: bool) -> Tensor:
    """The first clip of a sample's windows and the one after the last, int64 (R, 2); of an original, the video's.

    n  (R,) clips; windows after them are the last one
    """
    hulls = []
    for i, made, clips in zip(own.tolist(), synthetic.tolist(), n.tolist(), strict=True):
        if not made:
            hulls.append((0, clips))
            continue
        parts = []
        for start, end in dataset.samples[i].relevant_windows:
            a, b = math.floor(start / dataset.clip_s), math.ceil(end / dataset.clip_s)
            if official:
                a, b = int(math.floor(start) // dataset.clip_s), int(math.ceil(end) // dataset.clip_s)
            a = min(max(a, 0), clips - 1)
            parts.append((a, max(min(b, clips), a + 1)))
        hulls.append((min(a for a, _ in parts), max(b for _, b in parts)))
    return torch.tensor(hulls, device=own.device)


def _drawn(u: Tensor, pool: Tensor, share: float, factor: Tensor) -> Tensor:
    """How often each clip is shown: of a share of the pool, some are left out, or some are shown twice.

    u        float64 (R, T)  in [0, 1)
    pool     bool (R, T)  the clips to choose from
    factor   float64 (R,)  by which their number changes, 0 to 2
    returns  int64 (R, T)  0, 1 or 2
    """
    count = (share * pool.sum(1).double()).floor()
    count = torch.where(count < FEWEST, 0, count)
    once, twice = (count * factor.clamp(max=1)).floor(), (count * (factor - 1).clamp(min=0)).floor()
    rank = u.masked_fill(~pool, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return (rank < once[:, None]).long() + (rank < twice[:, None])


def _labels(mixed: _Mixed, dataset: MomentDataset) -> Labels:
    """The annotation of who asks, moved to where the clips are."""
    said = dataset.labels(mixed.own)

    def moved(x: Tensor) -> Tensor:
        return x.gather(1, mixed.origin.clamp(max=x.shape[1] - 1)) * mixed.is_own

    windows_s = torch.zeros(said.spans.shape, dtype=torch.float64)
    for row, i in enumerate(mixed.own.tolist()):
        windows = dataset.samples[i].relevant_windows
        if windows:
            windows_s[row, : len(windows)] = torch.tensor(windows, dtype=torch.float64)
    clips = mixed.clips[:, None, None].double()
    windows_s = windows_s.to(clips.device) + mixed.shift[:, None, None].double() * dataset.clip_s
    spans = (windows_s / (clips * dataset.clip_s)).clamp(0, 1)
    start = torch.where(spans[..., 0] < 1, spans[..., 0], 1 - 1 / clips[..., 0])  # after the end: the last clip
    spans = torch.stack([start, spans[..., 1]], -1).float() * said.span_mask[..., None]
    return Labels(
        spans=torch.where(mixed.synthetic[:, None, None], spans, said.spans),
        span_mask=said.span_mask,
        relevant=moved(said.relevant),
        saliency=moved(said.saliency),
        saliency_mask=said.saliency_mask,
        wrong=None if said.wrong is None else moved(said.wrong),
    )


def _foreign(draw: Draw, number: Tensor, video: Tensor, around: Tensor, size: int) -> Tensor:
    """The row whose query each video is asked as a foreign one: about neither of its two videos, and any of those.

    number, video, around  int64 (R,)  of the row, of the video asked about, of the other; size, of the dataset
    returns                int64 (R,)  every row once where that can be; -1 where all are about one of the two
    """
    chosen = torch.full_like(number, -1)
    for rows in draw("foreign/order", number, 1)[:, 0].argsort().split(ROWS):
        own, place = number[rows], video[rows]
        u = draw("foreign", (own[:, None] * 3 * size + own).flatten()).view(len(rows), -1)
        allowed = (place != place[:, None]) & (place != around[rows][:, None])
        cost = u + ~allowed * len(rows)  # more than all others together
        once = match(cost.T[None], torch.ones_like(allowed[:1]))[0]
        taken = torch.where(allowed.gather(1, once[:, None])[:, 0], once, cost.argmin(1))
        chosen[rows] = torch.where(allowed.any(1), rows[taken], -1)
    return chosen


def _samples(mixed: _Mixed, labels: Labels, dataset: MomentDataset) -> list[Sample]:
    """What is asked of every video now, in seconds."""
    wrong = mixed.is_own & False if labels.wrong is None else labels.wrong
    told = (mixed.own, mixed.other, mixed.synthetic, mixed.clips, mixed.origin, mixed.is_own, mixed.shift, wrong)
    made = []
    for i, k, synthetic, clips, origin, is_own, shift, mined in zip(*(x.tolist() for x in told), strict=True):
        sample = dataset.samples[i]
        if not synthetic:
            made.append(sample)
            continue
        first, last = is_own.index(True), clips - is_own[clips - 1 :: -1].index(True)
        others = (last, origin[last:clips]) if first == 0 else (0, origin[:first])
        extra = {"partner": dataset.samples[k].vid, "own": [first, origin[first:last]]}
        extra |= {"partner_clips": list(others), "shift": shift}
        begin = [t for t in range(clips) if mined[t] and not (t and mined[t - 1])]
        end = [t + 1 for t in range(clips) if mined[t] and not (t + 1 < clips and mined[t + 1])]
        if begin:
            extra["wrong_spans"] = [[a * dataset.clip_s, b * dataset.clip_s] for a, b in zip(begin, end, strict=True)]
        ids = scores = None
        if sample.relevant_clip_ids is not None:
            place = {clip: at for at, clip in enumerate(sample.relevant_clip_ids)}
            ids = [t for t in range(first, last) if origin[t] in place]
            if sample.saliency_scores is not None:
                scores = [sample.saliency_scores[place[origin[t]]] for t in ids]
        by_s = shift * dataset.clip_s
        made.append(
            Sample(
                qid=sample.qid,
                query=sample.query,
                duration=clips * dataset.clip_s,
                vid=sample.vid,
                relevant_windows=[[a + by_s, b + by_s] for a, b in sample.relevant_windows],
                relevant_clip_ids=ids,
                saliency_scores=scores,
                extra=extra,
            )
        )
    return made
