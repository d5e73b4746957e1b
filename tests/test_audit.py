"""The audit finds models that read labels, batch mates or padding."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.audit import cut, on_its_own, padding_shifts, reads_labels

LENGTHS = [32, 20, 9]


@pytest.fixture(scope="module")
def data():
    return papers.open_split(papers.get("qd_detr", "small"), "sim", n=24)


@pytest.fixture
def retriever(data):
    return papers.build(papers.get("qd_detr", "small", detector="boundary"), data)


def with_target(retriever, change):
    """The retriever, whose aligner gets `change(batch)` as the target."""
    forward = retriever.aligner.forward
    retriever.aligner.forward = lambda batch: forward(replace(batch, target=change(batch)))
    return retriever


def test_a_model_that_reads_only_video_and_query_passes(data, retriever):
    batch, foreign = data.batch([0, 1, 2]), data.batch([21, 22, 23])
    assert not reads_labels(retriever.train(), batch, foreign) and retriever.training
    assert padding_shifts(retriever, batch, LENGTHS) < 1e-5


def test_a_model_that_reads_the_labels_is_found(data, retriever):
    def change(batch):
        return batch.target if batch.labels is None else batch.target + batch.labels.relevant[..., None]

    assert reads_labels(with_target(retriever, change), data.batch([0, 1, 2]), data.batch([21, 22, 23]))


def test_a_model_that_reads_the_annotation_of_the_samples_is_found(data, retriever):
    def change(batch):
        starts = [s.relevant_windows[0][0] if s.relevant_windows else 0 for s in batch.samples]
        return batch.target + 0.01 * batch.target.new_tensor(starts)[:, None, None]

    assert reads_labels(with_target(retriever, change), data.batch([0, 1, 2]), data.batch([21, 22, 23]))


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.target + batch.target.mean(0),
        lambda batch: batch.target + batch.target.mean(1, keepdim=True),
    ],
    ids=["batch mates", "padding"],
)
def test_a_model_that_reads_batch_mates_or_padding_is_found(change, data, retriever):
    assert padding_shifts(with_target(retriever, change), data.batch([0, 1, 2]), LENGTHS) > 1e-3


def test_another_number_of_moments_without_batch_mates_is_found(data, retriever):
    decode = retriever.detector.decode

    def fewer(outputs, batch):
        moments = decode(outputs, batch)
        if len(batch) > 1:
            return moments
        return replace(moments, mask=moments.mask & (moments.scores > moments.scores.min()))

    retriever.detector.decode = fewer
    assert padding_shifts(retriever, data.batch([0, 1, 2]), LENGTHS) == float("inf")


def test_a_video_is_cut_to_its_first_clips(data):
    batch = data.batch([0, 1, 2])
    shorter = cut(batch, LENGTHS, 40)
    assert shorter.lengths.tolist() == LENGTHS and shorter.target.shape[1] == shorter.target_joint.shape[1] == 40
    alone = on_its_own(batch, 1, 20)
    words = int(batch.query_mask[1].sum())
    assert alone.query.shape[1] == words and alone.query_mask.all() and alone.target_mask.all()
    for name in ("target", "target_joint"):
        whole, padded = getattr(batch, name), getattr(shorter, name)
        assert torch.equal(padded[1, :20], whole[1, :20]) and padded[1, 20:].abs().sum() == 0
        assert torch.equal(getattr(alone, name)[0], whole[1, :20])
    assert torch.equal(alone.query[0], batch.query[1, :words]) and alone.samples == batch.samples[1:2]
