"""The error for costs that are no numbers."""

import pickle

import pytest
import torch

from mrlib.ops.finite import NotFiniteError, refuse


def test_the_first_wrong_entry_is_named():
    x = torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]])
    with pytest.raises(NotFiniteError, match=r"the cost is nan at batch element 1, clip 0 \(counted from 0\)"):
        refuse("the cost", x, x.isnan(), ("batch element", "clip"))
    refuse("the cost", x, x.isinf(), ("batch element", "clip"))


def test_the_error_is_bad_input_and_a_loss_that_is_not_finite_and_reaches_another_process():
    error = pickle.loads(pickle.dumps(NotFiniteError("the cost is nan")))
    assert isinstance(error, ValueError) and isinstance(error, FloatingPointError) and str(error) == "the cost is nan"
