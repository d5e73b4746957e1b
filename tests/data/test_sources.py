"""Features are found in every layout, under names of one's own, and at rates of their own."""

import numpy as np
import pytest
import torch

from mrlib.data.check import check, main
from mrlib.data.layouts import DATASETS, open_files
from mrlib.data.sources import LAYOUTS, choose_layout
from mrlib.training.cli import parse
from tests.support.files import (
    moment_detr,
    random,
    save_hdf5,
    save_npy,
    save_npz,
    windows_only,
    write_lines,
)

LINES = [windows_only(1, duration=64), windows_only(2, vid="video_b", duration=64)]
WORDS = "a 1 0 0\ndog 0 2 0\nruns 0 0 3\n"


def charades(root, lines=LINES):
    """Annotations and word vectors in three numbers."""
    write_lines(root / "charades_train_release.jsonl", lines)
    (root / "glove.6B.3d.txt").write_text(WORDS)
    return root


def opened(root, name="charades_sta", **options):
    """Opens the training split, which `check` finds fine with the same options."""
    names = {"layout", "streams", "clip_s", "rows_per_s", "files", "query_files"}
    given = {option: value for option, value in options.items() if option in names}
    assert not [problem for problem in check(name, root, **given) if problem.fatal]
    return open_files(name, root, "train", **options)


def lengths(dataset):
    return dataset.target.lengths.tolist()


def clip_means(rows, clips):
    """By hand: the mean of the rows that begin in each clip."""
    first = [int(t * len(rows) / clips) for t in range(clips)] + [len(rows)]
    return np.stack([rows[a:b].mean(0) for a, b in zip(first, first[1:], strict=False)])


# ---- layouts of releases ----


@pytest.mark.parametrize("ending", ["hdf5", "h5"])
@pytest.mark.parametrize("key", ["{}", "{}.avi"])
def test_tacos_of_2d_tan_is_averaged_over_clips(key, ending, tmp_path):
    lines = [windows_only(f"s{i}-d1.avi_0", vid=f"s{i}-d1", duration=64) for i in range(2)]
    write_lines(tmp_path / "tacos_train_release.jsonl", lines)
    (tmp_path / "glove.6B.3d.txt").write_text(WORDS)
    rows = {f"s{i}-d1": random(i, 100, 4) for i in range(2)}
    save_hdf5(tmp_path / f"tall_c3d_features.{ending}", {key.format(vid): x for vid, x in rows.items()})
    dataset = opened(tmp_path, "tacos", normalize=False)
    assert lengths(dataset) == [32, 32] and dataset.settings["layout"] == "tan_tall"
    np.testing.assert_allclose(dataset.target.rows[:32], clip_means(rows["s0-d1"], 32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["qid{}", "{}"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_internvideo2_and_llama_are_read(text, dtype, tmp_path):
    write_lines(tmp_path / "highlight_train_release.jsonl", LINES)
    for i, each in enumerate(LINES):
        for folder, name, rows in (
            ("qvhighlight_internvideo2_videoclip_6b_w2s", each["vid"], random(i, 32, 768)),
            ("qvhighlight_internvideo2_llama_text_feature", text.format(each["qid"]), random(9 + i, 40, 4096)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            torch.save(torch.from_numpy(rows).to(dtype), tmp_path / folder / f"{name}.pt")
    dataset = opened(tmp_path, "qvhighlights", normalize=False)
    assert dataset.widths == (type(dataset.widths))(768, 4096, None) and lengths(dataset) == [32, 32]
    assert dataset.query.lengths.tolist() == [40, 40]
    assert torch.equal(dataset.target.rows[32:], torch.from_numpy(random(1, 32, 768)).to(dtype).float())


# ---- features in no known layout ----


@pytest.mark.parametrize("folder", ["", "features/", "data/features/charades/new/"])
@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "h5"])
def test_a_folder_with_a_file_per_video_is_found(folder, ending, tmp_path):
    """As VSLNet has them: I3D features at a rate of their own, and GloVe."""
    charades(tmp_path)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    rows = [random(i, 150 + i, 4) for i in range(2)]
    for x, vid in zip(rows, ("video_a", "video_b"), strict=True):
        file = tmp_path / folder / f"{vid}.{ending}"
        if ending == "pt":
            torch.save(torch.from_numpy(x), file)
        else:
            save = {"npy": save_npy, "npz": lambda f, x: save_npz(f, x=x), "h5": lambda f, x: save_hdf5(f, {"x": x})}
            save[ending](file, x)
    dataset = opened(tmp_path, normalize=False)
    assert lengths(dataset) == [64, 64]
    np.testing.assert_allclose(dataset.target.rows[:64], clip_means(rows[0], 64), rtol=1e-5, atol=1e-6)
    template = f"{folder}{{vid}}.{ending}"
    assert dataset.settings["layout"] == "own" and list(dataset.settings["files"].values()) == [template]
    assert dataset.settings["query_files"] == "glove*.txt"
    again = open_files("charades_sta", tmp_path, "train", **dataset.settings)
    assert torch.equal(again.target.rows, dataset.target.rows)


@pytest.mark.parametrize("name", ["i3d.h5", "features/activitynet_i3d.hdf5"])
def test_one_file_of_all_videos_is_found(name, tmp_path):
    charades(tmp_path)
    save_hdf5(tmp_path / name, {"video_a": random(0, 64, 4), "video_b/rows": random(1, 200, 4)})
    dataset = opened(tmp_path)
    assert lengths(dataset) == [64, 64] and dataset.settings["files"][dataset.settings["streams"][0]].startswith(name)


def test_features_that_could_be_meant_in_two_ways_are_refused_with_what_to_say(tmp_path):
    charades(tmp_path)
    for folder in ("i3d", "c3d"):
        for vid in ("video_a", "video_b"):
            save_npy(tmp_path / folder / f"{vid}.npy", random(0, 64, 4))
    with pytest.raises(ValueError, match=r'ambiguous: .*files=\{"c3d": "c3d/\{vid\}.npy"\} or files=\{"i3d"'):
        open_files("charades_sta", tmp_path, "train")
    assert list(opened(tmp_path, files={"i3d": "i3d/{vid}.npy"}).streams) == ["i3d"]
    both = opened(tmp_path, files={"i3d": "i3d/{vid}.npy", "c3d": "c3d/{vid}.npy"})
    assert both.streams == {"i3d": slice(0, 4), "c3d": slice(4, 8)}
    (tmp_path / "glove.6B.3d.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no features of queries.*qid1 or 1.*query_files="):
        open_files("charades_sta", tmp_path, "train", files={"i3d": "i3d/{vid}.npy"})


# ---- templates and rates of one's own ----


def test_files_of_ones_own_are_read_from_the_command_line(tmp_path):
    charades(tmp_path)
    for i, vid in enumerate(("video_a", "video_b")):
        save_npz(tmp_path / "my" / f"{vid}.feat.npz", x=random(i, 160, 4), y=random(i, 160, 4))
        save_npy(tmp_path / "text" / f"q-{i + 1}.npy", random(i, 6, 5))
    given = ['files={"i3d": "my/{vid}.feat.npz:y"}', "query_files=text/q-{qid}.npy", "rows_per_s=2.5", "clip_s=2"]
    options = dict(parse(["qd_detr", "--out", "x", "--data", *given]).data)
    dataset = opened(tmp_path, normalize=False, **options)
    assert dataset.clip_s == 2 and lengths(dataset) == [32, 32]
    means = random(0, 160, 4).reshape(32, 5, 4).mean(1)
    np.testing.assert_allclose(dataset.target.rows[:32], means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.query.rows[6:], random(1, 6, 5))
    assert dataset.settings["rows_per_s"] == {"i3d": 2.5} and dataset.settings["clip_s"] == 2


def test_the_command_line_of_the_check_takes_the_same_options(tmp_path, capsys):
    charades(tmp_path)
    for vid in ("video_a", "video_b"):
        save_npy(tmp_path / "my" / f"{vid}.npy", random(0, 160, 4))
        save_npy(tmp_path / "other" / f"{vid}.npy", random(0, 160, 4))
    options = ["--query-files", "glove.6B.3d.txt", "--clip-s", "2"]
    files = ["--files", '{"i3d": "my/{vid}.npy"}']
    assert main(["charades_sta", str(tmp_path), *files, "--rows-per-s", "2.5", *options]) == 0
    assert main(["charades_sta", str(tmp_path), *files, "--rows-per-s", '{"i3d": 1.5}', *options]) == 1
    assert "160 rows at 1.5 a second last 106.667 s, the video 64 s; correct rows_per_s" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["charades_sta", str(tmp_path), "--files", "my/{vid}.npy"])
    assert "files must be" in capsys.readouterr().err


def test_files_replace_a_stream_of_a_layout_and_add_others(tmp_path):
    root = moment_detr(tmp_path)
    for vid in ("video_a", "video_b"):
        save_npy(root / "other" / f"{vid}.npy", random(5, 10, 4))
        save_npy(root / "more" / f"{vid}.npy", random(6, 25, 3))
    files = {"clip": "other/{vid}.npy", "more": "more/{vid}.npy"}
    dataset = open_files("qvhighlights", root, "val", layout="moment_detr", files=files, normalize=False)
    assert list(dataset.streams) == ["slowfast", "clip", "more"] and dataset.joint == "clip"
    np.testing.assert_array_equal(dataset.target.rows[:10, 6:10], random(5, 10, 4))
    np.testing.assert_allclose(dataset.target.rows[:10, 10:], clip_means(random(6, 25, 3), 10), rtol=1e-5, atol=1e-6)


def test_a_stream_of_a_layout_may_have_a_rate_of_its_own(tmp_path):
    root = moment_detr(tmp_path)
    for vid in ("video_a", "video_b"):
        save_npz(root / "slowfast_features" / f"{vid}.npz", features=random(5, 30, 6))
    with pytest.raises(ValueError, match=r'average them over clips, by rows_per_s= or rows_per_s="even"'):
        open_files("qvhighlights", root, "val")
    for rate in ("even", "auto", {"slowfast": 1.5}, {"slowfast": 1.5, "clip": 0.5}):
        assert lengths(open_files("qvhighlights", root, "val", rows_per_s=rate)) == [10, 10]


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    root = moment_detr(tmp_path / "data")
    (root / "clip_features").rename(tmp_path / "elsewhere")
    (root / "clip_features").symlink_to(tmp_path / "elsewhere")
    assert len(open_files("qvhighlights", root, "val")) == 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("files", "my/{vid}.npy", "files must be"),
        ("files", {}, "files must be"),
        ("files", {"../clip": "my/{vid}.npy"}, "files must be by plain names"),
        ("files", {"clip": "my/{qid}.npy"}, r"files\['clip'\] must be a template as features/\{vid\}.npy"),
        ("files", {"clip": "my/{vid.__class__}.npy"}, r"files\['clip'\] must be"),
        ("files", {"clip": "my/{vid!r}.npy"}, r"files\['clip'\] must be"),
        ("files", {"clip": "my/{vid}.exe"}, r"files\['clip'\] must be .*ending in .npz"),
        ("files", {"clip": "my/video.npy"}, r"files\['clip'\] must be"),
        ("files", {"clip": 3}, r"files\['clip'\] must be"),
        ("files", {"clip": "glove.txt"}, r"files\['clip'\] must be"),
        ("query_files", "text/{vid}.npy", "query_files must be"),
        ("query_files", {"a": "b"}, "query_files must be"),
        ("query_files", "text/{0}.npy", "query_files must be"),
        ("rows_per_s", 0, "rows_per_s must be a number"),
        ("rows_per_s", -1.5, "rows_per_s must be"),
        ("rows_per_s", float("nan"), "rows_per_s must be"),
        ("rows_per_s", 1e9, "rows_per_s must be"),
        ("rows_per_s", True, "rows_per_s must be"),
        ("rows_per_s", "often", "rows_per_s must be"),
        ("rows_per_s", [1], "rows_per_s must be"),
        ("rows_per_s", {"sound": 2}, "rows_per_s must be for streams among slowfast, clip"),
        ("clip_s", 0, "clip_s must be a number of seconds"),
        ("clip_s", "2", "clip_s must be"),
        ("clip_s", float("inf"), "clip_s must be"),
        ("clip_s", 1e-300, "clip_s must be"),
        ("clip_s", True, "clip_s must be"),
        ("layout", "detr", "unknown layout 'detr'; known: moment_detr"),
        ("layout", ["amr"], "unknown layout"),
    ],
)
def test_a_wrong_option_is_refused_by_name_when_opened_and_when_checked(option, value, message, tmp_path):
    root = moment_detr(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_files("qvhighlights", root, "val", **{option: value})
    with pytest.raises(ValueError, match=message):
        check("qvhighlights", root, **{option: value})


def test_the_first_sample_tells_which_of_two_spellings_in_a_folder_is_meant(tmp_path):
    root = charades(tmp_path, [windows_only(7)])
    save_npz(root / "clip/video_a.npz", features=random(0, 20, 4))
    (root / "llama").mkdir()
    (root / "internvideo2").mkdir()
    torch.save(torch.zeros(20, 4), root / "internvideo2/video_a.pt")
    for name in ("qid7", "8"):
        torch.save(torch.ones(3, 5), root / f"llama/{name}.pt")
    name, row = choose_layout(root, DATASETS["charades_sta"], [])
    assert (name, row) == ("internvideo2", LAYOUTS["internvideo2"])
    assert len(open_files("charades_sta", root, "train").query) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": {"mine": "elsewhere/{vid}.npy"}}, "no elsewhere/{vid}.npy; .*files= says where others are"),
        ({"query_files": "elsewhere/{qid}.npy"}, "no elsewhere/{qid}.npy; query_files= says where others are"),
    ],
)
def test_a_template_without_files_names_the_option_to_correct(options, message, tmp_path):
    with pytest.raises(FileNotFoundError, match=message):
        open_files("qvhighlights", moment_detr(tmp_path), "val", **options)
