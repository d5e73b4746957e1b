"""Probes: datasets with the same queries and labels but other clips, which show what a model relies on (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     [TD-DETR, spurious] `mask_moments` replaces the moments: a model that still finds them relies on context
         (`mrlib.metrics.spurious`); `take_out` removes them from simulated videos, so that nothing looks masked;
         [TD-DETR, context] `dynamic_context` keeps the moments and replaces the other clips by those of another video.
         `PROBES` lists them by name, for training runs and comparisons
Departs  the authors draw their noise before the features are normalised; the bank holds normalised features only.
         Neither file, share nor seed of the paper's context split is public: compare models on the same split of ours

A probe depends on its seed and on each sample's (qid, vid), not on the number or order of the samples. Two queries of
one video no longer see the same clips, so every sample gets a video of its own. New clips are computed on the CPU, so
that they are the same bytes on every device, and then moved to the dataset's device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.augment.similarity import most_alike
from mrlib.data import MomentDataset, Sample
from mrlib.data.arrays import normalized_rows
from mrlib.data.bank import Bank
from mrlib.data.layouts import LAYOUTS
from mrlib.files import read_jsonl, write_jsonl
from mrlib.ops.draw import Draw
from mrlib.sim import open_sim

# ---- videos without their moments


def mask_moments(
    dataset: MomentDataset, mode: str = "noise", margin: tuple[int, int] = (2, 1), seed: int = 0
) -> MomentDataset:
    """Replace the clips of every window; all other clips stay equal to the last bit.  [TD-DETR, spurious]

    mode     "noise"  uniform between the smallest and the largest value of the stream in this video
             "zero"   zeros
             "mean"   the mean of the video's remaining clips, or of all clips if none remains
             noise and mean are then normalised as the stream is
    margin   how many clips before the start and after the end of a window are replaced too, counted from the nearest
             border of clips, the later of two; those of the window itself, which `MomentDataset.window_clips` gives,
             always are. With clips of 2 s, the default replaces the authors' clips floor((s - 3) / 2) to
             floor((e + 3) / 2) - 1
    returns  a dataset of the same samples, queries, lengths and labels, with a video for each sample
    raises   ValueError for an unknown mode, a margin below 0, or samples without windows
    """
    require(mode in FILLS, "mode", mode, f"one of {', '.join(FILLS)}")
    require(min(margin) >= 0, "margin", margin, "0 or more clips before and after a window")
    masked, row_numbers = _window_clip_mask(dataset, *margin), dataset.target.index(dataset.video)
    draw, parts = Draw(seed, "mask_moments"), _parts(dataset)
    replacements, end = [], len(dataset.target.rows)
    for s, key in enumerate(_keys(dataset.samples)):
        if not masked[s].any():
            continue  # a null query
        real = row_numbers[s] >= 0
        video, replaced = dataset.target.gather(row_numbers[s : s + 1, real])[0].cpu(), masked[s, real].cpu()
        fill = {
            name: FILLS[mode](video[:, columns], replaced, partial(draw, name, key[None]))
            for name, columns in dataset.streams.items()
        }
        normalised = [normalized_rows(x.numpy(), parts[name]) if parts[name] else x.numpy() for name, x in fill.items()]
        replacements.append(torch.cat([torch.from_numpy(x) for x in normalised], 1))
        row_numbers[s, masked[s]] = end + torch.arange(len(replacements[-1]), device=row_numbers.device)
        end += len(replacements[-1])
    record = {"probe": "mask_moments", "mode": mode, "margin": list(margin), "seed": seed}
    new_rows = torch.cat([dataset.target.rows[:0].float().cpu(), *replacements])
    return _with_videos(dataset, row_numbers, new_rows, record)


# fills: the rows for the clips (n, D) of a stream where `replaced` (n,) is True, one per such clip or one for all
def _noise(clips: Tensor, replaced: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    low, high = clips.min(), clips.max()
    return low + (high - low) * draw((int(replaced.sum()), clips.shape[1]))[0].float()


def _zero(clips: Tensor, replaced: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    return clips.new_zeros(1, clips.shape[1])


def _mean(clips: Tensor, replaced: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    return clips[replaced if replaced.all() else ~replaced].mean(0, keepdim=True)


FILLS = {"noise": _noise, "zero": _zero, "mean": _mean}


def _window_clip_mask(dataset: MomentDataset, before: int = 0, after: int = 0) -> Tensor:
    """The clips of each sample's windows, widened by `before` and `after` clips, bool (S, T); none for a null query."""
    without = [s.qid for s in dataset.samples if s.relevant_windows is None]
    if without:
        raise ValueError(
            f"{dataset.name} {dataset.split}: {len(without)} of {len(dataset)} samples have no windows, {without[:5]}; "
            "a probe needs them to know which clips to replace"
        )
    clips, real, mined = dataset.window_clips(torch.arange(len(dataset), device=dataset.video.device))
    first, count = clips.unbind(-1)  # (S, W)
    end = first + count
    nearest = torch.zeros(*first.shape, 2)  # (S, W, 2) the borders of clips that are nearest to the ends of a window
    for row, sample in zip(nearest, dataset.samples, strict=True):
        windows_s = torch.tensor(sample.relevant_windows, dtype=torch.float64).view(-1, 2)
        row[: len(windows_s)] = (windows_s / dataset.clip_s + 0.5).floor()
    start_border, end_border = nearest.to(first).unbind(-1)
    if before:
        first = torch.minimum(first, start_border - before)
    if after:
        end = torch.maximum(end, end_border + after)
    n = dataset.target.lengths[dataset.video][:, None]
    t = torch.arange(int(n.max()), device=n.device)
    near = (t >= first[..., None]) & (t < end[..., None])  # (S, W, T)
    return (near & (real & ~mined)[..., None]).any(1) & (t < n)


def _parts(dataset: MomentDataset) -> dict[str, int]:
    """For every stream, into how many separately normalised vectors a row is split; 0: it is not normalised."""
    normalized = dataset.settings.get("normalize", dataset.streams)  # simulated streams are always normalised
    layout = LAYOUTS.get(dataset.settings.get("layout"))
    streams = {} if layout is None else layout.video
    parts = {name: streams[name].parts if name in streams else 1 for name in dataset.streams}
    return {name: n if name in normalized else 0 for name, n in parts.items()}


def take_out(dataset: MomentDataset) -> MomentDataset:
    """Simulate the same videos without the queried event; the place where it happens stays.

    No clip looks unusual, as masked clips do. If the simulator blurs events into each other, the clips beside a window
    change too.

    raises  ValueError for videos that are not simulated
    """
    if dataset.name != "sim":
        raise ValueError(
            f"only simulated videos can be made without an event; mask the moments of {dataset.name} instead"
        )
    simulated = open_sim(
        dataset.split,
        n=len(dataset.target),
        streams=tuple(dataset.streams),
        **(dataset.settings | {"absent": True}),
    )
    return replace(dataset, target=simulated.target.to(dataset.video.device), settings=simulated.settings)


# ---- moments among the clips of another video


@dataclass(frozen=True)
class Context:
    """Replacement clips outside a sample's windows; a file of them replaces the features by which they were chosen."""

    qid: int | str
    vid: str
    partner: str  # the vid of the other video
    clips: list[int]  # for each clip of the video, the partner's clip that replaces it; -1: none does


def dynamic_context(dataset: MomentDataset, share: float = 1.0, seed: int = 0) -> MomentDataset:
    """Replace the clips outside all windows by clips of the most similar other video.  [TD-DETR, context]

    share, raises   as in `contexts`
    returns  a dataset of the same samples, queries, lengths and labels, with a video for each sample
    """
    return show(dataset, contexts(dataset, share, seed))


def contexts(dataset: MomentDataset, share: float = 1.0, seed: int = 0) -> list[Context]:
    """For every sample, the clips of another video that replace those outside its windows.  [TD-DETR, context]

    The other video is the most similar one of the split: its clips have the greatest mean cosine with those of the
    sample's video, over all pairs of clips. [TD-DETR Eq. 1] leaves out the pairs of equal position, one in 75.

    share   probability that a clip is replaced, drawn for each clip on its own; clip t of n is replaced by clip
            floor((t + 1/2) m / n) of the m clips of the other video
    raises  ValueError for a share outside 0 to 1, samples without windows, or a dataset of a single video
    """
    require(0 <= share <= 1, "share", share, "from 0 to 1")
    windows, items = _window_clip_mask(dataset), _items(dataset)
    if len(items) < 2:
        raise ValueError(f"{dataset.name} {dataset.split} has one video only; no other video can be its context")
    videos = torch.tensor(list(items.values()), device=dataset.video.device)
    partners = dict(zip(items, most_alike(videos, dataset.target).tolist(), strict=True))
    vids = {item: vid for vid, item in items.items()}
    lengths, video = dataset.target.lengths.tolist(), dataset.video.tolist()
    drawn = Draw(seed, "dynamic_context")("replace", _keys(dataset.samples), windows.shape[1])
    replaced = (drawn < share) & ~windows.cpu()
    chosen = []
    for s, sample in enumerate(dataset.samples):
        other = partners[sample.vid]
        n, m = lengths[video[s]], lengths[other]
        clips = torch.where(replaced[s, :n], (2 * torch.arange(n) + 1) * m // (2 * n), -1)
        chosen.append(Context(sample.qid, sample.vid, vids[other], clips.tolist()))
    return chosen


def show(dataset: MomentDataset, chosen: Sequence[Context]) -> MomentDataset:
    """The dataset with these contexts; they may come in any order, and those of other samples are ignored.

    raises  ValueError for a sample without a context, or a context that does not fit its videos
    """
    by_sample, items = {(c.qid, c.vid): c for c in chosen}, _items(dataset)
    row_numbers, lengths = dataset.target.index(dataset.video), dataset.target.lengths.tolist()
    for s, sample in enumerate(dataset.samples):
        context, name = by_sample.get((sample.qid, sample.vid)), f"qid {sample.qid!r} on {sample.vid!r}"
        if context is None:
            raise ValueError(f"{name} has no context; give one for each sample of {dataset.name} {dataset.split}")
        if context.partner not in items:
            raise ValueError(f"{name}: no video {context.partner!r} in {dataset.name} {dataset.split}")
        n, m = lengths[int(dataset.video[s])], lengths[items[context.partner]]
        if len(context.clips) != n or not all(-1 <= c < m for c in context.clips):
            raise ValueError(f"{name}: the context does not fit the videos, which have {n} and {m} clips")
        clips = torch.tensor(context.clips, device=row_numbers.device)
        other = dataset.target.at(row_numbers.new_tensor([items[context.partner]]), clips.clamp(min=0)[None])[0]
        row_numbers[s, :n] = torch.where(clips < 0, row_numbers[s, :n], other)
    lines = [asdict(by_sample[s.qid, s.vid]) for s in dataset.samples]
    record = {"probe": "dynamic_context", "digest": blake2b(json.dumps(lines).encode(), digest_size=8).hexdigest()}
    return _with_videos(dataset, row_numbers, dataset.target.rows[:0], record)


def write(file: Path, chosen: Sequence[Context]) -> None:
    """Write a line of JSON for each context."""
    write_jsonl(file, map(asdict, chosen))


def read(file: Path) -> list[Context]:
    """The contexts of a file that `write` wrote; ValueError, naming the file, for a line that is no context."""
    try:
        return [Context(**line) for line in read_jsonl(file)]
    except TypeError as error:
        raise ValueError(f"{file}: a line does not have the fields qid, vid, partner and clips ({error})") from None


# ---- helpers


def _items(dataset: MomentDataset) -> dict[str, int]:
    """The item of `dataset.target` for each vid, in order of first appearance."""
    items: dict[str, int] = {}
    for sample, item in zip(dataset.samples, dataset.video.tolist(), strict=True):
        items.setdefault(sample.vid, item)
    return items


def _keys(samples: Sequence[Sample]) -> Tensor:
    """A hash of each sample's (qid, vid), to draw random numbers by; int64 (S,), on the CPU."""
    digests = [blake2b(f"{s.qid}/{s.vid}".encode(), digest_size=8).digest() for s in samples]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _with_videos(
    dataset: MomentDataset, row_numbers: Tensor, new_rows: Tensor, record: dict[str, Any]
) -> MomentDataset:
    """The dataset with a video for every sample; the new bank holds each row that is used once, and no other row.

    row_numbers  int64 (S, T)  rows of the bank; numbers from len(bank.rows) on are rows of `new_rows`; -1 is padding,
                 at the end
    new_rows     (M, D)
    record       describes the probe in the settings
    """
    bank, real = dataset.target, row_numbers >= 0
    used, places = row_numbers[real].unique(return_inverse=True)
    old, new = used[used < len(bank.rows)], used[used >= len(bank.rows)] - len(bank.rows)
    features = torch.cat([bank.rows[old], new_rows.to(bank.rows)[new]])
    ends = real.sum(1).cumsum(0)
    return replace(
        dataset,
        target=Bank(features, torch.cat([ends.new_zeros(1), ends]), places),
        video=torch.arange(len(dataset), device=dataset.video.device),
        settings=dataset.settings | {"probes": [*dataset.settings.get("probes", []), record]},
    )


PROBES: dict[str, Callable[[MomentDataset], MomentDataset]] = {
    **{f"masked_{mode}": partial(mask_moments, mode=mode) for mode in FILLS},
    "dynamic_context": dynamic_context,
    "dynamic_context_30": partial(dynamic_context, share=0.3),
    "absent": take_out,
}
