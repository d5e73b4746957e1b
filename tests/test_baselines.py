"""Baselines without training, compared with videos worked out by hand and with their definitions."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlib import baselines
from mrlib.baselines import (
    FixedList,
    anchor_inside,
    anchor_interval,
    centred_window,
    query_similarity,
    similarity_or_nothing,
    whole_video,
)
from mrlib.data import Bank, MomentDataset, Sample, load_annotations
from mrlib.metrics import evaluate, moment_scores
from mrlib.ops.boundary_search import boundaries
from mrlib.sim import open_sim


def toy(*videos: list[float], windows: tuple = ((0, 2),), joint: bool = True) -> MomentDataset:
    """Videos whose clips have these cosines with their query."""
    rows = [np.array([[c, math.sqrt(1 - c * c), 0] for c in video], np.float32) for video in videos]
    samples = [
        Sample(i, f"query {i}", 2.0 * len(v), f"video{i}", [list(w) for w in windows]) for i, v in enumerate(videos)
    ]
    items = torch.arange(len(videos))
    return MomentDataset(
        name="toy",
        split="val",
        samples=samples,
        target=Bank.from_arrays(rows),
        video=items,
        query=Bank.from_arrays([np.ones((1, 3), np.float32)] * len(videos)),
        query_item=items,
        query_joint=torch.tensor([[2.0, 0, 0]]).expand(len(videos), 3),  # the norm of a query does not matter
        streams={"clip": slice(0, 3)},
        joint="clip" if joint else None,
        clip_s=2.0,
    )


def windows(lines: list[dict]) -> list[list]:
    return [line["pred_relevant_windows"] for line in lines]


def test_the_whole_video_is_one_window_from_start_to_end():
    lines = whole_video(toy([0.1, 0.2, 0.3], [0.1]))
    assert lines[0] == {
        "qid": 0,
        "query": "query 0",
        "vid": "video0",
        "pred_relevant_windows": [[0.0, 6.0, 1.0]],
    }
    assert windows(lines)[1] == [[0.0, 2.0, 1.0]]


def test_the_centred_window_is_the_middle_of_the_video():
    lines = centred_window(toy([0.1] * 5, [0.1]))
    assert windows(lines) == [[[2.0, 8.0, 1.0]], [[pytest.approx(0.4), pytest.approx(1.6), 1.0]]]
    assert {k: lines[0][k] for k in ("qid", "query", "vid")} == {"qid": 0, "query": "query 0", "vid": "video0"}
    half = windows(centred_window(toy([0.1] * 5), share=0.5))
    assert half == [[[2.5, 7.5, 1.0]]]
    assert centred_window(toy([0.1] * 5), share=1) == whole_video(toy([0.1] * 5))


def test_the_iou_of_a_centred_window_with_a_centred_moment_is_the_ratio_of_their_lengths():
    """60 % of 10 s are 6 s: the IoU is 5/6 with the middle half of the video, 6/10 with the whole."""
    for window, iou in (((2.5, 7.5), 500 / 6), ((0, 10), 60.0)):
        dataset = toy([0.1] * 5, windows=(window,))
        assert moment_scores(centred_window(dataset), dataset.samples)["all"]["mIoU"] == pytest.approx(iou, abs=0.01)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match="share is"):
        centred_window(toy([0.1]), share=share)


# --- similarity ------------------------------------------------------------------------------------------------------


def test_similarity_predicts_runs_above_mean_plus_deviation_ranked_by_their_mean():
    """Mean 0.33 and deviation 0.29: clips 1 and 2, with mean 0.75, and clip 5 are above 0.62."""
    video = [0.1, 0.7, 0.8, 0.1, 0.1, 0.9, 0.1, 0.2, 0.2, 0.1]
    (predicted,) = windows(query_similarity(toy(video)))
    np.testing.assert_allclose(predicted, [[10, 12, 0.9], [2, 6, 0.75]], atol=1e-6)


def test_similarity_predicts_the_best_clip_if_no_clip_is_above_the_threshold():
    """The first of equal clips."""
    assert np.array(windows(query_similarity(toy([0.5, 0.5, 0.5]))))[0].tolist() == [[0, 2, 0.5]]


def test_similarity_predicts_at_most_ten_windows():
    video = [0.1, 0.1, 0.1, 0.9] * 12
    assert [len(w) for w in windows(query_similarity(toy(video)))] == [10]


def test_similarity_of_a_video_does_not_depend_on_its_batch_mates():
    short, long = [0.1, 0.9, 0.2], [0.2, 0.3, 0.8, 0.9, 0.1, 0.1, 0.1, 0.1]
    assert query_similarity(toy(short, long))[0] == query_similarity(toy(short))[0]


def test_similarity_equals_its_definition_clip_by_clip():
    dataset = open_sim("val", n=80, streams="joint")
    for i, predicted in enumerate(windows(query_similarity(dataset))):
        batch = dataset.batch([i])
        c = (batch.target_joint[0].double() @ batch.query_joint[0].double()).tolist()
        mean = sum(c) / len(c)
        threshold = mean + math.sqrt(sum((x - mean) ** 2 for x in c) / len(c))
        runs, start = [], None
        for t, x in enumerate([*c, -math.inf]):
            if x > threshold and start is None:
                start = t
            elif x <= threshold and start is not None:
                runs.append((sum(c[start:t]) / (t - start), start, t))
                start = None
        expected = [[2 * a, 2 * b, score] for score, a, b in sorted(runs, reverse=True)][:10]
        np.testing.assert_allclose(predicted, expected, atol=1e-6)


# --- anchor ----------------------------------------------------------------------------------------------------------


def test_the_interval_includes_the_transition_points_on_both_sides_of_the_anchor():
    """[A2FA Eq. 5] Clips 3 to 5 are similar to the query; the interval goes from clip 2 to clip 5."""
    video = [0.1, 0.1, 0.1, 0.8, 0.9, 0.8, 0.1, 0.1]
    assert windows(anchor_interval(toy(video))) == [[[4.0, 12.0, 1.0]]]


def test_the_interval_of_a_video_does_not_depend_on_its_batch_mates():
    dataset = open_sim("val", n=70, streams="joint")
    for i, predicted in enumerate(windows(anchor_interval(dataset))):
        batch = dataset.batch([i])
        _, left, right = boundaries(batch.target_joint, batch.target_mask, batch.query_joint)
        assert predicted == [[2.0 * left.item(), 2.0 * right.item() + 2, 1.0]]


def test_an_anchor_is_inside_if_its_clip_is_relevant():
    """Windows 0-2 s and 6-8 s are clips 0 and 3; the anchors are clips 3, 2 and 0."""
    videos = [0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.9, 0.3], [0.9, 0.1, 0.1, 0.1, 0.1]
    assert anchor_inside(toy(*videos, windows=((0, 2), (6, 8)))) == pytest.approx(2 / 3)


def test_windows_end_with_the_video():
    """The last clip is a part of one: 7 s are four clips of 2 s."""
    dataset = toy([0.1, 0.1, 0.8, 0.9])
    dataset = replace(dataset, samples=[replace(s, duration=7.0) for s in dataset.samples], _annotations=None)
    assert windows(query_similarity(dataset))[0][0][:2] == [6, 7]
    assert windows(anchor_interval(dataset)) == [[[2.0, 7.0, 1.0]]]


@pytest.mark.parametrize("baseline", [query_similarity, anchor_interval, anchor_inside])
def test_a_dataset_without_a_joint_stream_is_refused(baseline):
    with pytest.raises(ValueError, match="joint space"):
        baseline(toy([0.1, 0.2], joint=False))


# --- a fixed list ----------------------------------------------------------------------------------------------------


def labelled(*windows_s: list[list[float]], duration: float = 100.0) -> list[Sample]:
    return [Sample(i, "q", duration, f"v{i}", w) for i, w in enumerate(windows_s)]


def test_a_fixed_list_begins_with_the_most_common_moment_and_scales_with_the_video():
    train = labelled([[20, 40]], [[20, 40]], [[60, 100]])
    lines = FixedList(train)(labelled([[0, 10]], duration=50))
    assert [w[:2] for w in windows(lines)[0][:2]] == [[10, 20], [30, 50]]
    scores = [w[2] for w in windows(lines)[0]]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)


def test_a_fixed_list_is_the_same_for_every_query():
    dataset = open_sim("val", n=20)
    lines = FixedList(open_sim("train", n=100))(dataset)
    assert len({str(w) for w in windows(lines)}) == 1


def test_a_fixed_list_adds_the_window_that_raises_the_mean_precision_most(monkeypatch):
    """The definition in loops: every list that is one window longer is scored."""
    monkeypatch.setattr(baselines, "GRID", 6)
    monkeypatch.setattr(baselines, "MAX_MOMENTS", 4)
    rng = np.random.default_rng(0)
    train = []
    for i in range(12):
        cuts = np.sort(rng.choice(50, 2 if i % 3 else 4, replace=False)) * 2.0
        train += labelled(cuts.reshape(-1, 2).tolist())
    candidates = [(a / 6, b / 6) for a in range(6) for b in range(a + 1, 7)]

    def iou(a, b):
        shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
        return shared / (a[1] - a[0] + b[1] - b[0] - shared)

    def value(spans):
        total = 0
        for s in train:
            for threshold in range(50, 100, 5):
                free, hits = [[x / s.duration for x in w] for w in s.relevant_windows], 0
                for rank, span in enumerate(spans, 1):
                    best = max(free, key=lambda w: iou(span, w), default=None)
                    if best is not None and iou(span, best) >= threshold / 100 - 1e-9:
                        free.remove(best)
                        hits += 1
                        total += hits / rank / len(s.relevant_windows)
        return total

    def r1(span):
        return sum(max(iou(span, np.array(w) / s.duration) for w in s.relevant_windows) >= 0.7 for s in train)

    chosen = [tuple(x) for x in FixedList(train).spans]
    assert r1(chosen[0]) == max(map(r1, candidates)) > 0
    for k in range(1, 4):
        assert value(chosen[: k + 1]) == pytest.approx(max(value([*chosen[:k], c]) for c in candidates))


def test_a_fixed_list_needs_annotated_samples():
    with pytest.raises(ValueError, match="no windows"):
        FixedList([Sample(0, "q", 10.0, "v")])
    with pytest.raises(ValueError, match="none of these has a window"):
        FixedList([Sample(0, "q", 10.0, "v", [])])


# ---- queries with nothing to find


def test_existence_is_the_chance_that_noise_stays_below_the_best_clip():
    (line, flat, single) = similarity_or_nothing(toy([0.1, 0.3, 0.8, 0.2], [0.4, 0.4], [0.5]))
    z = (0.8 - 0.25) / math.sqrt((0.15**2 + 0.05**2) / 2)  # two of four clips are below the median
    assert line["pred_exist_score"] == pytest.approx((0.5 * (1 + math.erf(z / math.sqrt(2)))) ** 4, abs=1e-6)
    assert (flat["pred_exist_score"], single["pred_exist_score"]) == (0.25, 0.5)  # no clip stands out
    assert [{k: v for k, v in line.items() if k != "pred_exist_score"}] == query_similarity(toy([0.1, 0.3, 0.8, 0.2]))


@pytest.mark.parametrize(("size", "n", "least"), [("small", 500, 70), ("paper", 300, 74)])
def test_the_videos_own_scores_tell_null_queries_better_than_chance(size, n, least):
    """Without training. Seeds 0 to 2 reach an AUROC of 74 to 81 at size small, 78 to 79 at size paper."""
    dataset = open_sim("val", size=size, n=n, null=0.4, streams="joint")
    lines = similarity_or_nothing(dataset)
    brief = evaluate(lines, dataset.samples)["brief"]
    assert brief["AUROC"] > least
    never = evaluate([line | {"pred_exist_score": 1.0} for line in lines], dataset.samples)["brief"]
    assert brief["G-mIoU@1"] > never["G-mIoU@1"] and brief["Rej-F1@0.6"] > never["Rej-F1@0.6"] == 0
    assert brief["mR@5"] == never["mR@5"]


def test_null_queries_do_not_count_in_fixed_lists_and_anchors():
    dataset = open_sim("val", n=100, null=0.4, streams="joint")
    answered = dataset.subset([i for i, s in enumerate(dataset.samples) if s.relevant_windows])
    assert (FixedList(dataset).spans == FixedList(answered).spans).all()
    assert anchor_inside(dataset) == pytest.approx(anchor_inside(answered))
    null = dataset.subset([i for i, s in enumerate(dataset.samples) if not s.relevant_windows])
    with pytest.raises(ValueError, match="no annotated windows"):
        anchor_inside(null)
    for baseline in (whole_video, centred_window, query_similarity, anchor_interval, FixedList(dataset)):
        assert "AUROC" in evaluate(baseline(dataset), dataset.samples)["brief"]


@pytest.mark.skipif("MRLIB_DATA" not in os.environ, reason="real annotations: set MRLIB_DATA")
def test_the_score_of_a_fixed_list_on_the_real_validation_set():
    """Published models reach as little on masked moments [TD-DETR]."""
    folder = Path(os.environ["MRLIB_DATA"]) / "qvhighlights"
    train, val = (load_annotations(folder / f"highlight_{split}_release.jsonl") for split in ("train", "val"))
    brief = evaluate(FixedList(train)(val), val)["brief"]
    assert brief["MR-full-R1@0.7"] == pytest.approx(6.5, abs=0.1)
    assert brief["MR-full-mAP"] == pytest.approx(13.3, abs=0.1)
