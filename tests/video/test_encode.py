"""Encoders: Pixels, and how a word of the command line becomes an encoder."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mrlib.video.clip import Clip
from mrlib.video.encode import Pixels, open_encoder
from mrlib.video.towers import Towers
from mrlib.video.toy import Toy
from tests.support.tiny_clip import write_tiny_clip
from tests.support.videos import make_video, real_video


def quarters(n, size):
    """A centre square of four quarters, whose first one grows brighter, between two grey margins; 128 x 64."""
    frame = np.full((64, 128, 3), 128, np.uint8)
    frame[:32, 32:64], frame[:32, 64:96] = 13 * n, (200, 0, 0)
    frame[32:, 32:64], frame[32:, 64:96] = (0, 200, 0), (0, 0, 200)
    return frame


def test_a_row_of_pixels_is_the_centre_square_of_the_last_frame_before_its_middle(tmp_path):
    """Of ten frames a second, the middles of half seconds show frames 2, 7, 12 and 17."""
    path = make_video(tmp_path / "a.mkv", seconds=2, size=(128, 64), codec="ffv1", picture=quarters)
    features = Pixels().video(path)
    assert features.shape == (4, 192) and features.dtype is torch.float32
    squares = 255 * features.numpy().reshape(4, 8, 8, 3)
    np.testing.assert_allclose(squares[:, 1, 1], [[13 * n] * 3 for n in (2, 7, 12, 17)], atol=6)
    colours = squares[0, [1, 6, 6], [6, 1, 6]]  # red, green, blue
    np.testing.assert_array_equal(colours > 100, np.eye(3, dtype=bool))


def test_pixels_gives_two_rows_a_second_of_a_real_video():
    """Which says that it lasts 30.70 s: 61.4 half seconds."""
    features = Pixels().video(real_video())
    assert features.shape == (61, Pixels.recipe["width"])
    assert features.min() >= 0 and features.max() <= 1 and features.std() > 0.1


def test_pixels_cannot_read_a_sentence():
    with pytest.raises(ValueError, match="ask by clip, or give an encoder with words"):
        Pixels().text("a dog")


def test_a_word_opens_an_encoder(tmp_path, monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    assert isinstance(open_encoder("pixels"), Pixels)
    folder = write_tiny_clip(tmp_path / "clip")
    assert isinstance(open_encoder(str(folder)), Clip)
    monkeypatch.setenv("MRLIB_CLIP", str(folder))
    assert open_encoder(None).recipe == open_encoder(str(folder)).recipe
    assert isinstance(open_encoder("pixels"), Pixels)


def test_a_folder_of_toy_opens_toy(tmp_path):
    toy = Toy(Towers(2), ["dog", "runs"], ["dog"], 0.8)
    toy.save(tmp_path)
    opened = open_encoder(str(tmp_path))
    assert isinstance(opened, Toy) and opened.recipe == toy.recipe


def test_without_av_the_error_says_how_to_install_it():
    program = "import sys; sys.modules['av'] = None; import mrlib.video; mrlib.video.Pixels().video(sys.executable)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert 'pip install -e ".[video]"' in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_word_the_encoders_are_named(value, monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    with pytest.raises(ValueError, match="MRLIB_CLIP is not set; give one as --encoder"):
        open_encoder(value)


def test_the_environment_may_name_no_encoder(monkeypatch):
    monkeypatch.setenv("MRLIB_CLIP", "/no/such/folder")
    with pytest.raises(FileNotFoundError, match="no such folder: /no/such/folder"):
        open_encoder()
