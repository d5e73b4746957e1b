"""The number of clips of a video, by hand."""

import pytest

from mrlib.data import load_annotations
from mrlib.data.agreement import require_sound
from mrlib.data.clips import count_clips, scored_clips


@pytest.mark.parametrize(
    ("duration_s", "clip_s", "count"),
    [
        (150, 2, 75),
        (21, 2, 11),
        (0.3, 2, 1),
        (30.96, 1, 31),
        (5, 1, 5),
        (10 + 1e-7, 1, 10),
        (9.1, 1, 10),
        (0.0, 1, 1),
        (10.1, 1, 11),
        (20, 5 / 3, 12),
    ],
)
def test_a_shorter_last_clip_counts(duration_s, clip_s, count):
    assert count_clips(duration_s, clip_s) == count


@pytest.mark.parametrize(
    ("duration_s", "clip_s", "annotated", "count"),
    [
        (150, 2, [0, 74], 75),
        (21, 2, [], 10),
        (21, 2, [0, 9], 10),
        (21, 2, [10], 11),
        (30.96, 1, [29], 30),
        (30.96, 1, [30], 31),
        (1, 2, [], 0),
        (1, 2, [0], 1),
        (20 - 1e-9, 2, [9], 10),
    ],
)
def test_a_shorter_last_clip_is_scored_only_if_it_is_annotated(duration_s, clip_s, annotated, count):
    assert scored_clips(duration_s, clip_s, annotated) == count


@pytest.mark.parametrize("clip_s", [0, -2.0, float("nan"), float("inf"), True, "2", None])
def test_a_clip_has_a_positive_length(clip_s, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    message = "clip_s must be a positive number of seconds"
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "a.jsonl", clip_s)
    with pytest.raises(ValueError, match=message):
        require_sound([], clip_s, scored=True)
