"""Encoders: pictures and sentences to vectors."""

from mrlib.video.encode import Pixels
from tests.support.videos import real_video


def test_pixels_gives_two_rows_a_second():
    assert Pixels().video(real_video()).shape == (61, 192)
