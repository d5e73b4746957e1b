"""Check what papermill, or a reader, has put into the parameters of a notebook.

The parameters cell annotates each of its names. `papermill -p` assigns values in a cell below it, whatever they are
called and of the type that their text looks like: `-p epoch 3` makes a name that nothing reads, `-p root 2024` a number
where a folder is wanted, `-p full false` the text "false", which counts as true. (`-r root 007` passes text unchanged.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from difflib import get_close_matches
from typing import Any

from mrlib.arguments import is_plain, require

_CHECKED = "_parameters_checked"
_HISTORY = ("In", "Out")  # of IPython


def check_parameters(namespace: MutableMapping[str, Any]) -> None:
    """Refuse parameters that a notebook does not have, and give each the type of its annotation.

    namespace  `globals()`, in the first cell after the parameters; values are replaced in place: where text is
               annotated the number 2024 becomes "2024", else 2.0 a whole number, 1 a float and "false" a bool. When
               the cell is run again, names that the notebook has defined since are not taken for parameters.
    raises     ValueError for a name that is not annotated, with the closest that is, and for a value of another type
    """
    types = namespace.get("__annotations__", {})
    if not namespace.get(_CHECKED):
        public = [name for name in namespace if not name.startswith("_") and name not in _HISTORY]
        _refuse_unknown((name for name in public if is_plain(namespace[name])), list(types))
    namespace.update({name: _CONVERT[kind](name, namespace[name]) for name, kind in types.items()})
    namespace[_CHECKED] = True


def _refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"this notebook has no parameter {name!r}{meant} It has: {', '.join(known)}")


def _text(name: str, value: Any) -> str:
    require(isinstance(value, str | int | float), name, value, "text")
    return str(value)


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    require(math.isfinite(number), name, value, "a number")
    return number


def _whole(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    number = _number(name, value)
    require(number.is_integer(), name, value, "a whole number")
    return int(number)


def _truth(name: str, value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    require(str(value).lower() in known, name, value, "true or false")
    return known[str(value).lower()]


_CONVERT: dict[type, Callable[[str, Any], Any]] = {str: _text, int: _whole, float: _number, bool: _truth}
