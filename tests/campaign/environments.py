"""Odd environments: each runs the command lines of mrlib and expects the usual bytes, or one line that helps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign.files import Case
from tests.support.answers import Answer
from tests.support.files import moment_detr
from tests.support.hashes import digest
from tests.support.runs import COMMAND
from tests.support.runs import contents as files_of

ROOT = Path(__file__).resolve().parents[2]
BASE = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TRAIN = f"{sys.executable} -m mrlib.train {' '.join(COMMAND)} --epochs 1 --out run"
OPEN = (
    f"{sys.executable} -c \"import mrlib; d = mrlib.open_dataset('qvhighlights', 'data', 'val'); "
    'print(d.batch([0, 1, 2]).target.sum().item())"'
)
CHECK = f"{sys.executable} -m mrlib.data.check qvhighlights data"
SCORE = f"{sys.executable} -m mrlib.metrics whole/predictions.jsonl whole/predictions.jsonl"
NOBODY = "setpriv --reuid 12345 --regid 12345 --clear-groups"


@dataclass(frozen=True)
class Place:
    """A shell command in an odd environment."""

    name: str
    command: str  # {train}, {open}, {check} stand for the command lines
    environment: dict[str, str | None] = field(default_factory=dict)  # changes; None: the variable is not set
    before: str = ""  # shell commands that prepare the folder
    may_fail: bool = False  # one line that names what is wrong is right too
    must_fail: bool = False


PLACES = [
    Place("no HOME", "{train} && {open}", {"HOME": None}),
    Place("HOME that is not there", "{train} && {open}", {"HOME": "/nothing"}),
    Place("a user without a name", f"{NOBODY} {{train}} && {NOBODY} {{open}}", {"HOME": None}, "chmod -R a+rwX ."),
    Place(
        "a user without a name, read-only data",
        f"{NOBODY} {{open}}",
        {"HOME": None, "XDG_CACHE_HOME": None},
        "chmod -R a+rX . && chmod a-w data",
        may_fail=True,
    ),
    Place(
        "read-only data, a HOME to write in",
        f"{NOBODY} {{open}}",
        {"HOME": "{here}/home"},
        "mkdir home && chmod a+rwx home && chmod -R a+rX data",
    ),
    Place(
        "a folder that may not be written", f"{NOBODY} {{train}}", {}, "chmod a+rx . && chmod go-w .", must_fail=True
    ),
    Place("umask 077", "umask 077; {train} && {open}"),
    Place("umask 000", "umask 000; {train} && {open}"),
    Place("LC_ALL=C", "{train} && {open} && {check}", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}),
    Place("PYTHONIOENCODING=ascii", "{train} && {open} && {check}", {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}),
    Place("MPLBACKEND of no backend", "{train}", {"MPLBACKEND": "nonsense"}),
    Place("a folder that was deleted", "mkdir gone && cd gone && rmdir ../gone && {train}", {}, must_fail=True),
    Place("a full disk", "{train}", {}, "mkdir run && mount -t tmpfs -o size=700k none run", must_fail=True),
    Place("files of 200 kB at most", "ulimit -f 200; {train}", {}, must_fail=True),
    Place(
        "a full disk for the cache",
        "{open}",
        {},
        "mkdir data/.mrlib_cache && mount -t tmpfs -o size=4k none data/.mrlib_cache",
        must_fail=True,
    ),
    Place("24 open files", "ulimit -n 24; {train}", may_fail=True),
    Place("closed input", "{train} <&-"),
    Place("closed output", "{train} >&-"),
    Place("closed errors", "{train} 2>&-"),
    Place("a pipe that ends", "({train}) | true"),
    Place("no TMPDIR", "{train} && {open}", {"TMPDIR": "/nothing", "TMP": None, "TEMP": None}),
    Place("an out_dir that is a link", "{train}", {}, "mkdir elsewhere && ln -s elsewhere run"),
    Place("an out_dir that links to nothing", "{train}", {}, "ln -s elsewhere run", may_fail=True),
    Place("an out_dir that is a file", "{train}", {}, "touch run", must_fail=True),
    Place("a time zone", "{train}", {"TZ": "Pacific/Kiritimati"}),
    Place("another hash seed", "{train} && {open}", {"PYTHONHASHSEED": "12345"}),
    Place("no asserts", "{train} && {open} && {check}", {"PYTHONOPTIMIZE": "2"}),
    Place("warnings are errors", "{train} && {open} && {check}", {"PYTHONWARNINGS": "error::UserWarning"}),
    Place("an isolated terminal", "TERM=dumb COLUMNS=1 {train} && {check}", {"COLUMNS": "1"}),
    Place("nothing to cache code in", "{train}", {"NUMBA_CACHE_DIR": "/nothing", "PYTHONDONTWRITEBYTECODE": "1"}),
    Place("odd numbers of threads", "{train} --threads 1", {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "0"}),
    Place(
        "MRLIB_DATA that is not there",
        f"{sys.executable} -m mrlib.data.check tacos",
        {"MRLIB_DATA": "/nothing"},
        must_fail=True,
    ),
    Place("a rank without its world", "{train}", {"WORLD_SIZE": "2", "RANK": "0"}, must_fail=True),
]
NAMES = {
    "spaces": "a folder with spaces",
    "unicode": "küche-日本-é",
    "a newline": "two\nlines",
    "quotes": 'it\'s "so" $HOME',
    "a leading dash": "-x",
    "no UTF-8": os.fsdecode(b"latin-\xe9"),
    "a pattern": "[a]*?",
}


def environments(folder: Path, only: str = "") -> Iterator[Case]:
    """The places of `PLACES` whose names begin with `only`, and folders of odd names."""
    usual = setup(folder / "usual")
    subprocess.run(TRAIN, shell=True, cwd=usual, env=BASE, check=True, capture_output=True)
    expected = run_files(usual)
    opened = subprocess.run(OPEN, shell=True, cwd=usual, env=BASE, check=True, capture_output=True, text=True).stdout
    for place in (place for place in PLACES if place.name.startswith(only)):
        here = setup(Path(tempfile.mkdtemp(dir=folder)))
        here.chmod(0o755)
        yield Case(f"environment: {place.name}", place.command, run(place, here, expected, opened))
    for name, spelled in NAMES.items() if "folder".startswith(only) else ():
        here = setup(folder / spelled)
        place = Place(name, "{train} && {open} && {check}")
        yield Case(f"folder with {name}", repr(spelled), run(place, here, expected, opened))


def setup(here: Path) -> Path:
    here.mkdir(parents=True, exist_ok=True)
    moment_detr(here / "data")
    return here


def run_files(here: Path) -> dict[str, str]:
    run = here / "run"
    return {name: digest(x) for name, x in files_of(run).items() if not name.endswith(".lock")} if run.is_dir() else {}


def run(place: Place, here: Path, expected: dict[str, str], opened: str) -> Answer:
    environment = {k: v for k, v in (BASE | place.environment).items() if v is not None}
    environment = {k: v.replace("{here}", str(here)) for k, v in environment.items()}
    command = place.command.replace("{train}", TRAIN).replace("{open}", OPEN).replace("{check}", CHECK)
    subprocess.run(["sh", "-c", place.before or ":"], cwd=here, check=True, capture_output=True)
    try:
        done = subprocess.run(["sh", "-c", command], cwd=here, env=environment, capture_output=True, timeout=120)
        said = done.stderr.decode(errors="replace").strip()
        return Answer(*judged(place, here, done.returncode, said, done.stdout.decode(), expected, opened), 0, 0)
    except subprocess.TimeoutExpired:
        return Answer("slow", "no answer within two minutes", 0, 0)
    finally:
        for mounted in (here / "run", here / "data" / ".mrlib_cache"):
            if mounted.is_mount():
                subprocess.run(["umount", str(mounted)], check=True)


def judged(
    place: Place, here: Path, status: int, said: str, printed: str, expected: dict[str, str], opened: str
) -> tuple[str, str]:
    if "Traceback" in said and "{open}" not in place.command:
        return "bare", said[-300:]
    last = said.splitlines()[-1:] or [""]
    if status:
        if not (place.may_fail or place.must_fail):
            return "bare", f"status {status}: {said[-300:]}"
        return ("clear", last[0]) if ":" in last[0] else ("bare", f"status {status}: {said[-300:]}")
    if place.must_fail:
        return "silent", f"ends well: {said[-200:]}"
    if "{train}" in place.command and run_files(here) != expected:
        left = run_files(here)
        names = [k for k in {**left, **expected} if left.get(k) != expected.get(k)]
        return "silent", f"other files: {', '.join(names)} {said[-200:]}"
    if "{open}" in place.command and opened.strip() not in printed:
        return "silent", f"another dataset: {printed[-200:]}"
    modes = {oct(path.stat().st_mode & 0o777) for path in (here / "run").rglob("*") if path.is_file()}
    wanted = {"umask 077": "0o600", "umask 000": "0o666"}.get(place.name, "0o644")
    if modes - {wanted}:
        return "silent", f"files of the modes {sorted(modes)}"
    shutil.rmtree(here, ignore_errors=True)
    return "same", ""
