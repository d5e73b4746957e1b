"""Annotation files: the real ones load unchanged, every bad line is refused with its place and reason."""

import gzip
import json
import os
import tracemalloc
import warnings
from pathlib import Path

import pytest

from mrlib.data import annotations, load_annotations
from mrlib.data.annotations import shared_classes
from tests.support.files import labelled, line, windows_only, write_lines

REAL = [
    ("qvhighlights/highlight_train_release.jsonl", 2.0, 7218, 0),
    ("qvhighlights/highlight_val_release.jsonl", 2.0, 1550, 0),
    ("qvhighlights/highlight_test_release.jsonl", 2.0, 1542, 0),
    ("qvhighlights/highlight_test_with_gt.jsonl", 2.0, 1542, 0),
    ("charades_sta/charades_train_release.jsonl", 1.0, 12404, 0),
    ("charades_sta/charades_test_release.jsonl", 1.0, 3720, 0),
    ("activitynet_captions/activitynet_val_release.jsonl", 2.0, 17505, 5),
    ("tacos/tacos_train_release.jsonl", 2.0, 9790, 0),
    ("tacos/tacos_val_release.jsonl", 2.0, 4436, 0),
    ("tacos/tacos_test_release.jsonl", 2.0, 4001, 0),
]


@pytest.mark.parametrize(("name", "clip_s", "count", "clamped"), REAL)
def test_every_line_of_a_real_file_is_loaded_and_written_back_unchanged(name, clip_s, count, clamped):
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA names no folder with the real annotations")
    path = Path(os.environ["MRLIB_DATA"], name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_annotations(path, clip_s)
    raw = [json.loads(text) for text in path.read_text().splitlines()]
    assert len(samples) == count
    assert [f": {clamped} windows" in str(w.message) for w in caught] == [True] * bool(clamped)
    changed = [(a.as_line(), b) for a, b in zip(samples, raw, strict=True) if a.as_line() != b]
    assert len(changed) == clamped
    for loaded, original in changed:
        clamped_windows = [[s, min(e, loaded["duration"])] for s, e in original["relevant_windows"]]
        assert loaded["relevant_windows"] == clamped_windows


def test_fields_outside_the_schema_are_kept(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [line(7, wrong_spans=[[0, 2]], domain="BK")])
    (sample,) = load_annotations(path)
    assert sample.extra == {"wrong_spans": [[0, 2]], "domain": "BK"}
    assert sample.as_line() == line(7, wrong_spans=[[0, 2]], domain="BK")


def test_mined_windows_may_be_empty_or_missing_and_in_any_order(tmp_path):
    windows = [[], None, [[16, 18], [0, 2]]]
    path = write_lines(tmp_path / "a.jsonl", [line(i, wrong_spans=w) for i, w in enumerate(windows)])
    assert [s.extra for s in load_annotations(path)] == [{"wrong_spans": w} for w in windows]


def test_a_mined_window_that_ends_less_than_a_clip_after_the_video_is_accepted(tmp_path):
    """Without a warning, which is for annotators; its clips end with those of the video."""
    path = write_lines(tmp_path / "a.jsonl", [line(wrong_spans=[[16, 21]])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (sample,) = load_annotations(path)
    assert sample.extra == {"wrong_spans": [[16, 21]]} and sample.relevant_windows == [[4, 8]]


def test_a_gzipped_file_reads_as_the_plain_one_and_blank_lines_are_skipped(tmp_path):
    plain = write_lines(tmp_path / "a.jsonl", [line(1), "", line("two"), "  "])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_annotations(packed) == load_annotations(plain)
    assert [s.qid for s in load_annotations(plain)] == [1, "two"]


def test_a_line_without_annotation_gives_a_sample_without_annotation(tmp_path):
    bare = {"qid": 1, "query": "A dog", "duration": 20, "vid": "a"}
    (sample,) = load_annotations(write_lines(tmp_path / "a.jsonl", [bare]))
    assert sample.relevant_windows is sample.relevant_clip_ids is sample.saliency_scores is None
    assert sample.as_line() == bare


def test_an_empty_list_of_windows_is_a_null_query(tmp_path):
    """It is not the same as no list: the query was annotated, and nothing in the video answers it."""
    lines = [windows_only(1, relevant_windows=[]), line(2), windows_only(3, relevant_windows=None)]
    samples = load_annotations(write_lines(tmp_path / "a.jsonl", lines))
    assert [s.relevant_windows for s in samples] == [[], [[4, 8]], None]
    assert samples[0].as_line() == lines[0]


BAD = {
    "json cut off": ('{"qid": 1, "query"', "json"),
    "not utf-8": ('{"qid": "\udcff"}', "json"),
    "a list": ("[1, 2]", "json"),
    "nested too deep": ("[" * 100_000, "json"),
    "no qid": ({k: v for k, v in line().items() if k != "qid"}, "qid"),
    "qid a float": (line(1.5), "qid"),
    "qid a boolean": (line(True), "qid"),
    "qid a path": (line("../1"), "qid"),
    "no query": ({k: v for k, v in line().items() if k != "query"}, "query"),
    "query a list": (line(query=["a", "dog"]), "query"),
    "query empty": (line(query=""), "query"),
    "query without words": (line(query=" ... ?"), "query"),
    "duration a string": (line(duration="20"), "duration"),
    "duration zero": (line(duration=0), "duration"),
    "duration nan": (line(duration=float("nan")), "duration"),
    "duration infinite": (line(duration=float("inf")), "duration"),
    "duration beyond floats": (line(duration=10**400), "duration"),
    "vid a path": (line(vid="../../etc/x"), "vid"),
    "vid with a backslash": (line(vid="a\\b"), "vid"),
    "vid hidden": (line(vid=".a"), "vid"),
    "vid the parent": (line(vid=".."), "vid"),
    "vid empty": (line(vid=""), "vid"),
    "vid with nul": (line(vid="a\0b"), "vid"),
    "vid with a lone surrogate": (line(vid="a\ud800"), "vid"),
    "vid a number": (line(vid=3), "vid"),
    "windows not pairs": (line(relevant_windows=[[1, 2, 3]]), "relevant_windows"),
    "windows not numbers": (line(relevant_windows=[["1", 2]]), "relevant_windows"),
    "window nan": (line(relevant_windows=[[0, float("nan")]]), "relevant_windows"),
    "window ends before it starts": (line(relevant_windows=[[8, 4]]), "relevant_windows"),
    "window without length": (line(relevant_windows=[[4, 4]]), "relevant_windows"),
    "window before the video": (line(relevant_windows=[[-1, 4]]), "relevant_windows"),
    "window after the video": (line(relevant_windows=[[20, 21]]), "relevant_windows"),
    "window a clip past the end": (line(relevant_windows=[[4, 22]]), "relevant_windows"),
    "mined windows not a list": (line(wrong_spans="4-8"), "wrong_spans"),
    "mined window not a pair": (line(wrong_spans=[4, 8]), "wrong_spans"),
    "mined window not numbers": (line(wrong_spans=[["10", 14]]), "wrong_spans"),
    "mined window ends before it starts": (line(wrong_spans=[[10, 14], [18, 16]]), "wrong_spans"),
    "mined window before the video": (line(wrong_spans=[[-2, 2]]), "wrong_spans"),
    "mined window a clip past the end": (line(wrong_spans=[[10, 22]]), "wrong_spans"),
    "mined window after the video": (line(wrong_spans=[[20, 21]]), "wrong_spans"),
    "clips not integers": (line(relevant_clip_ids=[2.0, 3]), "relevant_clip_ids"),
    "clip outside": (line(relevant_clip_ids=[2, 10]), "relevant_clip_ids"),
    "clip negative": (line(relevant_clip_ids=[-1, 3]), "relevant_clip_ids"),
    "clip twice": (line(relevant_clip_ids=[3, 3]), "relevant_clip_ids"),
    "scores without clips": (line(relevant_clip_ids=None), "saliency_scores"),
    "scores fewer than clips": (line(saliency_scores=[[1, 1, 1]]), "saliency_scores"),
    "two annotators where others have three": (line(saliency_scores=[[1, 1], [1, 1]]), "saliency_scores"),
    "two and three annotators": (line(saliency_scores=[[1, 1], [1, 1, 1]]), "saliency_scores"),
    "no annotator": (line(saliency_scores=[[], []]), "saliency_scores"),
    "a score of five": (line(saliency_scores=[[1, 1, 5], [1, 1, 1]]), "saliency_scores"),
    "a score a float": (line(saliency_scores=[[1, 1, 0.5], [1, 1, 1]]), "saliency_scores"),
    "labels a number": (labelled(label=3), "label"),
    "labels a name": (labelled(label="BK"), "label"),
    "labels empty": (labelled(label=[]), "label"),
    "labels of a clip a number": (labelled(label=[[1, 2], 3]), "label"),
    "labels of a clip empty": (labelled(label=[[], []]), "label"),
    "labels of fewer annotators": (labelled(label=[[1, 2, 3], [1, 2]]), "label"),
    "a label of zero": (labelled(label=[[1, 2], [0, 2]]), "label"),
    "a label of six": (labelled(label=[[1, 2], [6, 2]]), "label"),
    "a label nan": (labelled(label=[[1, float("nan")]]), "label"),
    "a label a string": (labelled(label=[[1, "2"]]), "label"),
    "a label a boolean": (labelled(label=[[1, True]]), "label"),
    "a qid again": (line(0), "qid"),
    "a qid again as a string": (line("0"), "qid"),
}


@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD)
def test_a_bad_line_is_refused_with_file_line_and_field(bad, field, tmp_path):
    path = tmp_path / "bad.jsonl"
    texts = [x if isinstance(x, str) else json.dumps(x) for x in (line(0), bad, line(2))]
    path.write_text("\n".join(texts), errors="surrogateescape")
    with pytest.raises(ValueError) as error:
        load_annotations(path, bad="error")
    assert str(error.value).startswith(f"{path}, line 2: {field}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"qid": ' + b"9" * 5000 + b"}", "line 2: json: .*4300 digits.*; every line is one JSON object"),
        (b'{"query": "' + b"a" * 3_000_001, "line 2: unreadable: longer than 3000000 characters"),
        (b"\n" * 100_002 + b"{}", "line 100002: unreadable: more than 100000 blank lines in a row"),
        (b"\xef\xbb\xbf{", "line 2: json"),
        (b"\x00" * 10, "line 2: json"),
    ],
    ids=["digits", "a long line", "blank lines", "a mark", "zeros"],
)
def test_hostile_lines_are_named(text, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(line()).encode() + b"\n" + text)
    for bad in ("error", "clamp"):
        with pytest.raises(ValueError, match=rf"a\.jsonl, {message}"):
            load_annotations(path, bad=bad)


def test_a_compressed_line_is_refused_before_it_is_in_memory(tmp_path):
    """A small .gz file that decompresses to 256 MB."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(json.dumps(line()).encode() + b'\n{"query": "')
        for _ in range(256):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="line 2: unreadable: longer than 3000000 characters"):
        load_annotations(path, bad="skip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_file_of_bad_lines_is_given_up(tmp_path, monkeypatch):
    """A small .gz file may hold millions of them; the default mode reads the first, others a limited number."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(b"{}\n" * 100_000)
    for bad, message in (("error", "line 1: qid: is missing"), ("skip", "line 101: unreadable: more than 100 lines")):
        monkeypatch.setattr(annotations, "MOST_FATAL", 100)
        with pytest.raises(ValueError, match=message):
            load_annotations(path, bad=bad)


def test_two_lines_that_disagree_about_a_video_are_refused_in_either_order(tmp_path):
    for lines in ([line(1), line(2, duration=21)], [line(2, duration=21), line(1)]):
        with pytest.raises(ValueError, match="line 2: duration: is 2[01] s, but 2[01] s of the same video"):
            load_annotations(write_lines(tmp_path / "a.jsonl", lines), bad="error")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(content, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl: empty: no annotation"):
        load_annotations(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_annotations(tmp_path / "none.jsonl")


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(line()).encode() * 500)[:-20])
    with pytest.raises(ValueError, match="unreadable"):
        load_annotations(path)


def test_windows_that_end_less_than_a_clip_after_the_video_are_clamped_with_one_warning(tmp_path):
    windows = [[[4, 20.5], [1, 2]], [[0, 21.9]], [[0, 20]]]
    path = write_lines(tmp_path / "a.jsonl", [windows_only(i, relevant_windows=w) for i, w in enumerate(windows)])
    with pytest.warns(UserWarning, match="2 windows end after their video") as caught:
        samples = load_annotations(path, bad="error")
    assert len(caught) == 1
    assert [s.relevant_windows for s in samples] == [[[4, 20.0], [1, 2]], [[0, 20.0]], [[0, 20]]]
    with pytest.raises(ValueError, match="line 2: relevant_windows"):
        load_annotations(path, clip_s=1.0, bad="error")


def test_labels_of_clips_are_kept_unchanged(tmp_path):
    """[TVSum] They may be fractions, and there may be any number of annotators."""
    released = labelled("a_1", clips=3, label=[[1.0, 5], [2.5, 3], [4, 4]])
    (sample,) = load_annotations(write_lines(tmp_path / "a.jsonl", [released]))
    assert (sample.relevant_windows, sample.relevant_clip_ids) == (None, None)
    assert sample.extra == {"label": [[1.0, 5], [2.5, 3], [4, 4]], "domain": "BK"}


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(66, 132), (65, 130), (67, 132), (132, 132), (131.5, 131.5), (140, 132), (69, 132), (70, 70)],
)
def test_a_duration_that_counts_clips_becomes_seconds_and_ends_with_the_last_label(duration, seconds, tmp_path):
    """[TVSum] The first released line has 66 labels of 2 s clips and the duration 66."""
    path = write_lines(tmp_path / "a.jsonl", [labelled(clips=66, duration=duration)])
    (sample,) = load_annotations(path)
    assert sample.duration == seconds
    assert load_annotations(write_lines(path, [sample.as_line()])) == [sample]


def test_a_label_beside_windows_or_with_a_video_query_is_the_name_of_a_class(tmp_path):
    (sample,) = load_annotations(write_lines(tmp_path / "a.jsonl", [line(label="Archery", duration=20)]))
    assert (sample.extra, sample.duration) == ({"label": "Archery"}, 20)
    bare = windows_only(label="Archery", relevant_windows=None)
    (sample,) = load_annotations(write_lines(tmp_path / "b.jsonl", [bare]), words=False)
    assert sample.extra == {"label": "Archery"}


def test_a_video_query_needs_no_words_and_may_search_many_videos(tmp_path):
    lines = [windows_only("x_5_1", vid="a"), windows_only("x_5_1", vid="b", query="")]
    del lines[0]["query"]
    path = write_lines(tmp_path / "a.jsonl", lines)
    samples = load_annotations(path, words=False)
    assert [(s.qid, s.vid, s.query) for s in samples] == [("x_5_1", "a", ""), ("x_5_1", "b", "")]
    with pytest.raises(ValueError, match="line 1: query"):
        load_annotations(path)
    with pytest.raises(ValueError, match="line 3: qid"):
        load_annotations(write_lines(path, [*lines, lines[0]]), words=False)


def test_classes_that_two_splits_share_are_listed_up_to_five():
    classes = {Path("train.csv"): set(range(7)), Path("val.csv"): {1, 2, 3, 4, 5, 6}, Path("test.csv"): {0, 8}}
    problems = shared_classes("label", classes)
    assert [(p.file, p.kind, p.message.partition(";")[0]) for p in problems] == [
        ("train.csv", "label", "1, 2, 3, 4, 5 and 1 more also in val.csv"),
        ("train.csv", "label", "0 also in test.csv"),
        ("val.csv", "label", "1, 2, 3, 4, 5 and 1 more also in train.csv"),
        ("test.csv", "label", "0 also in train.csv"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "a gzip file"),
    ],
)
def test_a_download_that_is_something_else_is_called_so(name, content, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: download: is {kind}, not .*download it again"):
        load_annotations(tmp_path / name)
