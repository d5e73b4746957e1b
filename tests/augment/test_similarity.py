"""The similarity of videos against its definition, and the most similar other video of a set."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mrlib.augment.similarity import CHUNK, most_alike, pair_similarity
from mrlib.data import Bank


def literal(features: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """[TD-DETR Eq. 1] as printed: four nested sums."""
    features, similarity = features.double(), torch.zeros(len(lengths), len(lengths), dtype=torch.float64)
    for (j, n), (k, m) in product(enumerate(lengths), repeat=2):
        for p, q in product(range(n), range(m)):
            norms = features[j, p].norm() * features[k, q].norm()
            if p != q and norms > 0:
                similarity[j, k] += features[j, p] @ features[k, q] / norms / (n * m)
    return similarity


def padded(lengths: list[int], width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(seed)) + 0.3, mask


@pytest.mark.parametrize("lengths", [[4, 4, 4], [7, 1, 3, 5], [2, 6, 1, 0, 6], [1, 1]])
def test_pair_similarity_equals_its_definition(lengths):
    """[TD-DETR Eq. 1] With any values on padding, and a video without clips."""
    for seed in range(5):
        features, mask = padded(lengths, seed=seed)
        similarity = pair_similarity(features, mask)
        torch.testing.assert_close(similarity.double(), literal(features, lengths), atol=1e-5, rtol=0)
        double = pair_similarity(features.double(), mask)
        torch.testing.assert_close(double, literal(features, lengths), atol=1e-12, rtol=0)


def test_pair_similarity_by_hand():
    """Clips along the axes. The pairs of unequal index of the videos (x, y) and (y, y) are xy and yy, of four pairs."""
    x, y = [1.0, 0.0], [0.0, 2.0]
    features = torch.tensor([[x, y], [y, y], [x, x]])
    similarity = pair_similarity(features, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(similarity, torch.tensor([[0, 1, 1], [1, 2, 0], [1, 0, 2]]) / 4)


def test_norms_do_not_matter_and_clips_of_zeros_are_similar_to_nothing():
    """Also with two streams of unit vectors side by side, whose norm is the root of two."""
    features, mask = padded([5, 3, 6], width=8)
    streams = torch.cat([F.normalize(features[..., :3], dim=-1), F.normalize(features[..., 3:], dim=-1)], -1)
    torch.testing.assert_close(pair_similarity(streams, mask).double(), literal(streams, [5, 3, 6]))
    scaled = streams * torch.rand(3, 6, 1).add(0.1)
    torch.testing.assert_close(pair_similarity(scaled, mask), pair_similarity(streams, mask))
    streams[0, 1], streams[1] = 0, 0
    similarity = pair_similarity(streams, mask)
    assert not similarity[1].any() and not similarity[:, 1].any() and similarity.isfinite().all()
    torch.testing.assert_close(similarity.double(), literal(streams, [5, 3, 6]))


@pytest.mark.parametrize("mode", ["mean", "top50"])
def test_half_precision_features_are_compared_in_float32(mode):
    features, mask = padded([5, 3, 6], width=32)
    half = pair_similarity(features.half(), mask, mode)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pair_similarity(features.half().float(), mask, mode))


def test_the_released_similarity_is_the_mean_of_the_fifty_most_similar_pairs():
    """Short videos have fewer pairs, or some are padding: still divided by 50."""
    for lengths in ([12, 9, 12], [3, 2, 7], [1, 12, 0]):
        features, mask = padded(lengths)
        unit = F.normalize(features.double(), dim=-1) * mask[..., None]
        expected = torch.zeros(3, 3, dtype=torch.float64)
        for j, k in product(range(3), repeat=2):
            pairs = sorted((float(a @ b) for a in unit[j] for b in unit[k]), reverse=True)
            expected[j, k] = sum(pairs[:50]) / 50
        torch.testing.assert_close(pair_similarity(features, mask, "top50").double(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="mode must be mean or top50, not 'max'"):
        pair_similarity(features, mask, "max")


def test_the_most_alike_video_has_the_largest_mean_cosine_over_all_pairs_of_clips():
    """Against four nested loops, with videos of several lengths, over more than one chunk."""
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(1 + v % 4, 6, generator=g, dtype=torch.float64) for v in range(CHUNK + 6)]
    bank = Bank.from_arrays([x.float().numpy() for x in clips])
    means = torch.zeros(len(clips), len(clips), dtype=torch.float64)
    for (j, a), (k, b) in product(enumerate(clips), repeat=2):
        means[j, k] = (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T).mean() if j != k else -torch.inf
    assert most_alike(torch.arange(len(clips)), bank).tolist() == means.argmax(1).tolist()
    some = torch.tensor([5, 2, 9])  # among these only
    expected = [int(some[means[v][some].argmax()]) for v in some]
    assert most_alike(some, bank).tolist() == expected


def test_a_single_video_has_no_most_alike_one_and_of_equals_the_first_is_taken():
    bank = Bank.from_arrays([torch.ones(n, 3).numpy() for n in (2, 3, 1)])
    assert most_alike(torch.tensor([1]), bank).tolist() == [-1]
    assert most_alike(torch.tensor([2, 0, 1]), bank).tolist() == [0, 2, 2]
