"""Videos for tests: real ones, and odd ones that are made here."""

import os
from pathlib import Path

import pytest


def real_video(name: str = "univtg_example/video.mp4") -> Path:
    """A file of `real/` in $MRLIB_DATA; skips the test where it is not there."""
    file = Path(os.environ.get("MRLIB_DATA", "."), "real", name)
    if not file.is_file():
        pytest.skip(f"MRLIB_DATA has no real/{name}")
    return file
