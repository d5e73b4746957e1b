"""The kernel of the GPU against the plain recursion, in triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_the_gpu_kernel_agrees_with_the_plain_way_in_the_interpreter():
    """Without a GPU: triton's interpreter runs the kernel, four lanes wide so that diagonals come in pieces."""
    program = """
import torch
from mrlib.ops import alignment_gpu, alignment_plain
from tests.support.alignments import TOPOLOGIES, random_batches
alignment_gpu._LANES = 4
for seed in range(12):
    cost, *lengths = random_batches(seed)
    cost, lengths = cost[:4], [n[:4] for n in lengths]
    topology, gamma = TOPOLOGIES[seed % 3], (1e-3, 0.1, 10.0, 1.0)[seed % 4]
    plain = alignment_plain.soft(cost, gamma, *lengths, topology, keep=True)
    fast = alignment_gpu.soft(cost, gamma, *lengths, topology, keep=True)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert torch.equal(alignment_gpu.soft(cost, gamma, *lengths, topology, keep=False)[0], fast[0])
    float32 = alignment_gpu.soft(cost.float(), gamma, *lengths, topology, keep=True)
    torch.testing.assert_close(float32, tuple(x.float() for x in plain), rtol=1e-4, atol=1e-3)
"""
    environment, root = {**os.environ, "TRITON_INTERPRET": "1"}, Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment, cwd=root)
