"""What a dataset says of windows, annotated and mined: hand-worked, on videos of ten and of four clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib.data import Bank, MomentDataset, Sample


@pytest.fixture
def data() -> MomentDataset:
    """Clips of 2 s; three samples of the video of ten clips, the third without mined windows."""
    said = [
        (0, [[4, 8]], [[12, 16], [0, 2]]),
        (1, [[0, 2], [6, 8]], [[1, 5]]),  # the middles of clips 0 and 1 are in the mined one, and clip 0 answers
        (0, [[0, 20]], []),
        (0, [[3, 5], [18, 23]], [[7, 7.5]]),  # half of two clips, one that ends after the video; less than a clip
    ]
    return MomentDataset(
        name="hand",
        split="train",
        samples=[
            Sample(i, "a dog", 20.0 if v == 0 else 8.0, f"v{v}", windows, extra={"wrong_spans": wrong} if wrong else {})
            for i, (v, windows, wrong) in enumerate(said)
        ],
        target=Bank.from_arrays([np.zeros((n, 2), np.float32) for n in (10, 4)]),
        video=torch.tensor([v for v, *_ in said]),
        query=Bank.from_arrays([np.zeros((1, 2), np.float32)]),
        query_item=torch.zeros(4, dtype=torch.long),
        query_joint=None,
        streams={"all": slice(0, 2)},
        joint=None,
        clip_s=2.0,
    )


def clips(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def test_mined_windows_are_wrong_clips_but_for_those_that_answer(data):
    labels = data.batch(range(4)).labels
    assert clips(labels.relevant) == [[2, 3], [0, 3], list(range(10)), [1, 2, 9]]
    assert data.mined
    assert clips(labels.wrong) == [[0, 6, 7], [1], [], [3]]
    assert not (labels.wrong & labels.relevant).any()


def test_the_clips_of_every_window_annotated_ones_first(data):
    """As (first clip, number of clips) in the order of the annotation."""
    windows, there, mined = data.clips(torch.tensor([3, 1, 2, 0, 0]))
    expected = [
        ([[1, 2], [9, 1]], [[3, 1]]),
        ([[0, 1], [3, 1]], [[0, 2]]),
        ([[0, 10]], []),
        ([[2, 2]], [[6, 2], [0, 1]]),
        ([[2, 2]], [[6, 2], [0, 1]]),
    ]
    for i, (annotated, confusing) in enumerate(expected):
        assert windows[i, there[i] & ~mined[i]].tolist() == annotated
        assert windows[i, there[i] & mined[i]].tolist() == confusing


def test_the_clips_of_a_window_are_those_of_the_labels(data):
    labels = data.batch(range(4)).labels
    windows, there, mined = data.clips(torch.arange(4))
    t = torch.arange(labels.relevant.shape[1])
    inside = (t >= windows[..., :1]) & (t < windows.sum(-1, keepdim=True)) & there[..., None]
    assert torch.equal((inside & ~mined[..., None]).any(1), labels.relevant)
    assert torch.equal((inside & mined[..., None]).any(1) & ~labels.relevant, labels.wrong)


def test_without_mined_windows_nothing_is_wrong(data):
    bare = replace(data, samples=[replace(s, extra={"wrong_spans": []}) for s in data.samples], _annotations=None)
    assert not bare.mined and bare.batch(range(4)).labels.wrong is None
    some = data.subset([2, 2])
    assert some.mined and not some.batch([0, 1]).labels.wrong.any()
