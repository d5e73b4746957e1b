"""ActivityNet-VRL as pairs: a moment of one video, searched in a crop of another that shows the same activity.

    python -m mrlib.data.pairs activitynet_vrl ROOT [--seed 0] [--per-item 10] [--exclude-same-video] [--force]

Paper    Kumar et al., "Aligning Moments in Time using Video Queries", ICCV 2025 (arXiv 2508.15439), on the items of
         Feng et al., "Video Re-localization", ECCV 2018 (arXiv 1808.01575), `fengyang0317/video_reloc`, folder data/
Here     an item is a crop of a video with one moment of its class; its name is that of its features, both as a target,
         the crop, and as a query, the moment. Any item is a query for every other of its class whose crop is as long
         as the moment or longer
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
from typing import Any

import torch

from mrlib.data import Sample
from mrlib.data.annotations import Line, plain_name, shared_classes
from mrlib.data.arrays import read_array
from mrlib.data.problems import DataError, MissingFile, Problem
from mrlib.files import write_whole
from mrlib.ops.draw import Draw

SPLITS = ("train", "val", "test")
CLASSES = {"train": slice(0, 160), "val": slice(160, 180), "test": slice(180, 200)}  # of the permutation in perm.npy
FRAMES = 16  # in a unit
FPS = 30  # where the duration in seconds is not known
ACTIVITYNET = "activity_net.v1-3.min.json"


@dataclass(frozen=True)
class Item:
    """A crop of a video that holds one moment of its class."""

    index: int  # position in the split's file
    video: str  # that it is a crop of
    label: int | str
    start: int  # of the crop in the video, units
    units: int  # length of the crop
    moment: tuple[int, int]  # start and end in the crop, units
    unit_s: float  # seconds per unit

    @property
    def name(self) -> str:
        """Of its features: `{vid}` of the crop, `{qid}` of the moment."""
        return f"{self.video}_{self.label}_{self.index}"

    @property
    def moment_units(self) -> int:
        return self.moment[1] - self.moment[0]

    @property
    def crop_s(self) -> tuple[float, float]:
        """Start and end of the crop in the video: where the features of a target are taken from."""
        return self.start * self.unit_s, (self.start + self.units) * self.unit_s

    @property
    def moment_s(self) -> tuple[float, float]:
        """Start and end of the moment in the video: where the features of a query are taken from."""
        return tuple((self.start + unit) * self.unit_s for unit in self.moment)


# ---- the published files ----


def find_items(root: Path) -> dict[str, Path]:
    """The published file of every split, under `root` or its folder data/."""
    places = [(split, folder / f"{split}.json") for split in SPLITS for folder in (root / "data", root)]
    return {split: file for split, file in places if file.is_file()}


def read_items(file: Path) -> tuple[list[Item], list[Problem]]:
    """The sound items of a split, and all that is wrong with its file and with those beside it."""
    try:
        entries = _json(file, list)
        lengths = _lengths(file.with_name("length.json"))
        durations_s = _durations(file)
        expected = _classes(file)
    except DataError as error:
        return [], [error.problem]
    if not entries:
        return [], [Problem(str(file), None, "empty", "no item in this file; copy or download it again")]
    items, problems, guessed = [], [], set()
    for index, entry in enumerate(entries):
        wrong = _wrong(entry, lengths)
        if not wrong and expected is not None and entry["label"] not in expected:
            wrong = [("label", f"{entry['label']!r} is a class of another split in perm.npy; correct one of the two")]
        problems += [Problem(str(file), index, *each, unit="item") for each in wrong]
        if wrong:
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


def _json(file: Path, *kinds: type) -> Any:
    """The content of a JSON file, of one of these types."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MissingFile(Problem(str(file), None, "missing file", "no such file; copy it beside the others")) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(Problem(str(file), None, "json", f"{error}; copy or download it again")) from None
    if not isinstance(content, kinds):
        message = f"a {type(content).__name__} where a {' or '.join(k.__name__ for k in kinds)} is expected"
        raise DataError(Problem(str(file), None, "json", message))
    return content


def _lengths(file: Path) -> dict[str, dict[str, int]]:
    """n_feat and n_frames of every video: {id: {"n_feat", "n_frames"}}, {id: [n_feat, n_frames]} or a list of dicts."""
    content = _json(file, dict, list)
    if isinstance(content, list):
        content = {each["id"]: each for each in content if isinstance(each, dict) and isinstance(each.get("id"), str)}
    names = ("n_feat", "n_frames")
    return {
        video: dict(zip(names, each, strict=False)) if isinstance(each, list) else each
        for video, each in content.items()
    }


def _activitynet(items: Path) -> Path | None:
    """ActivityNet's own annotations, where they are: beside the items, or a folder up from data/."""
    folders = (items.parent, items.parent.parent) if items.parent.name == "data" else (items.parent,)
    return next((folder / ACTIVITYNET for folder in folders if (folder / ACTIVITYNET).is_file()), None)


def _durations(items: Path) -> dict[str, float]:
    """Seconds of every video that ActivityNet's own annotations have."""
    if (file := _activitynet(items)) is None:
        return {}
    database = _json(file, dict).get("database")
    if not isinstance(database, dict):
        raise DataError(Problem(str(file), None, "database", "is missing; copy or download the file again"))
    found = {video: each.get("duration") for video, each in database.items() if isinstance(each, dict)}
    return {video: x for video, x in found.items() if type(x) in (int, float) and 0 < x < 1e9}


def _classes(items: Path) -> set[int] | None:
    """The labels of a split: its part of the permutation of the class names in alphabetical order.

    None where perm.npy or the names, which ActivityNet's own annotations have, are not there.
    """
    perm, names = items.with_name("perm.npy"), _activitynet(items)
    if not perm.is_file() or names is None or items.stem not in CLASSES:
        return None
    try:
        nodes = _json(names, dict)["taxonomy"]
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


def _wrong(entry: Any, lengths: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, message) of what is wrong with an entry."""
    if not isinstance(entry, dict):
        return [("json", f"a {type(entry).__name__} where an object is expected")]
    video, label = entry.get("id"), entry.get("label")
    found = []
    if not isinstance(video, str) or not plain_name(video):
        found.append(("id", f"{video!r} is not a plain name: no / or \\, no leading dot, not empty"))
    elif not _is_length(lengths.get(video)):
        has = f"{lengths[video]!r}, not n_feat and n_frames above 0" if video in lengths else "nothing"
        found.append(("id", f"length.json has {has} for {video!r}; add it, or take the item out"))
    if type(label) not in (int, str) or not plain_name(str(label)):
        found.append(("label", f"is {label!r}, not the number or the plain name of a class"))
    location, moment = entry.get("location"), entry.get("groundtruth")
    if not _is_interval(location):
        found.append(("location", f"is {location!r}, not [start, end] in whole units, 0 <= start < end"))
    elif not found and location[1] > lengths[video]["n_feat"]:
        end = f"the video, {lengths[video]['n_feat']} units in length.json"
        found.append(("location", f"{location} ends after {end}; correct one of the two"))
    if not _is_interval(moment):
        found.append(("groundtruth", f"is {moment!r}, not [start, end] in whole units, 0 <= start < end"))
    elif _is_interval(location) and moment[1] > location[1] - location[0]:
        units = location[1] - location[0]
        found.append(("groundtruth", f"{moment} ends after its crop, {units} units; it counts from the crop"))
    return found


def _is_length(x: Any) -> bool:
    return isinstance(x, dict) and all(type(x.get(name)) is int and x[name] > 0 for name in ("n_feat", "n_frames"))


def _is_interval(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(type(u) is int for u in x) and 0 <= x[0] < x[1]


# ---- pairs ----


def partners(items: list[Item], *, exclude_same_video: bool = False) -> list[list[Item]]:
    """For every item the targets that its moment can be searched in, in the order of the file.

    Another item of the same class, as long as the moment or longer; with `exclude_same_video` of another video.
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
    """Every item as a query, in the order of the file; one that has no partner is left out.

    split     its name is part of the dice
    seed      of the targets drawn
    per_item  targets per query, drawn without repetition; None: all of them in "train", one elsewhere
    returns   samples: duration and window in seconds of the target's crop; `extra` has "label" and "query_vid", the
              video that the query is taken from
    """
    if per_item is None and split != "train":
        per_item = 1
    if per_item is not None and per_item < 1:
        raise ValueError(f"per_item is {per_item}; at least one target per query, or None")
    draw, samples = Draw(seed, "activitynet_vrl"), []
    windows = {b.name: [[unit * b.unit_s for unit in b.moment]] for b in items}
    for a, targets in zip(items, partners(items, exclude_same_video=exclude_same_video), strict=True):
        if per_item is not None and per_item < len(targets):
            first = draw(f"targets/{split}", torch.tensor([a.index]), len(targets))[0].argsort()[:per_item]
            targets = [targets[i] for i in sorted(first.tolist())]
        extra = {"label": a.label, "query_vid": a.video}
        samples += [Sample(a.name, "", b.units * b.unit_s, b.name, windows[b.name], extra=extra) for b in targets]
    return samples


def read_pairs(
    file: Path, *, seed: int = 0, per_item: int | None = None, exclude_same_video: bool = False
) -> Iterator[Line]:
    """The pairs of a published file, as `mrlib.data.annotations.read_annotations` gives lines; a number is an item's.

    seed, per_item, exclude_same_video  as in `make_pairs`
    """
    items, problems = read_items(file)
    for problem in problems:
        yield problem.line, None, [problem]
    labels = {f: _labels(f) for split in SPLITS if (f := file.with_stem(split)).is_file()}
    for problem in shared_classes("label", labels):
        if problem.file == str(file):
            yield None, None, [problem]
    samples = make_pairs(items, file.stem, seed=seed, per_item=per_item, exclude_same_video=exclude_same_video)
    searching = {sample.qid for sample in samples}
    if alone := [item.index for item in items if item.name not in searching]:
        some = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
        message = f"no target of their class is as long as the moments of {len(alone)} items; no queries: {some}"
        yield None, None, [Problem(str(file), None, "groundtruth", message, fatal=not samples)]
    of_query = {item.name: item.index for item in items}
    for sample in samples:
        yield of_query[sample.qid], sample, []


def _labels(file: Path) -> set[int | str]:
    """The classes of a split's items; what is wrong there is said where that split is read."""
    try:
        entries = _json(file, list)
    except DataError:
        return set()
    labels = (entry.get("label") for entry in entries if isinstance(entry, dict))
    return {label for label in labels if isinstance(label, int | str)}


# ---- command line ----


def pair_file(root: Path, split: str) -> Path:
    """Where the pairs of a split are written, and where `mrlib.open_dataset` looks for them first."""
    return root / f"activitynet_vrl_{split}.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Write the pair files of the splits that are there and print counts; 1, and none, if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mrlib.data.pairs", description="Make the pairs of a dataset.")
    parser.add_argument("name", choices=["activitynet_vrl"])
    parser.add_argument("root", type=Path, help="folder of the published files, {train,val,test}.json and length.json")
    parser.add_argument("--seed", type=int, default=0, help="of the targets that are drawn; default 0")
    parser.add_argument("--per-item", type=int, help="training targets per query, drawn; default all")
    parser.add_argument("--exclude-same-video", action="store_true", help="query and target are of different videos")
    parser.add_argument("--force", action="store_true", help="replace pair files that say something else")
    given = parser.parse_args(arguments)
    if given.per_item is not None and given.per_item < 1:
        parser.error(f"--per-item is {given.per_item}; at least 1")
    published = find_items(given.root)
    if not published:
        parser.error(f"no train.json, val.json or test.json in {given.root} or its folder data/")
    files, counts, fatal = {}, [], 0
    for split, source in published.items():
        per_item = given.per_item if split == "train" else None
        options = {"seed": given.seed, "per_item": per_item, "exclude_same_video": given.exclude_same_video}
        samples = []
        for _, sample, problems in read_pairs(source, **options):
            for problem in problems:
                print(problem if problem.fatal else f"{problem} (not fatal)", file=sys.stderr)
                fatal += problem.fatal
            samples += [] if sample is None else [sample]
        file = pair_file(given.root, split)
        files[file] = "".join(json.dumps(sample.as_line()) + "\n" for sample in samples).encode()
        targets, queries = ({getattr(sample, field) for sample in samples} for field in ("vid", "qid"))
        counts.append(f"{split:6}{len(samples):>8} pairs of {len(queries)} queries and {len(targets)} targets: {file}")
    if fatal:
        print(f"{fatal} problems, nothing written", file=sys.stderr)
        return 1
    others = [file for file, text in files.items() if file.exists() and file.read_bytes() != text]
    if others and not given.force:
        names = ", ".join(map(str, others))
        print(f"{names}: there, with other pairs; --force replaces them, nothing written", file=sys.stderr)
        return 1
    for file, text in files.items():
        write_whole(file, text)
    print("\n".join(counts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
