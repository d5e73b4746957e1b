"""Segments as queries, each compared with the clips of the video that it was cut from.  [MATR, pre-training]"""

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


def test_every_segment_comes_twice_first_unchanged(data, batch):
    assert len(batch) == 400
    for i in range(200):
        (a, count), n = batch.samples[i].extra["clip"], int(data.target.lengths[i])
        assert 2 <= count <= max(2, min(LONGEST, n // 2)) and 0 <= a <= n - count
        assert int(batch.query_mask[i].sum()) == count
        torch.testing.assert_close(batch.query[i, :count], batch.target[i, a : a + count], rtol=0, atol=0)
        assert not batch.query[i, count:].any()
        assert batch.samples[i + 200].extra["clip"] == [a, count]
        torch.testing.assert_close(batch.target[i + 200], batch.target[i], rtol=0, atol=0)


def test_the_label_of_both_queries_is_the_position_of_the_segment(data, batch):
    for i, sample in enumerate(batch.samples):
        (a, count), n = sample.extra["clip"], int(batch.lengths[i])
        torch.testing.assert_close(batch.labels.spans[i, 0], torch.tensor([a / n, (a + count) / n]))
        assert batch.labels.relevant[i].nonzero()[:, 0].tolist() == list(range(a, a + count))
        assert sample.relevant_windows == [[2.0 * a, 2.0 * (a + count)]]
        assert bool(batch.labels.backwards[i]) == (sample.extra.get("change") == "reverse")
    assert batch.labels.span_mask.all() and not batch.labels.saliency_mask.any()


def test_a_changed_query_follows_from_its_record(data, batch):
    """Every query is computed again from `extra` alone."""
    kinds = set()
    for i in range(200, 400):
        record = batch.samples[i].extra
        a, count = record["clip"]
        clips, query = batch.target[i, a : a + count], batch.query[i][batch.query_mask[i]]
        kinds.add(record["change"])
        if record["change"] == "reverse":
            torch.testing.assert_close(query, clips.flip(0))
        elif record["change"] == "noise":
            assert NOISE[0] <= record["factor"] <= NOISE[1]
            cosine = F.cosine_similarity(query, clips, dim=-1)
            expected = (1 + record["factor"] ** 2) ** -0.5  # noise of that norm, at right angles to the row
            assert ((cosine - expected).abs() < 0.06).all()
            torch.testing.assert_close(query.norm(dim=-1), torch.ones(count))
        else:
            low, high = FAST if record["change"] == "fast" else SLOW
            assert low <= record["factor"] <= high
            wanted = max(1, round(count / record["factor"]))
            assert len(query) == wanted
            positions = [(count - 1) * k / (wanted - 1) if wanted > 1 else (count - 1) / 2 for k in range(wanted)]
            rows = [torch.lerp(clips[int(x)], clips[min(int(x) + 1, count - 1)], x - int(x)) for x in positions]
            torch.testing.assert_close(query, F.normalize(torch.stack(rows), dim=-1), rtol=1e-4, atol=1e-5)
    assert kinds == set(CHANGES)


def test_the_joint_vector_of_a_query_is_the_mean_of_its_clips(batch):
    expected = torch.stack([q[m].mean(0) for q, m in zip(batch.query, batch.query_mask, strict=True)])
    torch.testing.assert_close(batch.query_joint, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_every_clip_has_the_same_weight_in_the_joint_vector(data):
    """Clips of any norm count as unit vectors."""
    rows = data.target.rows * torch.rand(len(data.target.rows), 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    unequal = replace(data, target=Bank(rows, data.target.offsets))
    joint, expected = (clip_alone(torch.arange(20), x, DRAW).query_joint for x in (unequal, data))
    torch.testing.assert_close(joint, expected, rtol=1e-4, atol=1e-5)


def test_lengths_starts_and_changes_are_drawn_evenly(data):
    records = [clip_query(torch.tensor([28]), data, Draw(s)).samples[1].extra for s in range(400)]  # of 32 clips
    counts = torch.bincount(torch.tensor([record["clip"][1] for record in records]), minlength=17)[2:]
    assert len(counts) == 15 and counts.min() > 0 and counts.max() < 3 * 400 / 15
    assert all(60 < sum(record["change"] == kind for record in records) < 140 for kind in CHANGES)
    at_the_end = [record["clip"][0] == 32 - record["clip"][1] for record in records]
    assert any(at_the_end) and min(record["clip"][0] for record in records) == 0


def test_a_query_depends_only_on_seed_stage_epoch_and_sample(data):
    alone = clip_query(torch.tensor([7]), data, DRAW)
    together = clip_query(torch.tensor([3, 7, 9]), data, DRAW)
    assert together.samples[4].extra == alone.samples[1].extra
    n = int(alone.query_mask[1].sum())
    torch.testing.assert_close(together.query[4, :n], alone.query[1, :n], rtol=1e-6, atol=1e-6)
    next_epoch = clip_query(torch.tensor([7]), data, Draw(3, "pretrain", 2))
    assert next_epoch.samples[0].extra != alone.samples[0].extra


def test_clip_alone_gives_each_segment_once_unchanged(data, batch):
    unchanged = clip_alone(torch.arange(200), data, DRAW)
    assert len(unchanged) == 200 and not unchanged.labels.backwards.any()
    n = unchanged.query.shape[1]
    torch.testing.assert_close(unchanged.query, batch.query[:200, :n], rtol=0, atol=0)


def test_each_video_keeps_one_sample_of_every_video_of_four_clips(data):
    repeated = data.subset([5, 5, 6, 0, 6, 100])
    assert [s.vid for s in each_video(repeated).samples] == [repeated.samples[i].vid for i in (0, 2, 3, 5)]
    short = replace(data, target=Bank.from_arrays([torch.ones(1 + i % 4, 128).numpy() for i in range(200)]))
    assert len(each_video(short)) == 50
    with pytest.raises(ValueError, match="no video of sim train has 4 clips"):
        each_video(short.subset([0, 1, 2]))


def test_a_video_of_one_clip_is_its_own_query(data):
    tiny = replace(data, target=Bank.from_arrays([torch.ones(1, 128).numpy()] * 200))
    batch = clip_query(torch.tensor([0]), tiny, DRAW)
    assert batch.labels.spans[:, 0].tolist() == [[0, 1], [0, 1]]


def test_annotations_are_not_needed(data):
    bare = replace(data, samples=[replace(s, relevant_windows=None) for s in data.samples], _annotations=None)
    assert clip_query(torch.arange(4), bare, DRAW).labels is not None


def test_queries_of_words_are_refused():
    words = open_dataset("sim", n=4)
    with pytest.raises(ValueError, match="only where queries are rows of the joint stream"):
        clip_query(torch.arange(2), replace(words, joint=None), DRAW)
