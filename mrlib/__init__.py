"""Video moment retrieval: find `[start, end]` in a long video from a sentence or from another video.

Every method is a choice in three slots, augment -> align -> detect; `mrlib.papers` lists them.
Submodules load on first use [PEP 562], so `import mrlib` is fast.
"""

from importlib import import_module

__version__ = "0.1.0"  # pyproject.toml reads it from here

_SUBMODULES = (
    "align",
    "arguments",
    "audit",
    "augment",
    "baselines",
    "checkpoint",
    "data",
    "datasets",
    "detect",
    "downloads",
    "files",
    "find",
    "grid",
    "grid_file",
    "jobs",
    "layers",
    "locks",
    "memory",
    "metrics",
    "notebooks",
    "ops",
    "papers",
    "parallel",
    "plots",
    "probes",
    "retriever",
    "sim",
    "tensors",
    "train",
    "training",
    "video",
    "widgets",
)
_MEMBERS = {
    "MomentRetriever": "retriever",
    "build": "papers",
    "fit": "train",
    "open_dataset": "datasets",
}


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f"mrlib.{name}")
    if name in _MEMBERS:
        return getattr(import_module(f"mrlib.{_MEMBERS[name]}"), name)
    raise AttributeError(f"module 'mrlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_MEMBERS])
