"""The length that a predicted span is a fraction of: the real clips, or the duration."""

import pytest
import torch

from mrlib.detect.span_length import duration_in_clips, in_video, span_length


def test_the_length_is_that_of_the_clips_or_of_the_duration_by_hand():
    """Nine clips of 2 s last 18 s, of a video of 19 s; four clips of 2 s, of 8 s; three, of 7.5 s."""
    duration_s, length_s = torch.tensor([19.0, 8.0, 7.5]), torch.tensor([18.0, 8.0, 6.0])
    assert span_length("clips")(duration_s, length_s).tolist() == [1.0, 1.0, 1.0]
    assert span_length("duration")(duration_s, length_s).tolist() == pytest.approx([19 / 18, 1.0, 7.5 / 6])


def test_spans_are_clamped_to_the_video_by_hand():
    """Nine clips of 2 s of a video of 9 s: features run on after its end. A duration of 36 s doubles the spans."""
    spans, length_s = torch.tensor([[[-0.25, 0.25], [0.25, 0.75], [0.75, 1.25]]] * 2), torch.tensor([18.0, 18.0])
    duration_s = torch.tensor([9.0, 36.0])
    of_clips = in_video(spans, duration_s, length_s).tolist()
    assert of_clips == [[[0, 0.25], [0.25, 0.5], [0.5, 0.5]], [[0, 0.25], [0.25, 0.75], [0.75, 1]]]
    of_duration = in_video(spans, duration_s, length_s, duration_in_clips).tolist()
    assert of_duration == [[[0, 0.125], [0.125, 0.375], [0.375, 0.5]], [[0, 0.5], [0.5, 1], [1, 1]]]


def test_a_row_of_padding_gives_a_finite_length():
    assert span_length("duration")(torch.tensor([6.0, 4.0]), torch.zeros(2)).isfinite().all()


def test_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="length must be clips or duration, not 'video'"):
        span_length("video")
