"""Lines that contradict one another are found, whatever their order."""

import itertools

import pytest

from mrlib.data import Sample
from mrlib.data.agreement import disagreements, kind_of, require_sound
from mrlib.data.lines import sample_of
from tests.support.files import labelled, line, windows_only


def samples(*lines, clip_s=2.0):
    return [sample_of(fields, clip_s, True)[0] for fields in lines]


def found(*lines, alike=True):
    """The position and the field of every defect."""
    defects = disagreements(samples(*lines), list(range(1, len(lines) + 1)), alike=alike)
    return [(i, defect.field) for i, each in sorted(defects.items()) for defect in each]


def test_lines_that_agree_have_no_defects():
    null = windows_only(5, relevant_windows=[])
    assert found(line(1), line(2), line(3, vid="b", duration=30), windows_only(4), null) == []


def test_two_durations_of_a_video_are_found_in_either_order():
    for lines in itertools.permutations([line(1, duration=20), line(2, duration=19)]):
        assert found(*lines) == [(1, "duration")]
    (defect,) = disagreements(samples(line(1), line(2, duration=19)), [4, 7], alike=True)[1]
    assert defect.message == "is 19 s, but 20 s of the same video, 'video_a', on line 4; correct one of the two"
    assert found(line(1, duration=20), line(2, duration=20.0)) == []


def test_two_lists_of_labels_of_a_video_are_found_in_either_order():
    """Of one query; another query may find other clips important."""
    one, other = labelled(1, clips=2, label=[[1], [3]]), labelled(2, clips=2, label=[[3], [1]])
    assert found(one, other) == found(other, one) == [(1, "label")]
    assert found(one, other | {"query": "A cat."}) == []
    longer = labelled(2, clips=3, label=[[1], [3], [3]])
    assert found(one, longer | {"query": "A cat."}) == [(1, "duration")]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line(1), line(2), windows_only(3, relevant_windows=None)], [(2, "relevant_windows")]),
        ([windows_only(3, relevant_windows=None), line(1), line(2)], [(0, "relevant_windows")]),
        ([windows_only(1, relevant_windows=None), labelled(2, vid="b")], [(0, "label")]),
        ([line(1), line(2), labelled(3, vid="b")], [(2, "label")]),
        ([labelled(1, vid="a"), labelled(2, vid="b"), line(3)], [(2, "relevant_windows")]),
        ([labelled(1, vid="a"), labelled(2, vid="b", label=[[0], [1]])], [(1, "label")]),
        ([windows_only(i, relevant_windows=None) for i in range(3)], []),
    ],
)
def test_lines_of_the_rarer_kind_are_found(lines, expected):
    assert found(*lines) == expected and found(*lines, alike=False) == []


def test_labels_of_one_fit_both_scales():
    ones = labelled(1, vid="a", label=[[1], [1]])
    for label in ([[0], [1]], [[2], [5]]):
        assert found(ones, labelled(2, vid="b", label=label)) == []
    assert kind_of(samples(ones)[0]) == "labels of clips"


def test_saliency_of_more_or_fewer_annotators_than_most_is_found():
    one = line(2, saliency_scores=[[4], [1]])
    assert found(line(1), one, line(3)) == found(line(1), one, line(3), alike=False) == [(1, "saliency_scores")]
    assert found(one, line(3, saliency_scores=[[0], [0]]), windows_only(4)) == []


def test_samples_made_by_hand_pass_the_check_of_files():
    sound = [Sample(1, "a dog", 20.0, "v", [[4, 8]], [2], [[1, 2, 3]]), Sample("x", "", 20.0, "v", [])]
    require_sound(sound, 2.0, scored=True)
    require_sound([*sound, sound[0]], 2.0, scored=False)
    for wrong, message in (
        ([*sound, sound[0]], "qid 1: comes twice on video 'v'"),
        ([Sample(1, "a", 20.0, "v", [[4, 23]])], r"qid 1: relevant_windows \[4, 23\] ends a clip or more"),
        ([Sample(1, "a", 20.0, "v", [[4, 8]], [10], [[1]])], "qid 1: relevant_clip_ids clip 10 lies outside"),
        ([*sound, Sample(2, "a", 21.0, "v", [[4, 8]])], "qid 2: duration is 21 s, but 20 s"),
        ([Sample(1, "a", 0.0, "v", [[4, 8]])], "qid 1: duration is 0.0"),
        ([*sound, Sample(2, "a", 20.0, "v", [[4, 8]], [2], [[1]])], "scores for each clip"),
    ):
        with pytest.raises(ValueError, match=message):
            require_sound(wrong, 2.0, scored=True)
