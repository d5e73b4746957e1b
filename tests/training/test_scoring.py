"""Predictions for a whole dataset, and their scores."""

from types import SimpleNamespace

import pytest
import torch

from mrlib import metrics, papers, parallel
from mrlib.data import Sample
from mrlib.memory import OutOfMemory
from mrlib.training.scoring import headline, predict_all, scores_of
from tests.support.files import labelled
from tests.support.runs import open_world, small


@pytest.fixture(scope="module")
def val():
    return open_world()[1]


@pytest.fixture(scope="module")
def retriever(val):
    return papers.build(small(), val)


@pytest.mark.parametrize("batch_size", [6, 20, 128])
def test_predictions_are_in_the_order_of_the_dataset(batch_size, retriever, val):
    """The last batch may be smaller."""
    lines = predict_all(retriever, val, batch_size)
    assert [line["qid"] for line in lines] == [s.qid for s in val.samples]
    assert lines[-2:] == retriever.predict(val.batch(torch.arange(20).split(batch_size)[-1]))[-2:]


@pytest.mark.parametrize(("rank", "positions"), [(0, [*range(6), *range(12, 18)]), (1, [*range(6, 12), 18, 19])])
def test_each_of_two_ranks_predicts_every_other_batch(rank, positions, retriever, val, monkeypatch):
    monkeypatch.setattr(parallel, "rank_and_world", lambda: (rank, 2))
    monkeypatch.setattr(parallel, "gather", list)
    lines = predict_all(retriever, val, batch_size=6)
    assert [line["qid"] for line in lines] == [val.samples[i].qid for i in positions]


def test_predictions_without_memory_name_a_batch_size_to_try(retriever, val, monkeypatch):
    def fail(batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(batch)

    forward, expected = retriever.aligner.forward, predict_all(retriever, val, 3)
    monkeypatch.setattr(retriever.aligner, "forward", fail)
    message = "^out of memory: batch size 6, videos of up to 32 clips; try a batch size of 3$"
    for predict in (lambda: predict_all(retriever, val, 6), lambda: retriever.predict(val.batch(range(6)))):
        with pytest.raises(OutOfMemory, match=message):
            predict()
    assert predict_all(retriever, val, 3) == expected


def test_scores_are_those_of_the_evaluator_and_the_moments_of_all_queries(retriever, val):
    lines, truth = predict_all(retriever, val), [s.as_line() for s in val.samples]
    scores = scores_of(lines, val)
    assert scores == metrics.evaluate(lines, truth) | {"moments": metrics.moment_scores(lines, truth)["all"]}
    assert headline(scores) == scores["brief"] | {"mIoU": scores["moments"]["mIoU"]}


def test_saliency_is_scored_in_clips_of_the_dataset():
    """Ten clips of 1 s, the last relevant and best."""
    sample = Sample(1, "a dog", 10.0, "v", [[9, 10]], [9], [[4, 4, 4]])
    line = {"qid": 1, "pred_relevant_windows": [[9, 10, 1.0]], "pred_saliency_scores": list(range(10))}
    assert scores_of([line], SimpleNamespace(samples=[sample], clip_s=1.0))["brief"]["HL-min-Good-mAP"] == 100


def test_a_dataset_of_highlights_has_no_scores_of_moments():
    fields = labelled(clips=10)
    sample = Sample(1, fields["query"], 20.0, fields["vid"], extra={"label": fields["label"]})
    dataset = SimpleNamespace(samples=[sample], clip_s=2.0)
    scores = scores_of([{"qid": 1, "pred_saliency_scores": list(range(10))}], dataset)
    assert scores.keys() == {"brief"} and headline(scores) == scores["brief"]
    assert list(scores["brief"]) == ["HL-top5-mAP"]
