"""The GPU kernel: in triton's interpreter against the plain recursion, and compiled for a GPU; no GPU is needed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_the_kernel_agrees_with_the_plain_recursion_in_the_interpreter():
    """Four lanes wide, so that anti-diagonals are processed in pieces."""
    program = """
import torch
from mrlib.ops import alignment_gpu, alignment_plain
from tests.support.alignments import TOPOLOGIES, random_batches
alignment_gpu._LANES = 4
for seed in range(12):
    cost, *lengths = random_batches(seed)
    cost, lengths = cost[:4], [n[:4] for n in lengths]
    topology, gamma = TOPOLOGIES[seed % 3], (1e-3, 0.1, 10.0, 1.0)[seed % 4]
    plain = alignment_plain.soft(cost, gamma, *lengths, topology, None, keep=True)
    fast = alignment_gpu.soft(cost, gamma, *lengths, topology, None, keep=True)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert torch.equal(alignment_gpu.soft(cost, gamma, *lengths, topology, None, keep=False)[0], fast[0])
    float32 = alignment_gpu.soft(cost.float(), gamma, *lengths, topology, None, keep=True)
    torch.testing.assert_close(float32, tuple(x.float() for x in plain), rtol=1e-4, atol=1e-3)
"""
    environment, root = {**os.environ, "TRITON_INTERPRET": "1"}, Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment, cwd=root)


def test_the_kernel_computes_long_videos_and_long_queries():
    """As wide as on a GPU, and in pieces."""
    program = """
import torch
from mrlib.ops import alignment_gpu, alignment_plain
for (B, T, N), lanes in (((1, 400, 9), 1024), ((1, 9, 400), 8), ((3, 1, 20), 1024), ((3, 20, 1), 1024)):
    alignment_gpu._LANES = lanes
    cost = torch.rand(B, T, N, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
    arguments = cost, 0.1, torch.full((B,), T), torch.full((B,), N), "subsequence", None
    torch.testing.assert_close(
        alignment_gpu.soft(*arguments, keep=True), alignment_plain.soft(*arguments, keep=True), rtol=1e-9, atol=1e-9
    )
"""
    environment, root = {**os.environ, "TRITON_INTERPRET": "1"}, Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment, cwd=root)


@pytest.mark.parametrize(
    "free, left, keep, dtype",
    [(True, True, True, "fp32"), (True, False, False, "fp32"), (False, True, True, "fp64")],
)
def test_the_kernel_compiles_for_a_gpu(free, left, keep, dtype, tmp_path, monkeypatch):
    """To PTX for compute capability 9.0; the interpreter accepts programs that the compiler does not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mrlib.ops import alignment_gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(["cost", "shares_u", "E"], f"*{dtype}") | {"lengths": "*i64"}
    kinds |= dict.fromkeys(["U", "ends", "passed", "values", "scale"], "*fp64") | dict.fromkeys("BTN", "i32")
    constants = {"FREE": free, "LEFT": left, "KEEP": keep, "LANES": 64}
    signature = {name: kinds.get(name, "constexpr") for name in alignment_gpu._soft.arg_names}
    program = triton.compile(ASTSource(alignment_gpu._soft, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert ".entry _soft(" in program.asm["ptx"]
