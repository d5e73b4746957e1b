"""Look for feature files by the names of videos and queries, in folders and in HDF5 files.

Links to places outside the folder are followed: whoever can make one can as well put features there.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mrlib.data.stored import HDF5, is_file

ENDINGS = (".npz", ".npy", ".pt", *HDF5)
_DEPTH, _MOST_FOLDERS, _MOST_HDF5 = 4, 1000, 32  # levels of folders, folders, and HDF5 files in a folder


def templates_of(root: Path, ids: Mapping[str, str]) -> list[str]:
    """The templates of files with one of these names, and of HDF5 files with one as a key; names by their spelling."""
    templates = []
    for folder in folders(root):
        for spelling, name in ids.items():
            templates += [f"{folder}{spelling}{e}" for e in ENDINGS if is_file(root / f"{folder}{name}{e}")]
        hdf5 = itertools.chain(*(matching(root, f"{folder}*{ending}") for ending in HDF5))
        for file in itertools.islice(hdf5, _MOST_HDF5):
            templates += [f"{folder}{file.name}:{spelling}" for spelling, name in ids.items() if has_key(file, name)]
    return templates


def folders(root: Path) -> Iterator[str]:
    """The folder itself, as "", and those below that are not hidden, each with a slash at its end."""
    yield ""
    count = 0
    for path, folders, _ in os.walk(root):
        below = Path(path).relative_to(root).parts
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if len(below) < _DEPTH else []
        for folder in folders:
            count += 1
            if count > _MOST_FOLDERS:
                return
            yield "/".join((*below, folder, ""))


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """The files of a pattern with *, except hidden ones, such as macOS puts beside others."""
    return map(Path, glob.iglob(os.path.join(glob.escape(str(root)), pattern.replace("[", "[[]"))))


def has_key(file: Path, key: str) -> bool:
    """Whether an HDF5 file has something of this name."""
    from mrlib.data import hdf5  # h5py takes a tenth of a second, and most layouts do not need it

    return hdf5.has_key(file, key)
