"""Stand-in features: the annotations are unchanged, the vectors depend on names and seed, the folder opens."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlib import papers
from mrlib.data import open_dataset, stand_in
from mrlib.data.check import check
from tests.support.files import line, windows_only, write_lines

TRAIN = [
    line(1, query="A dog runs to the man."),
    line(2, query="The man's red car", vid="video_b", duration=30, relevant_windows=[[0, 6], [20, 30]]),
    line(3, query="Somebody sings", relevant_windows=[[12, 16]], relevant_clip_ids=[6, 7]),
    line(4, query="left out", vid="video_d"),
]
VAL = [line(11, query="A red dog", vid="video_c")]
LIMIT = {"train": 3, "val": 1}


@pytest.fixture
def root(tmp_path):
    write_lines(tmp_path / "real/highlight_train_release.jsonl", TRAIN)
    write_lines(tmp_path / "real/highlight_val_release.jsonl", VAL)
    return tmp_path / "real"


def read(out, name, key):
    with np.load(out / f"{name}.npz") as file:
        return file[key].astype(np.float64)


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def cosine(a, b):
    return a @ b / np.linalg.norm(a, axis=-1) / np.linalg.norm(b)


def test_the_first_lines_of_every_split_are_written_unchanged(root, tmp_path):
    file = root / "highlight_train_release.jsonl"
    file.write_text("\n" + file.read_text().replace('"A dog', '"A  dog'))  # an empty line, and two spaces in a query
    counts = stand_in.write("qvhighlights", root, tmp_path / "out", limit=LIMIT)
    assert counts == {"train": 3, "val": 1, "videos": 3}
    assert (tmp_path / "out" / file.name).read_text().splitlines() == file.read_text().splitlines()[1:4]
    assert sorted(contents(tmp_path / "out")) == sorted(
        [
            f"{kind}/{vid}.npz"
            for kind in ("clip_features", "slowfast_features")
            for vid in ("video_a", "video_b", "video_c")
        ]
        + [f"clip_text_features/qid{qid}.npz" for qid in (1, 2, 3, 11)]
        + [f"highlight_{split}_release.jsonl" for split in ("train", "val")]
    )


def test_only_the_named_splits_are_written_and_a_short_split_whole(root, tmp_path):
    assert stand_in.write("qvhighlights", root, tmp_path / "out", limit={"val": 50}) == {"val": 1, "videos": 1}
    assert [file.name for file in (tmp_path / "out").glob("*.jsonl")] == ["highlight_val_release.jsonl"]


@pytest.mark.parametrize(
    ("name", "file", "qid"),
    [
        ("qvhighlights", "highlight_{}_release.jsonl", 7),
        ("charades_sta", "charades_{}_release.jsonl.gz", 7),
        ("activitynet_captions", "activitynet_{}_release.jsonl", 7),
        ("tacos", "tacos_{}_release.jsonl", "s13-d21_1"),
    ],
)
def test_a_written_folder_opens_and_has_no_problems(name, file, qid, tmp_path):
    for i, split in enumerate(("train", "val")):
        lines = [windows_only(f"{qid}{i}" if isinstance(qid, str) else qid + i, duration=19.3)]
        path = write_lines(tmp_path / "real" / file.format(split), lines)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    stand_in.write(name, tmp_path / "real", tmp_path / "out", limit=LIMIT)
    assert check(name, tmp_path / "out") == []
    clips = 20 if name == "charades_sta" else 10
    for split in ("train", "val"):
        batch = open_dataset(name, tmp_path / "out", split).batch([0])
        assert batch.target.shape == (1, clips, stand_in.MOTION + stand_in.JOINT)
        assert batch.target_joint.shape == (1, clips, stand_in.JOINT)
        assert batch.query.shape == (1, 3, 512)  # a dog runs
        assert torch.isfinite(batch.target).all()
        assert batch.labels.relevant.any()


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_features(root, tmp_path):
    for out, seed in (("one", 0), ("two", 0), ("other", 1)):
        stand_in.write("qvhighlights", root, tmp_path / out, limit=LIMIT, seed=seed)
    one, two, other = (contents(tmp_path / out) for out in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] == other[name]} == {name for name in one if name.endswith(".jsonl")}


def test_a_video_does_not_depend_on_the_queries_of_other_videos(root, tmp_path):
    stand_in.write("qvhighlights", root, tmp_path / "all", limit=LIMIT)
    stand_in.write("qvhighlights", root, tmp_path / "few", limit={"val": 1})
    all_files, few_files = contents(tmp_path / "all"), contents(tmp_path / "few")
    assert few_files.items() <= all_files.items()


def test_a_word_has_the_same_vector_in_all_queries_and_other_words_have_other_vectors(root, tmp_path):
    out = tmp_path / "out"
    stand_in.write("qvhighlights", root, out, limit=LIMIT)
    first, second, other = (read(out, f"clip_text_features/qid{qid}", "last_hidden_state") for qid in (1, 2, 11))
    assert [len(tokens) for tokens in (first, second, other)] == [6, 5, 3]  # the, man, 's, red, car: five
    assert (first[0] == other[0]).all()  # a
    assert (first[1] == other[2]).all()  # dog
    assert (second[3] == other[1]).all()  # red
    assert (first[4:6] == second[:2]).all()  # the man
    words = np.unique(np.concatenate([first, second, other]), axis=0)
    assert len(words) == 9
    assert abs(words @ words.T - np.eye(9)).max() < 0.25


def test_the_sentence_vector_is_the_normalised_mean_of_its_words(root, tmp_path):
    stand_in.write("qvhighlights", root, tmp_path / "out", limit=LIMIT)
    for qid in (1, 2, 3, 11):
        mean = read(tmp_path / "out", f"clip_text_features/qid{qid}", "last_hidden_state").mean(0)
        sentence = read(tmp_path / "out", f"clip_text_features/qid{qid}", "pooler_output")
        np.testing.assert_allclose(sentence, mean / np.linalg.norm(mean), atol=1e-3)


def test_clips_inside_the_windows_of_a_query_are_nearer_to_its_sentence(root, tmp_path):
    """Two of the queries share a video."""
    stand_in.write("qvhighlights", root, tmp_path / "out", limit=LIMIT)
    for each in (*TRAIN[:3], *VAL):
        clips = read(tmp_path / "out", f"clip_features/{each['vid']}", "features")
        assert len(clips) == each["duration"] / 2
        sentence = read(tmp_path / "out", f"clip_text_features/qid{each['qid']}", "pooler_output")
        cosines, inside = cosine(clips, sentence), np.zeros(len(clips), bool)
        for start, end in each["relevant_windows"]:
            inside[start // 2 : end // 2] = True
        assert cosines[inside].mean() > cosines[~inside].mean() + 0.3
        assert cosines[inside].min() > cosines[~inside].max()


def test_two_moments_of_one_sentence_are_alike_in_the_motion_stream():
    samples = [stand_in.Sample(i, "A dog runs", 60.0, vid, [[20.0, 40.0]]) for i, vid in enumerate("ab")]
    (_, a), (_, b) = (stand_in.video_features(sample.vid, [sample], 2.0, 0) for sample in samples)
    assert a.shape == b.shape == (30, stand_in.MOTION)
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    assert cosines[10:20, 10:20].mean() > cosines[:10, 20:].mean() + 0.2


def test_a_window_changes_every_clip_that_it_overlaps():
    sample = stand_in.Sample(1, "A dog runs", 10.0, "a", [[3.9, 4.1]])
    without_window = stand_in.Sample(1, "A dog runs", 10.0, "a")
    features, plain = (stand_in.video_features("a", [s], 2.0, 0)[0] for s in (sample, without_window))
    assert (features != plain).any(1).tolist() == [False, True, True, False, False]


def test_a_folder_that_is_not_empty_is_refused_and_stays_unchanged(root, tmp_path):
    kept = write_lines(tmp_path / "out/notes.txt", ["mine"])
    for out in (tmp_path / "out", kept, root):
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="give a new or empty folder"):
            stand_in.write("qvhighlights", root, out, limit=LIMIT)
        assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    stand_in.write("qvhighlights", root, tmp_path / "empty", limit=LIMIT)


def test_stopping_early_leaves_no_annotations(root, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stand_in, "video_features", stop)
    with pytest.raises(KeyboardInterrupt):
        stand_in.write("qvhighlights", root, tmp_path / "out", limit=LIMIT)
    assert not list((tmp_path / "out").rglob("*.jsonl"))


@pytest.mark.parametrize("name", ["tvsum", "activitynet_vrl", "sim"])
def test_a_dataset_without_sentence_queries_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"no stand-in features for '{name}'; there are for qvhighlights, "):
        stand_in.write(name, tmp_path, tmp_path / "out", limit={"train": 1})


@pytest.mark.parametrize(
    ("limit", "message"),
    [({"test": 3}, "no split 'test' .* there are train, val"), ({"train": 0}, "train=0; at least")],
)
def test_a_limit_for_an_unknown_split_or_of_no_lines_is_refused(limit, message, root, tmp_path):
    with pytest.raises(ValueError, match=message):
        stand_in.write("qvhighlights", root, tmp_path / "out", limit=limit)
    assert not (tmp_path / "out").exists()


def test_a_bad_line_is_named_and_lines_after_the_limit_are_not_read(root, tmp_path):
    write_lines(root / "highlight_train_release.jsonl", [TRAIN[0], TRAIN[1], "{", TRAIN[3]])
    with pytest.raises(ValueError, match="highlight_train_release.jsonl, line 3: json"):
        stand_in.write("qvhighlights", root, tmp_path / "out", limit={"train": 3})
    assert not (tmp_path / "out").exists()
    assert stand_in.write("qvhighlights", root, tmp_path / "out", limit={"train": 2})["train"] == 2


def test_one_qid_with_two_sentences_is_refused(root, tmp_path):
    write_lines(root / "highlight_val_release.jsonl", [line(1, query="Another sentence")])
    with pytest.raises(ValueError, match="query 1 has two sentences in two splits"):
        stand_in.write("qvhighlights", root, tmp_path / "out", limit=LIMIT)


def test_the_command_prints_counts_and_what_a_score_means(root, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "mrlib.data.stand_in", "qvhighlights", str(root)]
    process = subprocess.run(
        [*command, str(tmp_path / "out"), "--limit", "train=3", "val=1"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"3 train, 1 val, 3 videos: {tmp_path / 'out'}\n{stand_in.MEANING}\n"
    assert check("qvhighlights", tmp_path / "out") == []


@pytest.mark.parametrize(
    ("limit", "message"),
    [("train", "'train' is not SPLIT=LINES"), ("train=-1", "not SPLIT=LINES"), ("test=1", "no split")],
)
def test_the_command_refuses_a_malformed_limit(limit, message, root, tmp_path, capsys):
    with pytest.raises(SystemExit):
        stand_in.main(["qvhighlights", str(root), str(tmp_path / "out"), "--limit", limit])
    assert message in capsys.readouterr().err


def test_real_annotations_open_with_stand_in_features(tmp_path):
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA names no folder with the real annotations")
    real = Path(os.environ["MRLIB_DATA"], "qvhighlights")
    stand_in.write("qvhighlights", real, tmp_path / "out", limit={"train": 12, "val": 8})
    assert check("qvhighlights", tmp_path / "out") == []
    lines = (real / "highlight_train_release.jsonl").read_text().splitlines()
    for split, count in (("train", 12), ("val", 8)):
        dataset = open_dataset("qvhighlights", tmp_path / "out", split)
        assert len(dataset) == count
        batch = dataset.batch(range(count))
        cosines = torch.cosine_similarity(batch.target_joint, batch.query_joint[:, None], dim=-1)
        rest = batch.target_mask & ~batch.labels.relevant
        assert cosines[batch.labels.relevant].mean() > cosines[rest].mean() + 0.3
        if split == "train":
            assert [sample.as_line()["query"] for sample in dataset.samples] == [
                json.loads(x)["query"] for x in lines[:12]
            ]
    assert papers.build(papers.get("qd_detr", size="small"), dataset).predict(batch)
