"""Small datasets in every layout are read, damaged files are named, and caches follow the files."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from mrlib.arguments import keyword_defaults
from mrlib.data import open_dataset
from mrlib.data.layouts import DATASETS, LAYOUTS, open_files
from mrlib.data.lenient import Mode
from mrlib.sim import export
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


def unit(x):
    """The official loaders' normalisation, row by row."""
    x = np.asarray(x, np.float32)
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)


def assert_same(tensor, array):
    torch.testing.assert_close(tensor, torch.tensor(np.asarray(array, np.float32)), rtol=1e-6, atol=1e-6)


def target(dataset, sample=0):
    batch = dataset.batch([sample])
    return batch.target[0][batch.target_mask[0]]


def query(dataset, sample=0):
    batch = dataset.batch([sample])
    return batch.query[0][batch.query_mask[0]]


SPELLINGS = [("slowfast_features", "clip_features", "clip_text_features"), ("slowfast", "clip", "clip_text")]


@pytest.mark.parametrize("folders", SPELLINGS)
@pytest.mark.parametrize(
    ("name", "annotations", "clip_s", "text"),
    [
        ("qvhighlights", "highlight_train_release.jsonl", 2, "qid7.npz"),
        ("charades_sta", "charades_train_release.jsonl", 1, "qid7.npz"),
        ("activitynet_captions", "activitynet_train_release.jsonl", 2, "qid7.npz"),
        ("tacos", "tacos_train_release.jsonl.gz", 2, "7.npz"),
    ],
)
def test_the_layout_of_moment_detr_and_lighthouse_is_read(name, annotations, clip_s, text, folders, tmp_path):
    slowfast, clip, words, sentence = (
        random(0, 20 // clip_s, 6),
        random(1, 20 // clip_s, 4),
        random(2, 40, 5),
        random(3, 4),
    )
    path = write_lines(tmp_path / "lines", [windows_only(7)])
    if annotations.endswith(".gz"):
        (tmp_path / annotations).write_bytes(gzip.compress(path.read_bytes()))
    else:
        path.rename(tmp_path / annotations)
    save_npz(tmp_path / folders[0] / "video_a.npz", features=slowfast)
    save_npz(tmp_path / folders[1] / "video_a.npz", features=clip.astype(np.float16))
    save_npz(tmp_path / folders[2] / text, last_hidden_state=words, pooler_output=sentence)
    dataset = open_dataset(name, tmp_path, "train")
    assert_same(target(dataset), np.concatenate([unit(slowfast), unit(clip.astype(np.float16))], 1))
    assert_same(query(dataset), unit(words[:32]))  # what the official loaders read
    batch = dataset.batch([0])
    assert_same(batch.query_joint[0], unit(sentence))
    assert_same(batch.target_joint[0], unit(clip.astype(np.float16)))
    assert (dataset.clip_s, dataset.joint) == (clip_s, "clip")
    assert dataset.streams == {"slowfast": slice(0, 6), "clip": slice(6, 10)}
    assert batch.labels.spans.tolist() == [[[pytest.approx(0.2), pytest.approx(0.4)]]]


@pytest.mark.parametrize("flat", [False, True])
def test_amr_has_four_vectors_per_clip_and_no_joint_space(flat, tmp_path):
    video, words, slowfast = random(0, 10, 4, 3), random(1, 5, 4, 2), random(2, 10, 6)
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    save_npz(tmp_path / "slowfast_features/video_a.npz", features=slowfast)
    save_npy(tmp_path / "clip_b32_vid_k4/video_a.npy", video.reshape(10, 12) if flat else video)
    save_npy(tmp_path / "clip_b32_txt_k4/1.npy", words.reshape(5, 8) if flat else words)
    dataset = open_files("qvhighlights", tmp_path, "val")
    assert_same(target(dataset), np.concatenate([unit(slowfast), unit(video).reshape(10, 12)], 1))
    assert_same(query(dataset), unit(words).reshape(5, 8))
    assert dataset.joint is dataset.query_joint is dataset.widths.joint is None
    with pytest.raises(ValueError, match="amr has no stream in a joint space"):
        open_files("qvhighlights", tmp_path, "val", streams="joint")


def test_the_layout_of_univtg_is_read(tmp_path):
    slowfast, clip, words = random(0, 10, 6), random(1, 10, 4), random(2, 40, 5)
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    save_npz(tmp_path / "vid_slowfast/video_a.npz", features=slowfast)
    save_npz(tmp_path / "vid_clip/video_a.npz", features=clip)
    save_npz(tmp_path / "txt_clip/1.npz", last_hidden_state=words)
    dataset = open_files("qvhighlights", tmp_path, "val")
    assert_same(target(dataset), np.concatenate([unit(slowfast), unit(clip)], 1))
    assert_same(query(dataset), unit(words))


@pytest.mark.parametrize("nested", [False, True])
def test_the_layout_of_univtg_in_hdf5_is_read(nested, tmp_path):
    clip, words = random(1, 10, 4), random(2, 5, 5)
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    save_hdf5(tmp_path / "h5py/vid_clip.hdf5", {"video_a/features" if nested else "video_a": clip})
    save_hdf5(tmp_path / "h5py/txt_clip.hdf5", {"1/last_hidden_state" if nested else "1": words})
    dataset = open_files("qvhighlights", tmp_path, "val", streams=["clip"])
    assert_same(target(dataset), unit(clip))
    assert_same(query(dataset), unit(words))


@pytest.mark.parametrize("folders", [("target_vid_clip", "query_vid_clip"), ("vid_clip", "vid_clip_query")])
def test_a_query_video_of_matr_may_search_several_videos(folders, tmp_path):
    lines = [windows_only("x_5_1", vid="a"), windows_only("x_5_1", vid="b")]
    for each in lines:
        del each["query"]
    write_lines(tmp_path / "activitynet_vrl_train.jsonl", lines)
    videos, clips = {"a": random(0, 10, 4), "b": random(1, 10, 4)}, random(2, 3, 4)
    for vid, rows in videos.items():
        save_npz(tmp_path / folders[0] / f"{vid}.npz", features=rows)
    save_npz(tmp_path / folders[1] / "qidx_5_1.npz", last_hidden_state=clips)
    dataset = open_files("activitynet_vrl", tmp_path)
    assert_same(target(dataset, 1), unit(videos["b"]))
    assert_same(query(dataset, 1), unit(clips))
    assert_same(dataset.query_joint, unit(unit(clips).mean(0, keepdims=True)))
    assert (len(dataset), len(dataset.query), dataset.query_item.tolist()) == (2, 1, [0, 0])


@pytest.mark.parametrize("folders", [("target_vid_clip", "query_vid_clip"), ("vid_clip", "vid_clip_query")])
def test_a_missing_query_video_is_named_with_the_pair_that_needs_it(folders, tmp_path):
    lines = [windows_only(qid, vid=vid) for qid, vid in (("x_5_1", "a"), ("x_5_1", "b"), ("y_5_2", "a"))]
    write_lines(tmp_path / "activitynet_vrl_train.jsonl", lines)
    for vid in "ab":
        save_npz(tmp_path / folders[0] / f"{vid}.npz", features=random(0, 10, 4))
    save_npz(tmp_path / folders[1] / "qidx_5_1.npz", last_hidden_state=random(1, 3, 4))
    with pytest.raises(FileNotFoundError, match=rf"{folders[1]}/qidy_5_2\.npz: missing file: .*query y_5_2 .*video a"):
        open_files("activitynet_vrl", tmp_path)


def test_exported_query_videos_give_the_batches_of_the_simulator(tmp_path):
    """Up to the norm of the layout, x / (|x| + 1e-5)."""
    world = open_dataset("sim", query="video", n=20, streams="joint")
    export(world, tmp_path)
    opened = open_dataset("activitynet_vrl", tmp_path, "train")
    assert opened.samples == world.samples
    assert opened.widths == world.widths
    batch, simulated = opened.batch(range(20)), world.batch(range(20))
    for field in ("target", "query", "query_joint", "target_joint"):
        torch.testing.assert_close(getattr(batch, field), getattr(simulated, field), rtol=1e-4, atol=1e-5)
    for field in ("target_mask", "query_mask", "duration_s", "clip_s"):
        assert torch.equal(getattr(batch, field), getattr(simulated, field))
    assert torch.equal(batch.labels.relevant, simulated.labels.relevant)


def test_an_exported_query_may_search_other_exported_videos(tmp_path):
    """The first query is paired with every video."""
    world = open_dataset("sim", query="video", n=4, streams="joint")
    export(world, tmp_path)
    file = tmp_path / "activitynet_vrl_train.jsonl"
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    write_lines(file, [each | {"qid": lines[0]["qid"]} for each in lines])
    opened = open_dataset("activitynet_vrl", tmp_path, "train")
    batch, simulated = opened.batch(range(4)), world.batch(range(4))
    assert (len(opened.query), len(opened.target)) == (1, 4)
    torch.testing.assert_close(batch.target, simulated.target, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.query[3], world.batch([0]).query[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folders", [("", ""), ("i3d/", "clip_text/"), ("video_features/", "query_features/")])
def test_a_stream_of_tvsum_is_two_files_concatenated(folders, tmp_path):
    rgb, opt, words = random(0, 10, 3), random(1, 10, 3), random(2, 5, 5)
    write_lines(tmp_path / "tvsum_val_release.jsonl", [{"qid": 1, "query": "A dog", "duration": 20, "vid": "v"}])
    save_npy(tmp_path / f"{folders[0]}v_rgb.npy", rgb)
    save_npy(tmp_path / f"{folders[0]}v_opt.npy", opt)
    save_npz(tmp_path / f"{folders[1]}1.npz", token=words)
    save_npz(tmp_path / "clip/v.npz", features=random(3, 10, 4))  # a file of lighthouse that is not in the layout
    dataset = open_files("tvsum", tmp_path, "val")
    assert_same(target(dataset), unit(np.concatenate([rgb, opt], 1)))
    assert_same(query(dataset), unit(words))
    assert not dataset.labelled


def test_the_released_labels_of_tvsum_become_saliency_and_relevant_clips(tmp_path):
    """[TVSum] By hand for two annotators: the sums are 0 5 4 8 of at most 8; 5 and 8 are above the lower median, 4."""
    label = [[1.0, 1.0], [5.0, 2.0], [3.0, 3.0], [5.0, 5.0]]
    rows = [labelled("a", vid="a", clips=4, label=label), labelled("b", vid="b", clips=6)]
    dataset = open_files("tvsum", tvsum(tmp_path, rows), "val")
    assert dataset.labelled and dataset.target.lengths.tolist() == [4, 6]
    batch = dataset.batch([0, 1])
    assert batch.duration_s.tolist() == [8, 12]
    labels = batch.labels
    assert labels.spans.shape[1] == 1 and not labels.span_mask.any()
    assert labels.saliency_mask.all() and labels.wrong is None
    assert labels.saliency[0].tolist() == [0, 7.5, 6, 12, 0, 0]
    assert labels.relevant[0].tolist() == [False, True, False, True, False, False]
    total = np.array(rows[1]["label"]).sum(1) - 20
    torch.testing.assert_close(labels.saliency[1], torch.tensor(total / 80 * 12).float())
    assert labels.relevant[1].tolist() == (total > sorted(total)[2]).tolist()
    assert torch.equal(dataset.subset([1]).batch([0]).labels.saliency, labels.saliency[1:])


@pytest.mark.parametrize(("rows", "clips"), [(9, 9), (10, 10), (11, 10), (12, 10)])
def test_labels_and_features_are_cut_to_the_shorter_of_the_two(rows, clips, tmp_path):
    line = labelled(duration=20)
    dataset = open_files("tvsum", tvsum(tmp_path, [line], rows=rows), "val")
    labels = dataset.batch([0]).labels
    total = np.array(line["label"]).sum(1)[:clips] - 20
    torch.testing.assert_close(labels.saliency, torch.tensor(total / 80 * 12).float()[None])
    assert labels.relevant[0].tolist() == (total > sorted(total)[(clips - 1) // 2]).tolist()


def test_a_file_that_mixes_windows_labels_and_neither_is_refused(tmp_path):
    unlabelled = {k: v for k, v in labelled("c").items() if k != "label"}
    tvsum(tmp_path, [labelled("a"), labelled("b"), labelled("c")])
    write_lines(tmp_path / "tvsum_val_release.jsonl", [labelled("a"), windows_only("b")])
    with pytest.raises(ValueError, match=r"line 1: label: .* labels of clips 1 to 5, but 1 of 2 lines have windows"):
        open_files("tvsum", tmp_path, "val")
    write_lines(tmp_path / "tvsum_val_release.jsonl", [labelled("a"), unlabelled])
    with pytest.raises(ValueError, match="line 2: label: is missing, but 1 of 2 lines have labels of clips"):
        open_files("tvsum", tmp_path, "val")


def test_youtube_highlights_opens_as_released(tmp_path):
    """A label of 0 or 1 for every row of features, a little less than 2 s each."""
    rows = [
        labelled(f"v{i}", vid=f"v{i}", clips=6, label=label, duration=10.4, domain="dog", clip=[[0, 100]], match=[1])
        for i, label in enumerate([[[0], [0], [1], [1], [0], [0]], [[1]] * 6])
    ]
    write_lines(tmp_path / "youtube_highlight_train_release.jsonl", rows)
    for i in range(2):
        save_npz(tmp_path / f"vid_clip/v{i}.npz", features=random(i, 6, 4))
        save_npz(tmp_path / f"txt_clip/v{i}.npz", last_hidden_state=random(i, 5, 4))
    opened = open_files("youtube_highlights", tmp_path, "train", streams="clip", domain="dog")
    assert opened.clip_s == 5 / 3 and opened.target.lengths.tolist() == [6, 6] and opened.labelled
    labels = opened.batch([0, 1]).labels
    assert labels.saliency.tolist() == [[0, 0, 12, 12, 0, 0], [12] * 6] and labels.saliency_mask.all()
    assert labels.relevant.tolist() == (labels.saliency > 0).tolist() and not labels.span_mask.any()


def test_only_the_samples_of_a_domain_are_opened(tmp_path):
    """[TVSum] The limit counts samples of the domain."""
    rows = [labelled(f"q{i}", vid=f"v{i}", domain=domain) for i, domain in enumerate(["BK", "VU", "BK", "VU", "VU"])]
    root = tvsum(tmp_path, rows)
    vu = open_files("tvsum", root, "val", domain="VU", limit=2)
    assert [s.qid for s in vu.samples] == ["q1", "q3"]
    assert vu.settings["domain"] == "VU" and len(vu.target) == 2
    whole = open_files("tvsum", root, "val")
    assert len(whole) == 5 and "domain" not in whole.settings
    assert torch.equal(vu.batch([0, 1]).target, whole.batch([1, 3]).target)
    with pytest.raises(ValueError, match="tvsum val has no domain 'XX'; there are BK, VU"):
        open_files("tvsum", root, "val", domain="XX")
    with pytest.raises(ValueError, match="qvhighlights val has no domain 'BK'; there are none"):
        open_files("qvhighlights", moment_detr(tmp_path / "qv"), "val", domain="BK")


def glove(path, words):
    path.write_text("".join(f"{w} {' '.join(str(x) for x in v)}\n" for w, v in words.items()))


def test_the_layouts_of_2d_tan_average_rows_over_clips_and_look_up_words(tmp_path):
    """Ten clips: each is the mean of four of the 40 C3D rows, and each of the 5 VGG rows covers two."""
    c3d, vgg = random(0, 40, 4), random(1, 5, 3)
    write_lines(tmp_path / "activitynet_val_release.jsonl", [windows_only(query="The DOG's zzyzx runs.", vid="v_a")])
    glove(
        tmp_path / "glove.6B.3d.txt",
        {"the": [1, 2, 2], ". .": [0, 0, 1], "dog": [0, 3, 4], "'s": [1, 0, 0], "runs": [0, 0, 2]},
    )
    save_hdf5(tmp_path / "sub_activitynet_v1-3.c3d.hdf5", {"v_a/c3d_features": c3d})
    with pytest.warns(UserWarning, match="1 of 5 words have no vector and become zeros: zzyzx"):
        dataset = open_files("activitynet_captions", tmp_path, "val", normalize=False)
    assert_same(target(dataset), c3d.reshape(10, 4, 4).mean(1))
    assert_same(query(dataset), [[1, 2, 2], [0, 3, 4], [1, 0, 0], [0, 0, 0], [0, 0, 2]])
    save_hdf5(tmp_path / "vgg_rgb_features.hdf5", {"v_a": vgg})
    with pytest.raises(ValueError, match="tan_vgg, tan_c3d; say which by layout="):
        open_files("activitynet_captions", tmp_path, "val")
    with pytest.warns(UserWarning, match="zzyzx"):
        dataset = open_files("activitynet_captions", tmp_path, "val", layout="tan_vgg", normalize=["vgg"])
    assert_same(target(dataset), unit(vgg).repeat(2, axis=0))
    assert dataset.joint is None


def test_a_query_without_any_known_word_is_named(tmp_path):
    write_lines(tmp_path / "charades_val_release.jsonl", [windows_only(query="zzyzx!")])
    save_hdf5(tmp_path / "vgg_rgb_features.hdf5", {"video_a": random(0, 9, 3)})
    glove(tmp_path / "glove.txt", {"dog": [0, 3, 4]})
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"glove\.txt: words: .*'zzyzx!'.*query 1 "):
        open_files("charades_sta", tmp_path, "val")


def test_each_video_is_stored_once_in_the_order_of_the_file(tmp_path):
    dataset = open_files("qvhighlights", moment_detr(tmp_path), "val")
    assert (len(dataset), len(dataset.target), len(dataset.query)) == (3, 2, 3)
    assert dataset.video.tolist() == [0, 1, 0]
    assert torch.equal(target(dataset, 0), target(dataset, 2))
    assert dataset.batch([0, 1, 2]).duration_s.tolist() == [20.0] * 3


def test_streams_are_concatenated_in_the_given_order(tmp_path):
    root = moment_detr(tmp_path)
    forward = open_files("qvhighlights", root, "val")
    swapped = open_files("qvhighlights", root, "val", streams=("clip", "slowfast"))
    assert swapped.streams == {"clip": slice(0, 4), "slowfast": slice(4, 10)}
    assert torch.equal(target(swapped), target(forward).roll(4, dims=1))
    joint = open_files("qvhighlights", root, "val", streams="joint")
    assert torch.equal(target(joint), target(forward)[:, 6:])
    assert torch.equal(joint.query_joint, forward.query_joint)
    motion = open_files("qvhighlights", root, "val", streams=["slowfast"])
    assert motion.joint is motion.query_joint is None
    for wrong in ([], ["clip", "clip"], ["audio"], "audio"):
        with pytest.raises(ValueError, match=r"choose among \['slowfast', 'clip'\]"):
            open_files("qvhighlights", root, "val", streams=wrong)


def test_each_kind_of_vector_is_normalised_by_itself(tmp_path):
    root = moment_detr(tmp_path)
    raw = open_files("qvhighlights", root, "val", normalize=False)
    clip = np.load(root / "clip_features/video_b.npz")["features"]
    assert_same(target(raw, 1)[:, 6:], clip)
    partly = open_files("qvhighlights", root, "val", normalize=["clip"])
    assert_same(target(partly, 1)[:, 6:], unit(clip))
    assert torch.equal(target(partly, 1)[:, :6], target(raw, 1)[:, :6])
    assert torch.equal(query(partly, 1), query(raw, 1))
    assert_same(partly.query_joint, unit(raw.query_joint))
    with pytest.raises(ValueError, match="normalize names"):
        open_files("qvhighlights", root, "val", normalize=["audio"])


def test_half_precision_rows_give_single_precision_batches(tmp_path):
    root = moment_detr(tmp_path)
    full, half = (open_files("qvhighlights", root, "val", dtype=d) for d in (torch.float32, torch.float16))
    assert half.target.rows.dtype == torch.float16
    batch = half.batch([0])
    assert batch.target.dtype == batch.query.dtype == batch.query_joint.dtype == torch.float32
    torch.testing.assert_close(batch.target, full.batch([0]).target, rtol=1e-3, atol=1e-4)


def test_limit_takes_the_first_samples(tmp_path):
    root = moment_detr(tmp_path)
    assert [s.qid for s in open_files("qvhighlights", root, "val", limit=2).samples] == [1, 2]
    for limit in (0, -1, "2", 1.5, True):
        with pytest.raises(ValueError, match="limit must be a whole number of at least 1, or None for all, not"):
            open_files("qvhighlights", root, "val", limit=limit)


@pytest.mark.parametrize("option", ["streams", "normalize", "cache", "dtype"])
@pytest.mark.parametrize("value", [3, [["a"]], {"a": 1}, [None]])
def test_an_option_of_another_type_is_refused_by_name(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"{option} must be "):
        open_files("qvhighlights", moment_detr(tmp_path), "val", **{option: value})


def test_the_type_in_the_cache_may_be_a_name(tmp_path):
    dataset = open_files("qvhighlights", moment_detr(tmp_path), "val", dtype="float16")
    assert dataset.target.rows.dtype == torch.float16 and dataset.settings["dtype"] == "float16"


def test_the_file_with_ground_truth_is_read_before_the_one_without(tmp_path):
    root = moment_detr(tmp_path, [{"qid": 1, "query": "A dog", "duration": 20, "vid": "video_a"}], "test")
    assert not open_files("qvhighlights", root, "test").labelled
    write_lines(root / "highlight_test_with_gt.jsonl", [line()])
    assert open_files("qvhighlights", root, "test").labelled


def test_the_training_file_with_mined_windows_is_read_before_the_other(tmp_path):
    root = moment_detr(tmp_path, [line()], "train")
    assert not open_files("qvhighlights", root, "train").mined
    write_lines(root / "highlight_train_with_neg_spans.jsonl", [line(wrong_spans=[[10, 14]])])
    dataset = open_files("qvhighlights", root, "train")
    assert dataset.samples[0].extra == {"wrong_spans": [[10, 14]]}
    assert dataset.batch([0]).labels.wrong[0].nonzero().flatten().tolist() == [5, 6]


@pytest.mark.parametrize(("clips", "kept"), [(9, 9), (10, 10), (11, 10), (12, 10)])
def test_rows_after_the_end_are_cut_and_one_missing_row_is_accepted(clips, kept, tmp_path):
    dataset = open_files("qvhighlights", moment_detr(tmp_path, clips=clips), "val")
    assert dataset.target.lengths.tolist() == [kept, kept]


@pytest.mark.parametrize("clips", [5, 7, 13, 20])
def test_rows_at_another_rate_are_refused(clips, tmp_path):
    with pytest.raises(ValueError, match=rf"length: rows: {clips} in .*20 s, 10 clips of 2 s.*query 1 "):
        open_files("qvhighlights", moment_detr(tmp_path, clips=clips), "val")


@pytest.mark.parametrize(("rows", "fits"), [(8, True), (7, False)])
def test_streams_are_cut_to_the_shortest_unless_they_differ_by_three_rows(rows, fits, tmp_path):
    root = moment_detr(tmp_path)
    save_npz(root / "clip_features/video_b.npz", features=random(0, rows, 4))
    if fits:
        assert open_files("qvhighlights", root, "val").target.lengths.tolist() == [10, 8]
    else:
        with pytest.raises(ValueError, match="7 in clip_features/video_b.npz"):
            open_files("qvhighlights", root, "val")


def test_a_window_after_the_last_row_is_the_last_clip(tmp_path):
    root = moment_detr(tmp_path, [windows_only(relevant_windows=[[17, 20], [4, 19]])], clips=8)
    labels = open_files("qvhighlights", root, "val").batch([0]).labels
    torch.testing.assert_close(labels.spans, torch.tensor([[[7 / 8, 1], [4 / 16, 1]]]))
    assert labels.relevant.tolist() == [[False, False, True, True, True, True, True, True]]


def test_saliency_of_clips_after_the_last_row_is_left_out(tmp_path):
    """Eight clips have features; in a batch with a video of ten, the last two are padding."""
    scored = {"relevant_clip_ids": [2, 7, 8, 9], "saliency_scores": [[1, 1, 1], [1, 2, 3], [4, 4, 4], [3, 3, 3]]}
    root = moment_detr(tmp_path, [line(1, **scored), line(2, vid="video_b", **scored)])
    for folder, width in (("slowfast_features", 6), ("clip_features", 4)):
        save_npz(root / folder / "video_a.npz", features=random(0, 8, width))
    opened = open_files("qvhighlights", root, "val")
    assert opened.batch([0]).labels.saliency.tolist() == [[0, 0, 3, 0, 0, 0, 0, 6]]
    expected = [[0, 0, 3, 0, 0, 0, 0, 6, 0, 0], [0, 0, 3, 0, 0, 0, 0, 6, 12, 9]]
    assert opened.batch([0, 1]).labels.saliency.tolist() == expected


VIDEO, TEXT = "clip_features/video_b.npz", "clip_text_features/qid2.npz"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def overwrite(**arrays):
    return lambda file: save_npz(file, **arrays)


ROWS, WORDS = random(0, 10, 4), random(0, 5, 5)
SOME_NAN = np.where(np.arange(10)[:, None] < 7, ROWS, np.nan)
DAMAGES = {
    "npz truncated": (VIDEO, truncate, "unreadable: .*copy or download it again"),
    "npz empty": (VIDEO, lambda f: f.write_bytes(b""), "download: is an empty file.*download it again"),
    "npz not a zip": (VIDEO, lambda f: f.write_text("hello"), "download: is a text .*'hello'.*download it again"),
    "objects": (VIDEO, overwrite(features=np.array([{}, []], object)), "pickled: .*never loaded"),
    "another key": (VIDEO, overwrite(feats=ROWS), r"missing key: no array 'features'.*\['feats'\]"),
    "nan": (VIDEO, overwrite(features=SOME_NAN), "nan: NaN or Inf in 3 of 10 rows, the first is 7"),
    "infinite": (VIDEO, overwrite(features=np.full_like(ROWS, np.inf)), "nan: .* the first is 0"),
    "one dimension": (VIDEO, overwrite(features=ROWS[0]), r"shape: \(4,\) where \(rows, width\)"),
    "three dimensions": (VIDEO, overwrite(features=ROWS[None]), r"shape: \(1, 10, 4\)"),
    "no rows": (VIDEO, overwrite(features=ROWS[:0]), r"shape: \(0, 4\)"),
    "another width": (VIDEO, overwrite(features=ROWS[:, :3]), "shape: vectors of width 3 where others have 4"),
    "integers": (VIDEO, overwrite(features=ROWS.astype(int)), "dtype: int64"),
    "video missing": (VIDEO, Path.unlink, "missing file: no such feature file"),
    "query missing": (TEXT, Path.unlink, "missing file: no such feature file"),
    "no sentence": (TEXT, overwrite(last_hidden_state=WORDS), "missing key: no array 'pooler_output'"),
    "another space": (TEXT, overwrite(last_hidden_state=WORDS, pooler_output=ROWS[:, :3]), "shape: vectors of width 3"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_with_its_query_and_what_to_do(name, damage, message, tmp_path):
    root = moment_detr(tmp_path)
    damage(root / name)
    with pytest.raises(ValueError, match=rf"{name}: {message}.*needed by query 2 'A dog runs\.' .*mrlib\.data\.check"):
        open_files("qvhighlights", root, "val")
    assert not list(root.rglob("*target*")) or name == TEXT


def test_a_missing_file_or_key_is_also_the_usual_error_of_its_kind(tmp_path):
    root = moment_detr(tmp_path)
    save_npz(root / VIDEO, feats=random(0, 10, 4))
    with pytest.raises(KeyError):
        open_files("qvhighlights", root, "val")
    (root / VIDEO).unlink()
    with pytest.raises(FileNotFoundError):
        open_files("qvhighlights", root, "val")


class TouchesFile:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["MRLIB_TEST_TOUCH"]),)


def test_a_pickled_file_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MRLIB_TEST_TOUCH", str(tmp_path / "touched"))
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    save_npz(tmp_path / "slowfast_features/video_a.npz", features=random(0, 10, 6))
    save_npy(tmp_path / "clip_b32_vid_k4/video_a.npy", np.array([TouchesFile()], object), allow_pickle=True)
    save_npy(tmp_path / "clip_b32_txt_k4/1.npy", random(0, 5, 4, 2))
    with pytest.raises(ValueError, match=r"clip_b32_vid_k4/video_a\.npy: pickled: .*never loaded"):
        open_files("qvhighlights", tmp_path, "val")
    assert not (tmp_path / "touched").exists()


def test_a_video_missing_from_an_hdf5_file_is_refused_with_the_keys_of_the_file(tmp_path):
    write_lines(tmp_path / "charades_val_release.jsonl", [windows_only()])
    save_hdf5(tmp_path / "vgg_rgb_features.hdf5", {"other": random(0, 9, 3)})
    glove(tmp_path / "glove.txt", {"dog": [0, 3, 4]})
    with pytest.raises(KeyError, match=r"vgg_rgb_features\.hdf5: missing key: no array 'video_a'; .*\['other'\]"):
        open_files("charades_sta", tmp_path, "val")


def test_an_id_that_leaves_the_folder_is_refused_before_any_file_is_read(tmp_path):
    root = moment_detr(tmp_path)
    write_lines(root / "highlight_val_release.jsonl", [line(), line(2, vid="../../etc/x")])
    with pytest.raises(ValueError, match="line 2: vid: '../../etc/x' is not a plain name"):
        open_files("qvhighlights", root, "val")


def test_unknown_names_folders_splits_and_layouts_are_refused_with_the_known_ones(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown dataset 'qvh'; known: .*qvhighlights"):
        open_files("qvh", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_files("qvhighlights", tmp_path / "none")
    root = moment_detr(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no split 'train'.*highlight_train_release\.jsonl.*\['val'\]"):
        open_files("qvhighlights", root)
    with pytest.raises(ValueError, match="unknown layout 'detr'; known: moment_detr"):
        open_files("qvhighlights", root, "val", layout="detr")
    monkeypatch.delenv("MRLIB_DATA", raising=False)
    with pytest.raises(ValueError, match="set MRLIB_DATA"):
        open_files("qvhighlights")


def test_the_default_folder_is_that_of_the_name_in_mrlib_data(tmp_path, monkeypatch):
    moment_detr(tmp_path / "qvhighlights")
    monkeypatch.setenv("MRLIB_DATA", str(tmp_path))
    assert len(open_dataset("qvhighlights", split="val")) == 3


def test_features_in_no_layout_or_in_two_spellings_are_refused(tmp_path):
    write_lines(tmp_path / "highlight_val_release.jsonl", [line()])
    with pytest.raises(FileNotFoundError, match=r"looked for\n  moment_detr: slowfast_features/\{vid\}"):
        open_files("qvhighlights", tmp_path, "val")
    moment_detr(tmp_path)
    save_npz(tmp_path / "clip/video_a.npz", features=random(0, 10, 4))
    with pytest.raises(ValueError, match="ambiguous: clip_features/.* and clip/.* are there; keep one"):
        open_files("qvhighlights", tmp_path, "val")
    assert len(open_files("qvhighlights", tmp_path, "val", streams=["slowfast"])) == 3


def test_a_missing_stream_is_refused_unless_streams_leaves_it_out(tmp_path):
    root = moment_detr(tmp_path)
    for file in (root / "slowfast_features").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no slowfast_features/.*streams="):
        open_files("qvhighlights", root, "val")
    assert open_files("qvhighlights", root, "val", streams="joint").widths.target == 4


def cache_files(root):
    return sorted(p.name for p in (root / ".mrlib_cache").iterdir())


def test_a_dataset_is_opened_again_from_the_cache(tmp_path, monkeypatch):
    root = moment_detr(tmp_path)
    first = open_files("qvhighlights", root, "val")
    files, times = cache_files(root), {p: p.stat().st_mtime_ns for p in (root / ".mrlib_cache").iterdir()}
    assert len(files) == 2
    monkeypatch.setattr("mrlib.data.cache.save_bank", None)  # nothing is written
    second = open_files("qvhighlights", root, "val")
    assert {p: p.stat().st_mtime_ns for p in (root / ".mrlib_cache").iterdir()} == times
    assert torch.equal(first.query.rows, second.query.rows)
    assert torch.equal(first.target.rows, second.target.rows)
    assert torch.equal(first.query_joint, second.query_joint)


def test_a_feature_file_that_changed_at_equal_size_and_time_is_read_again(tmp_path):
    root = moment_detr(tmp_path)
    open_files("qvhighlights", root, "val")
    file, clip = root / "clip_features/video_b.npz", random(99, 10, 4)
    before = file.stat()
    save_npz(file, features=clip)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert_same(target(open_files("qvhighlights", root, "val"), 1)[:, 6:], unit(clip))
    assert len(cache_files(root)) == 2


def test_features_that_only_have_other_times_keep_their_cache(tmp_path, monkeypatch):
    root = moment_detr(tmp_path)
    before = target(open_files("qvhighlights", root, "val")).clone()
    for file in (root / "clip_features").iterdir():
        os.utime(file, ns=(1, 1))
    monkeypatch.setattr("mrlib.data.cache.save_bank", None)  # nothing is written
    assert torch.equal(target(open_files("qvhighlights", root, "val")), before)
    assert torch.equal(target(open_files("qvhighlights", root, "val")), before)
    assert len(cache_files(root)) == 2


def test_a_changed_feature_file_is_read_again_and_replaces_the_cache(tmp_path):
    root = moment_detr(tmp_path)
    open_files("qvhighlights", root, "val")
    before = cache_files(root)
    clip = random(99, 10, 4)
    save_npz(root / "clip_features/video_b.npz", features=clip)
    os.utime(root / "clip_features/video_b.npz", ns=(1, 1))
    assert_same(target(open_files("qvhighlights", root, "val"), 1)[:, 6:], unit(clip))
    after = cache_files(root)
    assert len(after) == 2
    assert len(set(before) & set(after)) == 1  # that of the queries


def test_a_changed_duration_changes_the_features(tmp_path):
    root = moment_detr(tmp_path)
    assert open_files("qvhighlights", root, "val").target.lengths.tolist() == [10, 10]
    shorter = [line(i, duration=18, vid=v) for i, v in [(1, "video_a"), (2, "video_b"), (3, "video_a")]]
    write_lines(root / "highlight_val_release.jsonl", shorter)
    assert open_files("qvhighlights", root, "val").target.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_cache_is_written_again(damage, tmp_path):
    root = moment_detr(tmp_path)
    expected = target(open_files("qvhighlights", root, "val")).clone()
    for file in (root / ".mrlib_cache").iterdir():
        whole = file.read_bytes()
        file.unlink()
        file.write_bytes(damage(whole))
    assert torch.equal(target(open_files("qvhighlights", root, "val")), expected)


def test_every_combination_of_options_has_its_own_cache(tmp_path):
    root = moment_detr(tmp_path)
    for options in ({}, {"dtype": torch.float16}, {"normalize": False}, {"streams": "joint"}, {"limit": 1}):
        open_files("qvhighlights", root, "val", **options)
    assert len(cache_files(root)) == 10


def test_the_cache_can_be_in_another_folder(tmp_path, monkeypatch):
    root = moment_detr(tmp_path / "data")
    open_files("qvhighlights", root, "val", cache=tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == 2
    assert not (root / ".mrlib_cache").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (root / ".mrlib_cache").touch()  # so that it cannot become a folder
    open_files("qvhighlights", root, "val")
    assert len(os.listdir(tmp_path / "home/mrlib")) == 2


def test_two_folders_do_not_share_a_cache_file(tmp_path):
    roots = [moment_detr(tmp_path / name) for name in ("one", "two")]
    for root in roots:
        open_files("qvhighlights", root, "val", cache=tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == 4


def test_settings_are_the_resolved_options_as_json_values(tmp_path):
    dataset = open_files("qvhighlights", moment_detr(tmp_path), "val", streams="joint")
    assert json.loads(json.dumps(dataset.settings)) == {
        "layout": "moment_detr",
        "streams": ["clip"],
        "normalize": ["clip", "query"],
        "dtype": "float32",
        "limit": None,
    }


def test_layouts_without_hdf5_do_not_import_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert len(open_files("qvhighlights", moment_detr(tmp_path), "val")) == 3


REAL = [("qvhighlights", "val"), ("charades_sta", "test"), ("activitynet_captions", "val"), ("tacos", "val")]


@pytest.mark.filterwarnings("ignore:.*windows end after their video")
@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_annotations_open_with_random_features_of_their_lengths(name, split, tmp_path):
    if "MRLIB_DATA" not in os.environ:
        pytest.skip("MRLIB_DATA names no folder with the real annotations")
    dataset = DATASETS[name]
    file = dataset.annotations[-1].replace("{split}", split)
    lines = Path(os.environ["MRLIB_DATA"], name, file).read_text().splitlines()[:40]
    write_lines(tmp_path / file, lines)
    for sample in map(json.loads, lines):
        rows = int(np.ceil(sample["duration"] / dataset.clip_s))
        save_npz(tmp_path / f"clip/{sample['vid']}.npz", features=random(rows, rows, 4))
        text = {"last_hidden_state": random(0, 5, 5), "pooler_output": random(0, 4)}
        save_npz(tmp_path / f"clip_text/{dataset.query.format(qid=sample['qid'])}.npz", **text)
    opened = open_files(name, tmp_path, split, streams="joint")
    batch = opened.batch(range(40))
    assert (batch.lengths * batch.clip_s >= batch.duration_s - 1e-3).all()
    assert batch.labels.relevant.any(1).all()
    assert (batch.labels.spans[batch.labels.span_mask].diff() > 0).all()


def test_a_folder_whose_name_is_no_utf_8_is_read_and_cached(tmp_path):
    root = moment_detr(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    before = target(open_files("qvhighlights", root, "val")).clone()
    assert torch.equal(target(open_files("qvhighlights", root, "val")), before)
    assert len(cache_files(root)) == 2


def test_a_name_that_is_too_long_for_a_file_is_a_missing_file(tmp_path):
    root = moment_detr(tmp_path)
    write_lines(root / "highlight_val_release.jsonl", [line(vid="\N{GRINNING FACE}" * 200)])
    with pytest.raises(FileNotFoundError, match="missing file: no such feature file"):
        open_files("qvhighlights", root, "val")


def test_the_page_about_data_names_every_dataset_layout_and_option():
    page = (Path(__file__).parents[2] / "data/README.md").read_text()
    options = [*keyword_defaults(open_files)]
    told = {"domain", "limit", "split"}  # of a single dataset, or for trying out
    missing = [name for name in (*DATASETS, *LAYOUTS, *set(options) - told) if name not in page]
    assert not missing
    for mode in get_args(Mode):
        assert f"`{mode}`" in page
