"""What the modes of `bad` raise, change, leave out and say."""

import re
import warnings

import pytest

from mrlib.data import load_annotations, open_dataset
from mrlib.data.annotations import examined, read_annotations
from mrlib.data.lenient import mode_of, refusals, summary
from tests.support.files import line, moment_detr, windows_only, write_lines

LINES = [
    windows_only(1),
    windows_only(2, relevant_windows=[[4, 4], [-2, 3]]),
    windows_only(3, relevant_windows=[[0, 90]]),
    windows_only(4, relevant_windows=[[16, 21]]),
    windows_only(5, relevant_windows=[[7, 7]]),
]
BEYOND = ["{", windows_only(6, relevant_windows=[[8, 4]]), windows_only(1), windows_only(7, duration=30)]


def read(path, bad):
    """The samples and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_annotations(path, bad=bad)
    return samples, [str(warning.message) for warning in caught]


def test_clamping_brings_windows_into_the_video_and_says_so_once(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", LINES)
    samples, said = read(path, "clamp")
    assert [s.relevant_windows for s in samples] == [[[4, 8]], [[4, 6], [0, 3]], [[0, 20]], [[16, 20]], [[6, 8]]]
    assert said == [
        f"{path}: 2 windows have no length (lines 2, 5), 1 window starts before its video (line 2), "
        '2 windows end after their video (lines 3, 4); bad="clamp" changes them'
    ]


def test_skipping_leaves_out_lines_and_says_so_once(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [*LINES, *BEYOND])
    samples, said = read(path, "skip")
    assert [s.qid for s in samples] == [1, 4]
    assert samples[1].relevant_windows == [[16, 20.0]]
    assert said == [
        f'{path}: bad="skip" leaves out 7 of 9 lines: 4 for relevant_windows (lines 2, 3, 5, ...), '
        "1 for json (line 6), 1 for qid (line 8), 1 for duration (line 9); "
        "1 window ends after its video by less than a clip of 2 s (line 4); clamped to its end"
    ]


@pytest.mark.parametrize("bad", BEYOND, ids=["json", "reversed", "a qid again", "another duration"])
def test_what_clamping_cannot_mend_is_raised_with_the_other_way_out(bad, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [windows_only(1), bad])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 2: .*bad=\"skip\" leaves the line out"):
        load_annotations(path, bad="clamp")


def test_an_error_names_the_first_bad_line(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [*LINES, *BEYOND])
    with pytest.raises(ValueError, match="line 2: relevant_windows"):
        load_annotations(path, bad="error")


def test_a_sound_file_is_read_alike_in_every_mode_without_a_word(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [line(1), line(2)])
    assert [read(path, bad) for bad in ("error", "skip", "clamp")] == [read(path, "error")] * 3
    assert read(path, "error")[1] == []


def test_a_file_of_which_no_line_can_be_used_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["{", "["])
    with pytest.raises(ValueError, match="empty: no line can be used, the first problem is: .*line 1: json"):
        load_annotations(path, bad="skip")
    path.write_text("")
    with pytest.raises(ValueError, match="empty: no annotation"):
        load_annotations(path, bad="skip")


def test_an_unknown_mode_is_refused_before_a_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="bad must be one of error, skip, clamp, not 'ignore'"):
        load_annotations(tmp_path / "none.jsonl", bad="ignore")
    assert mode_of("clamp") == "clamp"


def test_a_dataset_opens_in_the_mode_that_is_asked_for(tmp_path):
    """And a line without windows among lines with windows is left out like any other that cannot be used."""
    lines = [*LINES, windows_only(6, relevant_windows=None)]
    root = moment_detr(tmp_path, lines)
    with pytest.raises(ValueError, match="line 2: relevant_windows"):
        open_dataset("qvhighlights", root, "val")
    with pytest.warns(UserWarning, match="leaves out 4 of 6 lines"):
        skipped = open_dataset("qvhighlights", root, "val", bad="skip")
    assert [s.qid for s in skipped.samples] == [1, 4] and skipped.settings["bad"] == "skip"
    with pytest.raises(ValueError, match="line 6: relevant_windows: is missing, but 5 of 6 lines have windows"):
        open_dataset("qvhighlights", root, "val", bad="clamp")
    write_lines(root / "highlight_val_release.jsonl", LINES)
    with pytest.warns(UserWarning, match="5 windows|changes them"):
        clamped = open_dataset("qvhighlights", root, "val", bad="clamp")
    assert len(clamped) == 5 and "bad" not in open_dataset("qvhighlights", moment_detr(tmp_path / "b"), "val").settings


def test_refusals_and_summary_can_be_had_without_opening(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [*LINES, *BEYOND])
    lines = examined(path, read_annotations(path))
    assert len(refusals(path, lines, "error")) == 8 and refusals(path, lines, "skip") == []
    assert summary(lines, "error", 2.0).startswith("1 window ends after its video by less than a clip")
