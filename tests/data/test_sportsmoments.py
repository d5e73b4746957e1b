"""SportsMoments from small CSV files in the published form."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mrlib import open_dataset
from mrlib.data.check import check
from mrlib.data.sportsmoments import CLASSES, read_csv
from tests.support.files import random, save_npz, write_lines

COLUMNS = "query_id,reference_id,reference_segment_start,reference_segment_end,action_class,reference_duration"
ROW = "q__1_5.mp4,r__1_7.mp4,4.2,8,1,20"


def write(path: Path, *rows: str, columns: str = COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{row}\n" for row in (columns, *rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_features(root: Path, *names: str) -> None:
    """Write every clip as a target of ten rows and as a query of two."""
    for i, name in enumerate(names):
        save_npz(root / f"target_vid_clip/{name}.npz", features=random(i, 10, 4))
        save_npz(root / f"query_vid_clip/qid{name}.npz", last_hidden_state=random(100 + i, 2, 4))


def read(path: Path):
    lines = list(read_csv(path))
    return [s for _, s, _ in lines if s is not None], [p for *_, problems in lines for p in problems]


def test_a_row_is_a_pair_of_clips_named_without_mp4(tmp_path):
    (sample,), problems = read(write(tmp_path / "val.csv", ROW))
    assert problems == []
    assert (sample.qid, sample.vid, sample.duration, sample.query) == ("q__1_5", "r__1_7", 20.0, "")
    assert sample.relevant_windows == [[4.2, 8]]
    assert sample.extra == {"action_class": 1, "action": "lbw"}


def test_there_are_sixteen_classes_of_cricket_and_thirteen_of_soccer():
    assert sorted(CLASSES) == list(range(1, 30)) and len(set(CLASSES.values())) == 29
    assert [CLASSES[i] for i in (3, 15, 16, 22)] == ["cover drive", "pull shot", "throw", "goal"]


@pytest.mark.parametrize("name", ["val.csv", "sportsmoments_val.csv", "val.csv.gz"])
def test_a_query_may_search_two_videos(name, tmp_path):
    write(tmp_path / name, ROW, "q__1_5.mp4,s__1_8.mp4,2,6,1,20", "r__1_7.mp4,s__1_8.mp4,2,6,1,20")
    write(tmp_path / "vids.csv", "no annotations")
    write_features(tmp_path, "q__1_5", "r__1_7", "s__1_8")
    opened = open_dataset("sportsmoments", tmp_path, "val")
    assert (len(opened), opened.video.tolist(), opened.query_item.tolist()) == (3, [0, 1, 1], [0, 0, 1])
    batch = opened.batch([1])
    rows = np.load(tmp_path / "target_vid_clip/s__1_8.npz")["features"]
    np.testing.assert_allclose(batch.target[0], rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(batch.labels.spans[0], [[0.1, 0.3]], atol=1e-6)


def test_a_jsonl_file_is_read_before_a_csv_file(tmp_path):
    write(tmp_path / "val.csv", ROW)
    line = {"qid": "a", "vid": "b", "duration": 20, "relevant_windows": [[2, 4]]}
    write_lines(tmp_path / "sportsmoments_val.jsonl", [line])
    write_features(tmp_path, "a", "b")
    assert [s.qid for s in open_dataset("sportsmoments", tmp_path, "val").samples] == ["a"]


def test_a_moment_that_ends_less_than_a_clip_after_the_video_is_clamped_with_one_warning(tmp_path):
    write(tmp_path / "val.csv", "q.mp4,r.mp4,4,21.9,1,20", ROW)
    write_features(tmp_path, "q", "r", "q__1_5", "r__1_7")
    with pytest.warns(UserWarning, match="1 window ends after its video") as caught:
        opened = open_dataset("sportsmoments", tmp_path, "val")
    assert len(caught) == 1 and opened.samples[0].relevant_windows == [[4, 20.0]]
    (note,) = check("sportsmoments", tmp_path)
    assert (note.line, note.kind, note.fatal) == (2, "reference_segment_start and reference_segment_end", False)


def test_a_repeated_row_is_read_once(tmp_path):
    samples, (note,) = read(write(tmp_path / "val.csv", ROW, "q.mp4,r.mp4,4,8,1,20", ROW, ROW))
    assert [s.qid for s in samples] == ["q__1_5", "q"]
    assert not note.fatal and note.message == "2 rows repeat an earlier one, the first on line 4; each is read once"


SEGMENT = "reference_segment_start and reference_segment_end"
BAD = {
    "a query that is a path": ("../q.mp4,r.mp4,4,8,1,20", "query_id"),
    "no query": (",r.mp4,4,8,1,20", "query_id"),
    "no reference": ("q.mp4,.mp4,4,8,1,20", "reference_id"),
    "no duration": ("q.mp4,r.mp4,4,8,1,", "reference_duration"),
    "duration 0": ("q.mp4,r.mp4,4,8,1,0", "reference_duration"),
    "duration not a number": ("q.mp4,r.mp4,4,8,1,nan", "reference_duration"),
    "duration with an underscore": ("q.mp4,r.mp4,4,8,1,2_0", "reference_duration"),
    "start a word": ("q.mp4,r.mp4,x,8,1,20", SEGMENT),
    "end before start": ("q.mp4,r.mp4,8,4,1,20", SEGMENT),
    "end a clip after the video": ("q.mp4,r.mp4,4,22,1,20", SEGMENT),
    "end infinite": ("q.mp4,r.mp4,4,inf,1,20", SEGMENT),
    "class unknown": ("q.mp4,r.mp4,4,8,30,20", "action_class"),
    "class a word": ("q.mp4,r.mp4,4,8,goal,20", "action_class"),
    "class a fraction": ("q.mp4,r.mp4,4,8,1.5,20", "action_class"),
    "five fields": ("q.mp4,r.mp4,4,8,1", "row"),
    "seven fields": ("q.mp4,r.mp4,4,8,1,20,3", "row"),
    "the pair with another moment": ("q__1_5.mp4,r__1_7.mp4,5,8,1,20", "query_id"),
}


@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_with_file_line_and_field(bad, field, tmp_path):
    path = write(tmp_path / "val.csv", ROW, bad, "q2.mp4,r2.mp4,4,8,1,20")
    samples, problems = read(path)
    assert [str(p).startswith(f"{path}, line 3: {field}: ") and p.fatal for p in problems] == [True]
    assert [s.qid for s in samples] == ["q__1_5", "q2"]
    with pytest.raises(ValueError, match=rf"val\.csv, line 3: {field}: "):
        open_dataset("sportsmoments", tmp_path, "val")
    assert problems[0] in check("sportsmoments", tmp_path)


def test_a_missing_column_is_named_with_the_needed_columns(tmp_path):
    path = write(tmp_path / "val.csv", ROW, columns=COLUMNS.replace("query_id", "qid"))
    samples, (problem,) = read(path)
    assert samples == [] and str(problem).startswith(f"{path}, line 1: query_id: no such column; needed are query_id, ")


@pytest.mark.parametrize("content", [b"", COLUMNS.encode()])
def test_a_file_without_rows_is_refused(content, tmp_path):
    (tmp_path / "val.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"val\.csv"):
        open_dataset("sportsmoments", tmp_path, "val")


@pytest.mark.parametrize("text", [b"\xff\xfe", b'"q', b"q\x00,r"])
def test_a_file_that_is_not_csv_is_reported(text, tmp_path):
    path = tmp_path / "val.csv"
    path.write_bytes(f"{COLUMNS}\n{ROW}\n".encode() + text)
    assert [p.kind for p in read(path)[1]][-1] in ("unreadable", "row")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("val.csv", b"<!DOCTYPE html><html>", "is a web page, not the file of that name; download it again"),
        ("val.csv.gz", gzip.compress(b"<html>"), "is a web page, not the file of that name; download it again"),
        ("val.csv", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        ("val.csv", gzip.compress(b"a"), "is a gzip file, not the file of that name; rename it to val.csv.gz, or"),
        (
            "val.csv.gz",
            COLUMNS.encode(),
            "is a text that begins with 'query_id,reference_id,reference_segme...', not a",
        ),
    ],
)
def test_a_download_that_is_something_else_is_called_so(name, content, problem, tmp_path):
    (tmp_path / name).write_bytes(content)
    samples, (found,) = read(tmp_path / name)
    assert samples == [] and str(found).startswith(f"{tmp_path / name}: download: {problem}")


def test_a_truncated_gzip_file_is_reported(tmp_path):
    path = write(tmp_path / "val.csv.gz", *(f"q{i}.mp4,r.mp4,4,8,1,20" for i in range(99)))
    path.write_bytes(path.read_bytes()[:-20])
    assert [p.kind for p in read(path)[1]] == ["unreadable"]


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html><html>"])
def test_a_file_that_is_something_else_is_called_so(content, tmp_path):
    (tmp_path / "train.csv").write_bytes(content)
    ((_, _, problems),) = read_csv(tmp_path / "train.csv")
    assert problems[0].kind == "download" and "download it again" in problems[0].message


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(f"{COLUMNS}\n{ROW}\n", encoding="utf-8-sig")
    assert len(read(path)[0]) == 1


def test_bad_rows_are_clamped_or_left_out(tmp_path):
    rows = [ROW, "q.mp4,r.mp4,4,90,1,20", "q2.mp4,r.mp4,5,5,1,20", "q3.mp4,r.mp4,9,3,1,20"]
    write(tmp_path / "val.csv", *rows)
    write_features(tmp_path, "q__1_5", "r__1_7", "q", "q2", "r")
    with pytest.warns(UserWarning, match='bad="skip" leaves out 3 of 4 lines: 3 for reference_segment_start and'):
        assert len(open_dataset("sportsmoments", tmp_path, "val", bad="skip")) == 1
    with pytest.raises(ValueError, match=r'line 5: reference_segment_start.* ends before it starts.*bad="skip" leaves'):
        open_dataset("sportsmoments", tmp_path, "val", bad="clamp")
    write(tmp_path / "val.csv", *rows[:3])
    with pytest.warns(UserWarning, match="1 window ends after .*, 1 window has no length"):
        opened = open_dataset("sportsmoments", tmp_path, "val", bad="clamp")
    assert [s.relevant_windows for s in opened.samples] == [[[4.2, 8]], [[4, 20]], [[4, 6]]]


def test_a_row_without_end_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "val.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{COLUMNS}\n\n{ROW}\n".encode())
        for _ in range(256):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    _, (problem,) = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6 and (problem.kind, problem.line) == ("unreadable", 4)


def test_check_lists_classes_in_two_splits(tmp_path):
    write(tmp_path / "train.csv", ROW, "q.mp4,r.mp4,4,8,2,20", "q3.mp4,r.mp4,4,8,3,20")
    write(tmp_path / "val.csv", ROW, "q.mp4,r.mp4,4,8,3,20", "q2.mp4,r.mp4,4,8,4,20")
    shared = [str(p) for p in check("sportsmoments", tmp_path) if p.kind == "action_class" and not p.fatal]
    assert shared == [
        f"{tmp_path}/train.csv: action_class: 1, 3 also in val.csv; no two splits share a class",
        f"{tmp_path}/val.csv: action_class: 1, 3 also in train.csv; no two splits share a class",
    ]


def test_check_names_the_line_that_needs_a_feature(tmp_path):
    write(tmp_path / "val.csv", ROW, "q__1_5.mp4,s__1_8.mp4,2,6,1,20")
    write_features(tmp_path, "q__1_5", "r__1_7", "s__1_8")
    assert check("sportsmoments", tmp_path) == []
    (tmp_path / "target_vid_clip/s__1_8.npz").unlink()
    (problem,) = check("sportsmoments", tmp_path)
    assert "s__1_8.npz: missing file" in str(problem) and "needed by line 3 of val.csv" in str(problem)
