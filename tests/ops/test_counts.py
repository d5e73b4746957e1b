"""Divisors of losses: gradients averaged over the ranks are those of the whole batch."""

import pytest
import torch

from mrlib.ops.counts import shared_count
from mrlib.ops.whole_batch import dealt_out
from tests.support.processes import in_processes

ITEMS = [[1.0, 2.0, 6.0], [4.0]]  # of two ranks; their mean is 13 / 4


def shares(rank):
    """What one rank computes."""
    items, n = torch.tensor(ITEMS[rank]), torch.tensor(5.0)
    with dealt_out(4):
        shared_count(n)
        return {
            "n": n.item(),
            "share": (items.sum() / shared_count(len(items))).item(),
            "tensor": shared_count(torch.tensor(len(items))).item(),
            "none": shared_count(0).item(),
            "one of them": shared_count(rank).item(),
        }


def test_the_average_of_the_ranks_is_the_mean_of_all_items(tmp_path):
    """By hand: 9 / (4 / 2) and 4 / (4 / 2), whose average is 13 / 4. Without any item, the count is 1, shared."""
    first, second = in_processes(shares, tmp_path)
    assert (first["share"], second["share"]) == (4.5, 2.0)
    assert (first["share"] + second["share"]) / 2 == sum(map(sum, ITEMS)) / 4
    for result in (first, second):
        assert (result["tensor"], result["none"], result["one of them"]) == (2.0, 0.5, 0.5)
        assert result["n"] == 5.0  # the count of the rank itself stays as it is


@pytest.mark.parametrize(("n", "count"), [(5, 5.0), (1, 1.0), (0, 1.0), (torch.tensor(3), 3.0), (torch.tensor(0), 1.0)])
def test_on_one_process_it_is_the_count_and_at_least_one(n, count):
    shared = shared_count(n)
    assert shared.dtype == torch.float32 and shared.shape == () and shared.item() == count


def test_no_gradient_flows_into_a_count():
    n = torch.tensor(3.0, requires_grad=True)
    assert not shared_count(n).requires_grad
