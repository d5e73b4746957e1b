"""The CPU kernels against the plain recursion; threads and processes."""

import importlib.util
import os
import subprocess
import sys
from itertools import product

import pytest
import torch

import mrlib.ops
from mrlib.ops import alignment_plain
from tests.support.alignments import TOPOLOGIES, random_batches, random_costs

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@pytest.mark.parametrize("seed", range(24))
def test_the_kernels_agree_with_the_plain_recursion(seed):
    from mrlib.ops import alignment_cpu

    cost, *lengths = random_batches(seed)
    for topology, gamma in product(TOPOLOGIES, (1e-3, 0.1, 10.0)):
        plain = alignment_plain.soft(cost, gamma, *lengths, topology, None, keep=True)
        fast = alignment_cpu.soft(cost, gamma, *lengths, topology, None, keep=True)
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
        assert torch.equal(alignment_cpu.soft(cost, gamma, *lengths, topology, None, keep=False)[0], fast[0])
        paths = [module.hard_path(cost, *lengths, topology, None) for module in (alignment_plain, alignment_cpu)]
        assert torch.equal(*paths)


@pytest.mark.parametrize("N", [32, 40, 90, 300])
def test_long_queries_agree_with_the_plain_recursion_however_many_samples_are_interleaved(N):
    """Eight, six, two and one sample side by side, and a group that is not full."""
    from mrlib.ops import alignment_cpu

    cost = random_costs(11, 5, N, seed=N)
    lengths = torch.randint(0, 6, (11,)), torch.randint(N // 2, N + 1, (11,))
    for topology in TOPOLOGIES:
        plain = alignment_plain.soft(cost, 0.1, *lengths, topology, None, keep=True)
        torch.testing.assert_close(
            alignment_cpu.soft(cost, 0.1, *lengths, topology, None, keep=True), plain, rtol=1e-9, atol=1e-9
        )


def test_a_sample_of_nan_costs_has_no_path_and_leaves_the_next_samples_theirs():
    from mrlib.ops import alignment_cpu

    cost = random_costs(4, 5, 3)
    cost[[0, 2]] = torch.nan
    lengths = torch.full((4,), 5), torch.full((4,), 3)
    for topology in TOPOLOGIES:
        path = alignment_cpu.hard_path(cost, *lengths, topology, None)
        assert not path[[0, 2]].any()
        assert torch.equal(path[[1, 3]], alignment_plain.hard_path(cost, *lengths, topology, None)[[1, 3]])


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    cost = random_costs(37, 60, 25).float()
    runs = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        runs.append((mrlib.ops.soft_dtw(cost), mrlib.ops.expected_alignment(cost), mrlib.ops.hard_alignment(cost)))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_can_compute():
    program = """
import os, torch
import mrlib.ops
torch.get_num_threads = lambda: 2
cost = torch.rand(64, 40, 20)
value = mrlib.ops.soft_dtw(cost)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(mrlib.ops.soft_dtw(cost), value) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
