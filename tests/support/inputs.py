"""Every kind of file that mrlib reads: how a small valid one is made, how it is read, and how it can be damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mrlib import checkpoint, grid, metrics, open_dataset, papers
from mrlib.augment import mining
from mrlib.data import MomentDataset, Widths
from mrlib.data.annotations import load_annotations
from mrlib.data.check import check
from mrlib.data.pairs import read_pairs
from mrlib.probes import Context
from mrlib.probes import read as read_contexts
from mrlib.probes import write as write_contexts
from mrlib.training import stopping
from tests.reference.official_univtg import saved
from tests.support import damage, damage_arrays, runs
from tests.support.damage import Damage
from tests.support.files import (
    labelled,
    line,
    moment_detr,
    random,
    save_hdf5,
    save_npy,
    save_npz,
    tvsum,
    windows_only,
    write_lines,
)
from tests.support.hashes import digest


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    file: str  # below the folder that `make` fills
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]  # given the folder; equal results compare equal
    damages: tuple[Damage, ...]
    protected: bool = False  # as in `tests.support.answers.answer`
    one_line: bool = False
    names: tuple[str, ...] = ()  # that an error may name instead of the file or its folder


# ---- datasets


def contents(dataset: MomentDataset) -> str:
    """A digest of what a dataset gives."""
    rows = dataset.batch(list(range(len(dataset))))
    return digest([rows.target, rows.target_mask, rows.query, rows.query_joint, rows.labels, rows.samples])


def opening(name: str, split: str = "val", **options: Any) -> Callable[[Path], str]:
    """Open a dataset and list its problems: a dataset in which `check` finds nothing fatal opens, and no other."""

    def read(folder: Path) -> str:
        problems = [str(problem) for problem in check(name, folder, **options) if problem.fatal]
        try:
            result = contents(open_dataset(name, folder, split, **options))
        except (ValueError, OSError) as error:
            assert problems, f"opening raises, and check finds nothing: {error}"
            raise
        assert not problems, f"opens, although check says {problems[0]}"
        return result

    return read


def cached(folder: Path) -> str:
    """Open a dataset whose features are in the cache."""
    return contents(open_dataset("qvhighlights", folder, "val"))


def with_cache(folder: Path) -> None:
    moment_detr(folder)
    cached(folder)
    for part in ("target", "query"):
        (file,) = (folder / ".mrlib_cache").glob(f"*-{part}-*.safetensors")
        (folder / f"{part}.name").write_text(file.name)


def packed(folder: Path) -> None:
    moment_detr(folder)
    file = folder / "highlight_val_release.jsonl"
    Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def labels(folder: Path) -> None:
    tvsum(folder, [labelled(f"q{i}", annotators=3, vid=f"v{i}") for i in range(3)])


def sports(folder: Path) -> None:
    columns = "query_id,reference_id,reference_segment_start,reference_segment_end,action_class,reference_duration"
    rows = [f"q__1_{i}.mp4,r__1_{i}.mp4,4.2,8,1,20" for i in range(3)]
    (folder / "val.csv").write_text("\n".join([columns, *rows]) + "\n")
    for i in range(3):
        save_npz(folder / f"target_vid_clip/r__1_{i}.npz", features=random(i, 10, 4))
        save_npz(folder / f"query_vid_clip/qidq__1_{i}.npz", last_hidden_state=random(100 + i, 2, 4))


def pairs(folder: Path) -> None:
    """ActivityNet-VRL as published."""
    items = [{"id": f"v{i}", "label": 160, "location": [10, 60], "groundtruth": [5, 20]} for i in range(3)]
    (folder / "val.json").write_text(json.dumps(items))
    (folder / "length.json").write_text(json.dumps({f"v{i}": {"n_feat": 300, "n_frames": 4800} for i in range(3)}))
    names = [{"nodeName": f"activity {i:03}", "nodeId": i, "parentId": 999} for i in range(200)]
    top = {"nodeName": "Root", "nodeId": 999, "parentId": None}
    database = {f"v{i}": {"duration": 120.0, "annotations": []} for i in range(3)}
    text = json.dumps({"database": database, "taxonomy": [top, *names]})
    (folder / "activity_net.v1-3.min.json").write_text(text)
    save_npy(folder / "perm.npy", np.arange(200))
    for _, sample, _ in read_pairs(folder / "val.json"):
        if sample is not None:
            save_npz(folder / f"target_vid_clip/{sample.vid}.npz", features=random(1, 10, 4))
            save_npz(folder / f"query_vid_clip/qid{sample.qid}.npz", last_hidden_state=random(2, 2, 4))


def four_layers(folder: Path) -> None:
    """AMR's features."""
    write_lines(folder / "highlight_val_release.jsonl", [line(1), line(2, vid="video_b")])
    for i, vid in enumerate(("video_a", "video_b")):
        save_npz(folder / f"slowfast_features/{vid}.npz", features=random(i, 10, 6))
        save_npy(folder / f"clip_b32_vid_k4/{vid}.npy", random(10 + i, 10, 4, 3))
        save_npy(folder / f"clip_b32_txt_k4/{i + 1}.npy", random(20 + i, 5, 4, 3))


def one_file(folder: Path) -> None:
    """UniVTG's HDF5 files."""
    write_lines(folder / "highlight_val_release.jsonl", [line(1), line(2, vid="video_b")])
    for name, width in (("vid_slowfast", 6), ("vid_clip", 4)):
        arrays = {vid: random(width + i, 10, width) for i, vid in enumerate(("video_a", "video_b"))}
        save_hdf5(folder / f"h5py/{name}.hdf5", arrays)
    save_hdf5(folder / "h5py/txt_clip.hdf5", {"1": random(30, 5, 4), "2": random(31, 5, 4)})


def words(folder: Path) -> None:
    """2D-TAN's VGG features, and word vectors."""
    lines = [windows_only(i, vid=f"v{i}") for i in range(3)]
    write_lines(folder / "activitynet_val_release.jsonl", lines)
    save_hdf5(folder / "vgg_rgb_features.hdf5", {f"v{i}": random(i, 40, 6) for i in range(3)})
    vectors = [f"{word} {' '.join(str(round(float(x), 4)) for x in random(i, 5))}" for i, word in enumerate(WORDS)]
    (folder / "glove.6B.5d.txt").write_text("\n".join(vectors) + "\n")


def tensors(folder: Path) -> None:
    """InternVideo2 and LLaMA features."""
    write_lines(folder / "highlight_val_release.jsonl", [line(1), line(2, vid="video_b")])
    for name in ("internvideo2/video_a", "internvideo2/video_b", "llama/qid1", "llama/qid2"):
        file = folder / f"{name}.pt"
        file.parent.mkdir(exist_ok=True)
        torch.save(torch.from_numpy(random(len(name), 10, 6)), file)


def own_names(folder: Path) -> None:
    """Features at a rate of their own in a .h5 file and in single files."""
    write_lines(folder / "charades_val_release.jsonl", [windows_only(i, vid=f"v{i}") for i in range(3)])
    save_hdf5(folder / "i3d.h5", {f"v{i}": random(i, 47, 6) for i in range(3)})
    for i in range(3):
        save_npy(folder / f"rows/v{i}.npy", random(10 + i, 33, 5))
        save_npz(folder / f"text/{i}.npz", last_hidden_state=random(i, 5, 4))


OWN = {
    "files": {"i3d": "i3d.h5:{vid}", "rows": "rows/{vid}.npy"},
    "query_files": "text/{qid}.npz:last_hidden_state",
    "rows_per_s": {"i3d": "even", "rows": 1.65},
}


def ego4d(folder: Path) -> None:
    queries = [{"query": "Where is the dog?", "clip_start_sec": 10.0, "clip_end_sec": 12.5, "template": "Where?"}] * 2
    clips = [
        {"clip_uid": f"c{i}", "video_start_sec": 100.0, "video_end_sec": 130.0}
        | {"annotations": [{"annotation_uid": f"a{i}", "language_queries": queries}]}
        for i in range(2)
    ]
    document = {"version": "v2", "split": "val", "videos": [{"video_uid": "v0", "split": "val", "clips": clips}]}
    (folder / "nlq_val.json").write_text(json.dumps(document))
    for i in range(2):
        save_npz(folder / f"vid_clip/c{i}.npz", features=random(i, 15, 4))
        save_npz(folder / f"vid_slowfast/c{i}.npz", features=random(i, 15, 4))
        for j in range(2):
            save_npz(folder / f"txt_clip/a{i}_{j}.npz", last_hidden_state=random(i, 5, 4))


def lenient(folder: Path) -> str:
    """What `bad="skip"` and `bad="clamp"` make of annotations."""
    parts = []
    for bad in ("skip", "clamp"):
        samples = load_annotations(folder / "highlight_val_release.jsonl", bad=bad)
        parts.append([sample.as_line() for sample in samples])
    return repr(parts)


WORDS = ("a", "dog", "runs", "cat", ".", "jump")

# ---- predictions


def predictions(folder: Path) -> None:
    truth = [line(i) for i in range(4)]
    scored = [
        {
            "qid": i,
            "query": "A dog runs.",
            "vid": "video_a",
            "pred_relevant_windows": [[2.0 * k, 2.0 * k + 4, 0.9 - k / 10] for k in range(4)],
            "pred_saliency_scores": [k / 10 for k in range(10)],
        }
        for i in range(4)
    ]
    write_lines(folder / "predictions.jsonl", scored)
    write_lines(folder / "truth.jsonl", truth)


def scoring(folder: Path) -> str:
    lines, truth = (metrics.read_jsonl(folder / f"{name}.jsonl") for name in ("predictions", "truth"))
    with contextlib.redirect_stdout(io.StringIO()):
        metrics.main([str(folder / "predictions.jsonl"), str(folder / "truth.jsonl")])
    return repr(metrics.evaluate(lines, truth))


# ---- checkpoints and runs


def model(folder: Path) -> None:
    checkpoint.save(papers.build(runs.small(), Widths(8, 6, 8)), folder / "model", {"epoch": 3, "loss": 1.5})


def loading(folder: Path) -> str:
    return digest(checkpoint.load(folder / "model").state_dict())


_WORLD: list[Any] = []


def world() -> tuple[MomentDataset, MomentDataset]:
    if not _WORLD:
        _WORLD.append(runs.open_world())
    return _WORLD[0]


def paper() -> papers.Paper:
    return runs.small(epochs=2)


def finished(folder: Path) -> None:
    runs.run(world(), paper(), folder)


def resuming(folder: Path) -> dict[str, str]:
    """The files of a run that was resumed, and the weights that it ends with."""
    _, weights = runs.run(world(), paper(), folder)
    return {name: digest(content) for name, content in runs.contents(folder).items()} | {
        "weights": digest(dict(weights))
    }


def keeping(folder: Path) -> str:
    """The weights that a run ends with, and those that it kept as the best."""
    _, weights = runs.run(world(), paper(), folder)
    return digest([dict(weights), checkpoint.load(folder / "train" / "best").state_dict()])


def stopped(step: int, folder: Path) -> None:
    """A run of six steps in two epochs that Ctrl-C stopped after one of them; the third ends the first epoch."""
    steps = iter(range(1, 7))
    quiet = contextlib.redirect_stderr(io.StringIO())
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt), quiet:
        patch.setattr(stopping, "requested", lambda device: signal.SIGINT * (next(steps) == step))
        runs.run(world(), paper(), folder)
    assert next(steps) == step + 1


def mined(folder: Path) -> None:
    write_lines(folder / "mined.jsonl", [line(i, wrong_spans=[[10, 14]]) for i in range(3)])


def contexts(folder: Path) -> None:
    write_contexts(folder / "contexts.jsonl", [Context(i, f"v{i}", f"v{i + 1}", [-1, 0, 1]) for i in range(3)])


# ---- grids

ARMS = {"raw": grid.Arm("f2sgd", {"kernel": 5}, {"n": 8}), "full": grid.Arm("f2sgd", {}, {"n": 8})}


def table(folder: Path) -> None:
    """A finished grid, with made-up scores."""
    rows = [
        {"arm": name, "seed": seed, "MR-full-mAP": 1.5 + seed, "MR-full-R1@0.5": 2.5, "mIoU": 3.0}
        | {"steps": 8, "train_s": 1.5, "parameters": 100, "torch": "2.13.0", "date": "2026-01-01"}
        | arm.identity(seed)
        for name, arm in ARMS.items()
        for seed in (0, 1)
    ]
    (folder / "grid.csv").write_text(pd.DataFrame(rows).to_csv(index=False))


def tables(folder: Path) -> str:
    """Read a grid; a row that is missing is not trained here."""
    rows = grid.read(folder / "grid.csv", ARMS, (0, 1))
    return rows.to_csv(index=False)


def official(folder: Path) -> None:
    torch.manual_seed(0)
    saved(folder)


def releasing(folder: Path) -> str:
    return digest(checkpoint.load_official(folder / "model.ckpt", "univtg").state_dict())


B, J = tuple(damage.BYTES), tuple(damage.JSON)
G = tuple(damage.GZIP)
NPZ, NPY = tuple(damage_arrays.NPZ), tuple(damage_arrays.NPY)
HDF5, TENSORS, PICKLE = tuple(damage_arrays.HDF5), tuple(damage_arrays.SAFETENSORS), tuple(damage_arrays.PICKLE)
QV, RUN = opening("qvhighlights"), {"protected": True, "one_line": True}

STOPPED, EPOCH = partial(stopped, 4), partial(stopped, 3)

KINDS = [
    Kind("annotations .jsonl", "highlight_val_release.jsonl", moment_detr, QV, B + J * 3),
    Kind("annotations .jsonl.gz", "highlight_val_release.jsonl.gz", packed, QV, B + J + G * 3),
    Kind("annotations, leniently", "highlight_val_release.jsonl", moment_detr, lenient, B + J * 3),
    Kind("labels of TVSum", "tvsum_val_release.jsonl", labels, opening("tvsum"), B + J),
    Kind("annotations .csv", "val.csv", sports, opening("sportsmoments"), B + tuple(damage.TABLE) * 3),
    Kind("items .json", "val.json", pairs, opening("activitynet_vrl"), B + J),
    Kind("queries .json", "nlq_val.json", ego4d, opening("ego4d_nlq", layout="univtg"), B + J * 2),
    Kind("lengths .json", "length.json", pairs, opening("activitynet_vrl"), B + J),
    Kind("classes .json", "activity_net.v1-3.min.json", pairs, opening("activitynet_vrl"), B + J),
    Kind("classes .npy", "perm.npy", pairs, opening("activitynet_vrl"), B + NPY),
    Kind("video .npz", "clip_features/video_a.npz", moment_detr, QV, B + NPZ * 2),
    Kind("query .npz", "clip_text_features/qid2.npz", moment_detr, QV, B + NPZ * 2),
    Kind("video .npy", "clip_b32_vid_k4/video_b.npy", four_layers, QV, B + NPY * 2),
    Kind("video .hdf5", "h5py/vid_clip.hdf5", one_file, QV, B + HDF5 * 3),
    Kind("query .hdf5", "h5py/txt_clip.hdf5", one_file, QV, B + HDF5),
    Kind("video .pt", "internvideo2/video_b.pt", tensors, QV, B + PICKLE * 3),
    Kind("query .pt", "llama/qid2.pt", tensors, QV, B + PICKLE * 2),
    Kind("video of any rate .h5", "i3d.h5", own_names, opening("charades_sta", **OWN), B + HDF5 * 2),
    Kind("video of any rate .npy", "rows/v1.npy", own_names, opening("charades_sta", **OWN), B + NPY * 2),
    Kind("video rows .hdf5", "vgg_rgb_features.hdf5", words, opening("activitynet_captions"), B + HDF5),
    Kind("word vectors", "glove.6B.5d.txt", words, opening("activitynet_captions"), B + tuple(damage.WORDS) * 3),
    Kind("cache", "target.name", with_cache, cached, B + TENSORS * 2, protected=True),
    Kind("cache of queries", "query.name", with_cache, cached, B + TENSORS * 2, protected=True),
    Kind("predictions", "predictions.jsonl", predictions, scoring, B + J * 2, one_line=True),
    Kind("truth", "truth.jsonl", predictions, scoring, B + J * 2, one_line=True),
    Kind("weights", "model.safetensors", model, loading, B + TENSORS * 2, **RUN),
    Kind("settings of weights", "model.json", model, loading, B + J * 3, one_line=True),
    Kind("state of a run", "resume.safetensors", STOPPED, resuming, B + TENSORS * 3, **RUN),
    Kind("state after an epoch", "resume.safetensors", EPOCH, resuming, B + TENSORS * 3, **RUN),
    Kind("settings of a run", "run.json", STOPPED, resuming, B + J, **RUN),
    Kind("history of a run", "history.jsonl", finished, resuming, B + J, **RUN),
    Kind("times of a run", "times.jsonl", STOPPED, resuming, B + J, **RUN),
    Kind("kept weights of a run", "train/best.safetensors", finished, keeping, B + TENSORS, **RUN),
    Kind("settings of kept weights", "train/best.json", finished, keeping, B + J, **RUN),
    Kind("predictions of a run", "predictions.jsonl", finished, resuming, B + J, **RUN),
    Kind("scores of a run", "metrics.json", finished, resuming, B + J, **RUN),
    Kind("mined windows", "mined.jsonl", mined, lambda folder: repr(mining.read(folder / "mined.jsonl")), B + J),
    Kind("contexts", "contexts.jsonl", contexts, lambda f: repr(read_contexts(f / "contexts.jsonl")), B + J),
    Kind("grid", "grid.csv", table, tables, B + tuple(damage.TABLE) * 3, one_line=True),
    Kind("official checkpoint", "model.ckpt", official, releasing, B + PICKLE * 3),
]


def damaged_file(kind: Kind, folder: Path) -> Path:
    """The file of a kind that is damaged; that of the cache has a name that says what it was made of."""
    file = folder / kind.file
    return file if file.suffix != ".name" else folder / ".mrlib_cache" / file.read_text()


def copied(whole: Path, folder: Path) -> Path:
    """A copy of a folder with the times of its files, on which a cache depends."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(whole, folder, copy_function=shutil.copy2))
