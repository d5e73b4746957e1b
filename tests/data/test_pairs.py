"""Pairs of ActivityNet-VRL, made from small files in the published form and compared with the rule as two loops."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mrlib import baselines, open_dataset
from mrlib.data import Sample, load_annotations
from mrlib.data.check import check
from mrlib.data.pairs import find_items, main, make_pairs, partners, read_items, read_pairs
from mrlib.metrics import moment_scores
from tests.support.files import random, save_npy, save_npz, write_lines

FIRST_CLASS = {"train": 0, "val": 160, "test": 180}
N_FRAMES, SECONDS = 4800, 120.0  # of a video of 300 units: a unit is 0.4 s


def item(video="v0", label=160, location=(10, 60), groundtruth=(5, 20)):
    return {"id": video, "label": label, "location": list(location), "groundtruth": list(groundtruth)}


def some_items(split: str, n: int) -> list[dict]:
    rng = np.random.default_rng(n)
    items = []
    for _ in range(n):
        start, end = np.sort(rng.choice(np.arange(1, 60), 2, replace=False)).tolist()
        units = end + int(rng.integers(0, 40))
        offset = int(rng.integers(0, 200))
        label = FIRST_CLASS[split] + int(rng.integers(0, 4))
        items.append(item(f"{split}{rng.integers(0, n // 2)}", label, (offset, offset + units), (start, end)))
    return items


def publish(root: Path, folder: str = "", durations: bool = True, **splits: list[dict]) -> Path:
    """Write the files of `video_reloc`, and that of ActivityNet, which has the durations."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    videos = {each["id"] for items in splits.values() for each in items if isinstance(each, dict) and "id" in each}
    for split, items in splits.items():
        (root / folder / f"{split}.json").write_text(json.dumps(items))
    lengths = {video: {"n_feat": 300, "n_frames": N_FRAMES} for video in videos}
    (root / folder / "length.json").write_text(json.dumps(lengths))
    if durations:
        names = [f"activity {i:03}" for i in range(200)]
        top = {"nodeName": "Root", "nodeId": 999, "parentId": None}
        nodes = [{"nodeName": name, "nodeId": i, "parentId": 999} for i, name in enumerate(names)]
        database = {video: {"duration": SECONDS, "annotations": []} for video in videos}
        text = json.dumps({"database": database, "taxonomy": [top, *nodes]})
        (root / folder / "activity_net.v1-3.min.json").write_text(text)
    return root


@pytest.fixture
def published(tmp_path):
    return publish(tmp_path, train=some_items("train", 40), val=some_items("val", 30), test=some_items("test", 24))


def pairs_of(root, split, **options):
    items, problems = read_items(find_items(root)[split])
    assert not problems
    return make_pairs(items, split, **options)


# --- one pair by hand ------------------------------------------------------------------------------------------------


def test_duration_and_window_of_a_pair_are_seconds_of_the_crop(tmp_path):
    """By hand: a unit is 120 s / 300 = 0.4 s, so a crop of 50 units lasts 20 s; its units 5 to 20 are 2 s to 8 s."""
    root = publish(tmp_path, val=[item("a"), item("b", location=(0, 30), groundtruth=(0, 30))])
    first, second = pairs_of(root, "val")
    assert (first.qid, first.vid, first.duration) == ("a_160_0", "b_160_1", pytest.approx(12.0))
    assert (second.qid, second.vid, second.duration) == ("b_160_1", "a_160_0", pytest.approx(20.0))
    assert second.relevant_windows == [[pytest.approx(2.0), pytest.approx(8.0)]]
    assert first.relevant_windows == [[0, first.duration]]
    assert second.extra == {"label": 160, "query_vid": "b"}


def test_crop_and_moment_are_seconds_of_the_video(tmp_path):
    (a, _), _ = read_items(publish(tmp_path, val=[item("a"), item("b")]) / "val.json")
    assert a.crop_s == (pytest.approx(4.0), pytest.approx(24.0))
    assert a.moment_s == (pytest.approx(6.0), pytest.approx(12.0))


def test_a_target_is_at_least_as_long_as_the_moment(tmp_path):
    moment = item("a", location=(0, 40), groundtruth=(0, 20))
    equal, shorter = (item(v, location=(0, n), groundtruth=(0, 1)) for v, n in (("b", 20), ("c", 19)))
    items, _ = read_items(publish(tmp_path, val=[moment, equal, shorter]) / "val.json")
    assert [b.video for b in partners(items)[0]] == ["b"]


# --- the rule, by enumeration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_video", [False, True])
def test_the_training_split_has_every_pair_that_the_rule_allows(published, other_video):
    items = json.loads((published / "train.json").read_text())
    expected = []
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            (gs, ge), (ls, le) = a["groundtruth"], b["location"]
            if i != j and a["label"] == b["label"] and ge - gs <= le - ls and not (other_video and a["id"] == b["id"]):
                expected.append((f"{a['id']}_{a['label']}_{i}", f"{b['id']}_{b['label']}_{j}"))
    pairs = pairs_of(published, "train", exclude_same_video=other_video)
    assert [(s.qid, s.vid) for s in pairs] == expected
    assert len(expected) > 100


def test_val_has_one_target_per_query_drawn_by_the_seed(published):
    allowed = {s.qid: {b.name for b in t} for s, t in _with_partners(published, "val")}
    pairs = pairs_of(published, "val")
    assert [s.qid for s in pairs] == list(allowed)
    assert all(s.vid in allowed[s.qid] for s in pairs)
    assert pairs == pairs_of(published, "val")
    others = pairs_of(published, "val", seed=1)
    assert 0 < sum(a.vid == b.vid for a, b in zip(pairs, others, strict=True)) < len(pairs)


def _with_partners(root, split):
    items, _ = read_items(root / f"{split}.json")
    return [(Sample(a.name, "", 1.0, ""), t) for a, t in zip(items, partners(items), strict=True) if t]


def test_the_drawn_targets_never_change(published):
    """Recorded once; other draws would be another validation set."""
    assert [int(s.vid.rsplit("_", 1)[1]) for s in pairs_of(published, "val")[:8]] == [8, 10, 26, 4, 26, 15, 20, 14]


def test_targets_are_drawn_uniformly(tmp_path):
    """Chi-square over 1000 draws among 20 items."""
    root = publish(tmp_path, val=[item(f"v{i}") for i in range(20)])
    counts = dict.fromkeys((f"v{i}" for i in range(20)), 0)
    for seed in range(50):
        for sample in pairs_of(root, "val", seed=seed):
            counts[sample.vid.split("_")[0]] += 1
    chi2 = sum((n - 50) ** 2 / 50 for n in counts.values())
    assert 5 < chi2 < 45  # 19 degrees of freedom: 0.9994 of all draws


def test_per_item_targets_are_drawn_without_repetition(published):
    every, chosen = pairs_of(published, "train"), pairs_of(published, "train", per_item=3)
    targets_of = {qid: [s.vid for s in every if s.qid == qid] for qid in {s.qid for s in every}}
    for qid, all_targets in targets_of.items():
        drawn = [s.vid for s in chosen if s.qid == qid]
        assert len(set(drawn)) == len(drawn) == min(3, len(all_targets))
        assert set(drawn) <= set(all_targets)
    with pytest.raises(ValueError, match="per_item is 0"):
        pairs_of(published, "train", per_item=0)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_pair_files_hold_the_pairs_of_the_published_files(published, capsys):
    assert main(["activitynet_vrl", str(published)]) == 0
    out = capsys.readouterr().out.splitlines()
    counts = {split: len(pairs_of(published, split)) for split in ("train", "val", "test")}
    assert [" ".join(line.split()[:3]) for line in out] == [f"{split} {n} pairs" for split, n in counts.items()]
    assert counts["train"] > 300 and (counts["val"], counts["test"]) == (30, 24)
    for split in ("train", "val", "test"):
        file = published / f"activitynet_vrl_{split}.jsonl"
        assert load_annotations(file, words=False) == pairs_of(published, split)
        assert load_annotations(file, words=False) == [s for _, s, _ in read_pairs(published / f"{split}.json")]


def test_the_command_follows_its_options(published):
    assert main(["activitynet_vrl", str(published), "--seed", "3", "--per-item", "2", "--exclude-same-video"]) == 0
    options = {"seed": 3, "exclude_same_video": True}
    val, train = (load_annotations(published / f"activitynet_vrl_{s}.jsonl", words=False) for s in ("val", "train"))
    assert val == pairs_of(published, "val", **options)
    assert train == pairs_of(published, "train", per_item=2, **options)


def test_a_file_with_other_pairs_is_replaced_only_with_force(published, capsys):
    files = [published / f"activitynet_vrl_{split}.jsonl" for split in ("train", "val")]
    assert main(["activitynet_vrl", str(published)]) == 0
    before = [file.read_bytes() for file in files]
    assert main(["activitynet_vrl", str(published)]) == 0
    capsys.readouterr()
    assert main(["activitynet_vrl", str(published), "--seed", "1"]) == 1
    err = capsys.readouterr().err
    assert "activitynet_vrl_val.jsonl" in err and "--force" in err and "activitynet_vrl_train.jsonl" not in err
    assert [file.read_bytes() for file in files] == before
    assert main(["activitynet_vrl", str(published), "--seed", "1", "--force"]) == 0
    assert [file.read_bytes() == old for file, old in zip(files, before, strict=True)] == [True, False]


def test_no_file_is_written_if_a_split_has_a_problem(published, capsys):
    (published / "test.json").write_text(json.dumps([item(label=180, video="nowhere"), *some_items("test", 6)]))
    assert main(["activitynet_vrl", str(published)]) == 1
    assert "test.json, item 0: id: length.json has nothing for 'nowhere'" in capsys.readouterr().err
    assert not list(published.glob("*.jsonl"))


@pytest.mark.parametrize("arguments", ["activitynet_vrl .", "activitynet_vrl . --per-item 0", "x ."])
def test_wrong_arguments_are_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2 and capsys.readouterr().err


def test_the_command_runs_without_warnings(published):
    command = [sys.executable, "-W", "error", "-m", "mrlib.data.pairs", "activitynet_vrl", str(published)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def write_features(root: Path, samples: list[Sample]) -> None:
    for i, s in enumerate(samples):
        save_npz(root / f"target_vid_clip/{s.vid}.npz", features=random(i, max(1, int(np.ceil(s.duration / 2))), 4))
        save_npz(root / f"query_vid_clip/qid{s.qid}.npz", last_hidden_state=random(1000 + i, 2, 4))


@pytest.mark.parametrize("folder", ["", "data"])
def test_the_published_files_open_as_the_pair_files(folder, tmp_path):
    root = publish(tmp_path, folder, train=some_items("train", 12), val=some_items("val", 12))
    write_features(root, pairs_of(root, "train"))
    opened = open_dataset("activitynet_vrl", root, "train")
    assert opened.samples == pairs_of(root, "train")
    assert len(opened) > len(opened.query) >= len(opened.target) > 1
    for i, sample in enumerate(opened.samples):
        batch = opened.batch([i])
        rows = np.load(root / f"target_vid_clip/{sample.vid}.npz")["features"]
        np.testing.assert_allclose(batch.target[0], rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-4)
        query = np.load(root / f"query_vid_clip/qid{sample.qid}.npz")["last_hidden_state"]
        np.testing.assert_allclose(batch.query[0], query / np.linalg.norm(query, axis=1, keepdims=True), rtol=1e-4)
    assert main(["activitynet_vrl", str(root)]) == 0
    (root / folder / "train.json").write_text("[]")  # the pair file is read first
    again = open_dataset("activitynet_vrl", root, "train")
    assert again.samples == opened.samples and again.digest() == opened.digest()


# --- problems -------------------------------------------------------------------------------------------------------

BAD = {
    "no object": (["v0"], "json"),
    "no id": ({k: v for k, v in item().items() if k != "id"}, "id"),
    "id a path": (item("../v0"), "id"),
    "no label": (item(label=None), "label"),
    "location reversed": (item(location=(60, 10)), "location"),
    "location not whole": (item(location=(10, 60.5)), "location"),
    "location of three": (item(location=(10, 60, 70)), "location"),
    "location before the video": (item(location=(-1, 60)), "location"),
    "location after the video": (item(location=(10, 301)), "location"),
    "moment empty": (item(groundtruth=(5, 5)), "groundtruth"),
    "moment after its crop": (item(groundtruth=(5, 51)), "groundtruth"),
    "moment of booleans": (item(groundtruth=(False, True)), "groundtruth"),
}


@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD)
def test_a_malformed_item_is_named_with_file_item_and_field(bad, field, tmp_path):
    root = publish(tmp_path, val=[item("a"), item("b"), bad, item("v0")])
    (problem,) = check("activitynet_vrl", root)[1:]  # the first: there are no features
    assert (problem.line, problem.unit, problem.kind, problem.fatal) == (2, "item", field, True)
    assert str(problem).startswith(f"{root}/val.json, item 2: {field}: ")
    with pytest.raises(ValueError, match=rf"val\.json, item 2: {field}: "):
        open_dataset("activitynet_vrl", root, "val")


MENDED = {
    "a crop after the video": ({"location": [250, 320]}, {"location": [250, 300]}),
    "a crop before the video": ({"location": [-3, 60]}, {"location": [0, 60]}),
    "a moment after its crop": ({"groundtruth": [30, 70]}, {"groundtruth": [30, 50]}),
    "a moment of no length": ({"groundtruth": [20, 20]}, {"groundtruth": [20, 21]}),
    "a moment of no length at the end": ({"groundtruth": [50, 50]}, {"groundtruth": [49, 50]}),
}


@pytest.mark.parametrize(("wrong", "right"), MENDED.values(), ids=MENDED)
def test_an_item_is_clamped_or_left_out(wrong, right, tmp_path):
    others = some_items("val", 6)
    publish(tmp_path, val=[item("val0", **wrong), *others])
    items, problems = read_items(tmp_path / "val.json", clamp=True)
    assert [(p.line, p.kind, p.fatal) for p in problems] == [(0, *right, False)]
    (tmp_path / "b").mkdir()
    expected, _ = read_items(publish(tmp_path / "b", val=[item("val0", **right), *others]) / "val.json")
    assert items == expected
    assert [i.index for i in read_items(tmp_path / "val.json")[0]] == list(range(1, 7))


@pytest.mark.parametrize("wrong", [{"location": [60, 10]}, {"groundtruth": [60, 70]}, {"groundtruth": [-4, -2]}])
def test_an_item_that_cannot_be_clamped_is_refused(wrong, tmp_path):
    publish(tmp_path, val=[item("val0", **wrong), *some_items("val", 6)])
    assert any(p.fatal for p in read_items(tmp_path / "val.json", clamp=True)[1])


def test_the_command_leaves_bad_items_out_if_it_is_told_to(published, capsys):
    (published / "test.json").write_text(json.dumps([item(label=180, video="nowhere"), *some_items("test", 6)]))
    assert main(["activitynet_vrl", str(published), "--bad", "clamp"]) == 1
    assert main(["activitynet_vrl", str(published), "--bad", "skip"]) == 0
    said = capsys.readouterr().err
    assert re.search(r'test\.json: bad="skip" leaves out \d of \d items: \d for id \(items 0, ', said)
    assert (published / "activitynet_vrl_test.jsonl").is_file()


def test_a_video_without_a_length_is_named(tmp_path):
    root = publish(tmp_path, val=[item("a"), item("b")])
    (root / "length.json").write_text(json.dumps({"a": {"n_feat": 300}}))
    problems = [str(p) for p in read_items(root / "val.json")[1]]
    assert "item 0: id: length.json has {'n_feat': 300}, not n_feat and n_frames above 0 for 'a'" in problems[0]
    assert "item 1: id: length.json has nothing for 'b'; add it, or take the item out" in problems[1]


def test_lengths_may_be_lists(tmp_path):
    root = publish(tmp_path, val=[item("a"), item("b")])
    expected = pairs_of(root, "val")
    for form in ({v: [300, N_FRAMES] for v in "ab"}, [{"id": v, "n_feat": 300, "n_frames": N_FRAMES} for v in "ab"]):
        (root / "length.json").write_text(json.dumps(form))
        assert pairs_of(root, "val") == expected


def test_a_missing_malformed_or_empty_file_is_named(tmp_path):
    root = publish(tmp_path, val=[item("a"), item("b")])
    (root / "length.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"length\.json: missing file"):
        open_dataset("activitynet_vrl", root, "val")
    (root / "length.json").write_text("{")
    with pytest.raises(ValueError, match=r"length\.json: json: "):
        open_dataset("activitynet_vrl", root, "val")
    (root / "length.json").write_text("3")
    with pytest.raises(ValueError, match=r"length\.json: json: a int where a dict or list is expected"):
        open_dataset("activitynet_vrl", root, "val")
    (root / "val.json").write_text("[]")
    (root / "length.json").write_text("{}")
    with pytest.raises(ValueError, match=r"val\.json: empty"):
        open_dataset("activitynet_vrl", root, "val")


def test_without_durations_thirty_frames_count_as_a_second_with_one_note(tmp_path):
    """4800 frames count as 160 s, so a unit is 16 / 30 s."""
    root = publish(tmp_path, durations=False, val=[item("a"), item("b")])
    write_features(root, make_pairs(read_items(root / "val.json")[0], "val"))
    with pytest.warns(UserWarning, match=r"has none for 2 videos; they are taken as n_frames / 30 s") as caught:
        opened = open_dataset("activitynet_vrl", root, "val")
    assert len(caught) == 1
    assert opened.samples[0].duration == pytest.approx(50 * 16 / 30)
    (note,) = check("activitynet_vrl", root)
    assert not note.fatal and note.kind == "duration"


def test_a_duration_that_is_not_a_positive_number_counts_as_missing(tmp_path):
    root = publish(tmp_path, val=[item(video) for video in "abcd"])
    file = root / "activity_net.v1-3.min.json"
    content = json.loads(file.read_text())
    for video, duration in (("a", 0), ("b", -3.0), ("c", "120")):
        content["database"][video]["duration"] = duration
    file.write_text(json.dumps(content))
    items, (note,) = read_items(root / "val.json")
    assert "has none for 3 videos" in note.message
    assert [each.unit_s for each in items] == pytest.approx([16 / 30] * 3 + [0.4])


def test_a_class_in_two_splits_is_refused(tmp_path):
    root = publish(tmp_path, train=[item("a", 3), item("b", 4)], val=[item("c", 4), item("d", 160), item("e", 160)])
    with pytest.raises(ValueError, match=r"val\.json: label: 4 also in train\.json; no two splits share a class"):
        open_dataset("activitynet_vrl", root, "val")
    assert main(["activitynet_vrl", str(root)]) == 1
    problems = [str(p) for p in check("activitynet_vrl", root) if p.kind == "label" and p.fatal]
    assert any("train.json: label: 4 also in val.json" in text for text in problems)


def test_check_lists_pair_files_that_share_a_class(tmp_path):
    line = {"qid": "a", "vid": "b", "duration": 20.0, "relevant_windows": [[2.0, 8.0]], "label": 7}
    for split in ("train", "val"):
        others = [line | {"vid": "c", "label": ["no class"]}, {k: line[k] for k in line if k != "label"} | {"vid": "d"}]
        write_lines(tmp_path / f"activitynet_vrl_{split}.jsonl", [line, *others])
    shared = [str(p) for p in check("activitynet_vrl", tmp_path) if p.kind == "label"]
    assert [text.removeprefix(f"{tmp_path}/activitynet_vrl_").split(";")[0] for text in shared] == [
        "train.jsonl: label: 7 also in activitynet_vrl_val.jsonl",
        "val.jsonl: label: 7 also in activitynet_vrl_train.jsonl",
    ]


def test_an_item_without_a_target_is_left_out_with_a_note(tmp_path):
    long = item("d", 161, location=(0, 300), groundtruth=(0, 299))
    root = publish(tmp_path, val=[item("a"), item("b"), item("c", 162), long, item("e", 161)])
    message = "no target of their class is as long as the moments of 2 items; no queries: 2, 3"
    notes = [p for p in check("activitynet_vrl", root) if not p.fatal]
    assert [p.message for p in notes] == [message]
    assert [s.qid for s in pairs_of(root, "val")] == ["a_160_0", "b_160_1", "e_161_4"]


def test_a_split_without_pairs_is_refused(tmp_path):
    publish(tmp_path, val=[item("a"), item("b", 161)])
    with pytest.raises(ValueError, match=r"val\.json: groundtruth: no target of their class .* 2 items"):
        open_dataset("activitynet_vrl", tmp_path, "val")
    assert main(["activitynet_vrl", str(tmp_path)]) == 1 and not list(tmp_path.glob("*.jsonl"))


def test_the_classes_of_a_split_are_those_of_the_permutation(tmp_path):
    """The labels number the classes in alphabetical order, so the permutation is one of labels."""
    root = publish(tmp_path, val=[item("a"), item("b"), item("c", 20)])
    save_npy(root / "perm.npy", np.arange(200))
    (problem,) = read_items(root / "val.json")[1]
    assert "val.json, item 2: label: 20 is a class of another split in perm.npy" in str(problem)
    save_npy(root / "perm.npy", np.roll(np.arange(200), 140))
    assert [p.line for p in read_items(root / "val.json")[1]] == [0, 1]
    save_npy(root / "perm.npy", np.arange(199))
    assert "no permutation of the 200 classes" in str(read_items(root / "val.json")[1][0])
    save_npy(root / "perm.npy", np.array([{}], object), allow_pickle=True)
    assert "pickled" in str(read_items(root / "val.json")[1][0])


def test_check_reads_the_features_of_the_published_items(tmp_path, capsys):
    root = publish(tmp_path, train=some_items("train", 12), val=[item("a"), item("b")])
    write_features(root, pairs_of(root, "train") + pairs_of(root, "val"))
    assert check("activitynet_vrl", root) == []
    (root / "query_vid_clip/qida_160_0.npz").unlink()
    (problem,) = check("activitynet_vrl", root)
    assert "qida_160_0.npz: missing file" in str(problem) and "needed by item 0 of val.json" in str(problem)


# --- the published files themselves ----------------------------------------------------------------------------------

REAL = Path(os.environ.get("MRLIB_DATA", "."), "activitynet_vrl")
COUNTS = {  # items; ordered pairs of a class; of these, those with a target that is long enough; and of another video
    "train": (7593, 503126, 472704, 452512),
    "val": (829, 46244, 44007, 42214),
    "test": (978, 65168, 60497, 57887),
}
REFERENCE = {"val": (29.8, 19.4, 34.8, 29.8), "test": (33.3, 22.1, 38.6, 36.7)}  # mIoU and R1 of both baselines


@pytest.mark.skipif(not find_items(REAL), reason="$MRLIB_DATA/activitynet_vrl has no published items")
@pytest.mark.parametrize("split", COUNTS)
def test_the_published_files_have_the_known_numbers_of_items_and_pairs(split):
    items, problems = read_items(find_items(REAL)[split])
    assert not [p for p in problems if p.fatal]
    of_class = [sum(a.label == b.label for b in items) - 1 for a in items]
    long_enough = sum(map(len, partners(items)))
    other_video = sum(map(len, partners(items, exclude_same_video=True)))
    assert (len(items), sum(of_class), long_enough, other_video) == COUNTS[split]
    if split in REFERENCE:
        samples = [Sample(i.name, "", i.units, i.name, [list(i.moment)]) for i in items]
        scores = [
            moment_scores(predict(SimpleNamespace(samples=samples)), samples)["all"]
            for predict in (baselines.whole_video, baselines.centred_window)
        ]
        values = [score[name] for score in scores for name in ("mIoU", "R1@0.5")]
        assert values == pytest.approx(REFERENCE[split], abs=0.05)
