"""`Toy`: trained on drawn clips, it reads videos that it has not seen."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib.baselines import anchor_inside
from mrlib.data import Sample
from mrlib.metrics import evaluate
from mrlib.ops.runs import runs_of_true
from mrlib.sim import open_sim
from mrlib.tensors import save_tensors
from mrlib.video import find
from mrlib.video.read import pictures
from mrlib.video.rendered import another_take, render
from mrlib.video.towers import FRAMES, JOINT, SIDE, TOKEN
from mrlib.video.toy import Toy, drawn_pictures, train_toy
from mrlib.video.write import write
from mrlib.video.zero_shot import exists
from tests.support.simulated import val

VIDEOS = 8


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def toy(losses) -> Toy:
    """A sixth of the default training."""
    train = open_sim("train", n=128)
    return train_toy(train, steps=80, batch_size=32, watch=lambda step, loss: losses.append(loss))


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.save(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        render(val(), i, folder / f"{i}.mp4", fps=4, width=320, height=180)
    return [folder / f"{i}.mp4" for i in range(VIDEOS)]


def answers(features: list[torch.Tensor], vectors: list[torch.Tensor]) -> list[list[list[float]]]:
    """The windows of each video: runs of clips whose cosine, a mean over three clips, is above the video's mean."""
    every = []
    for rows, vector in zip(features, vectors, strict=True):
        cosine = torch.cosine_similarity(rows, vector[None], dim=1).numpy()
        smooth = np.convolve(np.pad(cosine, 1, mode="edge"), np.ones(3) / 3, "valid")
        runs = runs_of_true(smooth > smooth.mean())
        every.append(sorted(([2.0 * a, 2.0 * b, float(smooth[a:b].mean())] for a, b in runs), key=lambda w: -w[2])[:10])
    return every


def recall(windows: list[list[list[float]]]) -> dict[str, float]:
    samples = val().samples[: len(windows)]
    truth = [s.as_line() for s in samples]
    lines = [
        {"qid": s.qid, "query": s.query, "vid": s.vid, "pred_relevant_windows": w}
        for s, w in zip(samples, windows, strict=True)
    ]
    return evaluate(lines, truth)["brief"]


def test_it_finds_moments_in_videos_that_it_has_not_seen(toy, losses, videos):
    """Decoded from H.264. Asked for the event of another video, it does much worse: it reads the sentence."""
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 3
    features = [toy.video(path) for path in videos]
    assert {rows.shape for rows in features} == {(32, JOINT)}
    vectors = [toy.text(sample.query)[1] for sample in val().samples[:VIDEOS]]
    sighted = recall(answers(features, vectors))
    blind = recall(answers(features, vectors[1:] + vectors[:1]))
    assert sighted["MR-full-R1@0.5"] >= 60 and blind["MR-full-R1@0.5"] <= sighted["MR-full-R1@0.5"] / 2


def test_find_answers_in_words(folder, videos):
    """As a user asks, with the encoder by the name of its folder: the best answer overlaps a true window."""
    first = [
        find(path, sample.query, encoder=str(folder), here=0)[0]
        for path, sample in zip(videos, val().samples[:VIDEOS], strict=True)
    ]
    hits = [
        any(s["start_s"] < end and start < s["end_s"] for start, end in sample.relevant_windows)
        for s, sample in zip(first, val().samples[:VIDEOS], strict=True)
    ]
    assert np.mean(hits) >= 0.75


def test_it_tells_sentences_about_a_video_from_others(toy):
    """By the cosine that nineteen of twenty clips of its training reach with their own sentence."""
    data = toy.dataset(open_sim("val", n=60, null=0.5))
    batch = data.batch(range(60))
    here = [
        exists(torch.cosine_similarity(rows, query, dim=-1).double().numpy(), toy.recipe["shown"]) > 0.5
        for rows, query in zip(batch.target_joint, batch.query_joint, strict=True)
    ]
    answered = np.array([sample.relevant_windows != [] for sample in data.samples])
    assert np.mean(np.array(here)[answered]) > 0.8
    assert np.mean(np.array(here)[~answered]) < 0.6


def test_drawn_features_stand_for_rendered_ones(toy, videos):
    """The mean cosine of the same clips, from pictures of 64 pixels and from the decoded video."""
    assert not toy.video(videos[0]).is_inference()  # a model may be trained on them
    for i, path in enumerate(videos[:3]):
        assert torch.cosine_similarity(toy.video(path), toy.drawn(val().samples[i])).mean() > 0.9


def test_a_dataset_of_its_features_is_one_that_retrievers_train_on(toy):
    dataset = toy.dataset(val().subset(range(60)))
    assert anchor_inside(dataset) > 0.8
    batch = dataset.batch([3, 5])
    assert (dataset.widths.target, dataset.widths.query, dataset.widths.joint) == (JOINT, TOKEN, JOINT)
    torch.testing.assert_close(batch.target.norm(dim=-1), torch.ones(2, 32), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.target_joint, batch.target)
    torch.testing.assert_close(batch.labels.spans, val().batch([3, 5]).labels.spans)
    tokens, vector = toy.text(val().samples[5].query)
    rows = torch.nn.functional.normalize(tokens, dim=-1)
    torch.testing.assert_close(batch.query[1, : len(rows)], rows, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.query_joint[1], vector / vector.norm(), atol=1e-4, rtol=0)


def test_samples_that_share_a_video_share_its_features(toy):
    assert toy.dataset(val().subset([4, 2, 4])).video.tolist() == [1, 0, 1]


def test_queries_that_are_videos_are_other_takes(toy):
    dataset = open_sim("val", n=2, query="video")
    batch = toy.dataset(dataset).batch([0, 1])
    rows = toy.drawn(another_take(dataset, 1))
    torch.testing.assert_close(batch.query[1, : len(rows)], rows / rows.norm(dim=1)[:, None], atol=1e-4, rtol=0)
    assert batch.query.shape[2] == batch.query_joint.shape[1] == JOINT


def test_its_pictures_are_drawn_every_half_second():
    assert drawn_pictures(val().samples[0]).shape == (32 * FRAMES, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("duration", "clips"), [(0.2, 1), (2.0, 1), (2.9, 1), (3.0, 2), (20.9, 10), (21.0, 11), (131.1, 66)]
)
def test_a_video_has_as_many_clips_as_for_every_encoder(duration, clips, toy, tmp_path):
    """round(duration / 2), halves up; also those that end after the video."""
    frames = (np.full((36, 64, 3), k % 256, np.uint8) for k in range(round(10 * duration)))
    write(tmp_path / "a.mp4", frames, 10)
    times = list(pictures(tmp_path / "a.mp4", toy.recipe["clip_s"]))
    assert toy.video(tmp_path / "a.mp4").shape == (len(times), JOINT) == (clips, JOINT)


def test_progress_reaches_the_end(toy, videos):
    seen = []
    toy.video(videos[0], lambda done, of: seen.append((done, of)))
    assert seen[-1] == (64.0, 64.0) and len(seen) == 32 * FRAMES


def test_the_same_seed_gives_the_same_weights():
    def digest(seed: int) -> str:
        return train_toy(val().subset(range(4)), steps=2, batch_size=4, seed=seed).recipe["weights"]

    state = torch.random.get_rng_state()
    assert digest(0) == digest(0) != digest(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "options", [{"size": "paper"}, {"query": "video"}, {"size": "paper", "query": "video"}], ids=str
)
def test_it_trains_on_every_world(options):
    dataset = open_sim("train", n=4, **options)
    toy = train_toy(dataset, steps=2, batch_size=8)
    for sample in dataset.samples:
        assert toy.text(sample.query)[1].isfinite().all()


def test_it_reads_what_a_sentence_may_say(toy):
    tokens, vector = toy.text("A young woman in a red shirt throws the ball in front of the camera.")
    assert tokens.shape == (15, TOKEN) and vector.shape == (JOINT,)
    assert tokens.dtype == vector.dtype == torch.float32
    torch.testing.assert_close(toy.text("WOMAN, throws -- ball!")[1], toy.text("woman throws ball")[1])


def test_unknown_words_are_named(toy):
    with pytest.warns(UserWarning, match="Toy does not know astronaut, quickly; the sentence is read without"):
        vector = toy.text("The astronaut quickly throws the ball")[1]
    torch.testing.assert_close(vector, toy.text("the throws the ball")[1])


@pytest.mark.parametrize("query", ["", "  ", "an astronaut sleeps", "the young and red", "été 2026", "kite"])
def test_a_sentence_about_nothing_that_it_has_seen_is_refused(query, toy):
    """A kite flies only in larger worlds."""
    with pytest.raises(ValueError, match="names nothing that Toy has seen; it knows: man, woman, .*ball"):
        toy.text(query)


def test_a_long_sentence_is_shortened_in_a_message(toy):
    with pytest.raises(ValueError, match="^'x x [x ]+[.]{3}' names nothing"):
        toy.text("x " * 500)


def test_a_query_that_is_no_sentence_is_refused(toy):
    with pytest.raises(ValueError, match="query must be a sentence, not None"):
        toy.text(None)


def test_a_saved_encoder_is_the_same_when_it_is_loaded(toy, folder):
    loaded = Toy.load(folder)
    assert loaded.recipe == toy.recipe and (loaded.words, loaded.named) == (toy.words, toy.named)
    assert json.loads(json.dumps(toy.recipe)) == toy.recipe
    torch.testing.assert_close(loaded.text("A man kicks a ball")[1], toy.text("A man kicks a ball")[1], rtol=0, atol=0)
    sample = val().samples[0]
    torch.testing.assert_close(loaded.drawn(sample), toy.drawn(sample), rtol=0, atol=0)


def test_other_weights_have_another_recipe(toy):
    other = train_toy(val().subset(range(4)), steps=2, batch_size=4)
    assert other.recipe["weights"] != toy.recipe["weights"]


def edited(folder, **changes):
    path = folder / "toy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def foreign(folder):
    save_tensors(folder / "toy.safetensors", {"other": torch.zeros(3)}, "{}")


def flipped(folder):
    data = bytearray((folder / "toy.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "toy.safetensors").write_bytes(data)


def exchanged(folder):
    train_toy(val().subset(range(4)), steps=2, batch_size=4).save(folder / "other")
    shutil.copy(folder / "other" / "toy.json", folder / "toy.json")


DAMAGE = {
    "no settings": (lambda f: (f / "toy.json").unlink(), FileNotFoundError, r"toy\.json is missing"),
    "no weights": (lambda f: (f / "toy.safetensors").unlink(), FileNotFoundError, r"toy\.safetensors is missing"),
    "no JSON": (lambda f: (f / "toy.json").write_text("{"), ValueError, r"toy\.json is not the JSON of an encoder"),
    "bytes": (lambda f: (f / "toy.json").write_bytes(b"\xff\xfe"), ValueError, r"toy\.json is not the JSON of"),
    "a list": (lambda f: (f / "toy.json").write_text("[]"), ValueError, "its 'encoder' is not \"toy\""),
    "another encoder": (lambda f: edited(f, encoder="clip"), ValueError, "its 'encoder' is not \"toy\""),
    "words lost": (lambda f: edited(f, words=["man"]), ValueError, r"toy\.safetensors does not fit the words of"),
    "a level that is no cosine": (lambda f: edited(f, shown=7), ValueError, "'shown' must be a cosine"),
    "words of another kind": (lambda f: edited(f, words=[1, 2]), ValueError, "'words' must be a list of words"),
    "nothing named": (lambda f: edited(f, named=None), ValueError, "'named' must be a list of words"),
    "foreign weights": (foreign, ValueError, r"toy\.safetensors does not fit"),
    "a flipped bit": (flipped, ValueError, r"toy\.safetensors is damaged"),
    "half a file": (
        lambda f: (f / "toy.safetensors").write_bytes((f / "toy.safetensors").read_bytes()[:5000]),
        ValueError,
        r"toy\.safetensors is not a whole safetensors file",
    ),
    "a web page": (
        lambda f: (f / "toy.safetensors").write_text("<!doctype html>"),
        ValueError,
        r"toy\.safetensors is a web page",
    ),
    "another one's settings": (exchanged, ValueError, r"toy\.json belongs to other weights"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused(case, folder, tmp_path):
    damage, error, message = DAMAGE[case]
    copy = shutil.copytree(folder, tmp_path / "toy")
    damage(copy)
    with pytest.raises(error, match=message):
        Toy.load(copy)


def test_words_in_another_order_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "toy")
    words = json.loads((copy / "toy.json").read_text())["words"]
    edited(copy, words=words[::-1])
    with pytest.raises(ValueError, match=r"toy\.json: its words are not those of"):
        Toy.load(copy)


def test_a_folder_that_is_a_file_cannot_be_written(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="toy.safetensors"):
        toy.save(tmp_path / "file")


@pytest.mark.parametrize(("name", "value"), [("steps", 1), ("steps", 2.5), ("batch_size", 0), ("batch_size", None)])
def test_a_wrong_size_of_training_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 2"):
        train_toy(val(), **{name: value})


def test_a_dataset_that_is_not_simulated_is_refused(toy):
    real = replace(val(), name="qvhighlights", settings={})
    with pytest.raises(ValueError, match="qvhighlights val is not simulated"):
        train_toy(real)
    lines = [Sample(s.qid, s.query, s.duration, s.vid, s.relevant_windows) for s in val().samples[:4]]
    with pytest.raises(ValueError, match="has no script"):
        toy.dataset(replace(val().subset(range(4)), samples=lines))
