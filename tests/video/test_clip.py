"""CLIP as an encoder: a small one against its definition, the real one, where it is, against published features."""

import json
import os
import shutil
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from mrlib.data import load_annotations
from mrlib.tensors import read_header
from mrlib.video import clip as clip_module
from mrlib.video.clip import MEAN, STD, Clip
from mrlib.video.index import index
from mrlib.video.read import pictures
from tests.reference.clip_towers import Towers
from tests.support.tiny_clip import END, START, vocabulary, write_tiny_clip
from tests.support.videos import real_video

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
TEXT = "qvhighlights_sample/clip_text_features/qid5263.npz"
BLACK = np.zeros((64, 64, 3), np.uint8)
SENTENCE = "A man opens the door, slowly."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return Clip(folder, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance * 50)


# ---- the numbers ----


def test_pictures_are_normalised_as_clip_was_trained(encoder, frames):
    expected = (frames.transpose(0, 3, 1, 2) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    close(encoder.normalised(frames), expected, 1e-6)


def test_image_features_are_the_projection_of_the_normed_class_state(encoder, folder, frames):
    towers = Towers(folder, text_heads=4, vision_heads=3)
    expected = [towers.image(values) for values in encoder.normalised(frames).double().numpy()]
    close(encoder.frames(frames), np.stack(expected))


def test_tokens_are_the_normed_states_and_the_vector_the_projection_of_the_last(encoder, folder):
    vocab, _ = vocabulary()
    ids = [vocab[f"{word}</w>"] for word in ("a", "man", "opens", "the", "door", ",")]
    ids += [vocab[letter] for letter in "slowl"] + [vocab["y</w>"], vocab[".</w>"]]
    tokens, vector = Towers(folder, text_heads=4, vision_heads=3).text([vocab[START], *ids, vocab[END]])
    actual = encoder.text(SENTENCE)
    assert [tuple(each.shape) for each in actual] == [(15, 32), (512,)]
    assert all(each.dtype is torch.float32 and not each.requires_grad for each in actual)
    close(actual[0], tokens)
    close(actual[1], vector)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_vector_is_the_projected_pooler_output_of_transformers(legacy, tmp_path):
    """OpenAI's configurations say that [EOT] is number 2, which transformers reads as "the highest number"."""
    encoder = Clip(write_tiny_clip(tmp_path, legacy=legacy))
    model = transformers.CLIPModel.from_pretrained(tmp_path)
    given = transformers.CLIPTokenizer.from_pretrained(tmp_path)(SENTENCE, return_tensors="pt")
    output = model.text_model(**given)
    tokens, vector = encoder.text(SENTENCE)
    close(tokens, output.last_hidden_state[0].detach())
    close(vector, model.text_projection(output.pooler_output)[0].detach())


def test_a_video_gives_what_transformers_computes_on_the_same_pixels(encoder, folder):
    """From the file to the features, against a plain call for each picture."""
    path = real_video()
    model = transformers.CLIPModel.from_pretrained(folder)
    values = encoder.normalised(np.stack([picture for _, picture in pictures(path, 2.0, 64)]))
    expected = [model.get_image_features(pixel_values=each[None]).pooler_output[0].detach() for each in values]
    features = encoder.video(path)
    assert features.dtype is torch.float32 and features.shape == (15, 512)
    close(features, torch.stack(expected))


def test_the_side_of_the_pictures_is_the_models(tmp_path, monkeypatch):
    sides = []

    def reader(path, clip_s, side, progress):
        sides.append((clip_s, side))
        yield 1.0, np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr(clip_module, "pictures", reader)
    assert Clip(write_tiny_clip(tmp_path, side=96, projection=24)).video("x.mp4").shape == (1, 24)
    assert sides == [(2.0, 96)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_the_size_of_a_batch_changes_no_result(batch_size, folder, frames, monkeypatch, encoder):
    monkeypatch.setattr(clip_module, "pictures", lambda *_: ((0.0, frame) for frame in frames))
    monkeypatch.setattr(clip_module, "_BATCH", batch_size)
    features = Clip(folder, dtype=torch.float32, device="cpu").video("x.mp4")
    close(features, encoder.frames(frames), 1e-5)


def test_bfloat16_points_in_the_same_direction(folder, encoder, frames):
    fast = Clip(folder, dtype=torch.bfloat16).frames(frames)
    assert fast.dtype is torch.float32 and not torch.equal(fast, encoder.frames(frames))
    assert nn.functional.cosine_similarity(fast, encoder.frames(frames)).min() > 0.9999


def test_sentences_are_float32_whatever_the_pictures_are(folder, encoder):
    fast = Clip(folder, dtype=torch.bfloat16, device="cpu").text(SENTENCE)
    assert all(torch.equal(*pair) for pair in zip(fast, encoder.text(SENTENCE), strict=True))


def test_the_same_pictures_and_sentences_give_the_same_bytes(folder, frames):
    first, second = Clip(folder, device="cpu"), Clip(folder, device="cpu")
    assert torch.equal(first.frames(frames), second.frames(frames))
    assert torch.equal(first.text(SENTENCE)[0], second.text(SENTENCE)[0])


# ---- long videos, progress ----


def test_a_long_video_is_encoded_with_one_batch_of_pictures_in_memory(folder, monkeypatch):
    alive = peak = 0

    def gone():
        nonlocal alive
        alive -= 1

    def reader(path, clip_s, side, progress):
        nonlocal alive, peak
        for n in range(200):
            picture = np.full((side, side, 3), n, np.uint8)
            weakref.finalize(picture, gone)
            alive += 1
            peak = max(peak, alive)
            yield 2.0 * n + 1, picture
            del picture

    monkeypatch.setattr(clip_module, "pictures", reader)
    monkeypatch.setattr(clip_module, "_BATCH", 8)
    assert Clip(folder).video("x.mp4").shape == (200, 512)
    assert peak <= 2 * 8 + 1  # a batch, and the next one that is read while the names of the last still exist


def test_progress_is_that_of_the_reader(encoder, monkeypatch):
    given = []
    monkeypatch.setattr(clip_module, "pictures", lambda *arguments: given.append(arguments[3]) or iter([(1.0, BLACK)]))
    encoder.video("x.mp4", print)
    assert given == [print]


def test_a_video_without_a_picture_is_refused_by_name(encoder, monkeypatch):
    monkeypatch.setattr(clip_module, "pictures", lambda *_: iter(()))
    with pytest.raises(ValueError, match="empty.mp4: a video without a picture"):
        encoder.video("empty.mp4")


# ---- sentences ----


@pytest.mark.parametrize("query", ["", "  ", "\n\t", None, 3])
def test_a_query_that_is_no_sentence_is_refused(query, encoder):
    with pytest.raises(ValueError, match="query must be a sentence, not"):
        encoder.text(query)


def test_a_query_that_is_no_unicode_is_refused(encoder):
    with pytest.raises(ValueError, match="no text in UTF-8"):
        encoder.text("a man \udce9")


@pytest.mark.parametrize("query", ['say "hi"\nand go', "naïve 日本語 🙂", "'; --", END, "\x00", "é" * 20])
def test_any_other_text_is_a_sentence(query, encoder):
    tokens, vector = encoder.text(query)
    assert len(tokens) >= 3 and tokens.isfinite().all() and vector.isfinite().all()


def test_case_and_spaces_do_not_matter(encoder):
    assert torch.equal(encoder.text("a  MAN\n opens")[0], encoder.text("A man opens")[0])


@pytest.mark.parametrize("most", [77, 20])
def test_a_long_sentence_is_cut_before_the_last_token_with_a_warning(most, tmp_path):
    encoder = Clip(write_tiny_clip(tmp_path, max_position_embeddings=most))
    with pytest.warns(UserWarning, match=f"has 502 tokens, and CLIP reads {most}; the rest is not read") as record:
        tokens, vector = encoder.text("dog " * 500)
    assert len(tokens) == most and len(record) == 1 and "\n" not in str(record[0].message)
    assert record[0].filename == __file__
    shorter, same = encoder.text("dog " * (most - 2))  # not cut
    assert torch.equal(tokens, shorter) and torch.equal(vector, same)


# ---- which encoder it is ----


def test_the_recipe_tells_weights_apart_and_nothing_else(folder, encoder, tmp_path):
    same = Clip(write_tiny_clip(tmp_path / "elsewhere", legacy=True), dtype=torch.bfloat16)
    other = Clip(write_tiny_clip(tmp_path / "other", seed=1))
    assert same.recipe == encoder.recipe
    assert other.recipe != encoder.recipe and other.recipe | {"weights": encoder.recipe["weights"]} == encoder.recipe
    assert (encoder.notes["name"], encoder.notes["dtype"], same.notes["dtype"]) == ("tiny", "float32", "bfloat16")


def test_the_recipe_says_the_widths(tmp_path):
    recipe = Clip(write_tiny_clip(tmp_path, projection=24, side=32)).recipe
    assert recipe | {"weights": ""} == {
        "encoder": "clip",
        "clip_s": 2.0,
        "width": 24,
        "joint": 24,
        "words": 32,
        "side": 32,
        "weights": "",
    }


def test_an_index_keeps_the_type_of_the_numbers_and_serves_any(folder, tmp_path, monkeypatch):
    video = shutil.copy(real_video(), tmp_path)
    fast = index(video, Clip(folder, dtype=torch.bfloat16), cache=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert json.loads(read_header(file).note)["source"].items() >= {("name", "tiny"), ("dtype", "bfloat16")}
    monkeypatch.setattr(Clip, "video", None)  # it is not encoded again
    assert torch.equal(index(video, Clip(folder, dtype=torch.float32), cache=tmp_path).features, fast.features)


def test_a_wrong_argument_is_refused(folder):
    with pytest.raises(ValueError, match="unknown device 'tpu9'"):
        Clip(folder, device="tpu9")
    with pytest.raises(ValueError, match="dtype must be torch.float32, torch.bfloat16 or None, not torch.float16"):
        Clip(folder, dtype=torch.float16)


# ---- the real one ----


def published(name, key="features"):
    return torch.from_numpy(np.load(real_video(name))[key]).float()


def first_token_agrees(tokens):
    """Whether the first token (D,) of a sentence is the published one, which tells OpenAI's ViT-B/32 from others.

    [SOT] sees no word, so its state is the same for every sentence. One of its 512 numbers outweighs all others and is
    left out.
    """
    first = published("univtg_example/txt.npz")[0]
    rest = first.abs() < first.abs().max()
    if tokens.shape[1:] != first.shape:
        return False
    cosines = [nn.functional.cosine_similarity(tokens[0][each], first[each], 0) for each in (rest, ~rest)]
    return min(cosines) > 0.99


def test_the_first_token_is_the_same_for_every_sentence(encoder):
    close(encoder.text("a dog")[0][0], encoder.text(SENTENCE)[0][0])


def test_published_sentences_begin_with_the_same_token():
    assert first_token_agrees(published(TEXT, "last_hidden_state"))
    assert not first_token_agrees(published("univtg_example/txt.npz")[1:])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def vit_b_32(request):
    """The CLIP of $MRLIB_CLIP; skips the test where it is not set or not OpenAI's ViT-B/32."""
    if not os.environ.get("MRLIB_CLIP"):
        pytest.skip("MRLIB_CLIP is not set; it names a folder with OpenAI's ViT-B/32")
    encoder = Clip(os.environ["MRLIB_CLIP"], dtype=request.param)
    if not first_token_agrees(encoder.text("anything")[0]):
        pytest.skip("MRLIB_CLIP is not OpenAI's ViT-B/32")
    return encoder


def test_a_published_sentence_is_reproduced(vit_b_32):
    (line,) = load_annotations(real_video("qvhighlights_sample/highlight_val_release.jsonl"))
    tokens, vector = vit_b_32.text(line.query)
    expected = published(TEXT, "last_hidden_state")
    assert tokens.shape == expected.shape
    assert nn.functional.cosine_similarity(tokens, expected).min() >= 0.999
    assert nn.functional.cosine_similarity(vector, published(TEXT, "pooler_output"), dim=0) >= 0.999


def test_every_row_of_a_published_video_is_reproduced(vit_b_32):
    features, expected = vit_b_32.video(real_video()), published("univtg_example/vid.npz")
    assert features.shape == expected.shape
    assert nn.functional.cosine_similarity(features, expected).min() >= 0.999
