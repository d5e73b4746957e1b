"""Runs of True, from lists and arrays."""

import numpy as np
import pytest

from mrlib.ops.runs import runs_of_true


@pytest.mark.parametrize(
    "flags, runs",
    [
        ("", []),
        ("0", []),
        ("1", [[0, 1]]),
        ("0110", [[1, 3]]),
        ("1011", [[0, 1], [2, 4]]),
        ("111", [[0, 3]]),
    ],
)
def test_a_run_has_its_first_position_and_the_position_after_its_last(flags, runs):
    flags = [flag == "1" for flag in flags]
    assert runs_of_true(flags) == runs_of_true(np.array(flags, bool)) == runs
