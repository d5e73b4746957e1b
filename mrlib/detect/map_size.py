"""Maps of all moments of a video grow with the square of its length: refuse a video whose maps do not fit.

Limit    the memory of the device, all of it, whatever else is in it now: so that the same call ends the same way. On
         the CPU, that of the machine, or of the control groups that the process runs in, as those of a container or of
         a job of Slurm, if that is less
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from mrlib.ops.eager import eager

_CGROUPS = Path("/sys/fs/cgroup")  # on Linux, a tree of control groups with their limits
_OWN = Path("/proc/self/cgroup")  # that of this process, as lines NUMBER:CONTROLLERS:/PATH


@eager
def require_maps_fit(samples: int, clips: int, cell_bytes: int, device: torch.device) -> None:
    """ValueError if the maps of a batch take more than the memory of the device.

    samples     B
    clips       T, of the longest video
    cell_bytes  that are held at once for a cell of the map of a sample
    """
    memory, needed = device_memory(device), samples * clips**2 * cell_bytes
    if memory is None or needed <= memory:
        return
    fits, alone = math.isqrt(memory // (samples * cell_bytes)), math.isqrt(memory // cell_bytes)
    batch = "" if samples == 1 else f" in a batch of {samples}, and up to {alone:,} alone"
    raise ValueError(
        f"a video has {clips:,} clips, and the maps of all its moments take {needed / 2**30:.1f} GiB; {device} has "
        f"{memory / 2**30:.1f} GiB, enough for up to {fits:,} clips{batch}. To search in a longer video, use "
        "mrlib.video.find or python -m mrlib.find, which cut it into windows"
    )


def device_memory(device: torch.device) -> int | None:
    """Bytes; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([memory, *_limits()])


def _limits() -> Iterator[int]:
    """The limits in bytes of the control group of this process and of those above it; none on other systems."""
    with suppress(OSError):
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # of version 2 or 1
                group = Path(controllers) / path.lstrip("/")
                for folder in (group, *group.parents):
                    yield from _limit(_CGROUPS / folder)


def _limit(group: Path) -> Iterator[int]:
    """The limit of one control group, if it has one."""
    for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2 and 1
        with suppress(OSError):
            text = (group / name).read_text().strip()
            if text.isdigit():  # not "max"
                yield int(text)
