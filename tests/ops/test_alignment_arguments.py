"""The checks that all alignments share; the messages are tested with the functions that a user calls."""

import math

import numpy as np
import pytest
import torch

from mrlib.ops.alignment_arguments import (
    checked_band,
    checked_cost,
    checked_features,
    checked_lengths,
    is_positive,
    positive_gamma,
)


def test_a_cost_is_in_float32_or_float64_and_lengths_are_int64():
    for dtype, kept in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        cost, T_b, N_b = checked_cost(torch.zeros(2, 5, 3, dtype=dtype), torch.tensor([5, 2]).int(), None, "global")
        assert cost.dtype == kept and T_b.tolist() == [5, 2] and N_b.tolist() == [3, 3]
        assert T_b.dtype == N_b.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_every_integer_type_are_read_and_their_limits_kept(dtype):
    x = torch.zeros(2, 200 if dtype == torch.int64 else 100, 3)
    assert checked_lengths("target_lengths", torch.tensor([0, 100], dtype=dtype), x, 1).tolist() == [0, 100]
    with pytest.raises(ValueError, match="query_lengths must lie in 0..3"):
        checked_lengths("query_lengths", torch.tensor([0, 4], dtype=dtype), x, 2)


def test_what_is_positive():
    for x in (0.1, 1, np.float32(2), np.int64(3)):
        assert is_positive(x) and positive_gamma(x) == float(x)
    for x in (0, -1, math.inf, math.nan, True, "1", None, torch.tensor(1.0)):
        assert not is_positive(x)


def test_a_band_is_none_or_a_number_of_clips():
    assert checked_band(None) is None and checked_band(np.int64(3)) == 3 and checked_band(0) == 0


def test_features_have_0_on_padding_and_the_more_precise_dtype():
    target, query = torch.ones(2, 4, 3), torch.ones(2, 2, 3, dtype=torch.float64)
    target, query, T_b, N_b, target_mask, query_mask = checked_features(target, query, torch.tensor([4, 1]), None)
    assert target.dtype == query.dtype == torch.float64
    assert target.sum((1, 2)).tolist() == [12, 3] and target_mask.sum(1).tolist() == T_b.tolist() == [4, 1]
    assert query_mask.all() and N_b.tolist() == [2, 2]
