"""Annotated and mined windows of a dataset as clips, worked out by hand for videos of ten and of four clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib.data import Bank, MomentDataset, Sample


@pytest.fixture
def data() -> MomentDataset:
    """Clips of 2 s; samples 0, 2 and 3 are of the video of ten clips, and sample 2 has no mined windows."""
    annotations = [
        (0, [[4, 8]], [[12, 16], [0, 2]]),
        (1, [[0, 2], [6, 8]], [[1, 5]]),  # the mined one covers the middles of clips 0 and 1; clip 0 is relevant
        (0, [[0, 20]], []),
        (0, [[3, 5], [18, 23]], [[7, 7.5]]),  # half of two clips; a window that ends after the video; less than a clip
    ]
    return MomentDataset(
        name="hand",
        split="train",
        samples=[
            Sample(i, "a dog", 20.0 if v == 0 else 8.0, f"v{v}", windows, extra={"wrong_spans": wrong} if wrong else {})
            for i, (v, windows, wrong) in enumerate(annotations)
        ],
        target=Bank.from_arrays([np.zeros((n, 2), np.float32) for n in (10, 4)]),
        video=torch.tensor([v for v, *_ in annotations]),
        query=Bank.from_arrays([np.zeros((1, 2), np.float32)]),
        query_item=torch.zeros(4, dtype=torch.long),
        query_joint=None,
        streams={"all": slice(0, 2)},
        joint=None,
        clip_s=2.0,
    )


def clip_numbers(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def test_clips_of_mined_windows_are_wrong_unless_they_are_relevant(data):
    labels = data.batch(range(4)).labels
    assert clip_numbers(labels.relevant) == [[2, 3], [0, 3], list(range(10)), [1, 2, 9]]
    assert data.mined
    assert clip_numbers(labels.wrong) == [[0, 6, 7], [1], [], [3]]
    assert not (labels.wrong & labels.relevant).any()


def test_the_clips_of_annotated_windows_come_before_those_of_mined_windows(data):
    """As (first clip, number of clips) in the order of the annotation."""
    windows, mask, mined = data.window_clips(torch.tensor([3, 1, 2, 0, 0]))
    expected = [
        ([[1, 2], [9, 1]], [[3, 1]]),
        ([[0, 1], [3, 1]], [[0, 2]]),
        ([[0, 10]], []),
        ([[2, 2]], [[6, 2], [0, 1]]),
        ([[2, 2]], [[6, 2], [0, 1]]),
    ]
    for i, (annotated, confusing) in enumerate(expected):
        assert windows[i, mask[i] & ~mined[i]].tolist() == annotated
        assert windows[i, mask[i] & mined[i]].tolist() == confusing


def test_the_clips_of_windows_are_the_relevant_and_wrong_clips_of_the_labels(data):
    labels = data.batch(range(4)).labels
    windows, mask, mined = data.window_clips(torch.arange(4))
    t = torch.arange(labels.relevant.shape[1])
    inside = (t >= windows[..., :1]) & (t < windows.sum(-1, keepdim=True)) & mask[..., None]
    assert torch.equal((inside & ~mined[..., None]).any(1), labels.relevant)
    assert torch.equal((inside & mined[..., None]).any(1) & ~labels.relevant, labels.wrong)


def test_without_mined_windows_no_clip_is_wrong(data):
    without_mined = replace(
        data, samples=[replace(s, extra={"wrong_spans": []}) for s in data.samples], _annotations=None
    )
    assert not without_mined.mined and without_mined.batch(range(4)).labels.wrong is None
    subset = data.subset([2, 2])
    assert subset.mined and not subset.batch([0, 1]).labels.wrong.any()


def test_a_null_query_is_kept_with_labels_of_background(data):
    """Sample 1 is a null query without saliency, sample 2 one with it; the labels of the others do not change."""
    samples = list(data.samples)
    samples[1] = replace(samples[1], relevant_windows=[], extra={})
    samples[2] = replace(samples[2], relevant_windows=[], relevant_clip_ids=[], saliency_scores=[])
    nulls = replace(data, samples=samples, _annotations=None)
    assert nulls.labelled and len(nulls) == 4 and nulls.digest() != data.digest()
    labels, before = nulls.batch(range(4)).labels, data.batch(range(4)).labels
    assert labels.span_mask.any(1).tolist() == [True, False, False, True]
    assert not labels.relevant[1:3].any() and not labels.saliency.any() and not labels.wrong[1:3].any()
    assert labels.saliency_mask.tolist() == [False, False, True, False]
    for name in ("spans", "span_mask", "relevant", "saliency", "wrong"):
        assert torch.equal(getattr(labels, name)[[0, 3]], getattr(before, name)[[0, 3]])
    windows, mask, mined = nulls.window_clips(torch.arange(4))
    assert (mask & ~mined).any(1).tolist() == [True, False, False, True]
    alone = nulls.subset([1, 2])
    assert alone.labelled and not alone.batch([0, 1]).labels.span_mask.any()
    assert not alone.window_clips(torch.arange(2))[1].any()


def test_the_digest_changes_with_annotations_and_features(data):
    longer = [replace(s, duration=21.0) for s in data.samples]
    moved = torch.tensor([0, 1, 0, 1])
    assert data.digest() == replace(data).digest() == data.to("cpu").digest()
    for changed in (
        replace(data, samples=longer, _annotations=None),
        replace(data, target=Bank(data.target.rows + 1, data.target.offsets)),
        replace(data, query=Bank(data.query.rows + 1, data.query.offsets)),
        replace(data, target=Bank(data.target.rows + torch.arange(14)[:, None], data.target.offsets), video=moved),
        data.subset([0, 1]),
    ):
        assert changed.digest() != data.digest()


def test_a_dataset_needs_samples(data):
    with pytest.raises(ValueError, match="hand train has no samples"):
        data.subset([])


def test_a_subset_has_the_annotations_of_its_samples(data):
    whole, subset = data.batch([3, 1]), data.subset([3, 1]).batch([0, 1])
    assert subset.samples == whole.samples and torch.equal(subset.video, whole.video)
    for name in ("spans", "span_mask", "relevant", "wrong"):
        assert torch.equal(getattr(subset.labels, name), getattr(whole.labels, name))
    assert (data.widths.target, data.widths.query, data.widths.joint) == (2, 2, None)


@pytest.mark.parametrize("annotators", [1, 3, 4])
def test_saliency_of_any_number_of_annotators_is_from_0_to_12(data, annotators):
    """Lines with and without scores may be mixed."""
    samples = list(data.samples)
    samples[0] = replace(samples[0], relevant_clip_ids=[2, 3], saliency_scores=[[4] * annotators, [1] * annotators])
    labels = replace(data, samples=samples, _annotations=None).batch(range(4)).labels
    assert labels.saliency[0, :5].tolist() == [0, 0, 12, 3, 0] and not labels.saliency[1:].any()
    assert labels.saliency_mask.tolist() == [True, False, False, False]


def test_labels_of_zero_and_one_are_saliency_and_relevant_clips(data):
    """[YouTube Highlights] Labels of one in a whole video are those of highlights, if another video has a zero."""
    rows = [[[0], [1], [1], [0]], [[1]] * 4, [[0], [0], [0], [1]], [0, 0, 1, 1]]
    bare = [replace(s, relevant_windows=None) for s in data.samples]
    samples = [replace(s, extra={"label": row}) for s, row in zip(bare, rows, strict=True)]
    labels = replace(data, samples=samples, _annotations=None).batch(range(4)).labels
    assert (labels.saliency[:, :4] / 12).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert clip_numbers(labels.relevant) == [[1, 2], [0, 1, 2, 3], [3], [2, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevant_windows": None}, "1 of 4 samples differ from the others; the first is qid 1: relevant_windows: is"),
        ({"relevant_windows": [[4, 2]]}, r"qid 1: relevant_windows \[4, 2\] ends before it starts"),
        ({"relevant_windows": [[4, "8"]]}, "qid 1: relevant_windows .* is not .start, end. in seconds"),
        ({"relevant_clip_ids": [0], "saliency_scores": [[1], [2]]}, "qid 1: saliency_scores 2 for 1 relevant_clip_ids"),
        ({"relevant_clip_ids": [0, 1], "saliency_scores": [[1], [2, 3]]}, "qid 1: saliency_scores clip 1 has 2 scores"),
        ({"relevant_clip_ids": [-1], "saliency_scores": [[1]]}, "qid 1: relevant_clip_ids clip -1 lies outside"),
        ({"extra": {"wrong_spans": [[1]]}}, r"qid 1: wrong_spans \[1\] is not"),
        ({"relevant_windows": None, "extra": {"label": [[1], [2, 3]]}}, "qid 1: label clip 1 has 2 labels"),
    ],
)
def test_annotations_that_cannot_be_stacked_are_named(data, changes, message):
    samples = [replace(s, **changes) if s.qid == 1 else s for s in data.samples]
    with pytest.raises(ValueError, match=f"hand train: {message}"):
        replace(data, samples=samples, _annotations=None)
