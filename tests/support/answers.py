"""What a reader answers to a damaged file: a result, an error that helps, or something that no reader may do."""

from __future__ import annotations

import contextlib
import io
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MOST_S, MOST_MB = 2.0, 100.0  # that a damaged small file may cost
LONGEST = 4000  # characters of a message
HELD = ("same", "other", "clear")


class Answer(NamedTuple):
    kind: str  # of `HELD`; or "bare", "silent", "slow", "memory"
    text: str  # the error, or what was wrong
    seconds: float  # of the processor
    megabytes: float  # more than the process had, at the most


class Cost:
    """Seconds of the processor and megabytes of memory that a block takes."""

    seconds = megabytes = 0.0


def _kilobytes(field: str) -> int:
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])


@contextlib.contextmanager
def cost() -> Iterator[Cost]:
    """The cost of the block, filled in when it ends; memory is 0 where there is no /proc, as on macOS."""
    spent, watched = Cost(), Path("/proc/self/clear_refs")
    if watched.exists():
        watched.write_text("5")  # the peak of this process counts from here on
        before = _kilobytes("VmRSS")
    start = time.process_time()
    try:
        yield spent
    finally:
        spent.seconds = time.process_time() - start
        if watched.exists():
            spent.megabytes = (_kilobytes("VmHWM") - before) / 1024


def answer(
    read: Callable[[], Any],
    names: list[str],
    expected: Any = None,
    *,
    needed: Answer | None = None,
    protected: bool = False,
    one_line: bool = False,
) -> Answer:
    """Read a damaged file and judge what comes back.

    names      an error helps if it holds one of these: the file, its folder, a query
    expected   what the whole file gives
    needed     what reading the whole file takes; the damage may take `MOST_S` and `MOST_MB` more
    protected  a change of the file must be noticed: a result that is not the expected one is silently wrong
    one_line   an error has one line
    """
    with warnings.catch_warnings(), cost() as spent:
        warnings.simplefilter("ignore")
        kind, text = _judged(read, names, expected, protected, one_line)
    if kind in HELD and spent.seconds > MOST_S + (needed.seconds if needed else 0):
        kind = "slow"
    if kind in HELD and spent.megabytes > MOST_MB + (needed.megabytes if needed else 0):
        kind = "memory"
    return Answer(kind, text, spent.seconds, spent.megabytes)


def _judged(
    read: Callable[[], Any], names: list[str], expected: Any, protected: bool, one_line: bool
) -> tuple[str, str]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            result = read()
    except AssertionError as error:
        return "silent", str(error)
    except SystemExit as error:
        text = error.code if isinstance(error.code, str) else printed.getvalue()
    except (ValueError, FileNotFoundError) as error:
        text = str(error) if type(error).__module__.startswith("mrlib") or _plain(error) else ""
        if not text:
            return "bare", f"{type(error).__name__}: {error}"
    except OSError as error:
        if error.errno is None:
            return "bare", f"{type(error).__name__}: {error}"
        text = str(error)
    except BaseException as error:
        return "bare", f"{type(error).__name__}: {str(error)[:300]}"
    else:
        if expected is None or result == expected:
            return "same", ""
        return ("silent", "another result") if protected else ("other", "")
    if not any(name in text for name in names):
        return "bare", f"names no file: {text[:300]}"
    if len(text) > LONGEST or (one_line and "\n" in text.strip()):
        return "bare", f"too long a message ({len(text)}): {text[:300]}"
    return "clear", text


def _plain(error: BaseException) -> bool:
    """Whether an error is of the types that readers promise, not of another that derives from them."""
    return type(error) in (ValueError, FileNotFoundError)
