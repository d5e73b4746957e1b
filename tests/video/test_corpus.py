"""A corpus: adding, searching, and what is refused."""

import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrlib import papers
from mrlib.data import open_dataset
from mrlib.video import Corpus, Pixels
from mrlib.video.cut import cut
from mrlib.video.index import Index
from tests.support.corpora import WIDTH, Invented, invented, new_corpus
from tests.support.videos import real_video

SENTENCE = "a man opens the door"


class Other(Invented):
    recipe = Invented.recipe | {"encoder": "other"}


# ---- adding and removing


def test_a_new_corpus_is_a_file_without_videos(tmp_path):
    corpus = Corpus.open(tmp_path / "new" / "videos.corpus", Invented())
    assert (len(corpus), corpus.hours, list(corpus)) == (0, 0, [])
    assert len(Corpus.open(corpus.file)) == 0


def test_videos_are_listed_in_the_order_of_adding(tmp_path):
    corpus = new_corpus(tmp_path, invented("b.mp4", 900), invented("a.mp4", 1800))
    for each in (corpus, Corpus.open(corpus.file)):
        assert [(entry.path, entry.duration_s, entry.rows) for entry in each] == [
            ("b.mp4", 1800, 900),
            ("a.mp4", 3600, 1800),
        ]
        assert (len(each), each.hours) == (2, 1.5) and "a.mp4" in each and "c.mp4" not in each


def test_rows_are_normalised_once_and_memory_mapped(tmp_path):
    video = invented("a.mp4", 30)
    file = new_corpus(tmp_path, invented("b.mp4", 7), video).file
    bank = Corpus.open(file).bank
    assert bank.rows.dtype == torch.float16
    if (maps := Path("/proc/self/maps")).exists():
        assert str(file) in maps.read_text()
    expected = torch.nn.functional.normalize(video.features, dim=1)
    torch.testing.assert_close(bank.gather(bank.index(torch.tensor([1])))[0], expected, atol=5e-4, rtol=1e-3)


def test_adding_the_same_again_changes_no_byte(tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30))
    before = corpus.file.read_bytes()
    assert corpus.add(invented("a.mp4", 30)) == ["unchanged"] and corpus.file.read_bytes() == before
    assert Corpus.open(corpus.file, Invented()).add(invented("a.mp4", 30)) == ["unchanged"]


def test_a_changed_video_is_replaced_and_said(tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30), invented("b.mp4", 30))
    with pytest.warns(UserWarning, match=r"a.mp4 has changed since it was added to .*videos.corpus; it was replaced"):
        assert corpus.add(invented("a.mp4", 20, seed=1)) == ["replaced"]
    assert [(entry.path, entry.rows) for entry in corpus] == [("b.mp4", 30), ("a.mp4", 20)]


def test_two_videos_of_one_name_are_both_kept(tmp_path):
    corpus = new_corpus(tmp_path, invented("a/x.mp4", 30), invented("b/x.mp4", 30))
    assert [entry.path for entry in corpus] == ["a/x.mp4", "b/x.mp4"]


def test_two_copies_of_one_video_are_both_kept(tmp_path):
    video = invented("a.mp4", 30, **{SENTENCE: (3, 9)})
    corpus = new_corpus(tmp_path, video, Index("copy.mp4", video.duration_s, video.features, video.recipe))
    assert [answer["video"] for answer in corpus.search(SENTENCE)] == ["a.mp4", "copy.mp4"]


@pytest.mark.parametrize("name", ["a 'quoted' \"name\"\nof two lines.mp4", "\udc80.mp4", "ü" * 300])
def test_any_name_is_kept(name, tmp_path):
    corpus = new_corpus(tmp_path, invented("a", 20), Index(name, 40.0, invented("b", 20).features, Invented.recipe))
    opened = Corpus.open(corpus.file, Invented())
    assert name in opened and [entry.path for entry in opened][1] == name
    assert {answer["video"] for answer in opened.search(SENTENCE, here=0)} == {"a", name}


def test_a_removed_video_is_not_searched(tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30), invented("b.mp4", 30))
    corpus.remove("a.mp4")
    for each in (corpus, Corpus.open(corpus.file, Invented())):
        assert len(each) == 1 and {answer["video"] for answer in each.search(SENTENCE, here=0)} == {"b.mp4"}
    with pytest.raises(ValueError, match="a.mp4 is not in the corpus"):
        corpus.remove("a.mp4")
    assert corpus.add(invented("a.mp4", 30)) == ["added"]


def test_another_process_may_add_to_an_open_corpus(tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30))
    Corpus.open(corpus.file, Invented()).add(invented("b.mp4", 30, **{SENTENCE: (3, 9)}))
    assert corpus.search(SENTENCE)[0]["video"] == "b.mp4"
    assert corpus.add(invented("b.mp4", 30, **{SENTENCE: (3, 9)})) == ["unchanged"]


def _add_ten(file: str, number: int) -> None:
    Corpus.open(file, Invented()).add(*(invented(f"{number}/{i}.mp4", 30) for i in range(10)))


def test_several_processes_add_at_the_same_time(tmp_path):
    corpus = new_corpus(tmp_path)
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    processes = [context.Process(target=_add_ten, args=(str(corpus.file), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = {f"{number}/{i}.mp4" for number in range(3) for i in range(10)}
    assert {entry.path for entry in Corpus.open(corpus.file)} == expected


def test_a_video_file_is_encoded_and_known_by_its_size_and_time(tmp_path, monkeypatch):
    video = tmp_path / "a b.mp4"
    video.write_bytes(real_video().read_bytes())
    corpus = Corpus.open(tmp_path / "videos.corpus", Pixels())
    assert corpus.add(video) == ["added"]
    (entry,) = corpus
    assert (entry.path, entry.size) == (str(video), video.stat().st_size) and entry.rows > 10
    os.utime(video)
    assert corpus.add(video) == ["unchanged"]  # touched, with the same content
    monkeypatch.setattr(Pixels, "video", None)  # which is not needed any more
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.mp4").symlink_to(video)
    assert corpus.add(video, "a b.mp4", "link.mp4") == ["unchanged"] * 3


# ---- searching


def test_a_planted_moment_is_first_by_sentence(tmp_path):
    """In a long video, and where two windows overlap."""
    long = invented("long.mp4", 1800, **{SENTENCE: (1110, 1120)})
    corpus = new_corpus(tmp_path, invented("a.mp4", 75), long, invented("b.mp4", 10))
    first, *rest = corpus.search(SENTENCE, windows=4)
    assert first.keys() == {"video", "start_s", "end_s", "score", "coarse", "fine"}
    assert first["video"] == "long.mp4"
    assert first["start_s"] <= 2220 < 2240 <= first["end_s"] <= first["start_s"] + 150
    assert first["score"] == first["coarse"] > 0.8 > rest[0]["score"]


def test_a_planted_moment_is_first_by_clip(tmp_path):
    long = invented("long.mp4", 1800, **{SENTENCE: (1110, 1120)})
    corpus = new_corpus(tmp_path, invented("a.mp4", 75), long, invented("b.mp4", 10))
    clip = Index("clip.mp4", 16.0, long.features[1111:1119] * 3, long.recipe)
    first, second, *_ = corpus.search(clip=clip)
    assert first["video"] == "long.mp4"
    assert (first["start_s"], first["end_s"]) == pytest.approx((2222, 2238), abs=2)  # the moment around it is alike
    assert first["coarse"] > 0.95 > second["coarse"]


def test_a_cut_of_a_real_video_is_found_in_the_corpus_of_real_videos(tmp_path):
    names = ["univtg_example/video.mp4", *(f"videos/{name}.mp4" for name in ("mmaction_demo", "mmaction_test"))]
    files = [tmp_path / Path(name).name for name in names]
    for name, file in zip(names, files, strict=True):
        file.write_bytes(real_video(name).read_bytes())
    corpus = Corpus.open(tmp_path / "videos.corpus", Pixels())
    corpus.add(*files)
    for file in files:
        cut(file, 2, 7, tmp_path / "clip.mp4")
        first = corpus.search(clip=tmp_path / "clip.mp4")[0]
        assert (first["video"], first["start_s"], first["end_s"]) == (str(file), 2, 7)


def test_moments_are_ordered_by_coarse_then_fine_score(tmp_path):
    corpus = new_corpus(tmp_path, *(invented(f"{i}.mp4", 100 * i + 1) for i in range(9)))
    answers = corpus.search(SENTENCE, windows=20, here=0)
    scores = [(answer["coarse"], answer["fine"]) for answer in answers]
    assert 15 < len(answers) <= 20 and scores == sorted(scores, reverse=True)  # one moment of two windows counts once
    assert corpus.search(SENTENCE, windows=20, top=3, here=0) == answers[:3]
    assert corpus.search(SENTENCE, windows=3, here=0) == answers[:3]
    durations = {entry.path: entry.duration_s for entry in corpus}
    assert all(0 <= a["start_s"] < a["end_s"] <= durations[a["video"]] for a in answers)


def test_a_retriever_finds_the_moment_in_each_window(tmp_path):
    """Its fine score and its times are those of `predict` on the same window."""
    paper, dataset = papers.get("univtg", "small"), open_dataset("sim", n=6, streams="joint")
    retriever = papers.build(paper, dataset)

    class Simulated(Invented):
        recipe = {"encoder": "simulated", "clip_s": 2.0, "width": 128, "joint": 128}

        def text(self, query):
            i = [sample.query for sample in dataset.samples].index(query)
            return dataset.query.rows[dataset.query.index(torch.tensor([i]))[0]], dataset.query_joint[i]

    corpus = Corpus.open(tmp_path / "videos.corpus", Simulated())
    for i, sample in enumerate(dataset.samples):
        corpus.add(Index(sample.vid, sample.duration, dataset.batch([i]).target[0], Simulated.recipe))
    answers = corpus.search(dataset.samples[2].query, retriever=retriever, here=0)
    assert len(answers) == 6
    answer = next(answer for answer in answers if answer["video"] == dataset.samples[2].vid)
    start, end, score = retriever.predict(dataset.batch([2]))[0]["pred_relevant_windows"][0]
    assert (answer["start_s"], answer["end_s"]) == pytest.approx((start, end), abs=0.05)
    assert answer["fine"] == pytest.approx(score, abs=1e-3)


def test_what_no_video_shows_is_not_here(tmp_path):
    """Neither by a sentence nor by a clip; `here` moves the border."""
    corpus = new_corpus(tmp_path, *(invented(f"{i}.mp4", 300) for i in range(3)))
    clip = Index("clip.mp4", 20.0, torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(9)), Invented.recipe)
    for asked in ({"query": SENTENCE}, {"clip": clip}):
        assert corpus.search(**asked, here=1) == [] != corpus.search(**asked, here=0)
    corpus.add(invented("shown.mp4", 300, **{SENTENCE: (100, 110)}))
    assert corpus.search(SENTENCE)[0]["video"] == "shown.mp4"


def test_the_coarse_step_alone_gives_windows(tmp_path):
    long = invented("long.mp4", 1801, **{SENTENCE: (1110, 1120)})
    corpus = new_corpus(tmp_path, invented("a.mp4", 75), long)
    first, *rest = corpus.windows(SENTENCE, most=1000)
    assert (first["video"], first["start_s"] % 74) == ("long.mp4", 0)
    assert first["start_s"] + 37 <= 2 * 1110 and first["end_s"] - 37 >= 2 * 1120  # it is not at the window's edge
    assert len(rest) == 48 and max(each["end_s"] for each in rest) == 3602


# ---- bad input


def test_a_corpus_of_another_encoder_is_refused_by_name(tmp_path):
    file = new_corpus(tmp_path, invented("a.mp4", 30)).file
    with pytest.raises(
        ValueError, match=r"encoder of .*videos.corpus has encoder 'other', .* made with 'invented'; give"
    ):
        Corpus.open(file, Other())
    with pytest.raises(ValueError, match=r"has encoder 'other', .* made with 'invented'"):
        Corpus.open(file, Invented()).add(Index("b.mp4", 60.0, torch.ones(30, WIDTH), Other.recipe))
    with pytest.raises(ValueError, match=r"has encoder 'other', .* made with 'invented'"):
        Corpus.open(file, Invented()).search(clip=Index("b.mp4", 60.0, torch.ones(30, WIDTH), Other.recipe))


def test_a_corpus_that_does_not_exist_needs_an_encoder(tmp_path):
    with pytest.raises(FileNotFoundError, match="videos.corpus: no such corpus; give encoder="):
        Corpus.open(tmp_path / "videos.corpus")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_corpus(tmp_path):
    with pytest.raises(ValueError, match="is no corpus of mrlib, it is a folder; give a file"):
        Corpus.open(tmp_path, Invented())


def test_an_encoder_may_be_named(tmp_path):
    assert Corpus.open(tmp_path / "videos.corpus", "pixels").recipe == Pixels.recipe


def test_an_encoder_is_needed_to_search(tmp_path):
    file = new_corpus(tmp_path, invented("a.mp4", 30)).file
    with pytest.raises(ValueError, match="opened without an encoder"):
        Corpus.open(file).search(SENTENCE)


def test_an_empty_corpus_is_not_searched(tmp_path):
    with pytest.raises(ValueError, match="videos.corpus has no videos yet"):
        new_corpus(tmp_path).search(SENTENCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either query=, a sentence, or clip="),
        ({"query": SENTENCE, "clip": "a.mp4"}, "either query=, a sentence, or clip="),
        ({"query": SENTENCE, "windows": 0}, "windows must be a whole number of at least 1"),
        ({"query": SENTENCE, "windows": 2.5}, "windows must be a whole number"),
        ({"query": SENTENCE, "here": 1.5}, "here must be a number from 0 to 1"),
        ({"query": SENTENCE, "top": 0}, "top must be a whole number of at least 1"),
        ({"query": SENTENCE, "here": "x"}, "here must be a number from 0 to 1"),
        ({"query": SENTENCE, "here": float("nan")}, "here must be a number from 0 to 1"),
        ({"query": 7}, "query must be a sentence"),
        ({"clip": 7}, "path must be the path of a video, not 7"),
        ({"query": "  "}, "query must be a sentence"),
        ({"clip": "no.mp4"}, "no.mp4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        new_corpus(tmp_path, invented("a.mp4", 30)).search(**arguments)


@pytest.mark.parametrize("video", [None, 3, b"a.mp4", ["a.mp4"]])
def test_what_is_no_path_of_a_video_is_not_added(video, tmp_path):
    with pytest.raises(ValueError, match="video must be the path of a video, or its index, not"):
        new_corpus(tmp_path).add(video)


@pytest.mark.parametrize("features", [torch.full((3, WIDTH), torch.nan), torch.ones(0, WIDTH), torch.ones(3, 5)])
def test_features_that_cannot_be_searched_are_refused(features, tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30))
    with pytest.raises(ValueError, match="b.mp4"):
        corpus.add(Index("b.mp4", 60.0, features, Invented.recipe))
    assert len(Corpus.open(corpus.file)) == 1


def test_a_video_that_cannot_be_read_keeps_no_other_out(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    corpus = Corpus.open(tmp_path / "videos.corpus", Pixels())
    good = [Index(f"{i}.mp4", 5.0, torch.rand(10, 192), Pixels.recipe) for i in range(2)]
    with pytest.raises(ValueError, match=r"2 of 4 videos could not be added:\n.*text.mp4.*\n.*missing.mp4"):
        corpus.add(good[0], tmp_path / "text.mp4", tmp_path / "missing.mp4", good[1])
    assert [entry.path for entry in corpus] == ["0.mp4", "1.mp4"]
    with pytest.raises(FileNotFoundError, match=r"missing.mp4"):
        corpus.add(tmp_path / "missing.mp4")


def test_no_space_while_adding_leaves_the_videos_before(tmp_path):
    corpus = new_corpus(tmp_path, invented("a.mp4", 30))
    limit = corpus.file.stat().st_size + 500
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from pathlib import Path; from tests.support.corpora import *;"
        f"new_corpus(Path({str(tmp_path)!r}), invented('b.mp4', 30))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot write" in process.stderr and "free some space" in process.stderr
    opened = Corpus.open(corpus.file, Invented())
    assert [entry.path for entry in opened] == ["a.mp4"] and opened.add(invented("b.mp4", 30)) == ["added"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit
