"""The error for costs and features that are no numbers."""

from __future__ import annotations

from torch import Tensor


class NotFiniteError(ValueError, FloatingPointError):
    """A cost or a feature is no number: bad input to a function, and in training a loss that is not finite."""


def refuse(name: str, x: Tensor, wrong: Tensor, axes: tuple[str, ...]) -> None:
    """Raise an error about the first wrong entry, if any.

    name   what x is, such as "the cost"
    wrong  bool, of the shape of x
    axes   the name of every dimension of x, such as "batch element"
    raises NotFiniteError
    """
    if not bool(wrong.any()):
        return
    index = wrong.nonzero()[0].tolist()
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True))
    raise NotFiniteError(
        f"{name} is {x[tuple(index)].item()} at {place} (counted from 0); look for it in the features or weights that "
        "it was computed from"
    )
