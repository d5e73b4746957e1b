"""Models are built up to a size."""

import pytest
import torch
from torch import nn

from mrlib.papers.limits import at_most


def test_a_model_within_the_limits_is_the_same_as_without():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Embedding(2, 5), nn.Linear(4, 1))
    torch.manual_seed(0)
    with at_most(parts=8, numbers=12 + 4 + 10 + 4 + 1):
        limited = nn.Sequential(nn.Linear(3, 4), nn.Embedding(2, 5), nn.Linear(4, 1))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), limited.parameters(), strict=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(5, 5), "more than 20 numbers"),
        (lambda: nn.Linear(10**9, 10**9), "more than 20 numbers"),
        (lambda: nn.Linear(10**30, 1), "more than 20 numbers"),
        (lambda: torch.zeros((3, 7)), "more than 20 numbers"),
        (lambda: torch.empty(size=(21,)), "more than 20 numbers"),
        (lambda: nn.ModuleList(nn.Identity() for _ in range(10**9)), "more than 6 parts"),
        (lambda: [nn.Linear(1, 1) for _ in range(10**9)], "more than"),
        (lambda: nn.Linear(-1, 1), "the model cannot be built: .*negative dimension"),
        (lambda: torch.zeros(2).repeat(10**15), "the model cannot be built"),
    ],
)
def test_a_larger_model_is_refused_before_it_takes_memory(build, message):
    with pytest.raises(ValueError, match=message), at_most(parts=6, numbers=20):
        build()


def test_after_the_block_there_is_no_limit():
    with pytest.raises(ValueError, match="parts"), at_most(parts=1, numbers=20):
        nn.Linear(1, 1)
    assert nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
