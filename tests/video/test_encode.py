"""Encoders: Pixels, and how a word of the command line becomes an encoder."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mrlib.video.clip import Clip
from mrlib.video.encode import Pixels, open_encoder
from tests.support.tiny_clip import write_tiny_clip
from tests.support.videos import real_video


def test_pixels_gives_two_rows_a_second():
    features = Pixels().video(real_video())
    assert features.shape == (61, 192) and features.dtype is torch.float32
    assert features.min() >= 0 and features.max() <= 1


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


def test_a_folder_of_toy_opens_toy(tmp_path, monkeypatch):
    loader = SimpleNamespace(Toy=SimpleNamespace(load=lambda folder: f"Toy from {folder}"))
    monkeypatch.setitem(sys.modules, "mrlib.video.toy", loader)
    (tmp_path / "toy.json").touch()
    assert open_encoder(str(tmp_path)) == f"Toy from {tmp_path}"


def test_without_av_the_error_says_how_to_install_it():
    program = "import sys; sys.modules['av'] = None; import mrlib.video; mrlib.video.Pixels"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert 'pip install -e ".[video]"' in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_word_the_encoders_are_named(value, monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    with pytest.raises(ValueError, match="MRLIB_CLIP is not set; give one of: pixels"):
        open_encoder(value)


def test_the_environment_may_name_no_encoder(monkeypatch):
    monkeypatch.setenv("MRLIB_CLIP", "/no/such/folder")
    with pytest.raises(FileNotFoundError, match="no such folder: /no/such/folder"):
        open_encoder()
