"""Queries of Ego4D from a small file in the published form, worked out by hand."""

import json

import pytest

from mrlib.data import open_dataset
from mrlib.data.check import check
from mrlib.data.ego4d import read_nlq
from tests.support.files import random, save_npz


def query(text="Where is the dog?", start=10.0, end=12.5, **fields):
    return {"query": text, "clip_start_sec": start, "clip_end_sec": end, "template": "Place: Where is X?", **fields}


def clip(uid="c0", *annotations, start=100.0, end=130.0, **fields):
    queries = [{"annotation_uid": uid, "language_queries": each} for uid, each in annotations]
    return {"clip_uid": uid, "video_start_sec": start, "video_end_sec": end, "annotations": queries} | fields


def publish(root, *clips, name="nlq_val.json"):
    document = {"version": "v2", "split": "val", "videos": [{"video_uid": "v0", "split": "val", "clips": list(clips)}]}
    (root / name).write_text(json.dumps(document))
    return root / name


def read(file, **options):
    lines = list(read_nlq(file, **options))
    return [s for _, s, _ in lines if s is not None], [p for *_, problems in lines for p in problems]


def test_a_query_is_searched_in_its_clip(tmp_path):
    file = publish(
        tmp_path, clip("c0", ("a", [query(), query("What?", 0, 1)])), clip("c1", ("b", [query()]), end=400.5)
    )
    samples, problems = read(file)
    assert problems == [] and [s.qid for s in samples] == ["a_0", "a_1", "b_0"]
    assert [(s.vid, s.duration) for s in samples] == [("c0", 30.0), ("c0", 30.0), ("c1", 300.5)]
    first = samples[0]
    assert (first.query, first.relevant_windows) == ("Where is the dog?", [[10.0, 12.5]])
    facts = {"video_uid": "v0", "annotation_uid": "a", "query_idx": 0, "template": "Place: Where is X?"}
    assert first.extra == facts


def test_a_query_without_text_is_left_out_with_a_note(tmp_path):
    """Numbers of the others stay those of the file."""
    nothing = [query(None), query(""), query("  "), {"clip_start_sec": 1.0, "clip_end_sec": 2.0}]
    samples, (note,) = read(publish(tmp_path, clip("c0", ("a", [*nothing, query()]))))
    assert [s.qid for s in samples] == ["a_4"] and not note.fatal
    assert note.message == "4 queries without text are left out, the first is item 0"
    _, (problem,) = read(publish(tmp_path, clip("c0", ("a", nothing))))
    assert problem.fatal


def test_the_unannotated_test_split_has_no_windows(tmp_path):
    bare = {"query": "Where?", "template": None}
    (sample,), problems = read(publish(tmp_path, clip("c0", ("a", [bare])), name="nlq_test_unannotated.json"))
    assert problems == [] and sample.relevant_windows is None


def test_times_of_the_clip_stand_in_for_those_of_the_video(tmp_path):
    cut = {k: v for k, v in clip("c0", ("a", [query()])).items() if not k.startswith("video")}
    (sample,), _ = read(publish(tmp_path, cut | {"clip_start_sec": 0, "clip_end_sec": 480}))
    assert sample.duration == 480


def test_windows_of_no_length_follow_the_mode(tmp_path):
    publish(tmp_path, clip("c0", ("a", [query(), query(start=41.5 - 31.5, end=10.0), query(end=31)])))
    save_npz(tmp_path / "vid_clip/c0.npz", features=random(0, 15, 4))
    for i in range(3):
        save_npz(tmp_path / f"txt_clip/a_{i}.npz", last_hidden_state=random(i, 5, 4))
    options = {"layout": "univtg", "streams": "clip"}
    with pytest.raises(ValueError, match=r"nlq_val\.json, item 1: clip_start_sec and clip_end_sec: .* has no length"):
        open_dataset("ego4d_nlq", tmp_path, "val", **options)
    with pytest.warns(UserWarning, match="leaves out 1 of 3 items"):
        assert len(open_dataset("ego4d_nlq", tmp_path, "val", bad="skip", **options)) == 2
    with pytest.warns(UserWarning, match="1 window has no length"):
        clamped = open_dataset("ego4d_nlq", tmp_path, "val", bad="clamp", **options)
    assert [s.relevant_windows for s in clamped.samples] == [[[10.0, 12.5]], [[10.0, 12.0]], [[10.0, 30.0]]]
    assert [p.line for p in check("ego4d_nlq", tmp_path, **options) if p.fatal] == [1]


TIMES = "clip_start_sec and clip_end_sec"
BAD = {
    "no videos": ({"version": "v2"}, None, "videos"),
    "videos as a dict": ({"videos": {}}, None, "videos"),
    "a video as text": ({"videos": ["v"]}, None, "clips"),
    "clips missing": ({"videos": [{"video_uid": "v"}]}, None, "clips"),
    "annotations null": ({"videos": [{"clips": [clip() | {"annotations": None}]}]}, None, "annotations"),
    "queries missing": ({"videos": [{"clips": [clip("c", ("a", None))]}]}, None, "language_queries"),
    "a query as a number": ({"videos": [{"clips": [clip("c", ("a", [3]))]}]}, 0, "language_queries"),
    "no id": ({"videos": [{"clips": [clip("c", (None, [query()]))]}]}, 0, "annotation_uid"),
    "an id twice": ({"videos": [{"clips": [clip("c", ("a", [query()]), ("a", [query()]))]}]}, 1, "annotation_uid"),
    "no clip": ({"videos": [{"clips": [clip(None, ("a", [query()]))]}]}, 0, "clip_uid"),
    "a path": ({"videos": [{"clips": [clip("../c", ("a", [query()]))]}]}, 0, "clip_uid"),
    "no times": ({"videos": [{"clips": [clip("c", ("a", [query()]), end=None)]}]}, 0, "duration"),
    "times as text": ({"videos": [{"clips": [clip("c", ("a", [query()]), end="130")]}]}, 0, "duration"),
    "an end alone": ({"videos": [{"clips": [clip("c", ("a", [query(start=None)]))]}]}, 0, TIMES),
    "a query that is no text": ({"videos": [{"clips": [clip("c", ("a", [query(3)]))]}]}, 0, "query"),
    "no query": ({"videos": []}, None, "empty"),
}


@pytest.mark.parametrize(("document", "item", "field"), BAD.values(), ids=BAD)
def test_a_malformed_file_is_named_with_item_and_field(document, item, field, tmp_path):
    (tmp_path / "nlq_val.json").write_text(json.dumps(document))
    problem = read(tmp_path / "nlq_val.json")[1][-1]
    assert (problem.line, problem.kind, problem.fatal) == (item, field, True)
    with pytest.raises(ValueError, match=r"nlq_val\.json"):
        open_dataset("ego4d_nlq", tmp_path, "val", layout="univtg")
