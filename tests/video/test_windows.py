"""Windows over videos of any length, and a retriever on them."""

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.ops.spans import iou
from mrlib.video.windows import (
    Query,
    Window,
    batch_of,
    moments_in,
    together,
    window_starts,
    windows_of,
    without_overlap,
)


@pytest.mark.parametrize(
    ("n", "length"), [(1, 75), (75, 75), (76, 75), (112, 75), (113, 75), (1800, 75), (9, 1), (5, 2)]
)
def test_windows_cover_a_video_and_overlap_by_half(n, length):
    starts = window_starts(n, length)
    covered = {clip for start in starts for clip in range(start, min(n, start + length))}
    assert covered == set(range(n)) and starts[0] == 0 and starts[-1] == max(0, n - length)
    assert all(0 < b - a <= max(1, length // 2) for a, b in zip(starts, starts[1:], strict=False))
    # a moment of half a window lies whole in one of them
    half = length - max(1, length // 2)
    for start in range(n - half + 1):
        assert any(s <= start and start + half <= s + length for s in starts) or length >= n


def test_the_last_window_ends_with_the_video():
    windows = windows_of("v", torch.zeros(10, 2), duration_s=19.3, clip_s=2.0, length=4)
    assert [(w.start_s, len(w.rows)) for w in windows] == [(0, 4), (4, 4), (8, 4), (12, 4)]
    assert [w.duration_s for w in windows] == [8, 8, 8, pytest.approx(7.3)]


def retriever(name="qd_detr", joint=16):
    return papers.build(papers.get(name, "small"), Widths(16, 12, joint), seed=1).eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QUERY = Query("a query", random(5, 12, seed=1), random(16, seed=2))


@pytest.mark.parametrize("name", ["moment_detr", "qd_detr", "univtg", "f2sgd"])
def test_one_window_is_answered_as_predict_answers_the_video(name):
    model, rows = retriever(name), random(20, 16)
    windows = windows_of("v", rows, 39.4, 2.0, length=75)
    expected = model.predict(batch_of(windows, QUERY, 2.0))[0]["pred_relevant_windows"]
    assert together(moments_in(model, windows, QUERY, 2.0), 100) == expected


def test_moments_of_a_window_are_shifted_into_the_video():
    """Every window is predicted as a video of its own; chunks are no larger than CHUNK clips."""
    model, rows = retriever(), random(70, 16)
    windows = windows_of("v", rows, 139.5, 2.0, length=20)
    answers = moments_in(model, windows, QUERY, 2.0)
    assert len(answers) == len(windows) == 6
    for window, moments in zip(windows, answers, strict=True):
        alone = model.predict(batch_of([Window("w", window.rows, 0.0, window.duration_s)], QUERY, 2.0))[0]
        shifted = torch.tensor(moments, dtype=torch.float64)
        shifted[:, :2] -= window.start_s
        torch.testing.assert_close(
            shifted, torch.tensor(alone["pred_relevant_windows"], dtype=torch.float64), atol=2e-3, rtol=1e-4
        )
        assert all(window.start_s <= a <= b <= window.start_s + window.duration_s for a, b, _ in moments)


def test_a_long_video_goes_through_in_chunks(monkeypatch):
    model, sizes = retriever(), []
    monkeypatch.setattr("mrlib.video.windows.CHUNK", 40)
    lines_of = model.lines_of
    monkeypatch.setattr(model, "lines_of", lambda batch: sizes.append(len(batch)) or lines_of(batch))
    moments_in(model, windows_of("v", random(70, 16), 140.0, 2.0, length=20), QUERY, 2.0)
    assert sizes == [2, 2, 2]


def test_a_moment_that_two_windows_see_counts_once():
    answers = [[[10.0, 20.0, 0.9], [0.0, 4.0, 0.3]], [[10.5, 20.0, 0.8], [30.0, 40.0, 0.5]]]
    assert together(answers, 10) == [[10.0, 20.0, 0.9], [30.0, 40.0, 0.5], [0.0, 4.0, 0.3]]
    assert together(answers, 1) == [[10.0, 20.0, 0.9]]
    assert without_overlap([], 3) == []
    kept = torch.tensor(without_overlap([[*sorted(x), s] for *x, s in random(40, 3).abs().tolist()], 40))
    apart = iou(kept[:, None, :2], kept[None, :, :2]) <= 0.5
    assert (apart | torch.eye(len(kept), dtype=torch.bool)).all()


def test_the_overlap_within_one_window_is_left_to_the_retriever():
    answers = [[[10.0, 20.0, 0.9], [10.0, 20.0, 0.8]]]
    assert together(answers, 10) == answers[0]
