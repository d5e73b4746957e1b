"""Somebody's own videos and annotations, read into samples."""

import csv
import json
from pathlib import Path

import pytest

from mrlib.video.annotated import read_folder
from tests.support.files import line, windows_only, write_lines

NAMES = ("cat.mp4", "dog.MKV", "deep/bird.webm", "a.b.mov")
DURATIONS = {"cat": 20.0, "dog": 24.0, "bird": 21.0, "a.b": 9.5}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files with the names of videos; nothing here opens them."""
    for name in (*NAMES, "cat.srt", ".hidden.mp4", "cat.txt", "._cat.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def table(folder: Path, *rows: tuple, header: str = "video,start,end,query") -> Path:
    with (folder / "moments.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return folder


def samples(folder: Path, **options) -> dict:
    return read_folder(folder).samples(DURATIONS, (), 2.0, "error", **options)


def every(folder: Path) -> list:
    return [sample for split in samples(folder).values() for sample in split]


def test_a_video_is_named_with_or_without_its_ending_and_folder(folder):
    rows = [
        (name, 0, 4, f"query {i}") for i, name in enumerate(("cat", "cat.mp4", "dog", "deep/bird.webm", "bird", "a.b"))
    ]
    annotated = read_folder(table(folder, *rows))
    assert annotated.videos == {Path(name).stem: folder / name for name in NAMES}
    assert [s.vid for s in every(folder)].count("cat") == 2


def test_an_accent_may_be_spelled_in_two_ways(folder):
    (folder / "cafe\u0301.mp4").write_text("")
    assert read_folder(table(folder, ("caf\u00e9.mp4", 0, 4, "a cup"))).videos.keys() == {"caf\u00e9"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("2.5", 2.5), (" 3 ", 3), ("0:04", 4), ("00:00:04.5", 4.5), (".5", 0.5), ("0:2.", 2)],
)
def test_times_are_seconds_or_minutes_and_seconds(text, seconds, folder):
    (sample,) = every(table(folder, ("cat", text, "0:20", "a cat")))
    assert sample.relevant_windows == [[seconds, 20]]


@pytest.mark.parametrize(
    "text", ["", "1:75", "1:2:3:4", "2,5", "nan", "inf", "1e3", "4 s", "0:-1", "1:60", "60:", "１"]
)
def test_other_times_are_refused_by_name(text, folder):
    with pytest.raises(ValueError, match="moments.csv, line 2: end: is .*, not a time; write seconds as 62.5"):
        read_folder(table(folder, ("cat", "0", text, "a cat"))).check(DURATIONS, (), 2.0, "error")


def test_windows_of_one_query_are_merged_in_their_order(folder):
    rows = [("cat", 8, 10, "a  cat"), ("dog", 1, 2, "a cat"), ("cat.mp4", 2, 4, "a cat "), ("cat", 8, 10, "a cat")]
    windows = {(s.vid, s.query): s.relevant_windows for s in every(table(folder, *rows))}
    assert windows == {("cat", "a cat"): [[2, 4], [8, 10]], ("dog", "a cat"): [[1, 2]]}


def test_a_window_that_ends_less_than_a_clip_after_its_video_is_cut(folder):
    table(folder, ("bird", 4, 22, "a bird"))
    with pytest.warns(UserWarning, match="1 window ends after its video by less than a clip"):
        (sample,) = every(folder)
    assert sample.relevant_windows == [[4, 21.0]] and sample.duration == 21.0


def test_a_qid_stays_when_rows_come_and_go(folder):
    rows = [(name, 0, 4, f"query {i}") for name in ("cat", "dog") for i in range(3)]
    before = {(s.vid, s.query): s.qid for s in every(table(folder, *rows))}
    after = {(s.vid, s.query): s.qid for s in every(table(folder, ("bird", 0, 1, "new"), *rows[:0:-1]))}
    assert len(set(before.values())) == 6 and {key: before[key] for key in before.keys() & after.keys()} == {
        key: qid for key, qid in after.items() if key[1] != "new"
    }
    assert all(0 <= qid < 2**53 for qid in before.values())


def test_the_split_is_that_of_the_column_or_else_drawn_by_the_video(folder):
    header = "video,start,end,query,split"
    rows = [("cat", 0, 4, "a", "test"), ("dog", 0, 4, "b", "train"), ("cat", 4, 6, "a", "test")]
    splits = samples(table(folder, *rows, header=header))
    assert {k: [s.vid for s in v] for k, v in splits.items()} == {"test": ["cat"], "train": ["dog"]}
    assert splits["test"][0].extra == {} and splits["test"][0].relevant_windows == [[0, 4], [4, 6]]
    drawn = samples(table(folder, *[(name, 0, 4, "a") for name in ("cat", "dog")]))
    assert {split: len(of_split) for split, of_split in drawn.items()} == {"train": 1, "val": 1}


def test_a_video_in_two_splits_is_noted(folder):
    rows = [("cat", 0, 4, "a", "train"), ("cat", 4, 8, "b", "val"), ("dog", 0, 4, "b", "val")]
    table(folder, *rows, header="video,start,end,query,split")
    with pytest.warns(UserWarning, match="1 video in two splits, as cat in train and val; a model is then scored on"):
        assert {split: len(of_split) for split, of_split in samples(folder).items()} == {"train": 1, "val": 2}


def test_four_of_five_videos_are_drawn_for_training(tmp_path):
    names = [f"v{i}" for i in range(500)]
    for name in names:
        (tmp_path / f"{name}.mp4").write_text("")
    table(tmp_path, *[(name, 0, 4, "a") for name in names])
    splits = read_folder(tmp_path).samples(dict.fromkeys(names, 10.0), (), 2.0, "error")
    assert splits.keys() == {"train", "val"} and 370 < len(splits["train"]) < 430


def test_lines_in_the_schema_keep_their_labels_and_get_the_duration_of_the_file(folder):
    write_lines(folder / "highlight_train_release.jsonl", [line("q1", vid="cat", duration=19.0), line(2, vid="dog")])
    write_lines(folder / "val.jsonl", [{k: v for k, v in line(1, vid="a.b.mov").items() if k != "duration"}])
    splits = samples(folder)
    assert [s.qid for s in splits["train"]] == ["q1", 2] and [s.vid for s in splits["val"]] == ["a.b"]
    assert splits["train"][0].duration == 20.0 and splits["train"][0].saliency_scores == [[4, 3, 2], [1, 0, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vid": "cow"}, "line 2: vid: 'cow' is not in"),
        ({"qid": 1}, "line 2: qid: 1 is also on line 1; a qid comes once"),
        ({"query": None}, "line 2: query: is None"),
        ({"relevant_windows": [[4, 90]]}, r"line 2: relevant_windows: \[4, 90\] ends a clip or more after the video"),
        ({"vid": 7}, "line 2: vid: is 7, not str"),
        ({"vid": ["cat"]}, "line 2: vid: is ..cat.., not str"),
        ({"qid": "a/b"}, "line 2: qid: 'a/b' is not a plain name"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(change, message, folder):
    write_lines(folder / "train.jsonl", [windows_only(1, vid="cat"), windows_only(2, vid="dog", **{}) | change])
    with pytest.raises(ValueError, match=f"train.jsonl, {message}"):
        read_folder(folder).check(DURATIONS, (), 2.0, "error")


def test_a_line_that_names_no_video_is_refused_or_left_out(folder):
    write_lines(folder / "train.jsonl", [windows_only(1, vid="cat"), {"qid": 2, "query": "a dog"}])
    with pytest.raises(ValueError, match="train.jsonl, line 2: vid: is missing"):
        read_folder(folder).check(DURATIONS, (), 2.0, "error")
    with pytest.warns(UserWarning, match="leaves out 1 of 2 lines"):
        (kept,) = read_folder(folder).samples(DURATIONS, (), 2.0, "skip")["train"]
    assert kept.qid == 1


def test_annotation_files_must_be_clear(folder):
    with pytest.raises(FileNotFoundError, match="no annotations: a .csv file with the columns video,start,end,query"):
        read_folder(folder)
    write_lines(folder / "train.jsonl", [line(vid="cat")])
    write_lines(folder / "highlight_train_release.jsonl", [line(vid="cat")])
    with pytest.raises(ValueError, match="train.jsonl: annotations: highlight_train_release.jsonl is of the same"):
        read_folder(folder)
    table(folder, ("cat", 0, 4, "a cat"))
    with pytest.raises(ValueError, match="moments.csv, highlight_train_release.jsonl, train.jsonl are there, and only"):
        read_folder(folder)
    assert read_folder(folder, [folder / "moments.csv"]).videos.keys() == {"cat"}
    for name, message in (("cat.txt", "neither a .csv nor a .jsonl"), ("none.jsonl", "no such annotation file")):
        with pytest.raises(ValueError, match=message):
            read_folder(folder, [folder / name])
    write_lines(folder / "my file.jsonl", [line(vid="cat")])
    with pytest.raises(ValueError, match="my file.jsonl: split: is 'my file', not the name of a split"):
        read_folder(folder, [folder / "my file.jsonl"])


def test_two_files_of_one_name_are_refused_if_annotations_use_it(folder):
    (folder / "cat.avi").write_text("")
    assert read_folder(table(folder, ("dog", 0, 4, "a dog"))).videos.keys() == {"dog"}
    with pytest.raises(ValueError, match="cat.avi and .*cat.mp4 have one name, which their features would share"):
        read_folder(table(folder, ("dog", 0, 4, "a dog"), ("cat.mp4", 0, 4, "a cat")))


def test_a_name_that_no_file_of_features_can_have_is_refused(folder):
    (folder / "two\nlines.mp4").write_text("")
    with pytest.raises(ValueError, match=r"line 3: video: 'two\\nlines.mp4' is not a plain name: .*; rename the file"):
        read_folder(table(folder, ("two\nlines.mp4", 0, 4, "a cat"))).check(DURATIONS, (), 2.0, "error")
    (folder / 'it\'s "quoted".mp4').write_text("")
    assert len(read_folder(table(folder, ('it\'s "quoted"', 0, 4, 'a "cat", jumping'))).videos) == 1


def test_videos_that_failed_or_are_of_another_shard_are_not_looked_at(folder):
    annotated = read_folder(table(folder, ("cat", 0, 400, "a cat"), ("dog", 2, 4, "a dog")))
    annotated.check({"dog": 24.0}, (), 2.0, "error")
    annotated.check(DURATIONS, ["cat"], 2.0, "error")
    with pytest.raises(ValueError, match="line 2: start and end: .*ends a clip or more after the video, 20 s"):
        annotated.check(DURATIONS, (), 2.0, "error")
    (sample,) = [s for split in annotated.samples(DURATIONS, ["cat"], 2.0, "error").values() for s in split]
    assert sample.vid == "dog" and json.loads(json.dumps(sample.as_line())) == sample.as_line()


def test_sentences_are_listed_by_video(folder):
    annotated = read_folder(
        table(folder, ("cat", 0, 4, "a"), ("dog", 0, 4, "b"), ("cat", 5, 6, "c"), ("cat", 1, 2, "a"))
    )
    sentences = annotated.sentences()
    assert {vid: list(of.values()) for vid, of in sentences.items()} == {"cat": ["a", "c"], "dog": ["b"]}
