"""The check of one line, and what is made of windows that are not inside their video."""

import gzip
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlib.data import Sample, load_annotations
from mrlib.data.agreement import require_sound
from mrlib.data.lines import (
    EARLY,
    EMPTY,
    LATE,
    clamped,
    clip_labels,
    is_plain_name,
    label_defects,
    label_scale,
    line_defects,
    sample_of,
    shape_defects,
)
from tests.support.files import labelled, line, windows_only
from tests.support.hostile import CLIPS, NUMBERS, SCORES, UNHURRIED, WINDOWS, changed


def fields_of(defects):
    return [defect.field for defect in defects if defect.fatal]


def test_a_window_of_no_length_is_not_told_to_swap_its_ends():
    (empty,) = line_defects(windows_only(relevant_windows=[[4, 4]]), 2.0, True)
    (reversed_,) = line_defects(windows_only(relevant_windows=[[8, 4]]), 2.0, True)
    assert "no length" in empty.message and "swap" not in empty.message
    assert "swap" in reversed_.message


@pytest.mark.parametrize(
    ("window", "inside", "place"),
    [
        ([0, 5.6], [0, 4.2], LATE),
        ([-3, 2], [0, 2], EARLY),
        ([-3, 9], [0, 4.2], EARLY),
        ([2.5, 2.5], [2, 3], EMPTY),
        ([0, 0], [0, 1], EMPTY),
        ([4.1, 4.1], [4, 4.2], EMPTY),
        ([4.2, 4.2], [4, 4.2], EMPTY),
        ([1, 2], [1, 2], None),
        ([3, 1], [3, 1], None),
        ([5, 6], [5, 6], None),
        ([4.2, 6], [4.2, 6], None),
        ([-2, -1], [-2, -1], None),
        ([-2, 0], [-2, 0], None),
        ([5, 5], [5, 5], None),
    ],
)
def test_windows_are_brought_into_a_video_of_five_clips(window, inside, place):
    """4.2 s in clips of 1 s. What lies wholly outside, or ends before it starts, stays as it is."""
    fields, changes = clamped(windows_only(duration=4.2, relevant_windows=[[1, 3], window]), 1.0)
    assert fields["relevant_windows"] == [[1, 3], inside]
    assert [(c.field, c.place, c.fatal) for c in changes] == ([("relevant_windows", place, False)] if place else [])
    sample, _ = sample_of(fields, 1.0, True, clamp=True)
    assert (sample is None) == (place is None and window != [1, 2])


@pytest.mark.parametrize("clip_s", [0.5, 1.0, 5 / 3, 2.0])
def test_what_clamping_gives_passes_the_check(clip_s):
    random = np.random.default_rng(0)
    for _ in range(300):
        duration = round(random.uniform(0.2, 30), 1)
        start, length = round(random.uniform(0, duration), 2), random.choice([0, 0, 1.5, 40])
        fields = windows_only(duration=duration, relevant_windows=[[start, start + length]])
        sample, defects = sample_of(fields, clip_s, True, clamp=True)
        if start < duration or length == 0:
            assert line_defects(sample.as_line(), clip_s, True) == [] and len(defects) <= 1


def test_mined_windows_are_clamped_where_they_would_be_refused():
    fields, changes = clamped(line(wrong_spans=[[16, 21], [10, 30], [2, 2]]), 2.0)
    assert fields["wrong_spans"] == [[16, 21], [10, 20], [2, 4]]
    assert [change.field for change in changes] == ["wrong_spans"] * 2


@pytest.mark.parametrize(
    ("duration", "clip_s", "clip", "fits"),
    [(20, 2.0, 10, False), (21, 2.0, 10, True), (20, 1.0, 19, True), (20, 1.0, 20, False), (20.4, 1.0, 20, True)],
)
def test_a_clip_is_in_the_video_in_clips_of_the_dataset(duration, clip_s, clip, fits):
    fields = line(duration=duration, relevant_clip_ids=[2, clip])
    assert fields_of(line_defects(fields, clip_s, True)) == ([] if fits else ["relevant_clip_ids"])


@pytest.mark.parametrize("annotators", [1, 2, 5])
def test_scores_of_any_number_of_annotators_are_read(annotators):
    assert line_defects(line(saliency_scores=[[4] * annotators, [0] * annotators]), 2.0, True) == []
    assert line_defects(line(saliency_scores=[[4.0] * annotators, [0.0] * annotators]), 2.0, True) == []  # of a table


@pytest.mark.parametrize(
    ("labels", "scale"),
    [([[0], [1]], "0/1"), ([[0, 0]], "0/1"), ([[1], [1]], ""), ([[1, 1]], "1 to 5"), ([[1], [2.5]], "1 to 5")],
)
def test_labels_are_of_one_of_two_scales(labels, scale):
    assert label_scale(labels) == scale and label_defects(labels) == []


def test_a_list_of_numbers_is_the_labels_of_one_annotator():
    assert clip_labels({"label": [0, 1, 1]}) == [[0], [1], [1]]
    sample, defects = sample_of(labelled(label=[0, 1, 1], duration=5), 5 / 3, True)
    assert defects == [] and sample.extra["label"] == [0, 1, 1] and sample.duration == 5


@pytest.mark.parametrize("label", [[[0], [2]], [[0.5], [0]], [[0], [True]], [[0], []], [0, "1"], [[1, 6]]])
def test_labels_of_a_video_query_are_checked_like_others(label):
    """A text is the name of a class; a list holds labels of clips, and was not checked before it was read."""
    fields = windows_only(label=label, relevant_windows=None)
    assert fields_of(line_defects(fields, 2.0, False)) == fields_of(line_defects(fields, 2.0, True)) == ["label"]
    assert line_defects(fields | {"label": "Archery"}, 2.0, False) == []


@pytest.mark.parametrize("frames", [30, 29.97])
def test_on_youtube_highlights_a_clip_is_a_label(frames):
    """As released: 63 labels of about 1.7 s."""
    sample, defects = sample_of(labelled(clips=63, label=[[0], [1], [0]] * 21, duration=3196 / frames), 5 / 3, True)
    assert defects == [] and sample.duration == 63 * (5 / 3)


HOSTILE = {
    "a number that Python does not print": ("qid", 10**5000),
    "a long number": ("qid", 10**300),
    "a huge duration": ("duration", 10**5000),
    "a boolean": ("duration", True),
    "a list": ("duration", [20]),
    "nan": ("duration", float("nan")),
    "a surrogate": ("vid", "a\ud800"),
    "a number as a video": ("vid", 3),
    "a window of booleans": ("relevant_windows", [[False, True]]),
    "a window that is nan": ("relevant_windows", [[0, float("nan")]]),
    "a huge window": ("relevant_windows", [[0, 10**400]]),
    "a window as a dict": ("relevant_windows", [{"a": 1, "b": 2}]),
    "clips that are booleans": ("relevant_clip_ids", [True, False]),
    "clips as a dict": ("relevant_clip_ids", {"2": 1}),
    "a huge clip": ("relevant_clip_ids", [2, 10**5000]),
    "scores that are booleans": ("saliency_scores", [[True], [True]]),
    "scores as text": ("saliency_scores", ["432", "104"]),
}


@pytest.mark.parametrize(("field", "value"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("clamp", [False, True])
def test_hostile_values_are_defects_of_their_field(field, value, clamp):
    sample, defects = sample_of(line() | {field: value}, 2.0, True, clamp=clamp)
    assert sample is None and set(fields_of(defects)) <= {field, "saliency_scores"} and fields_of(defects)
    assert all(len(defect.message) < 300 for defect in defects)


def test_numbers_of_numpy_are_numbers():
    """Samples that are made by hand often have them."""
    fields = line(np.int64(3), duration=np.float32(20), relevant_windows=[[np.float64(4), np.int32(8)]])
    assert line_defects(fields | {"relevant_clip_ids": [np.int64(2), np.int64(3)]}, 2.0, True) == []


def test_the_shape_of_a_sample_does_not_depend_on_its_length():
    late = Sample(1, "a", 20.0, "v", [[4, 90]], [60], [[1]], {"wrong_spans": [[30, 31]]})
    assert shape_defects(late) == []
    wrong = Sample(1, "a", 20.0, "v", [[4, 2]], [60], [[1], [2]], {"wrong_spans": 3})
    assert fields_of(shape_defects(wrong)) == ["relevant_windows", "wrong_spans", "saliency_scores"]
    assert fields_of(shape_defects(Sample(1, "", 20.0, "v", extra={"label": [[1], [2, 3]]}))) == ["label"]


def test_an_id_is_a_plain_name():
    assert all(map(is_plain_name, ["a", "a b.c", "x" * 200]))
    assert not any(map(is_plain_name, ["", ".a", "a/b", "a\\b", "a\n", "x" * 201, "\ud800"]))


ANNOTATION = changed(
    line(), duration=NUMBERS, relevant_windows=WINDOWS, relevant_clip_ids=CLIPS, saliency_scores=SCORES, label=SCORES
)
MODES = st.sampled_from(["error", "skip", "clamp"])
BYTES = st.one_of(ANNOTATION.map(lambda fields: json.dumps(fields).encode()), st.binary(max_size=40))


@UNHURRIED
@given(st.lists(BYTES, min_size=1, max_size=4), MODES, st.booleans(), st.booleans())
def test_whatever_a_file_holds_it_is_read_or_refused_with_its_name(lines, bad, words, packed):
    """What is read passes the check that comes before training."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "a.jsonl.gz" if packed else "a.jsonl")
        content = b"\n".join(lines)
        path.write_bytes(gzip.compress(content) if packed else content)
        try:
            samples = load_annotations(path, words=words, bad=bad)
        except ValueError as error:
            assert str(error).startswith(str(path))
        else:
            require_sound(samples, 2.0, scored=words)
