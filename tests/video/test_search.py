"""`mrlib.video.find` on indexes whose features are known."""

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.retriever import Training
from mrlib.video import find
from mrlib.video.retrievers import normalised, query_of_words
from mrlib.video.windows import batch_of, windows_of
from tests.support.fixed import JOINT, Fixed, indexed, scene

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


def test_nothing_is_an_answer():
    flat = indexed(ENCODER, scene((0, 20), noise=0.01))
    assert find(flat, "a dog", encoder=ENCODER, here=1.0) == []
    assert find(flat, "a dog", encoder=ENCODER, here=0)


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


def test_a_long_video_is_searched_in_windows():
    retriever = model(clips=10)
    long = indexed(ENCODER, scene(*[(i % 5, 7) for i in range(40)]))
    moments = find(long, "a dog", retriever=retriever, encoder=ENCODER, top=50, here=0)
    assert all(0 <= m["start_s"] <= m["end_s"] <= 560 for m in moments)
    assert all(m["end_s"] - m["start_s"] <= 20 + 1e-6 for m in moments) and max(m["end_s"] for m in moments) > 400
    assert [m["score"] for m in moments] == sorted((m["score"] for m in moments), reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either query=, a sentence, or clip=, a video; neither is given"),
        ({"query": "a dog", "clip": "clip.mp4"}, "both is given"),
        ({"query": "  "}, "query must be a sentence with at least one word"),
        ({"query": "a dog", "top": 0}, "top must be a whole number of at least 1"),
        ({"query": "a dog", "here": 1.5}, "here must be a number from 0 to 1"),
        ({"query": "a dog", "encoder": Fixed()}, "Fixed cannot read a sentence; ask by clip"),
        (
            {"query": "a dog", "encoder": Fixed(ENCODER.videos, ENCODER.words, weights="other")},
            "video.mp4: its index was made by encoder fixed, not by this encoder",
        ),
        (
            {"clip": indexed(ENCODER, scene((1, 40)), "long.mp4")},
            "the clip long.mp4, 80 s, is longer than the video video.mp4, 51 s",
        ),
        ({"clip": indexed(ENCODER, scene((1, 4))), "retriever": model()}, "the retriever answers sentences"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find(VIDEO, **{"encoder": ENCODER} | options)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.mp4: no such video"):
        find(tmp_path / "nothing.mp4", "a dog", encoder=ENCODER)
    with pytest.raises(FileNotFoundError, match="nothing.mp4: no such video"):
        find(VIDEO, clip=tmp_path / "nothing.mp4", encoder=ENCODER)


def test_without_an_encoder_a_sentence_says_what_there_is(monkeypatch):
    monkeypatch.delenv("MRLIB_CLIP", raising=False)
    with pytest.raises(ValueError, match="no encoder"):
        find(VIDEO, "a dog")
