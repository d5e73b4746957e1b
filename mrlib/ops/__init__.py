"""Functions without state: alignment, boundary search, convolution, dropout, random numbers, counts, spans, matching.

The alignment functions are also names of this package, as `mrlib.ops.soft_dtw`, imported on first use.
"""

from importlib import import_module

_MEMBERS = {
    "drop_alignment": "mrlib.ops.alignment_variants",
    "drop_dtw": "mrlib.ops.alignment_variants",
    "expected_alignment": "mrlib.ops.alignment",
    "hard_alignment": "mrlib.ops.alignment",
    "mean_dtw": "mrlib.ops.alignment_variants",
    "soft_dtw": "mrlib.ops.alignment",
    "soft_dtw_divergence": "mrlib.ops.divergence",
    "span_of": "mrlib.ops.alignment",
    "tcc": "mrlib.ops.cycle_consistency",
    "tcc_alignment": "mrlib.ops.cycle_consistency",
}


def __getattr__(name: str):
    if name in _MEMBERS:
        return getattr(import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MEMBERS])
