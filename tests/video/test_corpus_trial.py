"""How a search in a simulated corpus is measured."""

import math

import pytest
import torch

from mrlib.video.corpus_trial import _rank, measure, occurrences, query_rows, simulate


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("corpus") / "sim.corpus", 0.5)


def test_the_corpus_has_the_features_of_the_dataset(simulated):
    corpus, dataset = simulated
    assert len(corpus) == len(dataset) == 29 and corpus.hours == pytest.approx(0.5, abs=0.02)
    rows = corpus.bank.gather(corpus.bank.index(torch.tensor([7])))[0]
    torch.testing.assert_close(rows, dataset.batch([7]).target[0], atol=1e-3, rtol=1e-3)
    assert [entry.path for entry in corpus] == [sample.vid for sample in dataset.samples]


def test_every_moment_of_the_script_is_an_occurrence_of_its_event(simulated):
    """The windows of every sample, and as many clips as its script has inside windows."""
    _, dataset = simulated
    moments = occurrences(dataset.samples)
    for sample in dataset.samples:
        event = sample.extra["actor"], sample.extra["action"], sample.extra["object"]
        assert {(sample.vid, *window) for window in sample.relevant_windows} <= set(moments[event])
    seconds = sum(b - a for s in dataset.samples for event in s.extra["script"] for a, b in event["windows"])
    assert sum(end - start for each in moments.values() for _, start, end in each) == seconds


def test_the_rank_of_the_first_right_answer():
    answers = [{"video": v, "start_s": a, "end_s": b} for v, a, b in (("x", 0, 9), ("y", 5, 9), ("y", 0, 10))]
    moments = [("y", 0.0, 8.0), ("z", 0.0, 9.0)]  # IoU 0, 3 / 9, 8 / 10
    assert [_rank(answers, moments, least) for least in (0, 0.5, 0.8, 0.81)] == [1, 2, 2, math.inf]
    assert _rank(answers, [], 0) == math.inf


@pytest.mark.parametrize("query", ["text", "video"])
def test_a_trial_has_a_row_per_answer_truth_and_rank(query, tmp_path):
    corpus, dataset = simulate(tmp_path / "sim.corpus", 0.4, query=query)
    table = measure(corpus, dataset, 8)
    assert set(zip(table.answer, table.truth, strict=True)) == {
        (answer, truth) for answer in ("window", "zero-shot") for truth in ("any", "strict")
    }
    for _, rows in table.groupby(["answer", "truth"]):
        for score in ("overlap", "R@0.5", "R@0.7"):
            assert rows.sort_values("k")[score].is_monotonic_increasing and rows[score].between(0, 100).all()
        assert (rows["overlap"] >= rows["R@0.5"]).all() and (rows["R@0.5"] >= rows["R@0.7"]).all()
    scores = table.set_index(["answer", "truth", "k"])["overlap"]
    assert scores["window", "strict", 30] == 100  # of all windows
    assert (scores.xs("any", level="truth") >= scores.xs("strict", level="truth")).all()
    assert scores["window", "any", 1] > 100 * 2 / len(corpus)  # better than chance


def test_a_query_has_its_words_or_clips(simulated):
    _, dataset = simulated
    assert len(query_rows(dataset, 3)) == len(dataset.samples[3].query.split())
