"""Decoding a video into pictures of its clips."""

import numpy as np

from mrlib.video.read import clips
from tests.support.videos import real_video


def test_one_picture_per_clip():
    pictures, times = clips(real_video())
    assert pictures.shape == (15, 224, 224, 3)
    np.testing.assert_array_equal(times, np.arange(15) * 2 + 1)
