"""How much faster `mrlib.ops.soft_dtw` is than other ways, value and gradient, and how it compares with its plain way.

python tests/benchmarks/bench_alignment.py [--threads 1] [--repeats 20] [--against CHECKOUT]

before  the same function of another checkout of this repository, with --against

public  pysdtw, a public soft-DTW for torch in numba, installed into a temporary folder with pip; where that fails, the
        same recursion written here, as plainly as numba allows
cells   a Python loop over the cells with batched tensors and autograd, as vl2g/MATR does it; above 128 cells a side it
        is timed on a corner of 64 x 64 and scaled by the number of cells

The ways take turns and the fastest time counts: of the processor on one thread, of the clock on more. Each line ends
with the largest error of the gradient against the plain way in float64.

Then the time of variants, as multiples of `soft_dtw`, value and gradient: with a band of a quarter of the target clips;
without the search for costs that are no numbers; and the divergence of two videos of 8 features against the three
alignments in float64 that it consists of.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module

import numba
import numpy as np
import torch

from mrlib.ops import alignment, alignment_cpu, alignment_plain
from mrlib.ops.divergence import soft_dtw_divergence

SIZES = [(32, 75, 30), (128, 75, 75), (32, 512, 512)]  # batch, target clips, query clips
GAMMA = 0.1


def milliseconds(step, *arguments) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    step(*arguments)
    return 1e3 * (clock() - start)


def ours(way, module=alignment):
    def step(cost, weight):
        module._kernels = lambda cost: way
        value = module.soft_dtw(cost, GAMMA)
        return value.detach(), torch.autograd.grad(value, cost, weight)[0]

    return step


def before(checkout):
    """`ours` of another checkout, imported beside this one."""
    here = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mrlib"}
    sys.path.insert(0, checkout)
    modules = [import_module(f"mrlib.ops.{name}") for name in ("alignment_cpu", "alignment")]
    sys.path.remove(checkout)
    sys.modules.update(here)
    return ours(*modules)


def public():
    """pysdtw's CPU function, or the recursion written down here."""
    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "pysdtw"]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        return "written here", written_here
    sys.path.insert(0, folder)
    from pysdtw.sdtw_cpu import SoftDTWcpu

    def step(cost, weight):
        lengths = torch.tensor(cost.shape[1:]).expand(len(cost), 2).contiguous()
        value = SoftDTWcpu.apply(cost, lengths, GAMMA, 0.0)
        return value.detach(), torch.autograd.grad(value, cost, weight)[0]

    return "pysdtw", step


@numba.njit(parallel=True)
def _recursion(C, gamma, R, E):
    B, T, N = C.shape
    for b in numba.prange(B):
        R[b, 0, 0] = 0
        for i in range(1, T + 1):
            for j in range(1, N + 1):
                x, y, z = R[b, i - 1, j - 1], R[b, i - 1, j], R[b, i, j - 1]
                least = min(x, y, z)
                total = np.exp((least - x) / gamma) + np.exp((least - y) / gamma) + np.exp((least - z) / gamma)
                R[b, i, j] = C[b, i - 1, j - 1] + least - gamma * np.log(total)
        E[b, T, N] = 1
        for i in range(T, 0, -1):
            for j in range(N, 0, -1):
                before = R[b, i, j] - C[b, i - 1, j - 1]
                E[b, i - 1, j - 1] += E[b, i, j] * np.exp((before - R[b, i - 1, j - 1]) / gamma)
                E[b, i - 1, j] += E[b, i, j] * np.exp((before - R[b, i - 1, j]) / gamma)
                E[b, i, j - 1] += E[b, i, j] * np.exp((before - R[b, i, j - 1]) / gamma)


def written_here(cost, weight):
    B, T, N = cost.shape
    R, E = np.full((B, T + 1, N + 1), np.inf), np.zeros((B, T + 1, N + 1))
    _recursion(cost.detach().numpy(), GAMMA, R, E)
    gradient = weight[:, None, None] * torch.from_numpy(E[:, 1:, 1:]).to(cost.dtype)
    return torch.from_numpy(R[:, T, N]).to(cost.dtype), gradient


def cells(cost, weight):
    _, T, N = cost.shape
    far = torch.full_like(cost[:, 0, 0], 1e10)
    R = {(0, 0): torch.zeros_like(far)}
    for i in range(1, T + 1):
        for j in range(1, N + 1):
            before = torch.stack([R.get(p, far) for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1))])
            R[i, j] = cost[:, i - 1, j - 1] - GAMMA * torch.logsumexp(-before / GAMMA, 0)
    value = R[T, N]
    return value.detach(), torch.autograd.grad(value, cost, weight)[0]


def gradient(function, *inputs, **options):
    """A step of value and gradient of a function of these inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(function(*inputs, GAMMA, **options).sum(), inputs)


def unchecked(cost, *options):
    """`soft_dtw` without the search for NaN."""
    lengths = (torch.full((len(cost),), n) for n in cost.shape[1:])
    return alignment._SoftDTW.apply(cost, GAMMA, *lengths, "global", None)


def variants(repeats):
    print("as multiples of soft_dtw: quarter band, unchecked; divergence / three soft_dtw")
    alignment._kernels = lambda cost: alignment_cpu
    for B, T, N in SIZES:
        cost, features = torch.rand(B, T, N), (torch.rand(B, T, 8), torch.rand(B, N, 8))
        steps = {
            "soft_dtw": gradient(alignment.soft_dtw, cost),
            "quarter": gradient(alignment.soft_dtw, cost, band=T // 4),
            "unchecked": gradient(unchecked, cost),
            "divergence": gradient(soft_dtw_divergence, *features),
        }
        costs = [torch.rand(B, *shape, dtype=torch.float64) for shape in ((T, N), (T, T), (N, N))]
        steps |= {f"part {i}": gradient(alignment.soft_dtw, each) for i, each in enumerate(costs)}
        best = dict.fromkeys(steps, float("inf"))
        for _ in range(repeats * (1 + 300_000 // cost.numel())):
            for name, step in steps.items():
                best[name] = min(best[name], milliseconds(step))
        ratios = [best[name] / best["soft_dtw"] for name in ("quarter", "unchecked")]
        ratios.append(best["divergence"] / sum(best[f"part {i}"] for i in range(3)))
        print(f"{f'{B} {T} {N}':16}" + "".join(f"{ratio:10.2f}" for ratio in ratios), flush=True)


def compare(ways, repeats, B, T, N):
    """Time every way at one size and print a line."""
    cost, weight = torch.rand(B, T, N, requires_grad=True), torch.rand(B)
    corner = cost.detach()[:, : min(T, 64), : min(N, 64)] if max(T, N) > 128 else cost.detach()
    exact = ways["plain"](cost.detach().double().requires_grad_(), weight.double())
    errors = {}
    for way, step in ways.items():
        differences = [(got - want).abs().max() for got, want in zip(step(cost, weight), exact, strict=True)]
        assert all(d < 1e-3 * e.abs().max() for d, e in zip(differences, exact, strict=True)), f"{way} is wrong"
        errors[way] = differences[1].item()
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats * (1 + 1_000_000 // cost.numel())):
        for way, step in ways.items():
            best[way] = min(best[way], milliseconds(step, cost, weight))
    corner.requires_grad_()
    best["cells"] = min(milliseconds(cells, corner, weight) for _ in range(2)) * T * N / corner[0].numel()
    ratios = " ".join(f"{way} {best[way] / best['ours']:.1f}" for way in best if way != "ours")
    worst = " ".join(f"{way} {error:.1e}" for way, error in errors.items())
    print(f"{f'{B} {T} {N}':16}" + "".join(f"{ms:10.2f}" for ms in best.values()) + f"  {ratios}; {worst}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20, help="in turn, more of short ones; the fastest counts")
    parser.add_argument("--against", metavar="CHECKOUT", help="folder of another checkout of this repository")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numba.set_num_threads(min(args.threads, os.cpu_count()))
    name, other = public()
    ways = {"ours": ours(alignment_cpu), "plain": ours(alignment_plain), "public": other}
    if args.against:
        ways["before"] = before(args.against)
    print(f"public: {name}; threads: {args.threads}, float32, gamma {GAMMA}; value and gradient, ms")
    print(f"{'B T N':16}" + "".join(f"{way:>10}" for way in [*ways, "cells"]) + "  multiples of ours; gradient errors")
    for size in SIZES:
        compare(ways, args.repeats, *size)
    variants(args.repeats)


if __name__ == "__main__":
    main()
