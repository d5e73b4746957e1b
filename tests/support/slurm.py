"""Stand-ins for the commands of Slurm, which run jobs on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_COMMAND = """#!{python}
import os, re, signal, subprocess, sys
from pathlib import Path

jobs, name = Path({jobs!r}), Path(sys.argv[0]).name
if name == "sbatch":
    script = Path(sys.argv[-1])
    folder = re.search("^#SBATCH --chdir=(.*)$", script.read_text(), re.M)
    copy = jobs / f"script-{{os.getpid()}}"
    copy.write_text(script.read_text())
    log = open(jobs / f"log-{{os.getpid()}}", "w")
    streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    job = subprocess.Popen(["bash", copy], cwd=folder and folder[1], start_new_session=True, **streams)
    (jobs / f"job-{{job.pid}}").touch()
    print(job.pid)
elif name == "squeue":
    for job in sorted(jobs.glob("job-*")):
        number = job.name.removeprefix("job-")
        stat = Path("/proc", number, "stat")
        if stat.exists() and ") Z" not in stat.read_text():
            print(f"{{number}}|me|R|job|{{jobs}}")
elif name == "scancel":
    os.killpg(int(sys.argv[-1]), signal.SIGTERM)
else:  # srun
    os.execvp(sys.argv[1], sys.argv[1:])
"""


def stand_in(folder: Path) -> dict[str, str]:
    """Write the commands to a folder, with `python` for this one; the environment in which they are found."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel", "srun"):
        (folder / "bin" / name).write_text(_COMMAND.format(python=sys.executable, jobs=str(folder)))
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    return os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
