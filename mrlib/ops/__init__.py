"""Functions without state: alignment, boundary search, convolution, dropout, random numbers, counts, spans, matching.

The alignment functions are also names of this package, as `mrlib.ops.soft_dtw`, imported on first use.
"""

from importlib import import_module

_ALIGNMENT = (
    "drop_alignment",
    "drop_dtw",
    "expected_alignment",
    "hard_alignment",
    "mean_dtw",
    "soft_dtw",
    "span_of",
    "tcc",
    "tcc_alignment",
)


def __getattr__(name: str):
    if name in _ALIGNMENT:
        return getattr(import_module("mrlib.ops.alignment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ALIGNMENT])
