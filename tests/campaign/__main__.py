"""The command line of the campaign, see `tests.campaign`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import tests.campaign
from tests.campaign.files import Case, cases
from tests.support.answers import HELD

ORDER = ("same", "other", "clear", "bare", "silent", "slow", "memory")


def table(results: list[Case]) -> str:
    """How many cases of each kind were answered in which way."""
    kinds = list(dict.fromkeys(case.kind for case in results))
    counts = Counter((case.kind, case.answer.kind) for case in results)
    rows = [f"{'':32}" + "".join(f"{name:>8}" for name in ORDER)]
    for kind in kinds:
        rows.append(f"{kind:32}" + "".join(f"{counts[kind, name] or '.':>8}" for name in ORDER))
    totals = Counter(case.answer.kind for case in results)
    return "\n".join([*rows, f"{'all':32}" + "".join(f"{totals[name] or '.':>8}" for name in ORDER)])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign",
        description=tests.campaign.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=0, help="damaged files")
    parser.add_argument("--only", default="", help="only kinds of files whose names begin with this")
    options = parser.parse_args()
    results: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        try:
            if options.files:
                for case in cases(Path(folder), options.seed, options.files, options.only):
                    results.append(case)
                    if case.answer.kind not in HELD:
                        cost = f"{case.answer.seconds:.1f} s, {case.answer.megabytes:.0f} MB"
                        print(f"{case.kind}: {case.what}: {case.answer.kind}, {cost}: {case.answer.text}", flush=True)
        finally:
            os.chdir(Path(__file__).parent)
    print(table(results))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
