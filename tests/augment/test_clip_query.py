"""Clips that ask where they are from: each against the rows of the video they were cut from.  [MATR, pre-training]"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mrlib.augment.clip_query import CHANGES, FAST, LONGEST, NOISE, SLOW, clip_alone, clip_query, each_video
from mrlib.data import open_dataset
from mrlib.data.bank import Bank
from mrlib.ops.draw import Draw

DRAW = Draw(3, "pretrain", 1)


@pytest.fixture(scope="module")
def data():
    """Videos of 4 to 32 clips in turn."""
    sim = open_dataset("sim", split="train", query="video", streams="joint", n=200)
    lengths = torch.arange(200) % 29 + 4
    items = [sim.target.rows[32 * i : 32 * i + n].numpy() for i, n in enumerate(lengths.tolist())]
    samples = [
        replace(s, duration=n * 2.0, relevant_windows=[[0.0, 4.0]], relevant_clip_ids=None, saliency_scores=None)
        for s, n in zip(sim.samples, lengths.tolist(), strict=True)
    ]
    return replace(sim, target=Bank.from_arrays(items), samples=samples, _annotations=None)


@pytest.fixture(scope="module")
def batch(data):
    return clip_query(torch.arange(200), data, DRAW)


def test_every_clip_comes_twice_the_first_time_as_it_is(data, batch):
    assert len(batch) == 400
    for i in range(200):
        (a, count), n = batch.samples[i].extra["clip"], int(data.target.lengths[i])
        assert 2 <= count <= max(2, min(LONGEST, n // 2)) and 0 <= a <= n - count
        assert int(batch.query_mask[i].sum()) == count
        torch.testing.assert_close(batch.query[i, :count], batch.target[i, a : a + count], rtol=0, atol=0)
        assert not batch.query[i, count:].any()
        assert batch.samples[i + 200].extra["clip"] == [a, count]
        torch.testing.assert_close(batch.target[i + 200], batch.target[i], rtol=0, atol=0)


def test_labels_are_the_clips_place_for_both(data, batch):
    for i, sample in enumerate(batch.samples):
        (a, count), n = sample.extra["clip"], int(batch.lengths[i])
        torch.testing.assert_close(batch.labels.spans[i, 0], torch.tensor([a / n, (a + count) / n]))
        assert batch.labels.relevant[i].nonzero()[:, 0].tolist() == list(range(a, a + count))
        assert sample.relevant_windows == [[2.0 * a, 2.0 * (a + count)]]
        assert bool(batch.labels.backwards[i]) == (sample.extra.get("change") == "reverse")
    assert batch.labels.span_mask.all() and not batch.labels.saliency_mask.any()


def test_a_changed_clip_is_what_its_record_says(data, batch):
    """Replayed from `extra` alone, row by row."""
    seen = set()
    for i in range(200, 400):
        about = batch.samples[i].extra
        a, count = about["clip"]
        clip, got = batch.target[i, a : a + count], batch.query[i][batch.query_mask[i]]
        seen.add(about["change"])
        if about["change"] == "reverse":
            torch.testing.assert_close(got, clip.flip(0))
        elif about["change"] == "noise":
            assert NOISE[0] <= about["factor"] <= NOISE[1]
            cosine = F.cosine_similarity(got, clip, dim=-1)
            expected = (1 + about["factor"] ** 2) ** -0.5  # noise of that norm, at right angles to the row
            assert ((cosine - expected).abs() < 0.06).all()
            torch.testing.assert_close(got.norm(dim=-1), torch.ones(count))
        else:
            low, high = FAST if about["change"] == "fast" else SLOW
            assert low <= about["factor"] <= high
            wanted = max(1, round(count / about["factor"]))
            assert len(got) == wanted
            at = [(count - 1) * k / (wanted - 1) if wanted > 1 else (count - 1) / 2 for k in range(wanted)]
            rows = [torch.lerp(clip[int(x)], clip[min(int(x) + 1, count - 1)], x - int(x)) for x in at]
            torch.testing.assert_close(got, F.normalize(torch.stack(rows), dim=-1), rtol=1e-4, atol=1e-5)
    assert seen == set(CHANGES)


def test_the_whole_query_is_the_mean_of_its_clips(batch):
    expected = torch.stack([q[m].mean(0) for q, m in zip(batch.query, batch.query_mask, strict=True)])
    torch.testing.assert_close(batch.query_joint, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_lengths_starts_and_changes_are_drawn_evenly(data):
    indices = torch.full((4000,), 28)  # a video of 32 clips
    drawn = [clip_query(torch.tensor([28]), data, Draw(s)).samples[1].extra for s in range(400)]
    counts = torch.bincount(torch.tensor([d["clip"][1] for d in drawn]), minlength=17)[2:]
    assert len(counts) == 15 and counts.min() > 0 and counts.max() < 3 * 400 / 15
    assert all(60 < sum(d["change"] == c for d in drawn) < 140 for c in CHANGES)
    latest = [d["clip"][0] == 32 - d["clip"][1] for d in drawn]
    assert any(latest) and min(d["clip"][0] for d in drawn) == 0
    assert len(indices) == 4000


def test_a_clip_is_a_function_of_seed_stage_epoch_and_sample(data):
    alone = clip_query(torch.tensor([7]), data, DRAW)
    together = clip_query(torch.tensor([3, 7, 9]), data, DRAW)
    assert together.samples[4].extra == alone.samples[1].extra
    n = int(alone.query_mask[1].sum())
    torch.testing.assert_close(together.query[4, :n], alone.query[1, :n], rtol=1e-6, atol=1e-6)
    other = clip_query(torch.tensor([7]), data, Draw(3, "pretrain", 2))
    assert other.samples[0].extra != alone.samples[0].extra


def test_without_changes_there_is_each_clip_once(data, batch):
    plain = clip_alone(torch.arange(200), data, DRAW)
    assert len(plain) == 200 and not plain.labels.backwards.any()
    n = plain.query.shape[1]
    torch.testing.assert_close(plain.query, batch.query[:200, :n], rtol=0, atol=0)


def test_every_long_enough_video_is_asked_once_a_pass(data):
    twice = data.subset([5, 5, 6, 0, 6, 100])
    assert [s.vid for s in each_video(twice).samples] == [twice.samples[i].vid for i in (0, 2, 3, 5)]
    short = replace(data, target=Bank.from_arrays([torch.ones(1 + i % 4, 128).numpy() for i in range(200)]))
    assert len(each_video(short)) == 50
    with pytest.raises(ValueError, match="no video of sim train has 4 clips"):
        each_video(short.subset([0, 1, 2]))


def test_a_video_of_one_clip_asks_for_itself(data):
    tiny = replace(data, target=Bank.from_arrays([torch.ones(1, 128).numpy()] * 200))
    batch = clip_query(torch.tensor([0]), tiny, DRAW)
    assert batch.labels.spans[:, 0].tolist() == [[0, 1], [0, 1]]


def test_no_labels_are_needed_and_words_are_refused(data):
    bare = replace(data, samples=[replace(s, relevant_windows=None) for s in data.samples], _annotations=None)
    assert clip_query(torch.arange(4), bare, DRAW).labels is not None
    words = open_dataset("sim", n=4)
    with pytest.raises(ValueError, match="only where queries are rows of the joint stream"):
        clip_query(torch.arange(2), replace(words, joint=None), DRAW)
