"""Synthesis: a reference in plain Python on the same random numbers, hand-worked cases, and statistics."""

import math
import os
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from mrlib import papers
from mrlib.align.saliency import negative_rows
from mrlib.augment import identity
from mrlib.augment.similarity import pair_similarity
from mrlib.augment.synthesize import PARTNERS, synthesize, synthesize_official
from mrlib.data import Bank, MomentDataset
from mrlib.ops.draw import Draw
from mrlib.probes import mask_moments
from mrlib.train import fit
from tests.support.worlds import chi_square, real_training_set, world

DRAW = Draw(5, "train", 2)
COUNTS = {"synthetic", "no_partner", "moment_clips", "own_clips", "partner_clips"}


def odd_windows(dice: random.Random, n: int) -> list[tuple[float, float]]:
    """None, the whole video, fractions of clips, a very short one, very many, or some beyond the features."""
    kind = dice.randrange(7)
    if kind == 0:
        return [] if dice.random() < 0.3 else [(0, n)]
    if kind == 1:
        return [(dice.uniform(0, n), dice.uniform(n, n + 2))]
    if kind == 2:
        return [(n, n + 1), (n + 1, n + 2)][dice.randrange(2) :]
    if kind == 3:
        a = dice.choice([dice.randrange(n), dice.uniform(0, n)])
        return [(a, a + 1e-3)]
    ends = [sorted(dice.uniform(0, n) for _ in range(2)) for _ in range(25 if kind == 4 else dice.randint(1, 3))]
    return [(math.floor(a), math.ceil(b)) for a, b in ends] if kind == 6 else ends


def odd_world(seed: int) -> MomentDataset:
    """Videos of random features with two columns that identify the clip: its video and its index, both / 1000."""
    dice = random.Random(seed)
    lengths = [dice.choice([1, 2, 3, 7, 20, 45]) for _ in range(dice.choice([1, 2, 5, 8]))]
    mined, scored, annotated = dice.random() < 0.5, dice.random(), [(0, [(0, 1)], [], None)]
    for _ in range(dice.choice([0, 1, 10, 20])):
        v = dice.randrange(len(lengths))
        wrong = [w for w in odd_windows(dice, lengths[v])[:3] if w[1] > w[0]] if mined else []
        ids = [t for t in range(lengths[v] + 2) if dice.random() < 0.6]  # not only in the windows, and after the end
        scores = {t: [dice.randrange(5) for _ in range(3)] for t in ids} if dice.random() < scored else None
        annotated.append((v, odd_windows(dice, lengths[v]), wrong, scores))
    data = world(lengths, annotated, clip_s=dice.choice([1.0, 2.0]), late=2)
    features = torch.randn(len(data.target.rows), 3, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([features + 0.5, data.target.rows / 1000], 1)
    return replace(data, target=Bank(rows, data.target.offsets))


def moment_of(data: MomentDataset, i: int) -> tuple[int, int]:
    """First clip of a sample's moment and the clip after its last."""
    n = int(data.target.lengths[data.video[i]])
    firsts, lasts = [], []
    for start, end in data.samples[i].relevant_windows:
        a = min(max(math.floor(start / data.clip_s), 0), n - 1)
        firsts.append(a)
        lasts.append(max(min(math.ceil(end / data.clip_s), n), a + 1))
    return min(firsts), max(lasts)


def reference_parts(data: MomentDataset, i: int, k: int, order: int, alpha: float, jitter: float) -> tuple[list, list]:
    """The clips of i and then of k, [(video, clip), ...]; the moment is of i if `order` is 1, of k if it is 2."""
    subject, partner = (i, k) if order == 1 else (k, i)
    number = torch.tensor([3 * i + order])
    factors = [1 + jitter * (1 - 2 * u) for u in DRAW("jitter", number, 2)[0].tolist()]

    def choose(name: str, pool: list[int], share: float, factor: float) -> list[int]:
        count = math.floor(share * len(pool))
        if count <= 2:
            return []
        u = DRAW(name, number, 100)[0].tolist()
        chosen = sorted(pool, key=lambda t: u[t])[:count]
        if factor <= 1:
            return chosen[: math.floor(count * factor)]
        return chosen + chosen[: math.floor(count * (factor - 1))]

    n, m = (int(data.target.lengths[data.video[s]]) for s in (subject, partner))
    a, b = moment_of(data, subject)
    context = choose("own", [t for t in range(n) if not a <= t < b], alpha, factors[0])
    kept = [(int(data.video[subject]), t) for t in sorted([*context, *range(a, b)])]
    added = [(int(data.video[partner]), t) for t in sorted(choose("partner's", list(range(m)), 1 - alpha, factors[1]))]
    return (kept, added) if order == 1 else (added, kept)


def check_synthetic(data: MomentDataset, batch, row: int, i: int, k: int, order: int, alpha: float, jitter: float):
    """Clips, labels and record of one row follow from the annotation and the reference."""
    first, second = reference_parts(data, i, k, order, alpha, jitter)
    subject, partner = (i, k) if order == 1 else (k, i)
    sample, source, n, labels = batch.samples[row], data.samples[subject], int(batch.lengths[row]), batch.labels
    clips, part = first + second, first if order == 1 else second
    assert [tuple(x) for x in (1000 * batch.target[row, :n, 3:]).round().int().tolist()] == clips
    assert (sample.qid, sample.query, sample.vid) == (source.qid, source.query, source.vid)
    assert set(batch.query[row, batch.query_mask[row]].flatten().tolist()) == {source.qid}
    assert sample.extra["partner"] == data.samples[partner].vid != source.vid
    start = 0 if order == 1 else len(first)
    assert sample.extra["own"] == [start, [t for _, t in part]]
    partner_part = second if order == 1 else first
    assert sample.extra["partner_clips"] == [0 if start else len(part), [t for _, t in partner_part]]
    assert sample.duration == n * data.clip_s == batch.duration_s[row]
    assert int(batch.video[row]) == int(data.video[subject])

    a, b = moment_of(data, subject)
    place = start + [t for _, t in part].index(a)
    shift = place - a
    assert sample.extra["shift"] == shift
    assert [t for _, t in clips[place : place + b - a]] == list(range(a, b))  # whole, and once
    counts = {name: int(x[row]) for name, x in batch.counts.items()}
    assert counts["moment_clips"] == b - a and counts["own_clips"] == len(part) - (b - a)
    assert counts["partner_clips"] == len(partner_part) and (counts["synthetic"], counts["no_partner"]) == (1, 0)

    windows = [[s + shift * data.clip_s, e + shift * data.clip_s] for s, e in source.relevant_windows]
    assert sample.relevant_windows == windows
    W = len(windows)
    assert labels.span_mask[row, :W].all() and not labels.span_mask[row, W:].any()
    spans = [[min(max(x / (n * data.clip_s), 0), 1) for x in w] for w in windows]
    spans = [[s if s < 1 else 1 - 1 / n, e] for s, e in spans]
    torch.testing.assert_close(labels.spans[row, :W], torch.tensor(spans))
    annotated = data.labels(torch.tensor([subject]))
    for name in ("relevant", "saliency") + ("wrong",) * data.mined:
        before = getattr(annotated, name)
        after = [before[0, t].item() if start <= p < start + len(part) else 0 for p, (_, t) in enumerate(clips)]
        assert getattr(labels, name)[row, :n].tolist() == after
        assert not getattr(labels, name)[row, n:].any()
    inside = annotated.relevant[0].nonzero()[:, 0]
    assert labels.relevant[row].nonzero()[:, 0].tolist() == (inside + shift).tolist()
    assert labels.saliency_mask[row] == annotated.saliency_mask[0]
    if data.mined:
        seconds = {t for s, e in sample.extra.get("wrong_spans", []) for t in range(int(s), int(e))}
        assert {int(t // data.clip_s) for t in seconds} == set(labels.wrong[row].nonzero()[:, 0].tolist())
    if source.relevant_clip_ids is None:
        assert sample.relevant_clip_ids is sample.saliency_scores is None
    else:
        scores = dict(zip(source.relevant_clip_ids, source.saliency_scores, strict=True))
        expected = {p: scores[t] for p, (_, t) in enumerate(part, start) if t in scores}
        assert dict(zip(sample.relevant_clip_ids, sample.saliency_scores, strict=True)) == expected


def partner_of(batch, row: int, data: MomentDataset) -> int:
    """The partner in a pair of rows, by the first of them: the subject of the second."""
    return data.samples.index(next(s for s in data.samples if s.qid == batch.samples[row + 1].qid))


def check_partner(
    data: MomentDataset, indices: list[int], i: int, k: int, partners: str, similarity: torch.Tensor
) -> None:
    """k is a partner that i may have."""
    candidates = [j for j in (indices if partners != "table" else range(len(data))) if data.samples[j].relevant_windows]
    others = [j for j in candidates if data.video[j] != data.video[i]]
    assert k in others
    if partners == "similar":
        scores = similarity[data.video[i]]
        assert not [j for j in others if scores[data.video[j]] > scores[data.video[k]] + 1e-6]
        assert not any(data.video[j] == data.video[k] and j < k for j in others)  # the first of equals
    if partners == "table":
        scores = {int(data.video[j]): float(similarity[data.video[i], data.video[j]]) for j in others}
        assert scores[int(data.video[k])] > max(scores.values()) - 1e-6


def similarity_of(data: MomentDataset, partners: str) -> torch.Tensor:
    """Mean cosine of all pairs of clips, without those of equal index [TD-DETR Eq. 1]; for the table with them."""
    clips = F.normalize(data.target.rows.double(), dim=-1).split(data.target.lengths.tolist())
    cosines = [[a @ b.T for b in clips] for a in clips]
    sums = [[x.sum() - (partners != "table") * x.diagonal().sum() for x in row] for row in cosines]
    return torch.tensor([[a / x.numel() for a, x in zip(*r, strict=True)] for r in zip(sums, cosines, strict=True)])


def check_originals(data: MomentDataset, batch, indices: torch.Tensor) -> None:
    """The first rows are the samples unchanged."""
    expected, (B, T) = identity(indices, data, DRAW), (len(indices), data.batch(indices).target.shape[1])
    assert torch.equal(batch.target[:B, :T], expected.target) and not batch.target[:B, T:].any()
    assert torch.equal(batch.target_mask[:B, :T], expected.target_mask)
    assert torch.equal(batch.query[:B, : expected.query.shape[1]], expected.query)
    assert torch.equal(batch.duration_s[:B], expected.duration_s) and batch.samples[:B] == expected.samples
    for name in ("spans", "span_mask"):
        rows, values = getattr(batch.labels, name)[:B], getattr(expected.labels, name)
        assert torch.equal(rows[:, : values.shape[1]], values)
    for name in ("relevant", "saliency") + ("wrong",) * data.mined:
        assert torch.equal(getattr(batch.labels, name)[:B, :T], getattr(expected.labels, name))
    assert torch.equal(batch.labels.saliency_mask[:B], expected.labels.saliency_mask)


def check_negatives(data: MomentDataset, batch) -> None:
    """The query of the negative concerns no video that is shown; -1 only if there is no such row."""
    videos = {s.vid: v for s, v in zip(data.samples, data.video.tolist(), strict=True)}
    shown = [{videos[s.vid], videos[s.extra.get("partner", s.vid)]} for s in batch.samples]
    subjects, negatives = batch.video.tolist(), batch.labels.negative.tolist()
    assert torch.equal(negative_rows(batch), batch.labels.negative)
    for row, negative in enumerate(negatives):
        allowed = [c for c in range(len(negatives)) if subjects[c] not in shown[row]]
        assert negative in allowed if allowed else negative == -1


@pytest.mark.parametrize("partners", PARTNERS)
def test_clips_labels_and_records_equal_the_reference(partners):
    """Some hundred samples with unusual windows.  [TD-DETR, synthesis]"""
    totals = Counter()
    for seed in range(40):
        data, dice = odd_world(seed), random.Random(seed)
        alpha, jitter = dice.choice([0.7, 0.7, 0.3, 0.0, 1.0]), dice.choice([0.2, 0.2, 0.0, 1.0])
        indices = torch.tensor(dice.sample(range(len(data)), dice.randint(1, len(data))))
        batch = synthesize(indices, data, DRAW, alpha=alpha, partners=partners, jitter=jitter)
        assert set(batch.counts) == COUNTS and not batch.target[~batch.target_mask].any()
        check_originals(data, batch, indices)
        check_negatives(data, batch)
        B, no_partner = len(indices), batch.counts["no_partner"]
        paired = [i for i, unpaired in zip(indices.tolist(), no_partner.tolist(), strict=False) if not unpaired]
        assert len(batch) == B + 2 * len(paired) and not no_partner[B:].any()
        assert batch.counts["synthetic"].tolist() == [0] * B + [1] * 2 * len(paired)
        assert not any(batch.counts[name][:B].any() for name in COUNTS - {"no_partner"})
        similarity = similarity_of(data, partners)
        for pair, i in enumerate(paired):
            row = B + 2 * pair
            k = partner_of(batch, row, data)
            check_partner(data, indices.tolist(), i, k, partners, similarity)
            for order in (1, 2):
                check_synthetic(data, batch, row + order - 1, i, k, order, alpha, jitter)
        choices = range(len(data)) if partners == "table" else indices.tolist()
        candidates = {int(data.video[i]) for i in choices if data.samples[i].relevant_windows}
        for i, unpaired in zip(indices.tolist(), no_partner.tolist(), strict=False):
            assert bool(unpaired) == (not data.samples[i].relevant_windows or not candidates - {int(data.video[i])})
        totals += Counter({name: int(x.sum()) for name, x in batch.counts.items()})
    assert all(totals[name] > 0 for name in COUNTS), totals


def test_the_samples_of_a_batch_agree_with_its_labels():
    """A dataset of the synthetic videos and their samples has the labels of the batch, if no window ends after the
    features."""
    checked = 0
    for seed in range(40):
        data = odd_world(seed)
        n = data.target.lengths[data.video].tolist()
        fits = [i for i, s in enumerate(data.samples) if all(e <= n[i] * data.clip_s for _, e in s.relevant_windows)]
        data = data.subset(fits)
        batch = synthesize(torch.arange(len(data)), data, DRAW)
        synthetic = batch.counts["synthetic"].nonzero()[:, 0].tolist()
        if not synthetic:
            continue
        reopened = replace(
            data,
            samples=[batch.samples[r] for r in synthetic],
            target=Bank.from_arrays([batch.target[r, : batch.lengths[r]].numpy() for r in synthetic]),
            video=torch.arange(len(synthetic)),
            query_item=torch.zeros(len(synthetic), dtype=torch.long),
            _annotations=None,
        )
        expected, T = reopened.batch(range(len(synthetic))).labels, int(batch.lengths[synthetic].max())
        torch.testing.assert_close(expected.spans, batch.labels.spans[synthetic, : expected.spans.shape[1]])
        assert torch.equal(expected.relevant, batch.labels.relevant[synthetic, :T])
        assert torch.equal(expected.saliency, batch.labels.saliency[synthetic, :T])
        assert torch.equal(expected.saliency_mask, batch.labels.saliency_mask[synthetic])
        if reopened.mined:
            assert torch.equal(expected.wrong, batch.labels.wrong[synthetic, :T])
        checked += len(synthetic)
    assert checked > 100


def test_a_window_that_ends_after_the_features_is_moved_and_its_span_is_cut():
    """By hand: a video of 4 clips of 1 s with a window from 2.5 to 5.25 s, its moment the last two clips. With alpha 0
    the new video is the partner's four clips and the moment, which moves by two clips."""
    data = world([4, 4], [(0, [(0, 4)], [], None), (1, [(2.5, 5.25)], [], None)], clip_s=1.0)
    batch = synthesize(torch.arange(2), data, DRAW, alpha=0.0, jitter=0, partners="random")
    second = batch.samples[3]
    assert (second.qid, second.duration, second.extra["shift"]) == (1, 6.0, 2)
    assert second.relevant_windows == [[4.5, 7.25]]
    torch.testing.assert_close(batch.labels.spans[3], torch.tensor([[4.5 / 6, 1.0]]))
    assert batch.target[3, :6].int().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert batch.labels.relevant[3].nonzero()[:, 0].tolist() == [4, 5]


def equal(first, second) -> bool:
    """Two batches have the same samples, features and labels."""
    fields = [(first.target, second.target), (first.labels.spans, second.labels.spans)]
    fields += [(first.labels.negative, second.labels.negative), (first.labels.saliency, second.labels.saliency)]
    return first.samples == second.samples and all(torch.equal(a, b) for a, b in fields)


@pytest.mark.parametrize("partners", PARTNERS)
def test_a_batch_depends_on_the_draw_alone(partners):
    data = odd_world(12)
    assert len(data) > 9 and len(data.target) > 4
    order = torch.arange(len(data))
    batch = synthesize(order, data, DRAW, partners=partners)
    assert equal(batch, synthesize(order, data, DRAW, partners=partners))
    assert not equal(batch, synthesize(order, data, Draw(5, "train", 3), partners=partners))


@pytest.mark.parametrize("partners", PARTNERS)
def test_a_sample_and_its_negative_do_not_depend_on_the_order_of_the_batch(partners):
    data = odd_world(12)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    batches = [synthesize(i, data, DRAW, partners=partners) for i in (torch.arange(len(data)), order)]
    by_name = []
    for batch, indices in zip(batches, (range(len(data)), order.tolist()), strict=True):
        paired = [i for i, unpaired in zip(indices, batch.counts["no_partner"].tolist(), strict=False) if not unpaired]
        names = [(i, 0) for i in indices] + [(i, part) for i in paired for part in (1, 2)]
        by_name.append(
            {
                name: (
                    batch.samples[row],
                    batch.target[row, batch.target_mask[row]].tolist(),
                    names[negative] if negative >= 0 else None,
                )
                for row, (name, negative) in enumerate(zip(names, batch.labels.negative.tolist(), strict=True))
            }
        )
    assert by_name[0] == by_name[1]


def test_every_row_is_a_negative_once_if_possible():
    """Six videos: each of the 18 rows may have at least twelve of them."""
    data = world([9] * 6, [(v, [(2, 4)], [], None) for v in range(6)])
    first_negatives = set()
    for epoch in range(20):
        batch = synthesize(torch.arange(6), data, Draw(5, "train", epoch), partners="random")
        check_negatives(data, batch)
        assert sorted(batch.labels.negative.tolist()) == list(range(18))
        first_negatives.add(int(batch.labels.negative[0]))
    assert len(first_negatives) > 5


def mixed_often(data: MomentDataset, count: int, **options) -> list:
    """The first sample mixed with the last, `count` times, in small batches."""
    repeated = data.subset([0] * count + [len(data) - 1])
    return [synthesize(i, repeated, DRAW, partners="table", **options) for i in torch.arange(count).split(50)]


def test_negatives_are_the_assignment_with_the_smallest_sum_of_random_numbers():
    """One number for every pair of rows. The rows of sample i have the numbers 3 i, 3 i + 1 and 3 i + 2, and the pair
    (i, j) of rows of a dataset of S samples has 3 S i + j."""
    data = world([9] * 6, [(v, [(2, 4)], [], None) for v in range(6)])
    batch = synthesize(torch.arange(6), data, DRAW, partners="table")
    number = torch.tensor([3 * i for i in range(6)] + [3 * i + part for i in range(6) for part in (1, 2)])
    u = DRAW("foreign", (3 * 6 * number[:, None] + number).flatten())
    partner = torch.tensor([int(s.extra["partner"][1:]) if s.extra else int(s.vid[1:]) for s in batch.samples])
    forbidden = (batch.video == batch.video[:, None]) | (batch.video == partner[:, None])
    cost = u.view(18, 18).masked_fill(forbidden, 1e6)
    _, columns = linear_sum_assignment(cost.numpy())
    assert batch.labels.negative.tolist() == columns.tolist()


def test_a_large_batch_has_a_negative_for_every_row():
    dataset = world([9] * 300, [(v, [(2, 4)], [], None) for v in range(300)])
    batch = synthesize(torch.arange(300), dataset, DRAW)
    negative = batch.labels.negative
    assert len(batch) == 900 and (negative >= 0).all() and len(negative.unique()) == 900
    assert (batch.video[negative] != batch.video).all()


def test_videos_that_share_rows_of_the_bank_are_mixed_too():
    """Masked videos, whose clips are not consecutive rows."""
    dataset = mask_moments(world([9, 7, 8, 9], [(v, [(2, 4)], [], None) for v in range(4)]), "zero")
    batch = synthesize(torch.arange(4), dataset, DRAW)
    for row, sample in enumerate(batch.samples[4:], 4):
        first, clips = sample.extra["own"]
        expected = dataset.batch(batch.video[row : row + 1]).target[0, clips]
        assert torch.equal(batch.target[row, first : first + len(clips)], expected)


def test_the_numbers_of_clips_have_the_expected_mean_and_range():
    """40 clips, a moment of 10: 21 of the other 30 and 12 of the partner's 40, both varied by up to a fifth."""
    data = world([40, 40], [(v, [(20, 30)], [], None) for v in (0, 1)])
    batches = mixed_often(data, 1000)
    for name, count in (("own_clips", 21), ("partner_clips", 12), ("moment_clips", 10)):
        factors = [0.8 + 0.4 * (j + 0.5) / 10000 for j in range(10000)]
        sizes = [math.floor(count * min(f, 1)) + math.floor(count * max(f - 1, 0)) for f in factors]
        sizes = [10] if name == "moment_clips" else sizes
        x = torch.cat([b.counts[name][b.counts["synthetic"] > 0] for b in batches]).double()
        assert len(x) == 2000
        assert abs(float(x.mean()) - sum(sizes) / len(sizes)) <= 4 * float(x.std()) / math.sqrt(len(x))
        assert (int(x.min()), int(x.max())) == (min(sizes), max(sizes))
    for jitter in (0, None):
        constant = synthesize(torch.arange(2), data, DRAW, jitter=jitter)
        assert constant.lengths.tolist() == [40] * 2 + [10 + 21 + 12] * 4


def test_all_clips_of_the_context_are_equally_likely_to_stay_and_to_be_repeated():
    """Ten clips around a moment of two. Chance exceeds the limit once in a thousand."""
    data = world([12, 40], [(0, [(4, 6)], [], None), (1, [(0, 40)], [], None)])
    shown = [s.extra["own"][1] for b in mixed_often(data, 2000, jitter=0.6) for s in b.samples[len(b) // 3 :: 2]]
    context = [t for t in range(12) if t not in (4, 5)]
    for times in (1, 2):
        frequencies = Counter(t for clips in shown for t in context if clips.count(t) == times)
        assert frequencies.total() > 1000 and chi_square(frequencies, context) < 27.88


@pytest.mark.parametrize("partners", ["random", "table"])
def test_all_other_videos_are_equally_likely_and_all_samples_of_the_chosen_one(partners):
    """Video 1 has three samples, video 2 one: for video 0 both have probability 1/2, and the samples of video 1
    have 1/6 each. The table always gives video 1, which is equal to video 0."""
    data = world([9] * 3, [(v, [(2, 4)], [], None) for v in (0, 1, 1, 1, 2)])
    rows = data.target.rows.clone()
    rows[:, 0] = torch.tensor([1.0, 1.0, -9.0]).repeat_interleave(9)
    data = replace(data, target=Bank(rows, data.target.offsets))
    frequencies = Counter()
    for epoch in range(600):
        batch = synthesize(torch.arange(5), data, Draw(1, "train", epoch), partners=partners, originals=False)
        frequencies[batch.samples[1].qid] += 1
    shares = {1: 1 / 6, 2: 1 / 6, 3: 1 / 6, 4: 1 / 2} if partners == "random" else dict.fromkeys((1, 2, 3), 1 / 3)
    assert set(frequencies) == set(shares)
    assert all(abs(frequencies[k] / 600 - share) < 4 * math.sqrt(share / 600) for k, share in shares.items())


def test_the_table_covers_the_dataset_and_is_computed_once(monkeypatch):
    """Videos 0 and 3 point one way, 1 and 2 another; even a batch of one sample has its partner."""
    data = world([5] * 4, [(v, [(2, 4)], [], None) for v in range(4)])
    directions = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat_interleave(5, 0)
    data = replace(data, target=Bank(directions, data.target.offsets))
    gathers = []
    gather = Bank.gather
    monkeypatch.setattr(Bank, "gather", lambda bank, rows: gathers.append(bank is data.target) or gather(bank, rows))
    for i, k in enumerate((3, 2, 1, 0)):
        batch = synthesize(torch.tensor([i]), data, DRAW, partners="table")
        assert [s.qid for s in batch.samples] == [i, i, k]
        assert not batch.counts["no_partner"].any()
    assert sum(gathers) == 1 + 4  # the table; a batch each
    alone = synthesize(torch.tensor([0]), data, DRAW)
    assert alone.counts["no_partner"].tolist() == [1] and len(alone) == 1


def test_the_most_alike_of_all_videos_is_another_however_unlike_they_are():
    """Two that point opposite directions."""
    data = world([5, 5], [(v, [(2, 4)], [], None) for v in range(2)])
    directions = torch.tensor([[1.0, 0.1], [-1.0, 0.1]]).repeat_interleave(5, 0)
    data = replace(data, target=Bank(directions, data.target.offsets))
    assert [s.qid for s in synthesize(torch.tensor([0]), data, DRAW, partners="table").samples] == [0, 0, 1]


def test_originals_are_unchanged_for_any_clip_length():
    data = world([45, 20, 7], [(v, [(v + 0.3, v + 3.1), (4, 5.7)], [], None) for v in range(3)], clip_s=0.7)
    check_originals(data, synthesize(torch.arange(3), data, DRAW), torch.arange(3))


def test_without_originals_only_samples_without_a_partner_stay():
    data = world([9, 9, 9], [(0, [(2, 4)], [], None), (1, [(1, 2)], [], None), (2, [], [], None)])
    complete, synthetic = (synthesize(torch.arange(3), data, DRAW, originals=o) for o in (True, False))
    assert synthetic.samples == [data.samples[2], *complete.samples[3:]] and len(complete.samples) == 7
    assert synthetic.counts["no_partner"].tolist() == [1, 0, 0, 0, 0]
    T = min(synthetic.target.shape[1], complete.target.shape[1])
    assert torch.equal(synthetic.target[1:, :T], complete.target[3:, :T])


def test_the_release_cuts_moments_and_takes_the_next_query_and_the_fifty_best_pairs():
    """By hand: with clips of 2 s, the window from 3.5 to 12.3 s is clips 1 to 6; the release loses the last one."""
    data = world([9, 9, 9], [(v, [(1.75, 6.15)], [], None) for v in range(3)])
    ours, released = (f(torch.arange(3), data, DRAW) for f in (synthesize, synthesize_official))
    assert ours.counts["moment_clips"][3:].tolist() == [6] * 6
    assert released.counts["moment_clips"][3:].tolist() == [5] * 6
    assert released.labels.negative.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    seconds = world([9, 9], [(v, [(1.75, 6.15)], [], None) for v in range(2)], clip_s=1.0)
    assert synthesize_official(torch.arange(2), seconds, DRAW).counts["moment_clips"][2:].tolist() == [6] * 4
    for seed in range(20):
        data = odd_world(seed)
        batch = synthesize_official(torch.arange(len(data)), data, DRAW)
        rows = data.target.index(data.video)
        similarity = pair_similarity(data.target.gather(rows), rows >= 0, "top50")
        similarity = similarity.masked_fill(similarity > 0.9, 0)  # as released, except for QVHighlights
        paired = [i for i in range(len(data)) if not batch.counts["no_partner"][i]]
        for pair, i in enumerate(paired):
            k = partner_of(batch, len(data) + 2 * pair, data)
            others = [j for j in paired if data.video[j] != data.video[i]]
            assert k in others and similarity[i, k] > similarity[i, others].max() - 1e-6


def test_the_release_leaves_out_windows_that_its_rounding_empties():
    """By hand, 23 clips of 2 s: 0.4 to 12.3 s is clips 0 to 5, and from 38.6 to 39.0 s no clip is left, not even 19."""
    windows = [(0.2, 6.15), (19.3, 19.5)]
    data = world([23, 23], [(v, windows, [], None) for v in range(2)])
    ours, released = (f(torch.arange(2), data, DRAW) for f in (synthesize, synthesize_official))
    assert ours.counts["moment_clips"].tolist() == [0, 0] + [20] * 4
    assert released.counts["moment_clips"].tolist() == [0, 0] + [6] * 4
    shift = [s.extra["shift"] for s in released.samples[2:]]
    for row, by in enumerate(shift, start=2):  # the window stays a label, which moves with the moment
        moved = [[(a + by) * 2, (b + by) * 2] for a, b in windows]
        assert released.samples[row].relevant_windows == [pytest.approx(w) for w in moved]
    spans = released.labels.spans[2:]
    assert ((spans >= 0) & (spans <= 1)).all() and (spans[..., 1] >= spans[..., 0]).all()
    for emptied, first in (([(3.3, 3.4), (7.1, 7.2)], 7), ([(7.1, 7.2), (3.3, 3.4)], 3)):  # all: where the last starts
        data = world([23, 23], [(v, emptied, [], None) for v in range(2)])
        batch = synthesize_official(torch.arange(2), data, DRAW)
        assert batch.counts["moment_clips"].tolist() == [0, 0] + [1] * 4
        own = [s.extra["own"] for s in batch.samples[2:]]
        assert all(first in origin for _, origin in own)


def test_a_left_out_window_before_the_first_clip_becomes_the_first_clip():
    """The moment starts at clip 20 of 23, and no clip of the context before it may be left."""
    data = world([23, 4], [(0, [(0.3, 0.4), (20, 22)], [], None), (1, [(0, 2)], [], None)])
    batch = synthesize_official(torch.arange(2), data, DRAW, alpha=0.0, originals=False)
    row = next(r for r, s in enumerate(batch.samples) if s.qid == 0 and s.extra["shift"] < 0)
    assert batch.samples[row].relevant_windows[0][1] < 0
    n = int(batch.target_mask[row].sum())
    torch.testing.assert_close(batch.labels.spans[row, 0], torch.tensor([0.0, 1 / n]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partners": "dissim"}, "partners must be one of similar, random, table, not 'dissim'"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, not 1.5"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1, not nan"),
        ({"jitter": -0.1}, "jitter must be from 0 to 1, not -0.1"),
    ],
)
def test_invalid_options_are_refused(options, message):
    data = world([6, 6], [(0, [(1, 3)], [], None), (1, [(1, 3)], [], None)])
    with pytest.raises(ValueError, match=message):
        synthesize(torch.arange(2), data, DRAW, **options)


def test_a_training_set_without_windows_is_refused():
    bare = world([6, 6], [(0, [(1, 3)], [], None), (1, [(1, 3)], [], None)])
    bare = replace(bare, samples=[replace(s, relevant_windows=None) for s in bare.samples], _annotations=None)
    for augment in (synthesize, synthesize_official):
        with pytest.raises(ValueError, match="worlds train has no annotated windows to keep"):
            augment(torch.arange(2), bare, DRAW)


@pytest.mark.parametrize("options", [*({"partners": name} for name in PARTNERS), {"augment": "synthesize_official"}])
def test_a_model_trains_on_synthetic_videos_and_the_history_counts_them(options):
    sizes = {"width": 16, "hidden": 16, "heads": 2, "epochs": 1, "batch_size": 8}
    paper = papers.get("td_detr", "small", **sizes, **{"augment": "synthesize", **options})
    data = papers.open_split(paper, "sim", split="train", n=16)
    history = fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    (row,) = history.rows
    assert row["augment/synthetic"] == 32 and row["augment/no_partner"] == 0
    assert row["augment/moment_clips"] > 0 and math.isfinite(row["loss"])


@pytest.mark.skipif("MRLIB_DATA" not in os.environ, reason="real annotations: set MRLIB_DATA")
def test_real_annotations_give_the_known_counts():
    """[TD-DETR, synthesis] Of 7,218 queries, 520 have a moment that is the whole video, and 671 keep no context."""
    data = real_training_set()
    batches = [
        synthesize(i, data, DRAW, partners="random", jitter=0, originals=False)
        for i in torch.arange(len(data)).split(64)
    ]
    count = {name: torch.cat([b.counts[name][::2] for b in batches]) for name in COUNTS}
    n = data.target.lengths[data.video]
    assert count["synthetic"].all()
    assert int((count["moment_clips"] == n).sum()) == 520
    assert int((count["own_clips"] == 0).sum()) == 671
    for batch in batches[:3]:
        for sample in batch.samples[::2]:
            scored = {t for a, b in sample.relevant_windows for t in range(int(a // 2), int(b // 2))}
            assert set(sample.relevant_clip_ids) == scored
