"""`python -m mrlib.data.check` lists every problem of a dataset with its file and line."""

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from mrlib.data import open_dataset
from mrlib.data.check import check, main
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


def places(problems):
    """The file name, line and kind of each problem."""
    return [(p.file.rsplit("/", 1)[-1], p.line, p.kind) for p in problems]


def test_a_valid_dataset_has_no_problems(tmp_path, capsys):
    root = moment_detr(tmp_path)
    assert check("qvhighlights", root) == []
    assert main(["qvhighlights", str(root)]) == 0
    assert [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()] == [
        "val annotations 3 of 3 read",
        "val slowfast 2 of 2 read, 10 to 10 rows of 6",
        "val clip 2 of 2 read, 10 to 10 rows of 4",
        "val query 3 of 3 read, 5 to 5 rows of 5",
        "0 problems",
    ]


def test_every_problem_is_listed_at_once_with_its_file_and_line(tmp_path, capsys):
    root = moment_detr(tmp_path, [line(i, vid=f"v{i}") for i in range(9)])
    annotations = root / "highlight_val_release.jsonl"
    lines = annotations.read_text().splitlines()
    bad = [
        line(20, vid="../../etc/x"),
        line(21, vid="v0", relevant_windows=[[8, 4]]),
        line(22, vid="v0", relevant_windows=[[4, 60]]),
        line(23, vid="v0", query="?!"),
        line(0, vid="v0"),
        "{",
        line(8, vid="v8", duration=8, relevant_windows=[[2, 9.5]]),
    ]
    write_lines(annotations, [*lines[:8], *bad])
    video = root / "clip_features/v0.npz"
    video.write_bytes(video.read_bytes()[:-40])
    save_npz(root / "clip_features/v1.npz", feats=random(0, 10, 4))
    save_npz(root / "clip_features/v2.npz", features=np.full((10, 4), np.nan))
    save_npz(root / "clip_features/v3.npz", features=random(0, 10, 3))
    (root / "clip_features/v4.npz").unlink()
    save_npz(root / "clip_features/v5.npz", features=random(0, 5, 4))
    (root / "clip_text_features/qid6.npz").unlink()
    save_npz(root / "clip_text_features/qid7.npz", last_hidden_state=random(0, 5, 5))
    name = annotations.name
    problems = check("qvhighlights", root)
    assert places(problems) == [
        (name, 9, "vid"),
        (name, 10, "relevant_windows"),
        (name, 11, "relevant_windows"),
        (name, 12, "query"),
        (name, 13, "qid"),
        (name, 14, "json"),
        (name, 15, "relevant_windows"),
        ("v0.npz", None, "unreadable"),
        ("v1.npz", None, "missing key"),
        ("v2.npz", None, "nan"),
        ("v4.npz", None, "missing file"),
        ("v5.npz", None, "length"),
        ("v8.npz", None, "length"),
        ("qid6.npz", None, "missing file"),
        ("qid7.npz", None, "missing key"),
        ("v3.npz", None, "shape"),
    ]
    assert "needed by line 5 of highlight_val_release.jsonl" in str(problems[10])
    assert main(["qvhighlights", str(root)]) == 1
    out = capsys.readouterr().out
    assert all(str(problem) in out for problem in problems)
    assert out.splitlines()[-1] == "15 problems, 1 notes"


def test_a_problem_that_is_not_fatal_is_a_note(tmp_path, capsys):
    root = moment_detr(tmp_path, [windows_only(relevant_windows=[[4, 20.5]])])
    (note,) = check("qvhighlights", root)
    assert (note.line, note.kind, note.fatal) == (1, "relevant_windows", False)
    assert main(["qvhighlights", str(root)]) == 0
    assert "0 problems, 1 notes" in capsys.readouterr().out


def test_an_empty_or_missing_annotation_file_is_a_problem(tmp_path):
    root = moment_detr(tmp_path)
    (root / "highlight_val_release.jsonl").write_text("")
    assert places(check("qvhighlights", root)) == [("highlight_val_release.jsonl", None, "empty")]
    (root / "highlight_val_release.jsonl").unlink()
    (problem,) = check("qvhighlights", root)
    assert "_with_neg_spans.jsonl or highlight_{split}_with_gt.jsonl or highlight_{split}_release.jsonl" in str(problem)


def test_a_missing_stream_is_listed_once_and_the_others_are_read(tmp_path):
    root = moment_detr(tmp_path)
    write_lines(root / "highlight_train_release.jsonl", [line()])
    for file in (root / "slowfast_features").iterdir():
        file.unlink()
    (root / "clip_features/video_b.npz").unlink()
    problems = check("qvhighlights", root)
    assert places(problems) == [(root.name, None, "missing file"), ("video_b.npz", None, "missing file")]
    assert "no slowfast_features/{vid}.npz:features or slowfast/" in problems[0].message


def test_annotations_are_checked_without_features(tmp_path):
    write_lines(tmp_path / "highlight_val_release.jsonl", [line(), line()])
    assert places(check("qvhighlights", tmp_path)) == [
        (tmp_path.name, None, "missing file"),
        ("highlight_val_release.jsonl", 2, "qid"),
    ]


def test_files_of_another_width_than_most_are_problems(tmp_path):
    root = moment_detr(tmp_path, [line(i, vid=f"v{i}") for i in range(4)])
    save_npz(root / "clip_features/v0.npz", features=random(0, 10, 3))
    save_npz(root / "clip_text_features/qid0.npz", last_hidden_state=random(0, 5, 2), pooler_output=random(0, 3))
    assert places(check("qvhighlights", root)) == [
        ("v0.npz", None, "shape"),
        ("qid0.npz", None, "shape"),
        ("qid0.npz", None, "shape"),
    ]


def test_sentences_of_another_width_than_the_joint_stream_are_problems(tmp_path):
    root = moment_detr(tmp_path)
    for qid in (1, 2, 3):
        save_npz(
            root / f"clip_text_features/qid{qid}.npz", last_hidden_state=random(0, 5, 5), pooler_output=random(0, 3)
        )
    problems = check("qvhighlights", root)
    assert places(problems) == [(f"qid{qid}.npz", None, "shape") for qid in (1, 2, 3)]
    assert "vectors of width 3 where others have 4" in problems[0].message


def test_files_of_other_layouts_are_checked(tmp_path):
    write_lines(tmp_path / "highlight_val_release.jsonl", [line(1), line(2)])
    save_npz(tmp_path / "slowfast_features/video_a.npz", features=random(0, 10, 6))
    save_npy(tmp_path / "clip_b32_vid_k4/video_a.npy", random(0, 10, 3, 4))
    save_npy(tmp_path / "clip_b32_txt_k4/1.npy", np.array([{}], object), allow_pickle=True)
    save_npy(tmp_path / "clip_b32_txt_k4/2.npy", random(0, 5, 4, 2))
    assert places(check("qvhighlights", tmp_path)) == [("video_a.npy", None, "shape"), ("1.npy", None, "pickled")]


def test_tvsum_is_checked_as_released(tmp_path, capsys):
    """The duration counts labels, and there is a row for each. A bad label and rows at another rate are problems."""
    root = tvsum(tmp_path, [labelled(f"q{i}", vid=f"v{i}", clips=40) for i in range(3)])
    assert check("tvsum", root) == []
    assert main(["tvsum", str(root)]) == 0
    assert "val i3d 3 of 3 read, 40 to 40 rows of 7" in " ".join(capsys.readouterr().out.split())
    bad = [labelled(f"q{i}", vid=f"v{i}", clips=40) for i in range(3)]
    bad[1]["label"][7] = [6] * 20
    write_lines(tmp_path / "tvsum_val_release.jsonl", bad)
    for part in ("rgb", "opt"):
        save_npy(root / "i3d" / f"v2_{part}.npy", random(0, 20, 4 if part == "rgb" else 3))
    problems = check("tvsum", root)
    assert places(problems) == [("tvsum_val_release.jsonl", 2, "label"), ("v2_rgb.npy", None, "length")]
    assert "clip 7 has [6, 6" in problems[0].message


def test_a_video_that_an_hdf5_file_lacks_is_a_problem(tmp_path):
    write_lines(tmp_path / "charades_val_release.jsonl", [windows_only(1), windows_only(2, vid="b")])
    save_hdf5(tmp_path / "vgg_rgb_features.hdf5", {"video_a": random(0, 9, 3)})
    (tmp_path / "glove.txt").write_text("a 1 2\ndog 1 2\nruns 0 1\n")
    (problem,) = check("charades_sta", tmp_path)
    assert problem.kind == "missing key"
    assert "no array 'b'" in problem.message


def test_pairs_of_videos_are_checked_pair_by_pair(tmp_path, capsys):
    """A query may search in two videos, but a pair occurs once. A file that two lines need is read once."""
    lines = [windows_only(qid, vid=vid) for qid, vid in (("x", "a"), ("x", "b"), ("y", "a"), ("x", "b"))]
    write_lines(tmp_path / "activitynet_vrl_val.jsonl", lines)
    for vid in "ab":
        save_npz(tmp_path / f"vid_clip/{vid}.npz", features=random(0, 10, 4))
    save_npz(tmp_path / "vid_clip_query/qidx.npz", last_hidden_state=random(1, 3, 4))
    problems = check("activitynet_vrl", tmp_path)
    assert places(problems) == [("activitynet_vrl_val.jsonl", 4, "qid"), ("qidy.npz", None, "missing file")]
    assert "a pair of qid and vid comes once" in str(problems[0])
    assert "needed by line 3 of activitynet_vrl_val.jsonl" in str(problems[1])
    assert main(["activitynet_vrl", str(tmp_path)]) == 1
    assert [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()][:3] == [
        "val annotations 3 of 4 read",
        "val clip 2 of 2 read, 10 to 10 rows of 4",
        "val query 1 of 2 read, 3 to 3 rows of 4",
    ]


def test_missing_annotations_are_listed_with_every_name_that_they_may_have(tmp_path):
    problems = check("sportsmoments", tmp_path)
    expected = "no annotations, sportsmoments_{split}.jsonl or sportsmoments_{split}.csv or {split}.csv"
    assert expected in [problem.message for problem in problems]


def test_one_of_several_layouts_can_be_named(tmp_path):
    root = moment_detr(tmp_path)
    for i, clips in ((1, 10), (2, 10), (3, 10)):
        save_npz(root / f"txt_clip/{i}.npz", last_hidden_state=random(i, clips, 5))
    save_npz(root / "vid_clip/video_a.npz", features=random(0, 10, 4))
    assert places(check("qvhighlights", root)) == [(root.name, None, "ambiguous")]
    assert check("qvhighlights", root, layout="moment_detr") == []


def test_names_that_no_encoding_has_are_printed_escaped(tmp_path, capsys):
    """A folder whose name is no UTF-8, and a class that is half a character."""
    root = tmp_path / "data\udcff"
    root.mkdir()
    for split in ("train", "val"):
        rows = [windows_only(split, label="a\ud800")]
        write_lines(root / f"activitynet_vrl_{split}.jsonl", rows)
    assert main(["activitynet_vrl", str(root)]) == 1
    out = capsys.readouterr().out
    assert "data\\udcff/activitynet_vrl_train.jsonl: label: a\\ud800 also in" in out


def opens(root, **options):
    """Whether the validation split opens, with the annotations that it has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(open_dataset("qvhighlights", root, "val", **options))
    except ValueError:
        return False


SETS = {
    "sound": [line(1), line(2)],
    "one line without windows": [line(1), line(2), windows_only(3, relevant_windows=None)],
    "no windows at all": [windows_only(i, relevant_windows=None) for i in range(2)],
    "labels among windows": [line(1), labelled(2, vid="b")],
    "labels and nothing": [labelled(1, vid="a"), windows_only(2, relevant_windows=None)],
    "a null query": [line(1), windows_only(2, relevant_windows=[])],
    "saliency in some lines": [line(1), windows_only(2)],
    "one annotator and three": [line(1), line(2, saliency_scores=[[4], [1]])],
    "one annotator": [line(1, saliency_scores=[[4], [1]])],
    "two durations": [line(1), line(2, duration=19)],
    "two durations, the other first": [line(2, duration=19), line(1)],
    "a clip in the shorter last one": [line(1, duration=21, relevant_clip_ids=[2, 10])],
    "a clip after the last": [line(1, duration=21, relevant_clip_ids=[2, 11])],
    "a window of no length": [line(1), windows_only(2, relevant_windows=[[4, 4]])],
    "a window far behind the video": [line(1), windows_only(2, relevant_windows=[[4, 90]])],
    "a window that ends before it starts": [line(1), windows_only(2, relevant_windows=[[8, 4]])],
    "a qid twice": [line(1), line(1)],
    "bad labels": [labelled(1, label=[[0], [3]])],
}


@pytest.mark.parametrize("bad", ["error", "skip", "clamp"])
@pytest.mark.parametrize("lines", SETS.values(), ids=SETS)
def test_what_passes_opens_and_what_opens_passes(lines, bad, tmp_path):
    root = moment_detr(tmp_path, lines)
    assert opens(root, bad=bad) == (not any(p.fatal for p in check("qvhighlights", root, bad=bad)))


@pytest.mark.parametrize("missing", ["slowfast_features", "clip_features"])
@pytest.mark.parametrize("streams", [None, "clip", "slowfast", "joint", ["clip", "slowfast"]])
def test_the_streams_that_are_opened_are_those_that_are_checked(streams, missing, tmp_path, capsys):
    root = moment_detr(tmp_path)
    (root / missing / "video_b.npz").unlink()
    fatal = any(p.fatal for p in check("qvhighlights", root, streams=streams))
    assert opens(root, streams=streams) == (not fatal)
    arguments = [] if streams is None else ["--streams", *([streams] if isinstance(streams, str) else streams)]
    assert main(["qvhighlights", str(root), *arguments]) == fatal
    with pytest.raises(ValueError, match="streams .* of layout moment_detr; choose among"):
        check("qvhighlights", root, "moment_detr", streams="none")


def test_the_other_modes_are_described_beside_the_problems(tmp_path, capsys):
    root = moment_detr(tmp_path, [line(1), windows_only(2, relevant_windows=[[4, 4]]), windows_only(3, query="?")])
    assert main(["qvhighlights", str(root)]) == 1
    file = root / "highlight_val_release.jsonl"
    out = capsys.readouterr().out.splitlines()
    assert f'{file}: bad="skip" leaves out 2 of 3 lines: 1 for relevant_windows (line 2), 1 for query (line 3)' in out
    text = '1 windows have no length (line 2); bad="clamp" changes them; it still refuses 1 problems'
    assert f"{file}: {text}" in out
    assert main(["qvhighlights", str(root), "--bad", "skip"]) == 0
    out = capsys.readouterr().out
    assert "0 problems, 2 notes" in out and 'bad="' not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qvh", "."], "unknown dataset 'qvh'; known: qvhighlights, charades_sta"),
        (["qvhighlights", "nowhere"], "no such folder"),
        (["qvhighlights", ".", "--layout", "x"], "unknown layout 'x'; known: moment_detr"),
        ([], "required: name"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_runs_without_warnings(tmp_path):
    root = moment_detr(tmp_path)
    (root / "clip_features/video_b.npz").unlink()
    command = [sys.executable, "-W", "error", "-m", "mrlib.data.check", "qvhighlights", str(root)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (1, "")
    assert process.stdout.splitlines()[-1] == "1 problems"


def test_the_check_goes_on_after_every_kind_of_damaged_array(tmp_path):
    """One problem for each video, in the order of the annotations."""
    folder = tmp_path / "clip_features"
    damages = {
        "page": ("download", lambda file: file.write_bytes(b"<html>")),
        "pipe": ("download", lambda file: (file.unlink(), os.mkfifo(file))),
        "entry": ("entry", lambda file: zipfile.ZipFile(file, "w").writestr("features", b"x")),
        "objects": ("pickled", lambda file: np.savez(file, features=np.array([{}], object))),
        "complex": ("dtype", lambda file: np.savez(file, features=np.zeros((10, 4), complex))),
        "single": ("shape", lambda file: np.savez(file, features=np.float32(1))),
        "wide": ("size", lambda file: np.savez(file, features=np.zeros((1, 70_000), np.float32))),
        "long": ("size", lambda file: np.savez(file, features=np.zeros((5000, 4), np.float32))),
        "gone": ("missing file", Path.unlink),
    }
    lines = [line(i, vid=name) for i, name in enumerate(["sound", *damages])]
    root = moment_detr(tmp_path, lines)
    for name, (_, damage) in damages.items():
        damage(folder / f"{name}.npz")
    problems = [(Path(p.file).stem, p.kind) for p in check("qvhighlights", root, streams="clip")]
    assert problems == [(name, kind) for name, (kind, _) in damages.items()]


def test_the_check_goes_on_after_every_kind_of_damaged_array_in_an_hdf5_file(tmp_path):
    names = ["sound", "empty", "records", "objects", "elsewhere", "outside", "virtual", "unwritten", "absent"]
    write_lines(tmp_path / "highlight_val_release.jsonl", [line(i, vid=name) for i, name in enumerate(names)])
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = random(1, 10, 4)
    (tmp_path / "h5py").mkdir()
    with h5py.File(tmp_path / "h5py/vid_clip.hdf5", "w") as file:
        file["sound"], file["empty"] = random(0, 10, 4), h5py.Empty("f4")
        file["records"], file["objects"] = np.zeros(3, [("x", "f4")]), np.array(["a"], object)
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
        file.create_dataset("outside", (10, 4), "f4", external=[(str(tmp_path / "secret.h5"), 0, 160)])
        layout = h5py.VirtualLayout((10, 4), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (10, 4))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("unwritten", (10, 4), "f4")
    for i in range(len(names)):
        save_npz(tmp_path / f"txt_clip/{i}.npz", last_hidden_state=random(i, 5, 5))
    kinds = [p.kind for p in check("qvhighlights", tmp_path, streams="clip")]
    expected = ["shape", "dtype", "pickled", "external link", "external storage", "virtual dataset"]
    assert kinds == [*expected, "unreadable", "missing key"]


def test_the_command_runs_without_docstrings():
    command = [sys.executable, "-OO", "-m", "mrlib.data.check", "--help"]
    assert subprocess.run(command, capture_output=True).returncode == 0
