"""How many times faster `mrlib.ops.conv.conv2d` is than torch's convolution, forward and backward, and its way.

python tests/benchmarks/bench_conv.py [--threads 2] [--repeats 3] [--device cpu]
"""

import argparse
import time

import torch

from mrlib.ops import conv

# batch, channels in and out, side, kernel
SIZES = [
    (32, 32, 32, 75, 21),
    (32, 1, 32, 75, 21),
    (32, 16, 16, 75, 21),
    (1, 32, 32, 75, 21),
    (32, 32, 32, 75, 7),
    (32, 8, 8, 32, 9),
    (32, 1, 8, 32, 9),
    (32, 1, 4, 32, 9),
    (32, 4, 4, 32, 9),
    (32, 8, 8, 32, 5),
    (32, 8, 8, 8, 9),
    (1, 8, 8, 373, 27),
    (4, 128, 128, 91, 9),
]


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of each way, in turn; the fastest counts")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ways = {"direct": conv.direct, "fourier": conv.fourier, "conv2d": conv.conv2d}
    print(
        f"{'batch in out side kernel':26}{'direct ms':>10}{'fourier ms':>11}{'conv2d ms':>10}{'ratio':>7}  way, error"
    )
    for batch, inputs, outputs, side, kernel in SIZES:
        x = torch.randn(batch, inputs, side, side, device=args.device, requires_grad=True)
        weight = torch.randn(outputs, inputs, kernel, kernel, device=args.device, requires_grad=True)
        dy = torch.randn(batch, outputs, side, side, device=args.device)

        def step(way, x=x, weight=weight, dy=dy):
            y = way(x, weight)
            return y.detach(), *torch.autograd.grad(y, (x, weight), dy)

        error = max(
            float((a - b).abs().max() / b.abs().max())
            for a, b in zip(step(conv.conv2d), step(conv.direct), strict=True)
        )
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(args.repeats):
            for name, way in ways.items():
                best[name] = min(best[name], 1e3 * seconds(lambda way=way: step(way)))
        chosen = "fourier" if conv.fourier_is_faster(x.shape, weight.shape) else "direct"
        print(
            f"{batch:5}{inputs:3}{outputs:4}{side:5}{kernel:7}  {best['direct']:10.1f}{best['fourier']:11.1f}"
            f"{best['conv2d']:10.1f}{best['direct'] / best['conv2d']:7.2f}  {chosen} ({error:.0e})",
            flush=True,
        )


if __name__ == "__main__":
    main()
