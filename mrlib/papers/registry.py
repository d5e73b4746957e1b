"""The papers that are known, filled by `register` from the files of this folder."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mrlib.papers.schema import Paper

PAPERS: dict[str, Paper] = {}
# paper -> preset -> settings of `get`. A preset is "small", for the small simulated world, a dataset that the paper
# treats differently, or the network as released
PRESETS: dict[str, dict[str, dict[str, Any]]] = {}
RELEASES: dict[str, Any] = {}  # paper -> `mrlib.papers.release.Release`: how its official code stores the network


def register(module: ModuleType) -> None:
    """Add the paper of a module: its `PAPER`, and its `PRESETS` and `RELEASE` if it has them."""
    name = module.PAPER.name
    PAPERS[name] = module.PAPER
    PRESETS[name] = getattr(module, "PRESETS", {})
    if hasattr(module, "RELEASE"):
        RELEASES[name] = module.RELEASE
