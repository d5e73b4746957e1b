"""How much CPU time `import mrlib.papers` takes, as a multiple of `import torch`; the goal is at most 1.3.

python tests/benchmarks/bench_import.py [--repeats 5] [--modules mrlib.papers]
"""

import argparse
import os
import statistics
import subprocess
import sys

GOAL = 1.3


def cpu_seconds(module: str) -> float:
    """CPU time of a fresh Python that imports one module, without the start of Python itself."""
    program = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return float(
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment).stdout
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of every import, in turn; the median counts")
    parser.add_argument("--modules", nargs="+", default=["mrlib.papers"])
    args = parser.parse_args()
    modules = ["torch", *args.modules]
    for module in modules:  # once without measuring: compiles to bytecode and fills the disk's cache
        cpu_seconds(module)
    times = {module: [] for module in modules}
    for _ in range(args.repeats):
        for module in modules:
            times[module].append(cpu_seconds(module))
    medians = {module: statistics.median(seconds) for module, seconds in times.items()}
    print(f"{'import':20}{'CPU s':>8}{'min':>8}{'max':>8}{'ratio':>8}")
    for module, median in medians.items():
        low, high = min(times[module]), max(times[module])
        print(f"{module:20}{median:8.2f}{low:8.2f}{high:8.2f}{median / medians['torch']:8.2f}")
    return 0 if all(medians[module] <= GOAL * medians["torch"] for module in args.modules) else 1


if __name__ == "__main__":
    sys.exit(main())
