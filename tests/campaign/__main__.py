"""The command line of the campaign, see `tests.campaign`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tests.campaign
from tests.campaign.environments import environments
from tests.campaign.files import Case, damaged
from tests.campaign.hostile import hostile
from tests.campaign.kills import kills
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


def chosen(options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The cases that the options ask for."""
    yield from damaged(folder, options.seed, options.files, options.only)
    yield from kills(folder, options.seed, options.kills, options.only)
    if options.environments:
        yield from environments(folder, options.only)
    if options.hostile:
        yield from hostile(folder, options.seed, options.only)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign",
        description=tests.campaign.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=0, help="damaged files")
    parser.add_argument("--kills", type=int, default=0, help="killed runs, grids and caches")
    parser.add_argument("--environments", action="store_true", help="odd environments and names of folders")
    parser.add_argument("--hostile", action="store_true", help="odd ids, and no files in the place of files")
    parser.add_argument("--only", default="", help="only kinds whose names begin with this")
    options = parser.parse_args()
    results: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # other users may look in
        start = time.monotonic()
        try:
            for case in chosen(options, Path(folder)):
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
