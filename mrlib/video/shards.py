"""Split videos among processes: a video belongs to the shard that a stable hash of its name tells."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mrlib.arguments import require

MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """Shard k of n, counted from 0."""

    k: int = 0
    n: int = 1

    def __post_init__(self):
        whole = type(self.k) is int and type(self.n) is int and 0 <= self.k < self.n <= MOST
        require(whole, "shard", f"{self.k}/{self.n}", f"k/n with k from 0 to n - 1, n up to {MOST}, as 0/4")

    def has(self, name: str) -> bool:
        """Whether a video of this name belongs to the shard."""
        return stable_hash(name) % self.n == self.k

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"


def stable_hash(text: str) -> int:
    """A number of 64 bits that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def parse_shard(text: str) -> Shard:
    """The shard "k/n"; ValueError for another text."""
    parts = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    require(parts is not None, "shard", text, f"k/n with k from 0 to n - 1, n up to {MOST}, as 0/4")
    return Shard(int(parts[1]), int(parts[2]))


def shard_of_process(environment: Mapping[str, str] = os.environ) -> tuple[Shard, str]:
    """The shard of this process among those started together, and which variables say so; (0/1, "") for one alone.

    RANK and WORLD_SIZE, as torchrun and others set them, or the task of an array of SLURM.
    raises  ValueError, naming the variables, if they are no such numbers
    """
    names, start, step = ("RANK", "WORLD_SIZE"), None, None
    if not all(name in environment for name in names):
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
        start, step = (environment.get(f"SLURM_ARRAY_TASK_{which}") for which in ("MIN", "STEP"))
    if not all(name in environment for name in names):
        return Shard(), ""
    try:
        number, count = (int(environment[name]) for name in names)
        k, rest = divmod(number - int(start or 0), int(step or 1))
        if rest:
            raise ValueError(f"{number} is not {start} and a multiple of {step}")
        return Shard(k, count), " and ".join(names)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{' and '.join(names)}: {error}; correct them, or give the shard") from None
