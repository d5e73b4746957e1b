"""`mrlib.video.find` on indexes whose features are known."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib import papers
from mrlib.checkpoint import load_official
from mrlib.data import Widths
from mrlib.retriever import Training
from mrlib.sim import open_sim
from mrlib.train import fit
from mrlib.video import Clip, Pixels, find, render, train_toy
from mrlib.video.retrievers import normalised, query_of_clip, query_of_words
from mrlib.video.search import usually_here
from mrlib.video.windows import Query, batch_of, windows_of
from mrlib.video.zero_shot import by_rows, by_vector
from tests.reference.official_detr import Official, make_opt
from tests.reference.official_univtg import save
from tests.support.copies import copies, overlap, wandering
from tests.support.fixed import JOINT, Fixed, indexed, scene
from tests.support.tiny_clip import write_tiny_clip
from tests.support.videos import real_video

ENCODER = Fixed(words={"a dog": torch.eye(JOINT)[1:2] * 3, "nothing like it": -torch.ones(3, JOINT)})
VIDEO = indexed(ENCODER, scene((0, 10), (1, 6), (2, 10)), duration_s=51.0)


def test_a_sentence_is_answered_without_a_retriever():
    moments = find(VIDEO, "a dog", encoder=ENCODER)
    assert [set(moment) for moment in moments] == [{"video", "start_s", "end_s", "score"}] * len(moments)
    assert moments[0]["video"] == "video.mp4" and abs(moments[0]["start_s"] - 20) <= 2
    assert len(find(VIDEO, "a dog", encoder=ENCODER, top=1)) == 1


def test_a_clip_is_answered_without_a_retriever():
    clip = indexed(ENCODER, VIDEO.features[8:18] + 0.01, "clip.mp4")
    moment = find(VIDEO, clip=clip, encoder=ENCODER)[0]
    assert abs(moment["start_s"] - 16) <= 2 and abs(moment["end_s"] - 36) <= 2 and moment["score"] > 0.9


@pytest.mark.parametrize("query", ["text", "video"])
def test_the_default_of_not_here_keeps_nine_true_answers_of_ten(query):
    """On simulated queries, 30 % of which have nothing to find; of those it rejects few, but more."""
    data = open_sim("test", n=300, size="small", streams="joint", query=query, null=0.3)
    batch, kept = data.batch(range(300)), {True: [], False: []}
    for b, sample in enumerate(data.samples):
        rows = batch.target[b, : batch.lengths[b]]
        if query == "text":
            exists = by_vector(rows, batch.query_joint[b], 2.0, 64.0, 1)[1]
        else:
            exists = by_rows(rows, batch.query[b][batch.query_mask[b]], 2.0, 64.0, 1)[1]
        here = exists >= usually_here({"encoder": "simulated"}, by_clip=query == "video")
        kept[bool(sample.relevant_windows)].append(here)
    true, null = (sum(kept[answered]) / len(kept[answered]) for answered in (True, False))
    assert true > 0.9 and null < true - 0.05


def test_two_indexes_need_no_encoder(monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    clip = indexed(ENCODER, VIDEO.features[8:18], "clip.mp4")
    assert find(VIDEO, clip=clip) == find(VIDEO, clip=clip, encoder=ENCODER)
    with pytest.raises(ValueError, match="clip.mp4: its index was made by encoder other, and this search needs fixed;"):
        find(VIDEO, clip=indexed(Fixed(encoder="other"), VIDEO.features[8:18], "clip.mp4"))


def test_a_retriever_that_does_not_fit_is_refused_before_the_video_is_encoded(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="the retriever answers sentences"):
        find(tmp_path / "v.mp4", clip=tmp_path / "v.mp4", retriever=model(), encoder=ENCODER)


def test_nothing_is_an_answer():
    flat = indexed(ENCODER, scene((0, 20), noise=0.01))
    assert find(flat, "a dog", encoder=ENCODER, here=1.0) == []
    assert find(flat, "a dog", encoder=ENCODER, here=0)


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    return wandering(tmp_path_factory.mktemp("spots") / "spots.mp4")


def found(copy, **options):
    moments = find(copy.video, clip=copy.file, **options)
    return overlap(moments[0], copy) if moments else 0.0


@pytest.mark.parametrize("speed", [1.0, 1.5, 0.67])
def test_cuts_that_are_cropped_encoded_anew_and_retimed_are_found(spots, speed, tmp_path):
    """[video.md §4] Of forty cuts of real videos all are found at speed 1 (bench_query_by_example.py)."""
    overlaps = [found(copy) for copy in copies([spots], tmp_path, 6, speed=speed)]
    assert sum(x >= 0.5 for x in overlaps) >= 5 and sum(x >= 0.7 for x in overlaps) >= 4


@pytest.mark.parametrize("speed", [1.0, 1.5, 0.67])
def test_cuts_of_real_videos_are_found(speed, tmp_path):
    videos = [real_video("videos/nasa_13013.mp4"), real_video("videos/mmaction_test.mp4")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* it can only be found as slow motion")
        overlaps = [found(copy, cache=tmp_path) for copy in copies(videos, tmp_path, 4, speed=speed, seed=1)]
    assert sum(x >= 0.5 for x in overlaps) >= 3 and sum(x >= 0.7 for x in overlaps) >= 2


def test_a_clip_that_is_longer_than_the_video_may_be_slow_motion():
    changes = torch.randn(20, JOINT, generator=torch.Generator().manual_seed(0)).cumsum(0)
    clip = indexed(ENCODER, changes[2:17].repeat_interleave(2, 0), "slow.mp4")
    with pytest.warns(UserWarning, match="slow.mp4, 60 s, is longer than the video video.mp4, 40 s; it can only be"):
        (moment,) = find(indexed(ENCODER, changes), clip=clip, encoder=ENCODER, top=1)
    assert abs(moment["start_s"] - 4) <= 2 and abs(moment["end_s"] - 34) <= 2


def test_a_clip_of_another_video_is_not_here(spots, tmp_path):
    """Spots of two videos are alike by chance, so that `here` is above its default."""
    other = wandering(tmp_path / "other.mp4", seed=1)
    for copy in copies([other], tmp_path, 3):
        assert find(spots, clip=copy.file, here=0.5) == [] and find(spots, clip=copy.file, here=0)
        assert len(find(other, clip=copy.file, here=0.5)) == 1  # what is left of the video is not here either


def model(clips=75, **changes):
    retriever = papers.build(papers.get("qd_detr", "small", **changes), Widths(JOINT, JOINT, JOINT), seed=3).eval()
    retriever.training_data = Training(
        streams={"features": JOINT}, clip_s=2.0, clips=clips, normalize=("features", "query"), query="text"
    )
    return retriever


def test_a_retriever_answers_as_its_predict_on_a_video_of_one_window():
    retriever = model()
    query = query_of_words(retriever, "a dog", *ENCODER.text("a dog"))
    batch = batch_of(windows_of("v", normalised(VIDEO.features), 51.0, 2.0, 75), query, 2.0)
    expected = retriever.predict(batch)[0]["pred_relevant_windows"]
    moments = find(VIDEO, "a dog", retriever=retriever, encoder=ENCODER, top=100, here=0)
    assert [[m["start_s"], m["end_s"], m["score"]] for m in moments] == expected


def test_a_retriever_of_clips_answers_a_clip():
    """[MATR] As its predict, with the clips of the query as tokens; a sentence is refused with what to give."""
    retriever = papers.build(papers.get("matr", "small"), Widths(JOINT, JOINT, JOINT), seed=3).eval()
    retriever.training_data = replace(model().training_data, query="video")
    clip = indexed(ENCODER, VIDEO.features[9:17], "clip.mp4")
    windows = windows_of("v", normalised(VIDEO.features), 51.0, 2.0, 75)
    asked = query_of_clip(retriever, "clip.mp4", clip.features)
    expected = retriever.predict(batch_of(windows, asked, 2.0))[0]["pred_relevant_windows"]
    moments = find(VIDEO, clip=clip, retriever=retriever, top=100, here=0)
    assert [[m["start_s"], m["end_s"], m["score"]] for m in moments] == expected
    with pytest.raises(ValueError, match="the retriever answers clips; give clip="):
        find(VIDEO, "a dog", retriever=retriever, encoder=ENCODER)


def test_a_retriever_of_thumbnails_needs_no_encoder(spots, monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    retriever = papers.build(papers.get("matr", "small"), Widths(192, 192, 192)).eval()
    retriever.training_data = Training(
        streams={"clip": 192}, clip_s=0.5, clips=20, normalize=("clip", "query"), query="video", encoder=Pixels.recipe
    )
    assert find(spots, clip=spots, retriever=retriever, here=0)


def test_a_long_video_is_searched_in_windows():
    retriever = model(clips=10)
    long = indexed(ENCODER, scene(*[(i % 5, 7) for i in range(40)]))
    moments = find(long, "a dog", retriever=retriever, encoder=ENCODER, top=50, here=0)
    assert all(0 <= m["start_s"] <= m["end_s"] <= 560 for m in moments)
    assert all(m["end_s"] - m["start_s"] <= 20 + 1e-6 for m in moments) and max(m["end_s"] for m in moments) > 400
    assert [m["score"] for m in moments] == sorted((m["score"] for m in moments), reverse=True)


def official(folder, tokens):
    """A file of the official Moment-DETR, trained on CLIP features of width 512 alone, and on its two endpoints."""
    options = {"v_feat_dim": 514, "t_feat_dim": tokens, "clip_length": 2, "max_q_l": 32, "max_v_l": 75}
    network = Official(make_opt(**options | {"v_feat_dirs": ["../features/clip_features"]}), "moment_detr")
    return save(network, folder / "model_best.ckpt")


def test_the_whole_way_with_clip_and_an_official_checkpoint(spots, tmp_path):
    """CLIP with random weights; the answer is that of `predict` on the normalised features."""
    pytest.importorskip("transformers")
    encoder = Clip(write_tiny_clip(tmp_path / "clip", projection=512))
    checkpoint = official(tmp_path, encoder.recipe["words"])
    moments = find(spots, "a man opens the door", retriever=checkpoint, encoder=encoder, top=10, here=0)
    retriever = load_official(checkpoint, "moment_detr")
    tokens = normalised(encoder.text("a man opens the door")[0])
    windows = windows_of("v", normalised(encoder.video(spots)), 40.0, 2.0, 75)
    expected = retriever.predict(batch_of(windows, Query("", tokens, None), 2.0))[0]["pred_relevant_windows"]
    assert [[m["start_s"], m["end_s"], m["score"]] for m in moments] == expected and len(moments) == 5
    with pytest.warns(UserWarning, match="reads the first 32"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?!.*first 32)")  # CLIP says that it cuts the sentence at 77
        assert find(spots, "door " * 500, retriever=checkpoint, encoder=encoder, here=0)


def test_the_whole_way_with_a_rendered_video_toy_and_a_run(tmp_path):
    """A retriever that was trained on drawn features of the encoder reads rendered videos; another encoder's not."""
    train = open_sim("train", n=24)
    toy, other = (train_toy(train, steps=3, batch_size=8, seed=seed) for seed in (0, 1))
    paper = papers.get("univtg", "small", epochs=1, streams=None)
    data = toy.dataset(train)
    retriever = papers.build(paper, data)
    fit(retriever, data, None, paper, tmp_path / "run", device="cpu", progress=False)
    video = tmp_path / "rendered.mp4"
    render(train, 0, video, fps=4)
    query = train.samples[0].query
    moments = find(video, query, retriever=tmp_path / "run", encoder=toy, here=0)
    assert moments and all(0 <= m["start_s"] <= m["end_s"] <= train.samples[0].duration for m in moments)
    assert find(video, query, encoder=toy, here=0)
    with pytest.raises(ValueError, match=r"was trained on toy \(128\) from .* this index has toy .* another encoder"):
        find(video, query, retriever=tmp_path / "run", encoder=other, here=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either query=, a sentence, or clip=, a video; neither is given"),
        ({"query": "a dog", "clip": "clip.mp4"}, "both are given"),
        ({"query": "  "}, "query must be a sentence with at least one word"),
        ({"query": "a dog", "top": 0}, "top must be a whole number of at least 1"),
        ({"query": "a dog", "here": 1.5}, "here must be a number from 0 to 1"),
        ({"query": "a dog", "here": "0"}, "here must be a number from 0 to 1"),
        ({"query": "a dog", "encoder": 3}, "encoder must be an encoder, or the name of one, not 3"),
        ({"query": "a dog", "encoder": Fixed}, "encoder must be an encoder, or the name of one"),
        ({"clip": 3}, "clip must be the path of a video, or its index, not 3"),
        ({"query": "a dog", "encoder": Fixed()}, "Fixed cannot read a sentence; ask by clip"),
        (
            {"query": "a dog", "encoder": Fixed(ENCODER.videos, ENCODER.words, weights="other")},
            "made by encoder fixed, and this search needs fixed with weights 'other', not None; make the index again",
        ),
        (
            {"clip": indexed(ENCODER, scene((1, 60)), "long.mp4")},
            "the clip long.mp4, 120 s, is longer than the video video.mp4, 51 s",
        ),
        ({"clip": indexed(ENCODER, scene((1, 4))), "retriever": model()}, "the retriever answers sentences"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find(VIDEO, **{"encoder": ENCODER} | options)


@pytest.mark.parametrize("video", [None, 3, b"video.mp4", ["video.mp4"]])
def test_what_is_no_path_of_a_video_is_refused_by_name(video):
    with pytest.raises(ValueError, match="video must be the path of a video, or its index, not"):
        find(video, "a dog", encoder=ENCODER)


def test_a_number_of_numpy_is_a_score():
    assert find(VIDEO, "a dog", encoder=ENCODER, here=np.float32(0)) == find(VIDEO, "a dog", encoder=ENCODER, here=0)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.mp4: no such video"):
        find(tmp_path / "nothing.mp4", "a dog", encoder=ENCODER)
    with pytest.raises(FileNotFoundError, match="nothing.mp4: no such video"):
        find(VIDEO, clip=tmp_path / "nothing.mp4", encoder=ENCODER)


def test_without_an_encoder_a_sentence_says_what_there_is(monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    with pytest.raises(ValueError, match="no encoder"):
        find(VIDEO, "a dog")
