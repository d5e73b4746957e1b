"""What losses divide by: gradients averaged over the ranks are those of the whole batch."""

import pytest
import torch

from mrlib.ops.counts import shared_count
from tests.support.processes import in_processes

ITEMS = [[1.0, 2.0, 6.0], [4.0]]  # of the two ranks; of all together the mean is 13 / 4


def shares(rank):
    items = torch.tensor(ITEMS[rank])
    return {
        "share": (items.sum() / shared_count(len(items))).item(),
        "tensor": shared_count(torch.tensor(len(items))).item(),
        "none": shared_count(0).item(),
        "one of them": shared_count(rank).item(),
    }


def test_the_average_of_the_ranks_is_the_mean_of_all_items(tmp_path):
    """By hand: 9 / (4 / 2) and 4 / (4 / 2), of which the average is 13 / 4. No items at all count as one, shared."""
    first, second = in_processes(shares, tmp_path)
    assert (first["share"], second["share"]) == (4.5, 2.0)
    assert (first["share"] + second["share"]) / 2 == sum(map(sum, ITEMS)) / 4
    for result in (first, second):
        assert (result["tensor"], result["none"], result["one of them"]) == (2.0, 0.5, 0.5)


@pytest.mark.parametrize(("n", "count"), [(5, 5.0), (1, 1.0), (0, 1.0), (torch.tensor(3), 3.0), (torch.tensor(0), 1.0)])
def test_in_one_process_it_is_the_count_and_at_least_one(n, count):
    shared = shared_count(n)
    assert shared.dtype == torch.float32 and shared.shape == () and shared.item() == count


def test_no_gradient_flows_into_a_count():
    n = torch.tensor(3.0, requires_grad=True)
    assert not shared_count(n).requires_grad
