"""The features of a video, kept so that it is encoded once."""

from mrlib.video.encode import Pixels
from mrlib.video.index import index
from tests.support.videos import real_video


def test_an_index_knows_its_encoder():
    assert index(real_video(), Pixels()).recipe == Pixels.recipe
