"""Sums to the last bit of numpy's, and percentages."""

import numpy as np

from mrlib.metrics.sums import percent, row_sums


def test_sums_are_those_of_numpy_to_the_last_bit():
    rng = np.random.default_rng(0)
    values, keep = rng.random((60, 3, 200)), rng.random((60, 3, 200)) < rng.random((60, 3, 1))
    sums = [[np.sum(row[kept]) for row, kept in zip(*rows, strict=True)] for rows in zip(values, keep, strict=True)]
    assert (row_sums(values, keep) == sums).all()


def test_a_percentage_has_two_decimals_and_is_rounded_as_text():
    assert (percent(0.5), percent(1 / 3), percent(np.float64(0.00125)), percent(0.12345)) == (50, 33.33, 0.12, 12.35)
