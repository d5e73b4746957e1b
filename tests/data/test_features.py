"""From files to rows: the files of a sample, lengths that agree, averages over clips."""

import math
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mrlib.data import Sample
from mrlib.data.arrays import read_rows
from mrlib.data.features import Features, Source, WordVectors, agreed_length, clip_starts, words_of
from mrlib.data.problems import DataError, MissingFile
from tests.support.files import random, save_npy, save_npz

SAMPLE = Sample(7, "A dog runs.", 20.0, "video_a", [[4, 8]])


def source(root, template, **options):
    return Source(root, template, **{"qid": "qid{qid}", "parts": 1} | options)


def features(root, **options):
    """Two streams, of which the second is joint, and a query with a sentence vector beside its words."""
    defaults = {
        "video": {"motion": source(root, "motion/{vid}.npy"), "clip": source(root, "clip/{vid}.npz:features")},
        "query": source(root, "text/{query}.npz:words"),
        "sentence": "whole",
        "tokens": 2,
        "joint": "clip",
        "widths": {"motion": 3, "clip": 4},
        "normalized": frozenset(),
        "clip_s": 2.0,
        "hint": "run the extraction again",
    }
    return Features(**defaults | options)


@pytest.fixture
def root(tmp_path):
    """Ten clips of 2 s; the motion stream has nine rows."""
    save_npy(tmp_path / "motion" / "video_a.npy", random(0, 9, 3))
    save_npz(tmp_path / "clip" / "video_a.npz", features=random(1, 10, 4))
    save_npz(tmp_path / "text" / "qid7.npz", words=random(2, 3, 5), whole=random(3, 4))
    return tmp_path


def test_a_template_names_files_and_keys(tmp_path):
    x = source(tmp_path, "a/{vid}.npz:{vid} + b/{query}.hdf5:deep/{qid} + c.npy")
    assert x.files(SAMPLE) == [
        (tmp_path / "a/video_a.npz", "video_a"),
        (tmp_path / "b/qid7.hdf5", "deep/7"),
        (tmp_path / "c.npy", ""),
    ]


@pytest.mark.parametrize(("qid", "vid", "field"), [(7, "../b", "vid"), (7, "a/b", "vid"), ("..", "a", "qid")])
def test_an_id_that_leaves_the_folder_is_refused(qid, vid, field, tmp_path):
    with pytest.raises(DataError, match="is not a plain name; rename it") as error:
        source(tmp_path, "{vid}.npy").files(Sample(qid, "A dog.", 20.0, vid))
    assert error.value.problem.kind == field


def test_arrays_of_one_source_are_concatenated_and_must_have_the_same_length(root):
    side = source(root, "motion/{vid}.npy + motion/{vid}.npy")
    np.testing.assert_array_equal(side.rows(SAMPLE), np.concatenate([random(0, 9, 3)] * 2, 1))
    with pytest.raises(DataError, match=r"rows differ, \{'video_a.npy': 9, 'video_a.npz': 10\}"):
        source(root, "motion/{vid}.npy + clip/{vid}.npz:features").rows(SAMPLE)


def test_rows_at_another_rate_are_averaged_over_clips(root):
    """Nine rows over 20 s in clips of 4 s: the clips begin with rows 0, 1.8, 3.6, 5.4 and 7.2."""
    x, rows = source(root, "motion/{vid}.npy", clip_s=4.0, rate="even"), random(0, 9, 3)
    expected = [rows[0:1].mean(0), rows[1:3].mean(0), rows[3:5].mean(0), rows[5:7].mean(0), rows[7:9].mean(0)]
    np.testing.assert_allclose(x.rows(SAMPLE), expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 12, 40])
@pytest.mark.parametrize("duration", [1.0, 3.0, 4.5, 6.9999999, 7.2])
def test_a_clip_is_the_mean_of_the_rows_that_begin_in_it_or_the_row_that_covers_it(rows, duration, tmp_path):
    """The definition, clip by clip; row r covers the time from r to r + 1 of `rows`."""
    x = random(rows, rows, 2).astype(np.float64)
    clips = max(1, math.ceil(duration - 1e-6))
    first = [min(int(t * rows / duration), rows - 1) for t in range(clips)] + [rows]
    expected = [x[a : max(b, a + 1)].mean(0) for a, b in zip(first, first[1:], strict=False)]
    save_npy(tmp_path / "x.npy", x.astype(np.float32))
    starts = partial(clip_starts, duration=duration, rate="even", clip_s=1.0)
    averaged, count = read_rows(tmp_path / "x.npy", starts=starts)
    assert count == rows
    np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "rate", "starts"),
    [
        (10, "clips", None),
        (8, "auto", None),  # about as many rows as clips
        (5, "auto", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        (25, "even", [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25]),
        (25, 1.25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25]),  # the same: 25 rows in 20 s
        (27, 1.25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25]),  # two rows after the end of the video
        (22, 1.25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),  # the last clip has no row
    ],
)
def test_the_clips_of_rows_at_a_rate_of_their_own_begin_where_their_rows_do(rows, rate, starts):
    """Ten clips of 2 s."""
    found = clip_starts(rows, 10.0, rate, 2.0)
    assert (None if found is None else found.tolist()) == starts


@pytest.mark.parametrize("rate", ["even", "auto", 9e-9])
def test_a_duration_that_no_file_of_these_rows_can_have_costs_no_memory(rate, root):
    long = Sample(7, "A dog runs.", 9e8, "video_a")
    with pytest.raises(DataError, match="video_a.npy: length: 9 rows for 450000000 clips of 2 s; correct the duration"):
        source(root, "motion/{vid}.npy", clip_s=2.0, rate=rate).rows(long)


def test_rows_that_last_another_time_than_the_video_are_refused(root):
    x = source(root, "motion/{vid}.npy", clip_s=2.0, rate=0.9)
    with pytest.raises(
        DataError, match=r"motion/video_a.npy: length: 9 rows at 0.9 a second last 10 s, the video 20 s"
    ):
        x.rows(SAMPLE)
    assert len(source(root, "motion/{vid}.npy", clip_s=2.0, rate=0.45).rows(SAMPLE)) == 10


@pytest.mark.parametrize(
    ("rows", "duration", "clips"),
    [
        ([10, 10], 20.0, 10),
        ([9, 10], 20.0, 9),
        ([10, 12], 20.0, 10),  # no clip after the end of the video
        ([12, 12], 20.0, 10),
        ([8], 20.0, 8),
        ([95], 200.0, 95),  # a twentieth of 100 clips
    ],
)
def test_a_video_is_as_long_as_its_shortest_stream_and_no_longer_than_its_duration(rows, duration, clips):
    lengths = {Path(f"{i}/v.npy"): n for i, n in enumerate(rows)}
    assert agreed_length(lengths, Sample(1, "a", duration, "v"), 2.0) == clips


@pytest.mark.parametrize(
    ("rows", "duration", "message"),
    [
        ([9, 12], 20.0, "streams of one video differ by more than two rows: 9 in 0/v.npy, 12 in 1/v.npy"),
        ([13], 20.0, "rows: 13 in 0/v.npy; the video is 20 s, 10 clips of 2 s"),
        ([7], 20.0, "rows: 7 in 0/v.npy"),
        ([94], 200.0, "rows: 94 in 0/v.npy"),
    ],
)
def test_lengths_that_differ_too_much_are_refused(rows, duration, message):
    lengths = {Path(f"{i}/v.npy"): n for i, n in enumerate(rows)}
    with pytest.raises(DataError, match=message):
        agreed_length(lengths, Sample(1, "a", duration, "v"), 2.0)


def test_streams_are_concatenated_and_each_is_normalised_by_itself(root):
    """Nine clips, as many as the motion stream has."""
    motion, clip = random(0, 9, 3), random(1, 10, 4)[:9]
    ((rows, vector),) = features(root).videos([SAMPLE])
    np.testing.assert_array_equal(rows, np.concatenate([motion, clip], 1))
    assert vector is None
    ((rows, _),) = features(root, normalized=frozenset({"clip"})).videos([SAMPLE])
    np.testing.assert_array_equal(rows[:, :3], motion)
    np.testing.assert_allclose(rows[:, 3:], clip / (np.linalg.norm(clip, axis=1, keepdims=True) + 1e-5), rtol=1e-6)


def test_a_query_is_its_first_rows_and_one_vector_of_the_joint_space(root):
    """The vector is an array of the file, normalised as the joint stream is, or the mean of all rows, of norm 1."""
    words, whole = random(2, 3, 5), random(3, 4)
    ((rows, vector),) = features(root).queries([SAMPLE])
    np.testing.assert_array_equal(rows, words[:2])
    np.testing.assert_array_equal(vector, whole)
    ((rows, vector),) = features(root, normalized=frozenset({"clip"})).queries([SAMPLE])
    np.testing.assert_array_equal(rows, words[:2])
    np.testing.assert_allclose(vector, whole / (np.linalg.norm(whole) + 1e-5), rtol=1e-6)
    mean = (words / np.linalg.norm(words, axis=1, keepdims=True)).mean(0)
    ((_, vector),) = features(root, sentence="mean", widths={"motion": 3, "clip": 5}).queries([SAMPLE])
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-4)
    ((_, vector),) = features(root, joint=None).queries([SAMPLE])
    assert vector is None


def test_an_error_names_the_sample_and_says_what_to_do(root):
    missing = Sample(7, "A dog runs.", 20.0, "video_b")
    with pytest.raises(MissingFile) as error:
        list(features(root).videos([SAMPLE, missing]))
    assert str(error.value).endswith(
        "no such feature file; needed by query 7 'A dog runs.' on video video_b; run the extraction again"
    )
    with pytest.raises(DataError, match="vectors of width 3 where others have 2"):
        list(features(root, widths={"motion": 2, "clip": 4}).videos([SAMPLE]))


def test_the_digest_changes_with_the_files_and_the_durations(root):
    x = features(root)
    sources = [*x.video.values(), x.query]
    state = x.state([SAMPLE], sources)
    assert state == x.state([SAMPLE], sources)
    assert state != x.state([Sample(7, "A dog runs.", 19.0, "video_a")], sources)
    save_npy(root / "motion" / "video_a.npy", random(0, 10, 3))
    assert state != x.state([SAMPLE], sources)
    (root / "motion" / "video_a.npy").unlink()
    with pytest.raises(MissingFile, match=r"motion/video_a.npy: missing file: no such feature file"):
        x.state([SAMPLE], sources)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("The man's dog RUNS.", ["the", "man", "'s", "dog", "runs"]),
        ("a well-known, 2nd snake_case", ["a", "well", "known", "2nd", "snake", "case"]),
        ("Überall café", ["überall", "café"]),
        ("...", []),
    ],
)
def test_words_are_lower_case_and_without_punctuation(query, words):
    assert words_of(query) == words


def test_words_are_looked_up_and_unknown_ones_are_zeros(tmp_path):
    (tmp_path / "glove.txt").write_text("a 1 2\ndog 3 4\n")
    samples = [SAMPLE, Sample(8, "Cats run, cats sleep", 20.0, "video_b")]
    x = WordVectors(tmp_path / "glove.txt", samples)
    with pytest.warns(UserWarning, match=r"glove.txt: 4 of 6 words have no vector and become zeros: cats, "):
        assert x.rows(SAMPLE).tolist() == [[1, 2], [3, 4], [0, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning comes once
        assert x.files(SAMPLE) == [(tmp_path / "glove.txt", "")]
        with pytest.raises(DataError, match="no vector for any word of 'Cats run, cats sleep'"):
            x.rows(samples[1])
