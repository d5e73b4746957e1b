"""The length that a predicted span is a fraction of: the real clips, or the duration."""

import pytest
import torch

from mrlib.detect.span_length import span_length


def test_the_length_is_that_of_the_clips_or_of_the_duration_by_hand():
    """Nine clips of 2 s last 18 s, of a video of 19 s; four clips of 2 s, of 8 s; three, of 7.5 s."""
    duration_s, length_s = torch.tensor([19.0, 8.0, 7.5]), torch.tensor([18.0, 8.0, 6.0])
    assert span_length("clips")(duration_s, length_s).tolist() == [1.0, 1.0, 1.0]
    assert span_length("duration")(duration_s, length_s).tolist() == pytest.approx([19 / 18, 1.0, 7.5 / 6])


def test_a_row_of_padding_gives_a_finite_length():
    assert span_length("duration")(torch.tensor([6.0, 4.0]), torch.zeros(2)).isfinite().all()


def test_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="length must be clips or duration, not 'video'"):
        span_length("video")
