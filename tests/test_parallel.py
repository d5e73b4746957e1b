"""Distributed helpers, worked out by hand for three processes; in one process they change nothing."""

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mrlib import parallel
from tests.support.processes import in_processes

CPU = torch.device("cpu")


def first_refuses(rank):
    """What every rank raises when rank 0 does, and what happens when it does not."""
    done = []
    parallel.on_first(lambda: done.append(rank))
    try:
        parallel.on_first(lambda: int("x"))
    except ValueError as error:
        return [str(error), done]


def exchange(rank):
    weights = nn.Linear(2, 1)
    nn.init.constant_(weights.weight, rank + 1.0)
    nn.init.constant_(weights.bias, -rank)
    parallel.broadcast_weights(weights)

    on_all, on_first, unused, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    half = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    frozen.requires_grad_(False)
    on_all.grad = torch.tensor([rank, 10.0 * rank])
    half.grad = torch.full_like(half, rank)
    if rank == 0:
        on_first.grad = torch.tensor([3.0, -6.0])
    parallel.average_gradients(nn.ParameterList([on_all, on_first, unused, frozen, half]))

    parallel.barrier()
    return {
        "ranks": list(parallel.rank_and_world()),
        "weights": [weights.weight.tolist(), weights.bias.tolist()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in (on_all, on_first, unused, frozen)],
        "half": half.grad,
        "average": parallel.average({"a": 3.0 * rank, "b": 0.1}, CPU),
        "seven": parallel.gather(list(range(rank, 7, 3))),
        "largest": parallel.largest(rank % 2, CPU),
        "sum": parallel.add_up(torch.tensor([rank, 10 * rank])),
        "shares": parallel.share_out(torch.tensor([rank > 0, True])),
        "of first": parallel.of_first(torch.tensor([[rank, 1], [rank, 2]]).mT),
        "first": first_refuses(rank),
        "words": parallel.gather([["a"], {"b": 1}][rank : rank + 1]),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_processes(exchange, tmp_path_factory.mktemp("ranks"), 3)


def test_every_process_knows_its_rank_and_the_number_of_processes(results):
    assert [result["ranks"] for result in results] == [[0, 3], [1, 3], [2, 3]]


def test_every_rank_gets_the_weights_of_rank_0(results):
    for result in results:
        assert result["weights"] == [[[1.0, 1.0]], [0.0]]


def test_gradients_are_averaged_and_stay_none_if_no_rank_has_one(results):
    """The missing gradient of a rank counts as 0. A gradient keeps its shape and type."""
    for result in results:
        assert result["gradients"] == [[1.0, 10.0], [1.0, -2.0], None, None]
        assert result["half"].dtype == torch.bfloat16 and result["half"].tolist() == [[1.0], [1.0]]


def test_values_are_averaged_by_name(results):
    for result in results:
        assert result["average"] == pytest.approx({"a": 3.0, "b": 0.1}, rel=1e-12)


def test_a_list_split_round_robin_is_gathered_in_its_order(results):
    """Seven items on three ranks, and two items, none of which is on the third rank."""
    for result in results:
        assert result["seven"] == list(range(7))
        assert result["words"] == [["a"], {"b": 1}]


def test_the_largest_number_of_a_rank_is_known_to_all(results):
    assert [result["largest"] for result in results] == [1, 1, 1]


def test_tensors_are_added_up_shared_out_and_taken_from_rank_0(results):
    for result in results:
        assert result["sum"].tolist() == [3, 30]
        assert [share.tolist() for share in result["shares"]] == [[False, True], [True, True], [True, True]]
        assert result["of first"].tolist() == [[0, 0], [1, 2]]


def test_rank_0_acts_and_every_rank_raises_its_error(results):
    message = "invalid literal for int() with base 10: 'x'"
    assert [result["first"] for result in results] == [[message, [0]], [message, []], [message, []]]


def lose_rank_1(rank, file):
    """Rank 1 dies without a word; what rank 0 sees of it, in a file."""
    if rank == 1:
        os._exit(0)
    try:
        for _ in range(100):
            parallel.barrier()
    except ConnectionError as error:
        file.write_text(str(error))


def test_the_surviving_rank_says_that_another_one_has_ended(tmp_path):
    (tmp_path / "ranks").mkdir()
    with contextlib.suppress(Exception):
        in_processes(functools.partial(lose_rank_1, file=tmp_path / "said"), tmp_path / "ranks")
    assert (tmp_path / "said").read_text().startswith("another process of this run has ended; start the run again")


def test_ranks_agree_on_a_name_although_the_store_has_questions_of_an_earlier_start():
    """Rank 0 first answers what processes that have ended had asked."""
    store = dist.HashStore()
    store.set("ask/1", "earlier 1")
    store.set("ask/2", "earlier 2")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(parallel._name_of_start, store, 0, 3)
        answers = {store.get(f"answer/earlier {rank}").decode() for rank in (1, 2)}
        others = pool.map(lambda rank: parallel._name_of_start(store, rank, 3), (1, 2))
        assert {first.result(), *others} == answers and len(answers) == 1
    assert parallel._name_of_start(store, 0, 1) not in answers, "every start has a name of its own"


def test_variables_of_torchrun_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is '2' and LOCAL_RANK ''; start several processes with torchrun"):
        parallel.start_if_several("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    parallel.start_if_several("cpu")
    parallel.end()


def test_in_one_process_the_helpers_change_nothing():
    assert parallel.rank_and_world() == (0, 1)
    parallel.barrier()
    module = nn.Linear(2, 1)
    before = module.weight.clone()
    parallel.broadcast_weights(module)
    assert torch.equal(module.weight, before)
    assert parallel.average({"a": 2.0}, CPU) == {"a": 2.0}
    assert parallel.gather((3, 1, 2)) == [3, 1, 2]
    assert parallel.largest(5, CPU) == 5
