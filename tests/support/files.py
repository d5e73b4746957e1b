"""Small datasets written to a folder, for tests that read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def line(qid: int | str = 1, **changes) -> dict:
    """A valid annotation: ten clips of 2 s, the third and fourth relevant."""
    fields = {
        "qid": qid,
        "query": "A dog runs.",
        "duration": 20,
        "vid": "video_a",
        "relevant_windows": [[4, 8]],
        "relevant_clip_ids": [2, 3],
        "saliency_scores": [[4, 3, 2], [1, 0, 4]],
    }
    return fields | changes


def windows_only(qid: int | str = 1, **changes) -> dict:
    """A valid annotation without saliency."""
    return {k: v for k, v in line(qid, **changes).items() if k not in ("relevant_clip_ids", "saliency_scores")}


def labelled(qid: int | str = 1, clips: int = 10, annotators: int = 20, **changes) -> dict:
    """A line of TVSum as released: for every clip a label of each annotator; its duration counts clips."""
    labels = np.random.default_rng(0).integers(1, 6, (clips, annotators)).astype(float).tolist()
    released = {"qid": qid, "query": "A dog runs.", "duration": clips, "vid": "video_a", "relevant_clip_ids": None}
    return released | {"relevant_windows": None, "label": labels, "domain": "BK"} | changes


def write_lines(path: Path, lines: list[dict | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save_npz(path: Path, **arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def save_npy(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, **options)


def save_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


def tvsum(root: Path, lines: list[dict], split: str = "val", rows: int | None = None) -> Path:
    """TVSum as released: I3D features of widths 4 and 3 that tell the mean label, and three tokens of width 5.

    rows  number of features of each video; None: as many as labels
    """
    write_lines(root / f"tvsum_{split}_release.jsonl", lines)
    for i, each in enumerate(lines):
        label = np.array(each["label"], np.float32)
        n = rows or len(label)
        rgb = 0.3 * random(2 * i, n, 4)
        rgb[: len(label), 0] += label.mean(1)[:n] - 3
        save_npy(root / "i3d" / f"{each['vid']}_rgb.npy", rgb)
        save_npy(root / "i3d" / f"{each['vid']}_opt.npy", 0.3 * random(2 * i + 1, n, 3))
        save_npz(root / "clip_text" / f"{each['qid']}.npz", token=random(100 + i, 3, 5))
    return root


def moment_detr(root: Path, lines: list[dict] | None = None, split: str = "val", clips: int = 10) -> Path:
    """QVHighlights in Moment-DETR's layout: streams of widths 6 and 4, five tokens of 5, a sentence of 4."""
    lines = lines or [line(1), line(2, vid="video_b"), line(3)]
    write_lines(root / f"highlight_{split}_release.jsonl", lines)
    for i, each in enumerate(lines):
        vid, qid = each["vid"], each["qid"]
        save_npz(root / "slowfast_features" / f"{vid}.npz", features=random(2 * i, clips, 6))
        save_npz(root / "clip_features" / f"{vid}.npz", features=random(2 * i + 1, clips, 4))
        text = {"last_hidden_state": random(100 + i, 5, 5), "pooler_output": random(200 + i, 4)}
        save_npz(root / "clip_text_features" / f"qid{qid}.npz", **text)
    return root
