"""How many clips a video has, for the readers, the features and the evaluator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

from mrlib.arguments import require


def require_clip_s(clip_s: float) -> None:
    """ValueError for a length of clips that is no positive number of seconds."""
    fits = isinstance(clip_s, Real) and not isinstance(clip_s, bool) and 0 < clip_s < math.inf
    require(fits, "clip_s", clip_s, "a positive number of seconds")


def count_clips(duration: float, clip_s: float = 1) -> int:
    """The number of clips of a video, including a shorter last one; at least 1.

    duration  seconds; or clips, without a `clip_s`

    A rest of less than a millionth of a clip is a rounding error, and no clip.
    """
    return max(1, math.ceil(duration / clip_s - 1e-6))


def scored_clips(duration_s: float, clip_s: float, annotated: Iterable[int] = ()) -> int:
    """The number of clips that the evaluator ranks: those of full length, as in the official one.

    annotated  clips with saliency scores; if the shorter last clip is among them, it is ranked too. The official
               evaluator raises an error there
    """
    full, every = int(duration_s / clip_s), count_clips(duration_s, clip_s)
    return every if every > full and every - 1 in annotated else full
