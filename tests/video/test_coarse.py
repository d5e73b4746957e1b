"""The coarse step against its definition, clip by clip, in float64."""

import numpy as np
import pytest
import torch

from mrlib.data.bank import Bank
from mrlib.video.coarse import Windows, best_by_clip, best_by_cosine, cosines_with, mean_of, products, smoothed


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def bank() -> Bank:
    """Videos of 1 to 60 clips whose rows are not in order, with rows between them that are no features."""
    rng, lengths = np.random.default_rng(0), [60, 1, 9, 31, 2, 25]
    rows = unit(rng.normal(size=(sum(lengths) + 40, 8))).astype("<f2")
    places = rng.permutation(len(rows))[: sum(lengths)]
    rows[np.setdiff1d(np.arange(len(rows)), places)] = np.resize([np.nan, np.inf, -60000], (40, 8))
    return Bank(*map(torch.from_numpy, (rows, np.cumsum([0, *lengths]), places)))


def videos(bank: Bank) -> list[np.ndarray]:
    """The features of every video, float64."""
    parts = bank.places.split(bank.lengths.tolist())
    return [bank.rows[part].double().numpy() for part in parts]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 31, 100])
def test_windows_cover_every_clip_and_overlap_by_half(length):
    lengths = torch.arange(1, 90)
    windows = Windows.of(lengths, length)
    clip = torch.cat([torch.arange(n) for n in lengths])
    start, stop = windows.start[windows.owner], (windows.start + windows.count)[windows.owner]
    assert ((start <= clip) & (clip < stop)).all()
    assert (windows.count == lengths[windows.video].clamp(max=length)).all()
    assert (windows.start + windows.count <= lengths[windows.video]).all()
    same = windows.video[1:] == windows.video[:-1]
    assert (windows.start.diff()[same] <= max(1, length // 2)).all() and (windows.start.diff()[same] > 0).all()
    assert torch.bincount(windows.video)[lengths - 1 < length].eq(1).all()  # one window for a short video


@pytest.mark.parametrize("length", [8, 31])
def test_a_clip_belongs_to_the_window_in_whose_middle_it_is_most(length):
    """Of the windows at multiples of half a window, which the last one of a video may not be."""
    n, stride = 95, length // 2
    windows = Windows.of(torch.tensor([n]), length)
    starts = [k * stride for k in range(len(windows.video))]
    for clip, owner in enumerate(windows.owner.tolist()):
        distance = [abs(clip + 0.5 - (start + stride)) for start in starts]
        assert distance[owner] <= min(distance) + 0.5


def test_smoothing_stays_within_a_video():
    scores, lengths = torch.tensor([1.0, 2, 6, 10, 20, 7]), torch.tensor([3, 2, 1])
    assert smoothed(scores, lengths).tolist() == pytest.approx([1.5, 3, 4, 15, 15, 7])


def test_products_are_those_of_the_whole_matrix():
    rows, vectors = torch.randn(9000, 16).half(), torch.randn(16, 3)
    parts = list(products(rows, vectors))
    assert [(each.start, each.stop) for each, _ in parts] == [(0, 4096), (4096, 8192), (8192, 9000)]
    torch.testing.assert_close(torch.cat([part for _, part in parts]), rows.float() @ vectors)


def test_the_mean_is_that_of_all_videos(bank):
    np.testing.assert_allclose(mean_of(bank), np.concatenate(videos(bank)).mean(0), atol=1e-6)


@pytest.mark.parametrize("length", [6, 25])
def test_by_cosine_a_window_has_the_score_of_its_best_clip(bank, length):
    query, windows = np.random.default_rng(1).normal(size=8), Windows.of(bank.lengths, length)
    scores = []
    for x in videos(bank):
        cosine = x @ unit(query)
        scores += [cosine[max(0, i - 1) : i + 2].mean() for i in range(len(x))]
    expected = np.full(len(windows.video), -np.inf)
    np.maximum.at(expected, windows.owner.numpy(), scores)
    numbers, values = best_by_cosine(windows, smoothed(cosines_with(bank, torch.from_numpy(query)), bank.lengths), 5)
    assert numbers.tolist() == np.argsort(-expected)[:5].tolist()
    np.testing.assert_allclose(values, expected[numbers], atol=1e-6)


def test_by_clip_a_window_has_the_mean_over_the_query_of_the_best_cosine(bank):
    """Windows of an even length, whose halves are whole; the last of a video counts from the half before it."""
    query, length = unit(np.random.default_rng(2).normal(size=(5, 8))), 8
    windows, mean = Windows.of(bank.lengths, length), np.concatenate(videos(bank)).mean(0)
    expected = []
    for x in videos(bank):
        cosine = unit(x - mean) @ unit(query - mean).T
        count = 1 + max(0, -(-(len(x) - length) // (length // 2)))
        expected += [cosine[k * length // 2 :][:length].max(0).mean() for k in range(count)]
    expected = np.array(expected)
    everything = best_by_clip(bank, windows, torch.from_numpy(query).float(), 3 * len(expected))
    np.testing.assert_allclose(everything[1], expected[everything[0]], atol=1e-3)
    chosen = everything[0].tolist()
    assert chosen[0] == expected.argmax() and (np.diff(everything[1]) <= 0).all()
    for number in set(range(len(expected))) - set(chosen):  # a window that is left out overlaps a better one
        beside = [k for k in (number - 1, number + 1) if k in chosen and windows.video[k] == windows.video[number]]
        assert max(expected[k] for k in beside) >= expected[number]
    assert best_by_clip(bank, windows, torch.from_numpy(query).float(), 2)[0].tolist() == chosen[:2]
