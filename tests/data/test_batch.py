"""Rows of a batch, which every rank of a distributed training run selects, and batches without labels."""

from dataclasses import replace

import torch

from tests.support.batches import make_batch


def test_selecting_rows_selects_samples_tensors_and_labels():
    batch = make_batch([5, 8, 6, 7, 4], windows=[[(0, 2)], [(1, 5)], [(2, 3), (4, 6)], [(0, 7)], [(3, 4)]])
    some = batch[1::2]
    assert len(some) == 2 and some.samples == batch.samples[1::2]
    assert torch.equal(some.target, batch.target[1::2]) and torch.equal(some.labels.spans, batch.labels.spans[1::2])


def test_selecting_rows_renumbers_the_rows_of_negative_queries():
    """The negatives of rows 0..4 are 2, 0, 4, -1 and 1; a negative whose row is not selected becomes -1."""
    batch = make_batch([3] * 5, windows=[[(0, 1)]] * 5)
    batch = replace(batch, labels=replace(batch.labels, negative=torch.tensor([2, 0, 4, -1, 1])))
    assert batch[0::2].labels.negative.tolist() == [1, 2, -1]
    assert batch[1::2].labels.negative.tolist() == [-1, -1]
    assert batch.to("cpu").labels.negative.tolist() == [2, 0, 4, -1, 1]


def test_selecting_rows_selects_the_counts_of_the_augmenter():
    counts = {"pasted": torch.tensor([2, 0, 1]), "dropped": torch.tensor([0, 3, 0])}
    batch = replace(make_batch([5, 8, 6]), counts=counts)
    assert {name: x.tolist() for name, x in batch[1:].counts.items()} == {"pasted": [0, 1], "dropped": [3, 0]}
    assert all(torch.equal(x, counts[name]) for name, x in batch.to("cpu").counts.items())
    assert all(x.device.type == "meta" for x in batch.to("meta").counts.values())
    assert make_batch([5, 8])[1:].counts == {}


def test_an_unlabelled_batch_holds_no_annotation():
    batch = make_batch([4, 3], windows=[[(0, 1)], [(1, 2)]]).unlabelled()
    assert batch.labels is None and all(s.relevant_windows is None and not s.extra for s in batch.samples)
