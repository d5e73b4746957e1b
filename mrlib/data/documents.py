"""Read an annotation file that is one JSON document."""

from __future__ import annotations

import json
import os
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mrlib.data.problems import DataError, MissingFile, Problem
from mrlib.downloads import wrong_download

LARGEST = 1 << 28  # bytes; the largest published file, that of ActivityNet, has a fifth of it


def read_document(file: Path, *kinds: type) -> Any:
    """The content of a JSON file, of one of these types; DataError, naming the file, for anything else."""
    try:
        state = os.stat(file)
        if not S_ISREG(state.st_mode) or state.st_size > LARGEST:
            what = f"of {state.st_size} bytes" if S_ISREG(state.st_mode) else "that is no regular file"
            raise ValueError(f"a file {what} where one of at most {LARGEST} bytes is expected")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MissingFile(Problem(str(file), None, "missing file", "no such file; copy it beside the others")) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = wrong_download(file) or f"{error}; copy or download it again"
        raise DataError(Problem(str(file), None, "json", reason)) from None
    if not isinstance(content, kinds):
        message = f"a {type(content).__name__} where a {' or '.join(k.__name__ for k in kinds)} is expected"
        raise DataError(Problem(str(file), None, "json", message))
    return content
