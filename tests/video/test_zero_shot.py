"""Answers from features alone."""

import numpy as np
import pytest
import torch

from mrlib import baselines
from mrlib.data import open_dataset
from mrlib.metrics import evaluate
from mrlib.ops.boundary_search import boundaries
from mrlib.video.zero_shot import STILL, _likeness, by_rows, by_vector, smoothed
from tests.support.fixed import JOINT, scene


def test_smoothing_is_the_mean_of_three_neighbours():
    assert smoothed(np.array([3.0, 0.0, 0.0, 6.0])).tolist() == [1.5, 1.0, 2.0, 3.0]
    assert smoothed(np.array([5.0])).tolist() == [5.0]


def test_a_sentence_is_found_where_the_clips_are_like_it():
    rows, vector = scene((0, 10), (1, 5), (2, 10), (1, 4), (3, 6)), torch.eye(JOINT)[1]
    moments, exists = by_vector(rows, vector, 2.0, 70.0, most=5)
    windows = [moment[:2] for moment in moments]
    assert windows[0] == [48.0, 60.0] and [18.0, 32.0] in windows  # smoothing adds a clip at either end
    assert exists > 0.9
    assert [m[2] for m in moments] == sorted((m[2] for m in moments), reverse=True)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_shortest_videos_have_an_answer(n):
    moments, exists = by_vector(scene((0, n)), torch.ones(JOINT), 2.0, 2.0 * n - 0.5, most=5)
    assert moments and all(0 <= a < b <= 2 * n - 0.5 for a, b, _ in moments) and 0 <= exists <= 1


def test_every_answer_is_a_run_above_the_mean_or_the_anchors_interval():
    """On videos no longer than a window [A2FA Eq. 5]; of two with one peak, the one that stands out more is first."""
    data = open_dataset("sim", split="val", n=20, size="small")
    batch = data.batch(range(20))
    _, left, right = boundaries(batch.target_joint, batch.target_mask, batch.query_joint)
    for b in range(20):
        moments, _ = by_vector(batch.target_joint[b], batch.query_joint[b], 2.0, 64.0, 10)
        c = torch.cosine_similarity(batch.target_joint[b].double(), batch.query_joint[b].double(), dim=-1).numpy()
        smooth = np.array([c[max(0, t - 1) : t + 2].mean() for t in range(32)])
        edges = np.flatnonzero(np.diff(smooth > c.mean(), prepend=False, append=False)).reshape(-1, 2)
        candidates = [*map(tuple, edges.tolist()), (int(left[b]), int(right[b]) + 1)]
        peak = {span: smooth[slice(*span)].max() for span in candidates}
        excess = {span: (c[slice(*span)] - c.mean()).sum() / np.sqrt(span[1] - span[0]) for span in candidates}
        first = max(candidates, key=lambda span: (peak[span].round(12), excess[span]))
        assert moments[0] == pytest.approx([2 * first[0], 2 * first[1], peak[first]])
        assert {(start / 2, end / 2) for start, end, _ in moments} <= set(candidates)


def test_the_first_answer_is_better_than_either_kind_alone():
    """On the simulator at the size of QVHighlights, whose training-free scores are calibrated."""
    data = open_dataset("sim", split="val", n=100, size="paper", streams="joint")
    batch = data.batch(range(100))
    lines = []
    for sample, target, n, query in zip(
        data.samples, batch.target_joint, batch.lengths, batch.query_joint, strict=True
    ):
        moments, _ = by_vector(target[:n], query, 2.0, sample.duration, 10)
        lines.append({"qid": sample.qid, "query": "", "vid": sample.vid, "pred_relevant_windows": moments})
    ours, runs, interval = (
        evaluate(answers, data.samples)["brief"]["MR-full-R1@0.5"]
        for answers in (lines, baselines.query_similarity(data), baselines.anchor_interval(data))
    )
    assert ours > interval + 10 and ours > runs + 10


def test_the_existence_score_is_the_baselines():
    data = open_dataset("sim", split="val", n=10, size="small", null=0.3)
    batch = data.batch(range(10))
    scores = [by_vector(t, q, 2.0, 64.0, 1)[1] for t, q in zip(batch.target_joint, batch.query_joint, strict=True)]
    expected = [line["pred_exist_score"] for line in baselines.similarity_or_nothing(data)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_long_video_has_an_anchor_in_every_window():
    """The event lies an hour in, where the whole video's first and last clips say nothing."""
    rows = scene(*[(i % 6, 30) for i in range(60)], (7, 6), *[(i % 6, 30) for i in range(60)])
    moments, _ = by_vector(rows, torch.eye(JOINT)[7], 2.0, 2.0 * len(rows), most=5)
    inside = [score for start, end, score in moments if start <= 3600 and end >= 3612]
    outside = [score for start, end, score in moments if not (start <= 3600 and end >= 3612)]
    assert moments[0][1] - moments[0][0] < 30 and len(inside) >= 2 and max(outside) < 0.5 < min(inside)


def changing(n: int, seed: int = 0, width: int = 32) -> torch.Tensor:
    """A video (n, width) that changes smoothly."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=g).cumsum(0) * 0.5 + torch.randn(n, width, generator=g) * 0.1


@pytest.mark.parametrize("step", [1, 2])
def test_a_clip_is_found_where_it_was_cut(step):
    """Also at twice the speed, under noise."""
    rows = changing(100)
    query = rows[40:60:step] + 0.05 * torch.randn(20 // step, 32, generator=torch.Generator().manual_seed(1))
    moments, exists = by_rows(rows, query, 0.5, 50.0, most=3)
    start, end, score = moments[0]
    assert abs(start - 20) <= 0.5 * step and abs(end - 30) <= 0.5 * step and score > 0.9 and exists == score


def test_further_answers_are_elsewhere():
    rows = torch.cat([changing(40), changing(30, 1), changing(40)])  # the same scene twice
    moments, _ = by_rows(rows, changing(40)[10:30], 1.0, 110.0, most=3)
    assert {tuple(round(x) for x in m[:2]) for m in moments[:2]} == {(10, 30), (80, 100)}
    assert len(moments) <= 3 and [m[2] for m in moments] == sorted((m[2] for m in moments), reverse=True)
    spans = sorted(m[:2] for m in moments)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_likeness_is_half_look_and_half_change():
    """The definition, part by part."""
    rows, query = changing(12), changing(4, 1)
    centred = rows - rows.mean(0)
    expected = []
    for start in range(9):
        part, asked = centred[start : start + 4], query - rows.mean(0)
        look = torch.cosine_similarity(part, asked, dim=1).mean()
        a, b = part - part.mean(0), asked - asked.mean(0)
        still = STILL * 4 * centred.square().sum(1).mean()
        expected.append((look + (a * b).sum() / (a.norm() * b.norm() + still)) / 2)
    likeness = _likeness(rows, query, 4)
    torch.testing.assert_close(likeness, torch.stack(expected).double(), atol=1e-5, rtol=1e-4)


def test_a_long_clip_in_a_long_video_is_compared_in_pieces(monkeypatch):
    rows, query = changing(300), changing(40, 1)
    expected = _likeness(rows, query, 40)
    monkeypatch.setattr("mrlib.video.zero_shot.CELLS", 1000)
    torch.testing.assert_close(_likeness(rows, query, 40), expected)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 1), (5, 5), (3, 20)])
def test_the_shortest_clips_and_videos_are_compared(n, m):
    """A clip of one picture does not change, and a video may be shorter than half the clip."""
    moments, exists = by_rows(changing(n), changing(m, 1), 1.0, n - 0.5, most=3)
    assert moments and all(0 <= a < b <= n - 0.5 for a, b, _ in moments) and 0 <= exists <= 1


def test_a_copy_that_is_graded_anew_is_found():
    """All its clips are shifted alike."""
    rows = changing(100)
    moments, _ = by_rows(rows, 0.7 * rows[30:50] + 3, 0.5, 50.0, most=1)
    assert moments[0][:2] == [15.0, 25.0]
