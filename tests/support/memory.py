"""How much memory and time calls take, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

_SCRIPT = """
import json, os, resource, sys, time
setup, calls = json.load(sys.stdin)
names = {}
exec(setup, names)
for call in calls:
    sys.stdout.flush()
    if os.fork() == 0:  # its peak begins at what the parent takes now
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            exec(call, names)
            said = "done"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        print(json.dumps([1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), seconds, said]))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


class Cost(NamedTuple):
    size: int  # bytes that are added to the peak of memory
    seconds: float
    said: str  # the error with its type, or "done"


def costs(setup: str, calls: list[str]) -> list[Cost]:
    """What each of some calls costs.

    setup  statements that are run before, once, and are not measured
    calls  statements
    """
    given = json.dumps([setup, calls])
    run = subprocess.run([sys.executable, "-c", _SCRIPT], input=given, capture_output=True, text=True, timeout=300)
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and len(lines) == len(calls), run.stderr
    return [Cost(*json.loads(line)) for line in lines]
