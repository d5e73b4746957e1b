"""Synthesis against a plain version of it, sample by sample on the same numbers, and Eq. 1 against its four sums."""

import math
import os
import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mrlib import papers
from mrlib.align.saliency import foreign_rows
from mrlib.augment import identity
from mrlib.augment.synthesize import PARTNERS, pair_similarity, synthesize, synthesize_official
from mrlib.data import Bank, MomentDataset
from mrlib.ops.draw import Draw
from mrlib.probes import mask_moments
from mrlib.train import fit
from tests.support.worlds import chi_square, real_training_set, world

DRAW = Draw(5, "train", 2)
COUNTS = {"synthetic", "no_partner", "moment_clips", "own_clips", "partner_clips"}


# ---- likeness


def literal(features: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """[TD-DETR Eq. 1] as printed: two videos, two clips."""
    features, alike = features.double(), torch.zeros(len(lengths), len(lengths), dtype=torch.float64)
    for (j, n), (k, m) in product(enumerate(lengths), repeat=2):
        for p, q in product(range(n), range(m)):
            norms = features[j, p].norm() * features[k, q].norm()
            if p != q and norms > 0:
                alike[j, k] += features[j, p] @ features[k, q] / norms / (n * m)
    return alike


def padded(lengths: list[int], width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(seed)) + 0.3, mask


@pytest.mark.parametrize("lengths", [[4, 4, 4], [7, 1, 3, 5], [2, 6, 1, 0, 6], [1, 1]])
def test_the_likeness_of_two_videos_is_the_sum_over_all_their_clips(lengths):
    """With padding that holds anything, and a video without clips."""
    for seed in range(5):
        features, mask = padded(lengths, seed=seed)
        alike = pair_similarity(features, mask)
        torch.testing.assert_close(alike.double(), literal(features, lengths), atol=1e-5, rtol=0)
        wide = pair_similarity(features.double(), mask)
        torch.testing.assert_close(wide, literal(features, lengths), atol=1e-12, rtol=0)


def test_a_likeness_worked_by_hand():
    """Clips along the axes: of (x, y) and (y, y), pairs of other index are xy and yy, of four; and so for each."""
    x, y = [1.0, 0.0], [0.0, 2.0]
    features = torch.tensor([[x, y], [y, y], [x, x]])
    alike = pair_similarity(features, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(alike, torch.tensor([[0, 1, 1], [1, 2, 0], [1, 0, 2]]) / 4)


def test_the_length_of_a_clips_vector_has_no_say_and_zeros_are_alike_to_none():
    """Also of two unit vectors side by side, whose length is the root of two."""
    features, mask = padded([5, 3, 6], width=8)
    streams = torch.cat([F.normalize(features[..., :3], dim=-1), F.normalize(features[..., 3:], dim=-1)], -1)
    torch.testing.assert_close(pair_similarity(streams, mask).double(), literal(streams, [5, 3, 6]))
    scaled = streams * torch.rand(3, 6, 1).add(0.1)
    torch.testing.assert_close(pair_similarity(scaled, mask), pair_similarity(streams, mask))
    streams[0, 1], streams[1] = 0, 0
    alike = pair_similarity(streams, mask)
    assert not alike[1].any() and not alike[:, 1].any() and alike.isfinite().all()
    torch.testing.assert_close(alike.double(), literal(streams, [5, 3, 6]))


@pytest.mark.parametrize("mode", ["mean", "top50"])
def test_half_precision_is_enough_for_a_likeness(mode):
    features, mask = padded([5, 3, 6], width=32)
    half = pair_similarity(features.half(), mask, mode)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pair_similarity(features.half().float(), mask, mode))


def test_the_released_likeness_is_the_mean_of_the_fifty_most_alike_pairs():
    """Of short videos there are fewer, or some are padding: still divided by 50."""
    for lengths in ([12, 9, 12], [3, 2, 7], [1, 12, 0]):
        features, mask = padded(lengths)
        unit = F.normalize(features.double(), dim=-1) * mask[..., None]
        expected = torch.zeros(3, 3, dtype=torch.float64)
        for j, k in product(range(3), repeat=2):
            pairs = sorted((float(a @ b) for a in unit[j] for b in unit[k]), reverse=True)
            expected[j, k] = sum(pairs[:50]) / 50
        torch.testing.assert_close(pair_similarity(features, mask, "top50").double(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="mode 'max'; mean or top50"):
        pair_similarity(features, mask, "max")


# ---- synthesis


def odd_windows(dice: random.Random, n: int) -> list[tuple[float, float]]:
    """None, the whole video, fractions of clips, one of no length, very many, or some beyond the features."""
    kind = dice.randrange(7)
    if kind == 0:
        return [] if dice.random() < 0.3 else [(0, n)]
    if kind == 1:
        return [(dice.uniform(0, n), dice.uniform(n, n + 2))]
    if kind == 2:
        return [(n, n + 1), (n + 1, n + 2)][dice.randrange(2) :]
    if kind == 3:
        a = dice.choice([dice.randrange(n), dice.uniform(0, n)])
        return [(a, a)]
    ends = [sorted(dice.uniform(0, n) for _ in range(2)) for _ in range(25 if kind == 4 else dice.randint(1, 3))]
    return [(math.floor(a), math.ceil(b)) for a, b in ends] if kind == 6 else ends


def odd_world(seed: int) -> MomentDataset:
    """Videos with features of no meaning, and two columns by which a clip is known."""
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
    sums = torch.randn(len(data.target.rows), 3, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([sums + 0.5, data.target.rows / 1000], 1)
    return replace(data, target=Bank(rows, data.target.offsets))


def hull(data: MomentDataset, i: int) -> tuple[int, int]:
    n = int(data.target.lengths[data.video[i]])
    firsts, lasts = [], []
    for start, end in data.samples[i].relevant_windows:
        a = min(max(math.floor(start / data.clip_s), 0), n - 1)
        firsts.append(a)
        lasts.append(max(min(math.ceil(end / data.clip_s), n), a + 1))
    return min(firsts), max(lasts)


def plain(data: MomentDataset, i: int, k: int, asks: int, alpha: float, jitter: float) -> tuple[list, list]:
    """The two parts in order, [(video, clip), ...]; those of i before those of k. `asks` is 1 for i, 2 for k."""
    own, other = (i, k) if asks == 1 else (k, i)
    number = torch.tensor([3 * i + asks])
    factors = [1 + jitter * (1 - 2 * u) for u in DRAW("jitter", number, 2)[0].tolist()]

    def some(name: str, pool: list[int], share: float, factor: float) -> list[int]:
        count = math.floor(share * len(pool))
        if count <= 2:
            return []
        u = DRAW(name, number, 100)[0].tolist()
        chosen = sorted(pool, key=lambda t: u[t])[:count]
        if factor <= 1:
            return chosen[: math.floor(count * factor)]
        return chosen + chosen[: math.floor(count * (factor - 1))]

    n, m = (int(data.target.lengths[data.video[s]]) for s in (own, other))
    a, b = hull(data, own)
    context = some("own", [t for t in range(n) if not a <= t < b], alpha, factors[0])
    kept = [(int(data.video[own]), t) for t in sorted([*context, *range(a, b)])]
    added = [(int(data.video[other]), t) for t in sorted(some("partner's", list(range(m)), 1 - alpha, factors[1]))]
    return (kept, added) if asks == 1 else (added, kept)


def check_synthetic(data: MomentDataset, batch, row: int, i: int, k: int, asks: int, alpha: float, jitter: float):
    """Clips, labels and record of one row, from the annotation and the plain version."""
    first, second = plain(data, i, k, asks, alpha, jitter)
    own, other = (i, k) if asks == 1 else (k, i)
    sample, given, n, labels = batch.samples[row], data.samples[own], int(batch.lengths[row]), batch.labels
    clips, part = first + second, first if asks == 1 else second
    assert [tuple(x) for x in (1000 * batch.target[row, :n, 3:]).round().int().tolist()] == clips
    assert (sample.qid, sample.query, sample.vid) == (given.qid, given.query, given.vid)
    assert set(batch.query[row, batch.query_mask[row]].flatten().tolist()) == {given.qid}
    assert sample.extra["partner"] == data.samples[other].vid != given.vid
    start = 0 if asks == 1 else len(first)
    assert sample.extra["own"] == [start, [t for _, t in part]]
    around = second if asks == 1 else first
    assert sample.extra["partner_clips"] == [0 if start else len(part), [t for _, t in around]]
    assert sample.duration == n * data.clip_s == batch.duration_s[row]
    assert int(batch.video[row]) == int(data.video[own])

    a, b = hull(data, own)
    at = start + [t for _, t in part].index(a)
    shift = at - a
    assert sample.extra["shift"] == shift
    assert [t for _, t in clips[at : at + b - a]] == list(range(a, b))  # whole, and once
    told = {name: int(x[row]) for name, x in batch.counts.items()}
    assert told["moment_clips"] == b - a and told["own_clips"] == len(part) - (b - a)
    assert told["partner_clips"] == len(around) and (told["synthetic"], told["no_partner"]) == (1, 0)

    windows = [[s + shift * data.clip_s, e + shift * data.clip_s] for s, e in given.relevant_windows]
    assert sample.relevant_windows == windows
    W = len(windows)
    assert labels.span_mask[row, :W].all() and not labels.span_mask[row, W:].any()
    spans = [[min(max(x / (n * data.clip_s), 0), 1) for x in w] for w in windows]
    spans = [[s if s < 1 else 1 - 1 / n, e] for s, e in spans]
    torch.testing.assert_close(labels.spans[row, :W], torch.tensor(spans))
    said = data.labels(torch.tensor([own]))
    moved = {"relevant": said.relevant, "saliency": said.saliency} | ({"wrong": said.wrong} if data.mined else {})
    for name, before in moved.items():
        after = [before[0, t].item() if start <= p < start + len(part) else 0 for p, (_, t) in enumerate(clips)]
        assert getattr(labels, name)[row, :n].tolist() == after
        assert not getattr(labels, name)[row, n:].any()
    inside = said.relevant[0].nonzero()[:, 0]
    assert labels.relevant[row].nonzero()[:, 0].tolist() == (inside + shift).tolist()
    assert labels.saliency_mask[row] == said.saliency_mask[0]
    if data.mined:
        seconds = {t for s, e in sample.extra.get("wrong_spans", []) for t in range(int(s), int(e))}
        assert {int(t // data.clip_s) for t in seconds} == set(labels.wrong[row].nonzero()[:, 0].tolist())
    if given.relevant_clip_ids is None:
        assert sample.relevant_clip_ids is sample.saliency_scores is None
    else:
        scores = dict(zip(given.relevant_clip_ids, given.saliency_scores, strict=True))
        expected = {p: scores[t] for p, (_, t) in enumerate(part, start) if t in scores}
        assert dict(zip(sample.relevant_clip_ids, sample.saliency_scores, strict=True)) == expected


def partner_of(batch, row: int, data: MomentDataset) -> int:
    """The row after the first of a pair is the partner's."""
    return data.samples.index(next(s for s in data.samples if s.qid == batch.samples[row + 1].qid))


def check_partner(data: MomentDataset, indices: list[int], i: int, k: int, how: str, alike: torch.Tensor) -> None:
    asking = [j for j in (indices if how != "table" else range(len(data))) if data.samples[j].relevant_windows]
    others = [j for j in asking if data.video[j] != data.video[i]]
    assert k in others
    if how == "similar":
        best = [j for j in others if alike[data.video[i], data.video[j]] > alike[data.video[i], data.video[k]] + 1e-6]
        assert not best
        assert not any(data.video[j] == data.video[k] and j < k for j in others)  # the first of equals
    if how == "table":
        scores = {int(data.video[j]): float(alike[data.video[i], data.video[j]]) for j in others}
        assert scores[int(data.video[k])] > max(scores.values()) - 1e-6


def alike_of(data: MomentDataset, how: str) -> torch.Tensor:
    """Of all pairs of clips of two videos: without those of equal index  [TD-DETR Eq. 1], or in the table with them."""
    clips = F.normalize(data.target.rows.double(), dim=-1).split(data.target.lengths.tolist())
    pairs = [[a @ b.T for b in clips] for a in clips]
    left = [[each.sum() - (how != "table") * each.diagonal().sum() for each in row] for row in pairs]
    return torch.tensor([[x / each.numel() for x, each in zip(*r, strict=True)] for r in zip(left, pairs, strict=True)])


def check_originals(data: MomentDataset, batch, indices: torch.Tensor) -> None:
    own, (B, T) = identity(indices, data, DRAW), (len(indices), data.batch(indices).target.shape[1])
    assert torch.equal(batch.target[:B, :T], own.target) and not batch.target[:B, T:].any()
    assert torch.equal(batch.target_mask[:B, :T], own.target_mask)
    assert torch.equal(batch.query[:B, : own.query.shape[1]], own.query)
    assert torch.equal(batch.duration_s[:B], own.duration_s) and batch.samples[:B] == own.samples
    for name in ("spans", "span_mask"):
        mine, theirs = getattr(batch.labels, name)[:B], getattr(own.labels, name)
        assert torch.equal(mine[:, : theirs.shape[1]], theirs)
    for name in ("relevant", "saliency") + ("wrong",) * data.mined:
        assert torch.equal(getattr(batch.labels, name)[:B, :T], getattr(own.labels, name))
    assert torch.equal(batch.labels.saliency_mask[:B], own.labels.saliency_mask)


def check_foreign(data: MomentDataset, batch) -> None:
    """Never a query about what is seen; any other, each once where that can be."""
    videos = {s.vid: v for s, v in zip(data.samples, data.video.tolist(), strict=True)}
    seen = [{videos[s.vid], videos[s.extra.get("partner", s.vid)]} for s in batch.samples]
    about, rows = batch.video.tolist(), batch.labels.negative.tolist()
    assert torch.equal(foreign_rows(batch), batch.labels.negative)
    for row, negative in enumerate(rows):
        allowed = [c for c in range(len(rows)) if about[c] not in seen[row]]
        assert negative in allowed if allowed else negative == -1


@pytest.mark.parametrize("how", PARTNERS)
def test_every_clip_label_and_record_is_what_the_plain_version_says(how):
    """Some hundred samples of odd worlds.  [TD-DETR, synthesis]"""
    seen = Counter()
    for seed in range(40):
        data, dice = odd_world(seed), random.Random(seed)
        alpha, jitter = dice.choice([0.7, 0.7, 0.3, 0.0, 1.0]), dice.choice([0.2, 0.2, 0.0, 1.0])
        indices = torch.tensor(dice.sample(range(len(data)), dice.randint(1, len(data))))
        batch = synthesize(indices, data, DRAW, alpha=alpha, partners=how, jitter=jitter)
        assert set(batch.counts) == COUNTS and not batch.target[~batch.target_mask].any()
        check_originals(data, batch, indices)
        check_foreign(data, batch)
        B, alone = len(indices), batch.counts["no_partner"]
        paired = [i for i, no in zip(indices.tolist(), alone.tolist(), strict=False) if not no]
        assert len(batch) == B + 2 * len(paired) and not alone[B:].any()
        assert batch.counts["synthetic"].tolist() == [0] * B + [1] * 2 * len(paired)
        assert not any(batch.counts[name][:B].any() for name in COUNTS - {"no_partner"})
        alike = alike_of(data, how)
        for pair, i in enumerate(paired):
            row = B + 2 * pair
            k = partner_of(batch, row, data)
            check_partner(data, indices.tolist(), i, k, how, alike)
            for asks in (1, 2):
                check_synthetic(data, batch, row + asks - 1, i, k, asks, alpha, jitter)
        asking = {int(data.video[i]) for i in range(len(data)) if data.samples[i].relevant_windows}
        around = asking if how == "table" else {int(data.video[i]) for i in indices if data.samples[i].relevant_windows}
        for i, no in zip(indices.tolist(), alone.tolist(), strict=False):
            assert bool(no) == (not data.samples[i].relevant_windows or not around - {int(data.video[i])})
        seen += Counter({name: int(x.sum()) for name, x in batch.counts.items()})
    assert all(seen[name] > 0 for name in COUNTS), seen


def test_the_samples_of_a_batch_annotate_its_videos():
    """Opened again as a dataset, they give the labels of the batch, where no window is longer than the features."""
    checked = 0
    for seed in range(40):
        data = odd_world(seed)
        n = data.target.lengths[data.video].tolist()
        fits = [i for i, s in enumerate(data.samples) if all(e <= n[i] * data.clip_s for _, e in s.relevant_windows)]
        data = data.subset(fits)
        batch = synthesize(torch.arange(len(data)), data, DRAW)
        made = batch.counts["synthetic"].nonzero()[:, 0].tolist()
        if not made:
            continue
        again = replace(
            data,
            samples=[batch.samples[r] for r in made],
            target=Bank.from_arrays([batch.target[r, : batch.lengths[r]].numpy() for r in made]),
            video=torch.arange(len(made)),
            query_item=torch.zeros(len(made), dtype=torch.long),
            _annotations=None,
        )
        theirs, T = again.batch(range(len(made))).labels, int(batch.lengths[made].max())
        torch.testing.assert_close(theirs.spans, batch.labels.spans[made, : theirs.spans.shape[1]])
        assert torch.equal(theirs.relevant, batch.labels.relevant[made, :T])
        assert torch.equal(theirs.saliency, batch.labels.saliency[made, :T])
        assert torch.equal(theirs.saliency_mask, batch.labels.saliency_mask[made])
        if again.mined:
            assert torch.equal(theirs.wrong, batch.labels.wrong[made, :T])
        checked += len(made)
    assert checked > 100


def test_a_window_that_ends_after_the_features_is_moved_as_it_is_and_its_span_cut():
    """By hand: 4 clips of 1 s, a window from 2.5 to 5.25 s; alone at the end of the video made, 4 clips of the other
    before. Its moment is the last two clips; with alpha 0 no context stays, and it moves by two."""
    data = world([4, 4], [(0, [(0, 4)], [], None), (1, [(2.5, 5.25)], [], None)], clip_s=1.0)
    batch = synthesize(torch.arange(2), data, DRAW, alpha=0.0, jitter=0, partners="random")
    second = batch.samples[3]
    assert (second.qid, second.duration, second.extra["shift"]) == (1, 6.0, 2)
    assert second.relevant_windows == [[4.5, 7.25]]
    torch.testing.assert_close(batch.labels.spans[3], torch.tensor([[4.5 / 6, 1.0]]))
    assert batch.target[3, :6].int().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert batch.labels.relevant[3].nonzero()[:, 0].tolist() == [4, 5]


def same(one, other) -> bool:
    fields = [(one.target, other.target), (one.labels.spans, other.labels.spans)]
    fields += [(one.labels.negative, other.labels.negative), (one.labels.saliency, other.labels.saliency)]
    return one.samples == other.samples and all(torch.equal(a, b) for a, b in fields)


@pytest.mark.parametrize("how", PARTNERS)
def test_a_synthesis_is_a_function_of_the_draw(how):
    data = odd_world(12)
    assert len(data) > 9 and len(data.target) > 4
    order = torch.arange(len(data))
    batch = synthesize(order, data, DRAW, partners=how)
    assert same(batch, synthesize(order, data, DRAW, partners=how))
    assert not same(batch, synthesize(order, data, Draw(5, "train", 3), partners=how))


@pytest.mark.parametrize("how", PARTNERS)
def test_the_order_of_the_samples_changes_nothing(how):
    """Not even who asks which foreign query."""
    data = odd_world(12)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    batches = [synthesize(i, data, DRAW, partners=how) for i in (torch.arange(len(data)), order)]
    told = []
    for batch, indices in zip(batches, (range(len(data)), order.tolist()), strict=True):
        paired = [i for i, no in zip(indices, batch.counts["no_partner"].tolist(), strict=False) if not no]
        names = [(i, 0) for i in indices] + [(i, part) for i in paired for part in (1, 2)]
        told.append(
            {
                name: (
                    batch.samples[row],
                    batch.target[row, batch.target_mask[row]].tolist(),
                    names[negative] if negative >= 0 else None,
                )
                for row, (name, negative) in enumerate(zip(names, batch.labels.negative.tolist(), strict=True))
            }
        )
    assert told[0] == told[1]


def test_every_query_is_a_foreign_one_once_where_that_can_be():
    """Six videos: of 18 rows, each is allowed twelve or more."""
    data = world([9] * 6, [(v, [(2, 4)], [], None) for v in range(6)])
    seen = set()
    for epoch in range(20):
        batch = synthesize(torch.arange(6), data, Draw(5, "train", epoch), partners="random")
        check_foreign(data, batch)
        assert sorted(batch.labels.negative.tolist()) == list(range(18))
        seen.add(int(batch.labels.negative[0]))
    assert len(seen) > 5


def many(data: MomentDataset, count: int, **options) -> list:
    """The first sample so many times, each mixed with the last, in small batches."""
    often = data.subset([0] * count + [len(data) - 1])
    return [synthesize(i, often, DRAW, partners="table", **options) for i in torch.arange(count).split(50)]


def test_a_batch_of_any_size_has_a_foreign_query_for_every_row():
    dataset = world([9] * 300, [(v, [(2, 4)], [], None) for v in range(300)])
    batch = synthesize(torch.arange(300), dataset, DRAW)
    negative = batch.labels.negative
    assert len(batch) == 900 and (negative >= 0).all() and len(negative.unique()) == 900
    assert (batch.video[negative] != batch.video).all()


def test_videos_that_share_rows_are_mixed_as_they_are_seen():
    """Masked ones, whose clips are not in a row in the bank."""
    dataset = mask_moments(world([9, 7, 8, 9], [(v, [(2, 4)], [], None) for v in range(4)]), "zero")
    batch = synthesize(torch.arange(4), dataset, DRAW)
    for row, sample in enumerate(batch.samples[4:], 4):
        first, clips = sample.extra["own"]
        seen = dataset.batch(batch.video[row : row + 1]).target[0, clips]
        assert torch.equal(batch.target[row, first : first + len(clips)], seen)


def test_a_video_is_on_average_as_long_as_its_numbers_say():
    """40 clips, a moment of 10: 21 of the other 30, 12 of the partner's 40, each number varied by a fifth."""
    data = world([40, 40], [(v, [(20, 30)], [], None) for v in (0, 1)])
    batches = many(data, 1000)
    for name, count in (("own_clips", 21), ("partner_clips", 12), ("moment_clips", 10)):
        factors = [0.8 + 0.4 * (j + 0.5) / 10000 for j in range(10000)]
        sizes = [math.floor(count * min(f, 1)) + math.floor(count * max(f - 1, 0)) for f in factors]
        sizes = [10] if name == "moment_clips" else sizes
        x = torch.cat([b.counts[name][b.counts["synthetic"] > 0] for b in batches]).double()
        assert len(x) == 2000
        assert abs(float(x.mean()) - sum(sizes) / len(sizes)) <= 4 * float(x.std()) / math.sqrt(len(x))
        assert (int(x.min()), int(x.max())) == (min(sizes), max(sizes))
    for jitter in (0, None):
        plainly = synthesize(torch.arange(2), data, DRAW, jitter=jitter)
        assert plainly.lengths.tolist() == [40] * 2 + [10 + 21 + 12] * 4


def test_every_clip_of_the_context_is_as_likely_to_stay_and_to_be_shown_twice():
    """Of ten clips around a moment of two. The limit is exceeded by chance one time in a thousand."""
    data = world([12, 40], [(0, [(4, 6)], [], None), (1, [(0, 40)], [], None)])
    mine = [s.extra["own"][1] for b in many(data, 2000, jitter=0.6) for s in b.samples[len(b) // 3 :: 2]]
    context = [t for t in range(12) if t not in (4, 5)]
    for shown in (1, 2):
        seen = Counter(t for clips in mine for t in context if clips.count(t) == shown)
        assert seen.total() > 1000 and chi_square(seen, context) < 27.88


@pytest.mark.parametrize("how", ["random", "table"])
def test_every_other_video_is_as_likely_and_every_sample_of_it(how):
    """Video 1 has three samples, video 2 one: for video 0 each is a half, and each sample of video 1 a sixth. In the
    table stands video 1 alone, whose clips are the same."""
    data = world([9] * 3, [(v, [(2, 4)], [], None) for v in (0, 1, 1, 1, 2)])
    rows = data.target.rows.clone()
    rows[:, 0] = torch.tensor([1.0, 1.0, -9.0]).repeat_interleave(9)
    data = replace(data, target=Bank(rows, data.target.offsets))
    seen = Counter()
    for epoch in range(600):
        batch = synthesize(torch.arange(5), data, Draw(1, "train", epoch), partners=how, originals=False)
        seen[batch.samples[1].qid] += 1
    shares = {1: 1 / 6, 2: 1 / 6, 3: 1 / 6, 4: 1 / 2} if how == "random" else dict.fromkeys((1, 2, 3), 1 / 3)
    assert set(seen) == set(shares)
    assert all(abs(seen[k] / 600 - share) < 4 * math.sqrt(share / 600) for k, share in shares.items())


@pytest.mark.parametrize(("copies", "clips"), [(3, 3), (3, 9), (37, 9)])
def test_of_videos_that_are_as_alike_the_first_is_taken(copies, clips):
    """Copies of a video, whose likenesses float32 tells apart: each takes the first other, in whatever order."""
    data = world([clips] * copies, [(v, [(1, 2)], [], None) for v in range(copies)])
    for seed in range(5):
        rows = torch.randn(clips, 64, generator=torch.Generator().manual_seed(seed)) + 0.3
        same = replace(data, target=Bank(rows.repeat(copies, 1), data.target.offsets))
        for how in ("similar", "table"):
            for order in (range(copies), range(copies)[::-1]):
                batch = synthesize(torch.tensor(order), same, DRAW, partners=how)
                found = {i: partner_of(batch, copies + 2 * at, same) for at, i in enumerate(order)}
                assert [found[i] for i in range(copies)] == [1] + [0] * (copies - 1)


def test_the_table_reaches_beyond_the_batch_and_is_made_once(monkeypatch):
    """Videos 0 and 3 point one way, 1 and 2 another; a batch of one sample still finds its partner."""
    data = world([5] * 4, [(v, [(2, 4)], [], None) for v in range(4)])
    ways = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat_interleave(5, 0)
    data = replace(data, target=Bank(ways, data.target.offsets))
    looked = []
    gather = Bank.gather
    monkeypatch.setattr(Bank, "gather", lambda bank, rows: looked.append(bank is data.target) or gather(bank, rows))
    for i, k in enumerate((3, 2, 1, 0)):
        batch = synthesize(torch.tensor([i]), data, DRAW, partners="table")
        assert [s.qid for s in batch.samples] == [i, i, k]
        assert not batch.counts["no_partner"].any()
    assert sum(looked) == 1 + 4  # the table; a batch each
    alone = synthesize(torch.tensor([0]), data, DRAW)
    assert alone.counts["no_partner"].tolist() == [1] and len(alone) == 1


def test_the_most_alike_of_all_videos_is_another_however_unlike_they_are():
    """Two that point opposite ways."""
    data = world([5, 5], [(v, [(2, 4)], [], None) for v in range(2)])
    ways = torch.tensor([[1.0, 0.1], [-1.0, 0.1]]).repeat_interleave(5, 0)
    data = replace(data, target=Bank(ways, data.target.offsets))
    assert [s.qid for s in synthesize(torch.tensor([0]), data, DRAW, partners="table").samples] == [0, 0, 1]


def test_originals_are_untouched_whatever_a_clip_lasts():
    data = world([45, 20, 7], [(v, [(v + 0.3, v + 3.1), (4, 5.7)], [], None) for v in range(3)], clip_s=0.7)
    check_originals(data, synthesize(torch.arange(3), data, DRAW), torch.arange(3))


def test_without_originals_only_those_without_a_partner_stay():
    data = world([9, 9, 9], [(0, [(2, 4)], [], None), (1, [(1, 2)], [], None), (2, [], [], None)])
    whole, made = (synthesize(torch.arange(3), data, DRAW, originals=o) for o in (True, False))
    assert made.samples == [data.samples[2], *whole.samples[3:]] and len(whole.samples) == 7
    assert made.counts["no_partner"].tolist() == [1, 0, 0, 0, 0]
    assert torch.equal(made.target[1:, : whole.target.shape[1]], whole.target[3:, : made.target.shape[1]])


def test_the_released_way_cuts_moments_takes_the_next_query_and_the_most_alike_clips():
    """By hand: at 2 s a clip, 3.5 to 12.3 s is from clip 1 to 6 as released, which loses the last 0.3 s, and to 7."""
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
        alike = pair_similarity(data.target.gather(rows), rows >= 0, "top50")
        paired = [i for i in range(len(data)) if not batch.counts["no_partner"][i]]
        for pair, i in enumerate(paired):
            k = partner_of(batch, len(data) + 2 * pair, data)
            others = [j for j in paired if data.video[j] != data.video[i]]
            assert k in others and alike[i, k] > alike[i, others].max() - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partners": "dissim"}, "partners 'dissim'; one of similar, random, table"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, not 1.5"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1, not nan"),
        ({"jitter": -0.1}, "jitter must be from 0 to 1, not -0.1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    data = world([6, 6], [(0, [(1, 3)], [], None), (1, [(1, 3)], [], None)])
    with pytest.raises(ValueError, match=message):
        synthesize(torch.arange(2), data, DRAW, **options)


def test_a_set_without_windows_is_refused():
    bare = world([6, 6], [(0, [(1, 3)], [], None), (1, [(1, 3)], [], None)])
    bare = replace(bare, samples=[replace(s, relevant_windows=None) for s in bare.samples], _annotations=None)
    for augment in (synthesize, synthesize_official):
        with pytest.raises(ValueError, match="worlds train has no annotated windows to keep"):
            augment(torch.arange(2), bare, DRAW)


@pytest.mark.parametrize("options", [{"partners": how} for how in PARTNERS] + [{"augment": "synthesize_official"}])
def test_a_model_learns_from_what_is_made_and_the_record_counts_it(options):
    sizes = {"width": 16, "hidden": 16, "heads": 2, "epochs": 1, "batch_size": 8}
    paper = papers.get("td_detr", "small", **sizes, **{"augment": "synthesize", **options})
    data = papers.open_split(paper, "sim", split="train", n=16)
    history = fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    (row,) = history.rows
    assert row["augment/synthetic"] == 32 and row["augment/no_partner"] == 0
    assert row["augment/moment_clips"] > 0 and math.isfinite(row["loss"])


@pytest.mark.skipif("MRLIB_DATA" not in os.environ, reason="real annotations: set MRLIB_DATA")
def test_the_real_training_set_has_the_known_figures():
    """[TD-DETR, synthesis] Of 7,218 queries the moment is the whole video for 520, and 671 are left no context."""
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
