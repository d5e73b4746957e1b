"""The cache of feature banks: files that are used only if every bit is as it was written, for the same feature files.

A cache file is `{name}-{split}-{options}-{target or query}-{state}.safetensors`. Its record says of which dataset,
options, videos or queries it is, and has the digests of its feature files. `state` is a digest of marks that are quick
to read, such as sizes and times; where only these have changed, as after a copy, the bank is kept. A file that does not
fit, or is damaged, is written again. One process writes, others wait for it.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrlib.arguments import require
from mrlib.data.bank import RENEWED, Bank, load_bank, renew_record, save_bank
from mrlib.data.problems import DataError, Problem
from mrlib.files import remove_dead


def cached_bank(
    stem: Path,
    record: dict[str, str],
    contents: Callable[[], str],
    items: Iterable[tuple[np.ndarray, np.ndarray | None]],
    count: int,
    dtype: torch.dtype,
) -> tuple[Bank, Tensor | None]:
    """The bank in the cache file whose name begins with `stem`, written first if it is not there or does not fit.

    record        what the file must say about itself; "state": marks of the feature files
    contents      the digest of the contents of the feature files; computed only if the bank is not there
    items, count, dtype  as in `save_bank`; not read if the bank is there
    raises        OSError if it cannot be written, and what reading the items raises
    """
    file = Path(f"{stem}-{record['state']}.safetensors")
    if (bank := load_bank(file, record)) is not None:
        return bank
    from mrlib.locks import hold  # filelock is imported only where something is written

    with hold(Path(f"{stem}.lock"), f"the cache {stem}", wait=True):
        if (bank := load_bank(file, record)) is not None:  # another process was first
            return bank
        remove_dead(file.parent)
        record = record | {"contents": contents()}
        if not _renewed(stem, file, record):
            save_bank(file, items, count, dtype, record)
        for stale in set(_files(stem)) - {file}:
            stale.unlink(missing_ok=True)
        if (bank := load_bank(file, record)) is None:
            raise OSError(f"{file} is not what was just written to it; give another folder by cache=")
        return bank


def _files(stem: Path) -> Iterator[Path]:
    return (f for f in stem.parent.iterdir() if f.name.startswith(f"{stem.name}-") and f.suffix == ".safetensors")


def _renewed(stem: Path, file: Path, record: dict[str, str]) -> bool:
    """Give the name and record of today to a bank of the same contents; False if there is none."""
    fixed = {name: value for name, value in record.items() if name not in RENEWED}
    for other in _files(stem):
        if load_bank(other, fixed) is not None:
            renew_record(other, record)
            os.replace(other, file)
            return True
    return False


def cache_folder(root: Path, cache: str | os.PathLike | None) -> Path:
    """The folder for cache files: `cache`, else the first of these that can be written.

    `.mrlib_cache` under root, `mrlib` under $XDG_CACHE_HOME or ~/.cache, and with a warning one for temporary files.

    raises  ValueError if `cache`, or none of them, can be written
    """
    if cache is not None:
        require(isinstance(cache, str | os.PathLike), "cache", cache, "a folder")
        if not _is_writable(Path(cache)):
            raise DataError(Problem(str(cache), None, "cache", "cannot be written; give another folder by cache="))
        return Path(cache)
    if _is_writable(folder := root / ".mrlib_cache"):
        return folder
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # a user without an entry in passwd and without $HOME
        home = None
    if home is not None and home.is_absolute() and _is_writable(home / "mrlib"):
        return home / "mrlib"
    folder = Path(tempfile.gettempdir(), f"mrlib-{os.getuid() if hasattr(os, 'getuid') else 'cache'}")
    if not _is_private(folder):
        message = "no folder for the cache can be written, here, at home or for temporary files; give one by cache="
        raise DataError(Problem(str(root), None, "cache", message))
    warnings.warn(f"{root} and the home folder cannot be written; features are cached in {folder}", stacklevel=4)
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made first if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, ValueError):
        return False


def _is_private(folder: Path) -> bool:
    """Whether a folder beside those of other users can be written, and by this user alone; it is made if need be."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        return private and not folder.is_symlink() and _is_writable(folder)
    except OSError:
        return False
