"""ActivityNet-VRL as pairs: a moment of one video is searched in a crop of another that shows the same activity.

    python -m mrlib.data.pairs activitynet_vrl ROOT [--seed 0] [--per-item 10] [--exclude-same-video] [--force]

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439), on the items of
         Feng et al., "Video Re-localization", ECCV 2018 (arXiv 1808.01575), `fengyang0317/video_reloc`, folder data/
Here     an item is a crop of a video with one moment of its class. Its features have its name, both as a target (the
         crop) and as a query (the moment). An item is a query for every other item of its class whose crop is at
         least as long as the moment
Departs  neither paper's pairs are public: for val and test one target per query is drawn here, with our seed, so our
         scores are not the same measurement as the published ones; training has all pairs

A unit is 16 frames, the C3D feature that the items count in: unit u begins at 16 u duration / n_frames seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from mrlib.arguments import printing
from mrlib.data import Sample
from mrlib.data.annotations import shared_classes
from mrlib.data.arrays import read_array
from mrlib.data.documents import read_document
from mrlib.data.lenient import Mode, refusals, summary
from mrlib.data.lines import EARLY, EMPTY, LATE, Defect, Line, is_plain_name, is_whole, short
from mrlib.data.problems import DataError, Problem
from mrlib.files import write_whole
from mrlib.ops.draw import Draw

SPLITS = ("train", "val", "test")
CLASSES = {"train": slice(0, 160), "val": slice(160, 180), "test": slice(180, 200)}  # of the permutation in perm.npy
FRAMES = 16  # in a unit
FPS = 30  # frames per second where the duration in seconds is not known
ACTIVITYNET = "activity_net.v1-3.min.json"


@dataclass(frozen=True)
class Item:
    """A crop of a video with one moment of its class."""

    index: int  # position in the split's file
    video: str  # the video that it is cropped from
    label: int | str
    start: int  # of the crop in the video, units
    units: int  # length of the crop
    moment: tuple[int, int]  # start and end in the crop, units
    unit_s: float  # seconds per unit

    @property
    def name(self) -> str:
        """The name of its features: `{vid}` of the crop, `{qid}` of the moment."""
        return f"{self.video}_{self.label}_{self.index}"

    @property
    def moment_units(self) -> int:
        """Length of the moment, units."""
        return self.moment[1] - self.moment[0]

    @property
    def crop_s(self) -> tuple[float, float]:
        """Start and end of the crop in the video, seconds; the features of a target are those of the crop."""
        return self.start * self.unit_s, (self.start + self.units) * self.unit_s

    @property
    def moment_s(self) -> tuple[float, float]:
        """Start and end of the moment in the video, seconds; the features of a query are those of the moment."""
        return tuple((self.start + unit) * self.unit_s for unit in self.moment)


# ---- the published files ----


def find_items(root: Path) -> dict[str, Path]:
    """The published file of every split, under `root` or its folder data/."""
    files = [(split, folder / f"{split}.json") for split in SPLITS for folder in (root / "data", root)]
    return {split: file for split, file in files if file.is_file()}


def read_items(file: Path, *, clamp: bool = False) -> tuple[list[Item], list[Problem]]:
    """The items of a split that have no fatal problem, and all problems of its file and of those beside it.

    clamp  a crop that ends after its video, or a moment that is not inside its crop, is cut; a moment of no length
           becomes the unit that it begins
    """
    try:
        entries = read_document(file, list)
        lengths = _lengths(file.with_name("length.json"))
        durations_s = _durations(file)
        expected = _classes(file)
    except DataError as error:
        return [], [error.problem]
    if not entries:
        return [], [Problem(str(file), None, "empty", "no item in this file; copy or download it again")]
    items, problems, guessed = [], [], set()
    for index, entry in enumerate(entries):
        entry, changes = _clamped(entry, lengths) if clamp else (entry, [])
        defects = [Defect(*each) for each in _defects(entry, lengths)]
        if not defects and expected is not None and entry["label"] not in expected:
            message = f"{entry['label']!r} is a class of another split in perm.npy; correct one of the two"
            defects = [Defect("label", message)]
        problems += [defect.at(str(file), index, "item") for defect in defects or changes]
        if defects:
            continue
        video, (start, end) = entry["id"], entry["location"]
        frames = lengths[video]["n_frames"]
        if video not in durations_s:
            guessed.add(video)
        unit_s = FRAMES * durations_s.get(video, frames / FPS) / frames
        items.append(Item(index, video, entry["label"], start, end - start, tuple(entry["groundtruth"]), unit_s))
    if guessed:
        message = f"{ACTIVITYNET} has none for {len(guessed)} videos; they are taken as n_frames / {FPS} seconds"
        problems.append(Problem(str(file), None, "duration", message, fatal=False))
    return items, problems


def _lengths(file: Path) -> dict[str, dict[str, int]]:
    """n_feat and n_frames of every video: {id: {"n_feat", "n_frames"}}, {id: [n_feat, n_frames]} or a list of dicts."""
    content = read_document(file, dict, list)
    if isinstance(content, list):
        content = {each["id"]: each for each in content if isinstance(each, dict) and isinstance(each.get("id"), str)}
    names = ("n_feat", "n_frames")
    return {
        video: dict(zip(names, each, strict=False)) if isinstance(each, list) else each
        for video, each in content.items()
    }


def _activitynet(items: Path) -> Path | None:
    """The file of ActivityNet's annotations, beside the items or in the parent of data/, or None."""
    folders = (items.parent, items.parent.parent) if items.parent.name == "data" else (items.parent,)
    return next((folder / ACTIVITYNET for folder in folders if (folder / ACTIVITYNET).is_file()), None)


def _durations(items: Path) -> dict[str, float]:
    """The duration in seconds of every video in ActivityNet's annotations; empty without that file."""
    if (file := _activitynet(items)) is None:
        return {}
    database = read_document(file, dict).get("database")
    if not isinstance(database, dict):
        raise DataError(Problem(str(file), None, "database", "is missing; copy or download the file again"))
    durations_s = {video: each.get("duration") for video, each in database.items() if isinstance(each, dict)}
    return {video: x for video, x in durations_s.items() if type(x) in (int, float) and 0 < x < 1e9}


def _classes(items: Path) -> set[int] | None:
    """The labels of a split: its part of perm.npy, a permutation of the class names in alphabetical order.

    None without perm.npy or without ActivityNet's annotations, which have the names.
    """
    perm, names = items.with_name("perm.npy"), _activitynet(items)
    if not perm.is_file() or names is None or items.stem not in CLASSES:
        return None
    try:
        nodes = read_document(names, dict)["taxonomy"]
        parents = {node["parentId"] for node in nodes}
        leaves = sorted((node["nodeName"], node["nodeId"]) for node in nodes if node["nodeId"] not in parents)
    except (KeyError, TypeError) as error:
        message = f"has no list of nodes with nodeId, nodeName, parentId ({error!r}); copy or download the file again"
        raise DataError(Problem(str(names), None, "taxonomy", message)) from None
    order = read_array(perm).ravel()
    if order.dtype.kind not in "iu" or sorted(order.tolist()) != list(range(len(leaves))):
        message = f"no permutation of the {len(leaves)} classes of {names.name}; copy or download it again"
        raise DataError(Problem(str(perm), None, "classes", message))
    return {leaves[i][1] for i in order[CLASSES[items.stem]].tolist()}


def _defects(entry: Any, lengths: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, message) of every defect of an entry."""
    if not isinstance(entry, dict):
        return [("json", f"a {type(entry).__name__} where an object is expected")]
    video, label = entry.get("id"), entry.get("label")
    defects = []
    if not isinstance(video, str) or not is_plain_name(video):
        defects.append(("id", f"{short(video)} is not a plain name: no / or \\, no leading dot, not empty"))
    elif not _is_length(lengths.get(video)):
        content = f"{short(lengths[video])}, not n_feat and n_frames above 0" if video in lengths else "nothing"
        defects.append(("id", f"length.json has {content} for {short(video)}; add it, or take the item out"))
    if type(label) not in (int, str) or not is_plain_name(str(label)):
        defects.append(("label", f"is {short(label)}, not the number or the plain name of a class"))
    location, moment = entry.get("location"), entry.get("groundtruth")
    if not _is_interval(location):
        defects.append(("location", f"is {short(location)}, not [start, end] in whole units, 0 <= start < end"))
    elif not defects and location[1] > lengths[video]["n_feat"]:
        end = f"the video, {lengths[video]['n_feat']} units in length.json"
        defects.append(("location", f"{location} ends after {end}; correct one of the two"))
    if not _is_interval(moment):
        defects.append(("groundtruth", f"is {short(moment)}, not [start, end] in whole units, 0 <= start < end"))
    elif _is_interval(location) and moment[1] > location[1] - location[0]:
        units = location[1] - location[0]
        defects.append(("groundtruth", f"{moment} ends after its crop, {units} units; it counts from the crop"))
    return defects


def _clamped(entry: Any, lengths: dict[str, Any]) -> tuple[Any, list[Defect]]:
    """An entry with its crop cut to its video and its moment to its crop, and what was changed."""
    length = lengths.get(entry.get("id")) if isinstance(entry, dict) and isinstance(entry.get("id"), str) else None
    if not _is_length(length):
        return entry, []
    changes = []
    for field in ("location", "groundtruth"):
        crop = entry.get("location")
        units = length["n_feat"] if field == "location" else crop[1] - crop[0] if _is_interval(crop) else 0
        given = entry.get(field)
        if (
            not isinstance(given, list)
            or len(given) != 2
            or not all(map(is_whole, given))
            or _is_interval(given, units)
        ):
            continue
        start, end = given
        inside = [max(start, 0), min(end, units)]
        if field == "groundtruth" and start == end and 0 <= start <= units:
            inside = [min(start, units - 1), min(start, units - 1) + 1]
        if start <= end and _is_interval(inside, units):
            place = EMPTY if start == end else LATE if end > units else EARLY
            entry = entry | {field: inside}
            changes.append(Defect(field, f"{given} is read as {inside}", False, place))
    return entry, changes


def _is_length(x: Any) -> bool:
    counts = [x.get(name) for name in ("n_feat", "n_frames")] if isinstance(x, dict) else [None]
    return all(type(n) is int and 0 < n < 1e9 for n in counts)


def _is_interval(x: Any, units: int | None = None) -> bool:
    """Whether x is [start, end] in whole units, inside the first `units` if their number is given."""
    whole = isinstance(x, list) and len(x) == 2 and all(type(u) is int for u in x) and 0 <= x[0] < x[1]
    return whole and (units is None or x[1] <= units)


# ---- pairs ----


def partners(items: list[Item], *, exclude_same_video: bool = False) -> list[list[Item]]:
    """For every item the targets in which its moment can be searched, in the order of the file.

    A target is another item of the same class, at least as long as the moment; with `exclude_same_video`, it is also
    from another video.
    """
    of_class = defaultdict(list)
    for item in items:
        of_class[item.label].append(item)
    return [
        [
            b
            for b in of_class[a.label]
            if b is not a and a.moment_units <= b.units and not (exclude_same_video and a.video == b.video)
        ]
        for a in items
    ]


def make_pairs(
    items: list[Item], split: str, *, seed: int = 0, per_item: int | None = None, exclude_same_video: bool = False
) -> list[Sample]:
    """The pairs of all items as queries, in the order of the file; items without a target are left out.

    split     its name is part of the key that targets are drawn by
    seed      of the drawn targets
    per_item  targets per query, drawn without repetition; None: all of them in "train", one elsewhere
    returns   samples whose duration and window are seconds of the target's crop; `extra` has "label" and "query_vid",
              the video of the query
    """
    if per_item is None and split != "train":
        per_item = 1
    if per_item is not None and per_item < 1:
        raise ValueError(f"per_item is {per_item}; at least one target per query, or None")
    draw, samples = Draw(seed, "activitynet_vrl"), []
    windows_s = {b.name: [[unit * b.unit_s for unit in b.moment]] for b in items}
    for a, targets in zip(items, partners(items, exclude_same_video=exclude_same_video), strict=True):
        if per_item is not None and per_item < len(targets):
            first = draw(f"targets/{split}", torch.tensor([a.index]), len(targets))[0].argsort()[:per_item]
            targets = [targets[i] for i in sorted(first.tolist())]
        extra = {"label": a.label, "query_vid": a.video}
        samples += [Sample(a.name, "", b.units * b.unit_s, b.name, windows_s[b.name], extra=extra) for b in targets]
    return samples


def read_pairs(
    file: Path,
    *,
    seed: int = 0,
    per_item: int | None = None,
    exclude_same_video: bool = False,
    clamp: bool = False,
) -> Iterator[Line]:
    """The pairs of a published file, as `mrlib.data.annotations.read_annotations` yields lines; numbers are of items.

    seed, per_item, exclude_same_video  as in `make_pairs`
    clamp  as in `read_items`
    """
    items, problems = read_items(file, clamp=clamp)
    for problem in problems:
        yield problem.line, None, [problem]
    labels = {f: _labels(f) for split in SPLITS if (f := file.with_stem(split)).is_file()}
    for problem in shared_classes("label", labels):
        if problem.file == str(file):
            yield None, None, [problem]
    samples = make_pairs(items, file.stem, seed=seed, per_item=per_item, exclude_same_video=exclude_same_video)
    queries = {sample.qid for sample in samples}
    if unpaired := [item.index for item in items if item.name not in queries]:
        examples = ", ".join(map(str, unpaired[:5])) + (", ..." if len(unpaired) > 5 else "")
        message = f"no target of their class is as long as the moments of {len(unpaired)} items; no queries: {examples}"
        yield None, None, [Problem(str(file), None, "groundtruth", message, fatal=not samples)]
    of_query = {item.name: item.index for item in items}
    for sample in samples:
        yield of_query[sample.qid], sample, []


def _labels(file: Path) -> set[int | str]:
    """The classes of a split's items; its problems are reported when that split is read."""
    try:
        entries = read_document(file, list)
    except DataError:
        return set()
    labels = (entry.get("label") for entry in entries if isinstance(entry, dict))
    return {label for label in labels if isinstance(label, int | str)}


# ---- command line ----


def pair_file(root: Path, split: str) -> Path:
    """The file to which the pairs of a split are written, and that `mrlib.open_dataset` reads first."""
    return root / f"activitynet_vrl_{split}.jsonl"


@printing()
def main(arguments: list[str] | None = None) -> int:
    """Write the pair files of the splits that are there and print counts; with any problem, write none and return 1."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.data.pairs", description="Make the pairs of a dataset.")
    parser.add_argument("name", choices=["activitynet_vrl"])
    parser.add_argument("root", type=Path, help="folder of the published files, {train,val,test}.json and length.json")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn targets; default 0")
    parser.add_argument("--per-item", type=int, help="training targets per query, drawn; default all")
    parser.add_argument("--exclude-same-video", action="store_true", help="query and target are of different videos")
    parser.add_argument("--bad", choices=get_args(Mode), default="error", help="leave bad items out, or cut them")
    parser.add_argument("--force", action="store_true", help="replace pair files that have other pairs")
    options = parser.parse_args(arguments)
    if options.per_item is not None and options.per_item < 1:
        parser.error(f"--per-item is {options.per_item}; at least 1")
    published = find_items(options.root)
    if not published:
        parser.error(f"no train.json, val.json or test.json in {options.root} or its folder data/")
    files, counts, fatal = {}, [], 0
    for split, source in published.items():
        drawn = {"seed": options.seed, "per_item": options.per_item if split == "train" else None}
        drawn |= {"exclude_same_video": options.exclude_same_video, "clamp": options.bad == "clamp"}
        lines = list(read_pairs(source, **drawn))
        refused = refusals(source, lines, options.bad)
        notes = [f"{p} (not fatal)" for _, _, problems in lines for p in problems if not p.fatal and not p.place]
        changes = [f"{source}: {text}" for text in [summary(lines, options.bad, 0)] if text]
        print(*refused, *notes, *changes, sep="\n", end="\n" * bool(refused or notes or changes), file=sys.stderr)
        fatal += len(refused)
        samples = [sample for _, sample, _ in lines if sample is not None]
        file = pair_file(options.root, split)
        files[file] = "".join(json.dumps(sample.as_line()) + "\n" for sample in samples).encode()
        targets, queries = ({getattr(sample, field) for sample in samples} for field in ("vid", "qid"))
        counts.append(f"{split:6}{len(samples):>8} pairs of {len(queries)} queries and {len(targets)} targets: {file}")
    if fatal:
        print(f"{fatal} problems, nothing written", file=sys.stderr)
        return 1
    different = [file for file, text in files.items() if file.exists() and file.read_bytes() != text]
    if different and not options.force:
        names = ", ".join(map(str, different))
        print(f"{names}: exists with other pairs; --force replaces it, nothing written", file=sys.stderr)
        return 1
    for file, text in files.items():
        write_whole(file, text)
    print("\n".join(counts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
