"""Whatever is in a file, the answer is a result or a ValueError that names the file, within two seconds and 100 MB.

    pytest tests/test_properties.py                                        # the same few files every time
    pytest tests/test_properties.py --hypothesis-profile long              # 500 files of each kind, others every time
    pytest tests/test_properties.py --hypothesis-profile long -k weights --hypothesis-seed 7

The profiles are in conftest.py. `python -m tests.campaign` damages many more files, each read in its own process.
"""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlib import metrics
from mrlib.data.annotations import load_annotations
from tests.support.answers import HELD, answer
from tests.support.files import line
from tests.support.inputs import KINDS, copied, damaged_file

COSTLY = {"of a run", "after an epoch", "kept weights"}  # each example trains or predicts
TRIED = {"state of a run", "settings of a run"}  # of these, the others are damaged by the campaign
CASES = [kind for kind in KINDS if kind.name in TRIED or not any(part in kind.name for part in COSTLY)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """For every kind of file a folder, a whole copy of it, and what reading it gives and takes."""
    made = {}

    def place(kind):
        if kind.name not in made:
            here, whole = (tmp_path_factory.mktemp(name) for name in ("here", "whole"))
            kind.make(here)
            copied(here, whole)
            expected = kind.read(here)
            made[kind.name] = here, whole, expected, answer(lambda: kind.read(copied(whole, here)), [], expected)
        return made[kind.name]

    return place


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 99))
def test_a_damaged_file_is_read_or_refused_by_its_name(kind, places, seed, number):
    here, whole, expected, needed = places(kind)
    file = damaged_file(kind, copied(whole, here))
    kind.damages[number % len(kind.damages)](file, random.Random(seed))
    options = {"needed": needed, "protected": kind.protected, "one_line": kind.one_line}
    got = answer(lambda: kind.read(here), [file.name, str(here)], expected, **options)
    assert got.kind in HELD, got


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TIMES = st.sampled_from([0, 2, 4.5, 19.999, 20, 21.9, 22, 1000, -1, 1e9, 1e300, math.nan, math.inf]) | st.floats()
WINDOWS = st.lists(st.lists(TIMES, min_size=2, max_size=2), max_size=3)
CLIPS = st.lists(st.sampled_from([0, 2, 9, 10, 11, -1, 2**70]), max_size=3)
FIELDS = {
    "qid": st.sampled_from([1, "1", "a", "../a", "", 2**70, 1.0, True]),
    "query": st.text(max_size=5),
    "duration": TIMES,
    "vid": st.sampled_from(["v", "../v", "", "\0", "v" * 300]),
    "relevant_windows": WINDOWS,
    "relevant_clip_ids": CLIPS,
    "saliency_scores": st.lists(st.lists(st.integers(-1, 5), min_size=2, max_size=4), max_size=3),
    "label": st.lists(st.lists(st.integers(0, 6), max_size=2), max_size=3),
    "wrong_spans": WINDOWS,
}


@st.composite
def near_valid(draw, whole, fields):
    """A valid line with some fields replaced by values that nearly fit or by anything, and some taken out."""
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)):
        whole = whole | {name: draw(fields[name] | ANYTHING)}
    lost = draw(st.sets(st.sampled_from(sorted(fields)), max_size=1))
    return {name: value for name, value in whole.items() if name not in lost}


@pytest.mark.parametrize("bad", ["error", "skip", "clamp"])
@given(lines=st.lists(near_valid(line(), FIELDS), min_size=1, max_size=3))
def test_what_is_read_of_annotations_lies_in_its_video(bad, tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / f"{bad}.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    samples = []
    got = answer(lambda: samples.extend(load_annotations(file, bad=bad)), [file.name])
    assert got.kind in HELD, got
    for sample in samples:
        assert all(0 <= start < end <= sample.duration < 1e9 for start, end in sample.relevant_windows or ())
        assert all(0 <= clip < math.ceil(sample.duration / 2) for clip in sample.relevant_clip_ids or ())


PREDICTED = {
    "qid": st.sampled_from([1, 2, "1", None, 1.0, [1]]),
    "vid": st.sampled_from(["video_a", None, 3]),
    "pred_relevant_windows": st.lists(st.lists(TIMES, min_size=2, max_size=4), max_size=12),
    "pred_saliency_scores": st.lists(TIMES, max_size=12),
}
WHOLE = {"qid": 1, "vid": "video_a", "pred_relevant_windows": [[2, 8, 0.5]], "pred_saliency_scores": [0.1] * 10}


@given(lines=st.lists(near_valid(WHOLE, PREDICTED), max_size=2), truth=near_valid(line(), FIELDS))
def test_predictions_get_percentages_or_an_error_that_names_the_query(lines, truth):
    scores = []
    names = ["qid 1", "qid '", "qid", "line", "query ids"]
    got = answer(lambda: scores.append(metrics.evaluate(lines, [truth])), names)
    assert got.kind in HELD, got
    if scores:
        assert all(0 <= value <= 100 for value in scores[0]["brief"].values())
