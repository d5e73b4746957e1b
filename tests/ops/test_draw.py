"""Counter-based random numbers."""

import hashlib

import pytest
import torch

from mrlib.ops.draw import Draw


def test_numbers_of_a_sample_do_not_depend_on_the_other_samples():
    draw, indices = Draw(3, "train", 7), torch.arange(100)
    numbers = draw("place", indices, 4)
    torch.testing.assert_close(draw("place", indices.flip(0)[:10], 4), numbers.flip(0)[:10], rtol=0, atol=0)
    torch.testing.assert_close(draw("place", indices, 2), numbers[:, :2], rtol=0, atol=0)


def test_numbers_differ_between_seeds_stages_epochs_and_names():
    indices = torch.arange(50)
    draws = [Draw(0, "a", 0), Draw(1, "a", 0), Draw(0, "b", 0), Draw(0, "a", 1)]
    numbers = [d("x", indices) for d in draws] + [draws[0]("y", indices)]
    assert len({tuple(n.tolist()) for n in numbers}) == 5


def test_numbers_are_uniform_and_uncorrelated():
    """20,000 numbers: mean 1/2, variance 1/12, columns and neighbours uncorrelated, to five standard errors."""
    x = Draw(0)("x", torch.arange(10_000), 2)
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 5 * (1 / 12 / 20_000) ** 0.5
    assert abs(x.var() - 1 / 12) < 5 * (1 / 180 / 20_000) ** 0.5
    pairs = torch.corrcoef(torch.stack([x[:, 0], x[:, 1], x[:, 0].roll(1), x[:, 1].roll(1)]))
    assert (pairs - torch.eye(4)).abs().max() < 5 / 100
    cells = torch.histc(x.float(), 20, 0, 1)
    assert ((cells - 1000) ** 2 / 1000).sum() < 60  # chi squared, 19 degrees of freedom


@pytest.mark.parametrize("name", ["order", "place", "length", "speed", "foreign"])
def test_numbers_equal_splitmix64_in_integer_arithmetic(name):
    """Training runs can be repeated only as long as this function does not change."""
    wrap = 2**64

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % wrap
        x = (x ^ x >> 27) * 0x94D049BB133111EB % wrap
        return x ^ x >> 31

    key = int.from_bytes(hashlib.blake2b(f"0/train/3/{name}".encode(), digest_size=8).digest(), "little")
    golden = 0x9E3779B97F4A7C15
    expected = [
        [mix(mix(mix((i * golden + key) % wrap) + (j + 1) * golden & wrap - 1)) >> 11 for j in (0, 1)] for i in (0, 5)
    ]
    numbers = Draw(0, "train", 3)(name, torch.tensor([0, 5]), 2)
    assert (numbers * 2**53).long().tolist() == expected
