"""Data that show what a model leans on: the same queries and labels, with other clips in the videos (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025
         (arXiv 2501.07305)
Here     [TD-DETR, spurious] `mask_moments` takes the moments out: who still finds them has guessed
         (`mrlib.metrics.spurious`); `take_out` does so where videos are simulated, and nothing looks masked;
         [TD-DETR, context] `dynamic_context` leaves the moments and puts them among the clips of another video.
         `PROBES` has them by name, for trainings and comparisons
Departs  the authors draw their noise before the features are normalised, which the bank no longer knows; neither file,
         share nor seed of the paper's context split is public: compare models on the same split of ours

A probe is a function of its seed and of each sample's (qid, vid), not of how many samples there are or in which order.
Two queries of one video do not see the same clips any more, so every sample has a video of its own. What is replaced is
made on the CPU, the same bytes for every device, and lies where the dataset does.
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

from mrlib.augment.synthesize import most_alike
from mrlib.data import MomentDataset, Sample
from mrlib.data.arrays import normalized_rows
from mrlib.data.bank import Bank
from mrlib.data.layouts import LAYOUTS
from mrlib.files import write_whole
from mrlib.metrics import read_jsonl
from mrlib.ops.draw import Draw
from mrlib.sim import open_sim

# ---- without the moments


def mask_moments(
    dataset: MomentDataset, mode: str = "noise", margin: tuple[int, int] = (2, 1), seed: int = 0
) -> MomentDataset:
    """The clips of every window are replaced; the others are the same to the last bit.  [TD-DETR, spurious]

    mode     "noise"  uniform between the least and the greatest number that the stream has in this video
             "zero"   zeros
             "mean"   the mean of the video's clips that are left, or of all where none is
             noise and mean are normalised as the stream is
    margin   clips that are replaced before the first and after the last of a window, which are as in
             `MomentDataset.clips`: together, in clips of 2 s, the authors' floor((s - 3) / 2) to floor((e + 3) / 2) - 1
    returns  the same samples, queries, lengths and labels, a video for each sample
    raises   ValueError for an unknown mode, a margin below 0, or samples without windows
    """
    if mode not in FILLS:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(FILLS)}")
    if min(margin) < 0:
        raise ValueError(f"margin is {margin}; clips before and after a window, 0 or more")
    masked, rows = _windows(dataset, *margin), dataset.target.index(dataset.video)
    draw, parts = Draw(seed, "mask_moments"), _parts(dataset)
    made, end = [], len(dataset.target.rows)
    for s, key in enumerate(_keys(dataset.samples)):
        there = rows[s] >= 0
        video, gone = dataset.target.gather(rows[s : s + 1, there])[0].cpu(), masked[s, there].cpu()
        fill = {
            name: FILLS[mode](video[:, columns], gone, partial(draw, name, key[None]))
            for name, columns in dataset.streams.items()
        }
        formed = [normalized_rows(x.numpy(), parts[name]) if parts[name] else x.numpy() for name, x in fill.items()]
        made.append(torch.cat([torch.from_numpy(x) for x in formed], 1))
        rows[s, masked[s]] = end + torch.arange(len(made[-1]), device=rows.device)
        end += len(made[-1])
    about = {"probe": "mask_moments", "mode": mode, "margin": list(margin), "seed": seed}
    return _shown(dataset, rows, torch.cat(made), about)


# what stands where clips (n, D) of a stream are gone (n,): a row for each of them, or one for all
def _noise(clips: Tensor, gone: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    low, high = clips.min(), clips.max()
    return low + (high - low) * draw((int(gone.sum()), clips.shape[1]))[0].float()


def _zero(clips: Tensor, gone: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    return clips.new_zeros(1, clips.shape[1])


def _mean(clips: Tensor, gone: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    return clips[~gone if not gone.all() else gone].mean(0, keepdim=True)


FILLS = {"noise": _noise, "zero": _zero, "mean": _mean}


def _windows(dataset: MomentDataset, before: int = 0, after: int = 0) -> Tensor:
    """The clips of each sample's windows and so many before and after each, bool (S, T)."""
    without = [s.qid for s in dataset.samples if not s.relevant_windows]
    if without:
        raise ValueError(
            f"{dataset.name} {dataset.split}: {len(without)} of {len(dataset)} samples have no windows, {without[:5]}; "
            "a probe replaces clips inside or outside of them"
        )
    clips, there, mined = dataset.clips(torch.arange(len(dataset), device=dataset.video.device))
    first, count = clips.unbind(-1)
    n = dataset.target.lengths[dataset.video][:, None]
    t = torch.arange(int(n.max()), device=n.device)
    near = (t >= (first - before)[..., None]) & (t < (first + count + after)[..., None])
    return (near & (there & ~mined)[..., None]).any(1) & (t < n)


def _parts(dataset: MomentDataset) -> dict[str, int]:
    """Of every stream, into how many vectors a row was cut and each normalised; 0: it is as it was extracted."""
    normalized = dataset.settings.get("normalize", dataset.streams)  # the simulator's always are
    layout = dataset.settings.get("layout")
    parts = {name: LAYOUTS[layout].video[name].parts if layout else 1 for name in dataset.streams}
    return {name: n if name in normalized else 0 for name, n in parts.items()}


def take_out(dataset: MomentDataset) -> MomentDataset:
    """The simulator's videos once more, where the event asked for does not happen; its place is there.

    No clip is out of the ordinary, as masked ones are. Where a video blurs from one event into the next, the clips
    beside a window change with it.
    raises  ValueError for videos that are not simulated
    """
    if dataset.name != "sim":
        raise ValueError(f"only simulated videos can be made without an event, those of {dataset.name} be masked")
    made = open_sim(
        dataset.split,
        n=len(dataset.target),
        streams=tuple(dataset.streams),
        **(dataset.settings | {"absent": True}),
    )
    return replace(dataset, target=made.target.to(dataset.video.device), settings=made.settings)


# ---- among the clips of another video


@dataclass(frozen=True)
class Context:
    """What a sample's video shows: it can be shown again without the features by which it was chosen."""

    qid: int | str
    vid: str
    partner: str  # the vid of the other video
    clips: list[int]  # for each clip of the video, the clip of the partner that stands there; -1: its own


def dynamic_context(dataset: MomentDataset, share: float = 1.0, seed: int = 0) -> MomentDataset:
    """The clips outside of all windows are those of the most similar other video.  [TD-DETR, context]

    share, raises   of `contexts`
    returns  the same samples, queries, lengths and labels, a video for each sample
    """
    return show(dataset, contexts(dataset, share, seed))


def contexts(dataset: MomentDataset, share: float = 1.0, seed: int = 0) -> list[Context]:
    """Which clips of which other video stand outside of the windows of every sample.  [TD-DETR, context]

    The other video is the one of this split whose clips, all with all, have the greatest mean cosine with those of the
    sample's; [TD-DETR Eq. 1] leaves out pairs of one clip number, a pair in seventy-five.

    share   chance that a clip is replaced, each by its own coin; clip t of n by clip floor((t + 1/2) m / n) of the m
    raises  ValueError for a share that is none, samples without windows, or a dataset of a single video
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; from 0 to 1")
    windows, items = _windows(dataset), _items(dataset)
    if len(items) < 2:
        raise ValueError(f"{dataset.name} {dataset.split} has one video only; there is no other context for it")
    videos = torch.tensor(list(items.values()), device=dataset.video.device)
    partners = dict(zip(items, most_alike(videos, dataset.target).tolist(), strict=True))
    vids = {item: vid for vid, item in items.items()}
    lengths, video = dataset.target.lengths.tolist(), dataset.video.tolist()
    coin = Draw(seed, "dynamic_context")("replace", _keys(dataset.samples), windows.shape[1])
    replaced = (coin < share) & ~windows.cpu()
    chosen = []
    for s, sample in enumerate(dataset.samples):
        other = partners[sample.vid]
        n, m = lengths[video[s]], lengths[other]
        clips = torch.where(replaced[s, :n], (2 * torch.arange(n) + 1) * m // (2 * n), -1)
        chosen.append(Context(sample.qid, sample.vid, vids[other], clips.tolist()))
    return chosen


def show(dataset: MomentDataset, chosen: Sequence[Context]) -> MomentDataset:
    """The dataset in these contexts, of which there may be more than samples, in any order.

    raises  ValueError where they are of other samples or videos
    """
    found, items = {(c.qid, c.vid): c for c in chosen}, _items(dataset)
    rows, lengths = dataset.target.index(dataset.video), dataset.target.lengths.tolist()
    for s, sample in enumerate(dataset.samples):
        context, whose = found.get((sample.qid, sample.vid)), f"qid {sample.qid!r} on {sample.vid!r}"
        if context is None:
            raise ValueError(f"{whose} has no context; write one for each sample of {dataset.name} {dataset.split}")
        if context.partner not in items:
            raise ValueError(f"{whose}: no video {context.partner!r} in {dataset.name} {dataset.split}")
        n, m = lengths[int(dataset.video[s])], lengths[items[context.partner]]
        if len(context.clips) != n or not all(-1 <= c < m for c in context.clips):
            raise ValueError(f"{whose}: the context is for another length of one of the videos, which have {n} and {m}")
        clips = torch.tensor(context.clips, device=rows.device)
        other = dataset.target.at(rows.new_tensor([items[context.partner]]), clips.clamp(min=0)[None])[0]
        rows[s, :n] = torch.where(clips < 0, rows[s, :n], other)
    lines = [asdict(found[s.qid, s.vid]) for s in dataset.samples]
    about = {"probe": "dynamic_context", "digest": blake2b(json.dumps(lines).encode(), digest_size=8).hexdigest()}
    return _shown(dataset, rows, dataset.target.rows[:0], about)


def write(file: Path, chosen: Sequence[Context]) -> None:
    """A line of JSON for each sample."""
    write_whole(file, "".join(json.dumps(asdict(context)) + "\n" for context in chosen))


def read(file: Path) -> list[Context]:
    """What `write` wrote; ValueError for a line that is no context, naming it."""
    try:
        return [Context(**line) for line in read_jsonl(file)]
    except TypeError as error:
        raise ValueError(f"{file}: a line has not the fields qid, vid, partner and clips ({error})") from None


# ---- both


def _items(dataset: MomentDataset) -> dict[str, int]:
    """The item of `target` of each video, in the order of the file."""
    items: dict[str, int] = {}
    for sample, item in zip(dataset.samples, dataset.video.tolist(), strict=True):
        items.setdefault(sample.vid, item)
    return items


def _keys(samples: Sequence[Sample]) -> Tensor:
    """A number for each sample by which to draw, int64 (S,), on the CPU."""
    digests = [blake2b(f"{s.qid}/{s.vid}".encode(), digest_size=8).digest() for s in samples]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _shown(dataset: MomentDataset, rows: Tensor, made: Tensor, about: dict[str, Any]) -> MomentDataset:
    """Every sample with a video of its own; rows that several share are there once, those that none has are not.

    rows   int64 (S, T)  rows of the bank, or after them of `made`; -1 is padding, at the end
    made   (M, D)
    about  goes to the settings
    """
    bank, there = dataset.target, rows >= 0
    used, places = rows[there].unique(return_inverse=True)
    old, new = used[used < len(bank.rows)], used[used >= len(bank.rows)] - len(bank.rows)
    every = torch.cat([bank.rows[old], made.to(bank.rows)[new]])
    ends = there.sum(1).cumsum(0)
    return replace(
        dataset,
        target=Bank(every, torch.cat([ends.new_zeros(1), ends]), places),
        video=torch.arange(len(dataset), device=dataset.video.device),
        settings=dataset.settings | {"probes": [*dataset.settings.get("probes", []), about]},
    )


PROBES: dict[str, Callable[[MomentDataset], MomentDataset]] = {
    **{f"masked_{mode}": partial(mask_moments, mode=mode) for mode in FILLS},
    "dynamic_context": dynamic_context,
    "dynamic_context_30": partial(dynamic_context, share=0.3),
    "absent": take_out,
}
