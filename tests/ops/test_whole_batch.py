"""The rows of other ranks, with gradients, worked out by hand; a whole batch stays as it is."""

import pytest
import torch

from mrlib import parallel
from mrlib.ops import whole_batch
from mrlib.ops.counts import shared_count
from mrlib.ops.whole_batch import dealt_out, drawn, own, whole
from tests.support.processes import in_processes

ROWS = 7  # of three ranks, the first of which has three


def rows_of_all(rank):
    """A batch of seven rows on three ranks, and one of two rows, which is not dealt out."""
    batch = torch.arange(2 * ROWS, dtype=torch.float64).view(ROWS, 2)
    torch.manual_seed(rank)
    with dealt_out(ROWS):
        x = batch[rank::3].clone().requires_grad_()
        gathered = whole(x)
        # rank r takes r + 1 times the square of every row; the mean of the ranks is twice the sum of squares
        ((rank + 1) * gathered.square()).sum().backward()
        numbers = drawn(lambda rows: torch.rand(len(rows)), x)
        result = {
            "whole": gathered.detach(),
            "flags": whole(x[:, 0] > 3),
            "half": whole(x.detach().bfloat16()),
            "own": own(gathered).detach(),
            "gradient": x.grad,
            "numbers": numbers,
            "ranks": whole_batch.ranks(),
            "count": shared_count(len(x)),
        }
    with dealt_out(2):
        few = batch[:2].clone().requires_grad_()
        whole(few).sum().backward()
        result["few"] = [whole(few).detach(), own(few).detach(), few.grad, shared_count(2), whole_batch.ranks()]
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_processes(rows_of_all, tmp_path_factory.mktemp("ranks"), 3)


def test_every_rank_gets_all_rows_in_the_order_of_the_batch(results):
    for rank, result in enumerate(results):
        assert result["whole"].tolist() == [[2 * i, 2 * i + 1] for i in range(ROWS)]
        assert result["flags"].tolist() == [2 * i > 3 for i in range(ROWS)]
        assert result["half"].dtype == torch.bfloat16 and torch.equal(result["half"].double(), result["whole"])
        assert torch.equal(result["own"], result["whole"][rank::3])
        assert (result["ranks"], result["count"]) == (3, torch.tensor(ROWS / 3))


def test_averaged_over_the_ranks_gradients_are_those_of_the_mean_loss(results):
    """By hand: the loss is 2 Σ x², its gradient 4 x; a rank's gradient counts a third."""
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["gradient"] / 3, 4 * result["whole"][rank::3])


def test_random_numbers_are_those_that_rank_0_draws_for_the_whole_batch(results):
    torch.manual_seed(0)
    expected = torch.rand(ROWS)
    for rank, result in enumerate(results):
        assert torch.equal(result["numbers"], expected[rank::3])


def test_a_batch_of_fewer_rows_than_ranks_is_whole_on_every_rank(results):
    for result in results:
        gathered, held, gradient, count, ranks = result["few"]
        assert gathered.tolist() == held.tolist() == [[0, 1], [2, 3]]
        assert gradient.tolist() == [[1, 1], [1, 1]] and count == 2 and ranks == 1


def test_on_one_process_and_outside_the_block_a_batch_stays_as_it_is(monkeypatch):
    x = torch.ones(3, 2)
    with dealt_out(3):
        assert whole(x) is x and own(x) is x and whole_batch.ranks() == 1
    monkeypatch.setattr(parallel, "rank_and_world", lambda: (1, 2))
    assert whole(x) is x and own(x) is x and whole_batch.ranks() == 1
    assert drawn(torch.zeros_like, x).tolist() == [[0, 0]] * 3
    with pytest.raises(ZeroDivisionError), dealt_out(3):
        assert whole_batch.ranks() == 2
        1 / 0  # noqa: B018
    assert whole_batch.ranks() == 1
