"""The length that a predicted span is a fraction of: the real clips, or the duration."""

from dataclasses import replace

import pytest
import torch

from mrlib.detect.span_length import span_length
from tests.support.batches import make_batch


def test_the_length_is_that_of_the_clips_or_of_the_duration_by_hand():
    """Nine clips of 2 s last 18 s, of a video of 19 s; four clips of 2 s, of 8 s; three, of 7.5 s."""
    batch = replace(make_batch([9, 4, 3]), duration_s=torch.tensor([19.0, 8.0, 7.5]))
    assert span_length("clips")(batch).tolist() == [1.0, 1.0, 1.0]
    assert span_length("duration")(batch).tolist() == pytest.approx([19 / 18, 1.0, 7.5 / 6])


def test_a_row_of_padding_gives_a_finite_length():
    batch = make_batch([3, 2])
    batch = replace(batch, target_mask=torch.zeros_like(batch.target_mask))
    assert span_length("duration")(batch).isfinite().all()


def test_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="length must be clips or duration, not 'video'"):
        span_length("video")
