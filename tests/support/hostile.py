"""Values that no annotation and no prediction should hold, for property tests.

Each test draws 100 of them, and 500 others every time with `--hypothesis-profile long`, see conftest.py.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

UNHURRIED = settings(max_examples=max(100, settings().max_examples))  # else as the profile has it

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([0.5, -0.0, 1e-300, 1e308, 10**18, -(10**30), 10**400, float("nan"), float("inf"), -float("inf")]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(["", "a", "a/b", "..", "\ud800", "4", "A dog."]))
VALUES = st.recursive(
    PLAIN, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.sampled_from("ab"), x, max_size=2), max_leaves=8
)
WINDOWS = st.lists(st.lists(NUMBERS, min_size=1, max_size=3), max_size=3)
CLIPS = st.lists(st.integers(-1, 14), max_size=3)
SCORES = st.lists(st.lists(st.integers(-1, 5), max_size=3), max_size=3)


def changed(line: dict[str, Any], **likely: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    """A line with some fields replaced or left out.

    likely  values that a field may nearly have
    """
    fields = sorted({*line, *likely})
    values = st.fixed_dictionaries(
        {}, optional={name: st.one_of(VALUES, likely.get(name, VALUES), st.just(...)) for name in fields}
    )
    return values.map(lambda new: {k: v for k, v in (line | new).items() if v is not ...})
