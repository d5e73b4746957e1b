"""Splicing: a reference in plain Python on the same random numbers, the values of the videos, and statistics."""

import os
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from mrlib.align.saliency import negative_rows
from mrlib.augment import identity
from mrlib.augment.splice import PLACEMENTS, splice, splice_official
from mrlib.data import Bank, MomentDataset, Sample
from mrlib.ops.draw import Draw
from tests.support.worlds import chi_square, odd_windows, real_training_set, world

DRAW = Draw(5, "coldstart", 2)
TIMES = 5000
COUNTS = ("pasted", "dropped", "pasted_mined", "dropped_mined", "kept_no_donor", "kept_no_window")


def odd_world(seed: int) -> MomentDataset:
    dice = random.Random(seed)
    lengths = [dice.choice([1, 2, 3, 7, 20, 45, 75]) for _ in range(dice.choice([1, 2, 5, 8]))]
    mined, scored, annotated = dice.random() < 0.5, dice.random(), []
    for _ in range(dice.choice([1, 2, 30, 60])):
        v = dice.randrange(len(lengths))
        wrong = odd_windows(dice, lengths[v], 3) if mined and dice.random() < 0.7 else []
        ids = [t for t in range(lengths[v] + 2) if dice.random() < 0.6]  # not only in the windows, and after the end
        scores = {t: [dice.randrange(5) for _ in range(3)] for t in ids} if dice.random() < scored else None
        annotated.append((v, odd_windows(dice, lengths[v], 4), wrong, scores))
    return world(lengths, annotated, clip_s=dice.choice([1.0, 2.0]), late=2)


def windows_of(data: MomentDataset, donor: int) -> list[tuple[int, int, bool]]:
    """(first clip, number of clips, mined) of every window, in the order of pasting."""
    sample, n = data.samples[donor], int(data.target.lengths[data.video[donor]])
    windows = [(w, False) for w in sample.relevant_windows] + [(w, True) for w in sample.extra.get("wrong_spans", [])]
    clips = [(int(min(a / data.clip_s, n - 1)), int(min(b / data.clip_s, n)), mined) for (a, b), mined in windows]
    return sorted(((a, b - a, mined) for a, b, mined in clips), key=lambda w: (w[0], w[2]))


def reference_pastes(data: MomentDataset, i: int, donor: int, placement: str) -> list[tuple[int, int, int]]:
    """(index of the window, first clip in the background, number of clips) of every paste, on the numbers of `DRAW`."""
    windows, L = windows_of(data, donor), int(data.target.lengths[data.video[i]])
    length = DRAW("length", torch.tensor([i]), len(windows))[0].tolist()
    if placement == "official":
        place, begin, pastes = DRAW("place", torch.tensor([i]), len(windows))[0].tolist(), 0, []
        for k, (_, m, _) in enumerate(windows):
            if begin > L - m:
                break
            begin += int(place[k] * (L - m - begin + 1))
            r = 1 + int(length[k] * m)
            pastes.append((k, begin, r))
            begin += r + 1
        return pastes if any(not windows[k][2] for k, _, _ in pastes) else []
    r = {k: 1 + int(length[k] * min(m, L)) for k, (_, m, _) in enumerate(windows)}
    while sum(r.values()) + len(r) - 1 > L:
        mined = [k for k in r if windows[k][2]]
        del r[max(mined or r, key=lambda k: r[k])]
    g = L - sum(r.values()) - (len(r) - 1)
    u = DRAW("place", torch.tensor([i]), g + len(r))[0].tolist()
    offsets = [x - rank for rank, x in enumerate(sorted(sorted(range(g + len(r)), key=lambda x: u[x])[: len(r)]))]
    pastes, before = [], 0
    for offset, k in zip(offsets, sorted(r), strict=True):
        pastes.append((k, offset + before, r[k]))
        before += r[k] + 1
    return pastes


def check_kept(data: MomentDataset, batch, i: int, row: int) -> None:
    """The row is sample i unchanged."""
    single, n = identity(torch.tensor([i]), data, DRAW), int(batch.lengths[row])
    W = single.labels.spans.shape[1]
    assert torch.equal(batch.target[row, :n], single.target[0])
    assert torch.equal(batch.query[row, batch.query_mask[row]], single.query[0])
    assert torch.equal(batch.labels.spans[row, :W], single.labels.spans[0])
    assert batch.labels.span_mask[row].sum() == W
    for name in ("relevant", "saliency", "saliency_mask") + ("wrong",) * data.mined:
        labels, expected = getattr(batch.labels, name)[row], getattr(single.labels, name)[0]
        assert torch.equal(labels[:n] if labels.dim() else labels, expected)
        assert not labels.dim() or not labels[n:].any()
    reason = batch.samples[row].extra["kept"]
    assert batch.samples[row] == replace(data.samples[i], extra=data.samples[i].extra | {"kept": reason})
    assert reason == ("no donor" if batch.counts["kept_no_donor"][row] else "no window had room")


def check_spliced(data: MomentDataset, batch, i: int, row: int, placement: str) -> Counter:
    """Clips, labels and record follow from the donor's annotation and the reference pastes; returns the counts."""
    sample, background = batch.samples[row], data.samples[i]
    donor, n, labels = data.samples[sample.qid], int(batch.lengths[row]), batch.labels
    video, windows = int(data.video[donor.qid]), windows_of(data, donor.qid)
    assert donor.vid == sample.extra["donor"] and (sample.query, sample.vid) == (donor.query, background.vid)
    assert donor.qid != i and (placement == "official" or donor.vid != background.vid)
    pasted, expected = sample.extra["pasted"], reference_pastes(data, i, donor.qid, placement)
    assert [(a, len(clips)) for a, clips in pasted] == [(a, r) for _, a, r in expected]
    for (_, before, r), (_, after, _) in zip(expected, expected[1:], strict=False):
        assert after > before + r  # a clip of background between them

    target = [[int(data.video[i]), t] for t in range(n)]
    spans, relevant, wrong, saliency, windows_s, wrong_s, annotators = [], [0] * n, [0] * n, [0] * n, [], [], {}
    for (k, a, r), (_, clips) in zip(expected, pasted, strict=True):
        first, m, mined = windows[k]
        assert clips == sorted(set(clips)) and set(clips) <= set(range(first, first + m))
        (wrong_s if mined else windows_s).append([min(t * data.clip_s, sample.duration) for t in (a, a + r)])
        spans += [] if mined else [[a / n, (a + r) / n]]
        for t, clip in enumerate(clips, a):
            target[t] = [video, clip]
            (wrong if mined else relevant)[t] = 1
            score = dict(zip(donor.relevant_clip_ids or [], donor.saliency_scores or [], strict=True)).get(clip)
            if score and not mined:
                annotators[t], saliency[t] = score, sum(score)
    assert batch.target[row, :n].int().tolist() == target
    assert set(batch.query[row, batch.query_mask[row]].flatten().tolist()) == {donor.qid}
    W = int(labels.span_mask[row].sum())
    torch.testing.assert_close(labels.spans[row, :W], torch.tensor(spans))
    assert not labels.span_mask[row, W:].any() and labels.span_mask[row, :W].all()
    assert labels.relevant[row].nonzero().flatten().tolist() == [t for t in range(n) if relevant[t]]
    assert labels.saliency[row, :n].tolist() == saliency and not labels.saliency[row, n:].any()
    assert bool(labels.saliency_mask[row]) == (donor.saliency_scores is not None)
    if data.mined:
        assert labels.wrong[row].nonzero().flatten().tolist() == [t for t in range(n) if wrong[t]]
    else:
        assert labels.wrong is None
    assert sample.relevant_windows == windows_s and sample.extra.get("wrong_spans", []) == wrong_s
    if donor.relevant_clip_ids is None:
        assert sample.relevant_clip_ids is sample.saliency_scores is None
    else:
        assert dict(zip(sample.relevant_clip_ids, sample.saliency_scores, strict=True)) == annotators
    placed = Counter(windows[k][2] for k, _, _ in expected)
    return Counter(
        pasted=placed[False],
        pasted_mined=placed[True],
        dropped=sum(not w[2] for w in windows) - placed[False],
        dropped_mined=sum(w[2] for w in windows) - placed[True],
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_clips_labels_and_records_equal_the_reference(placement):
    """More than a thousand samples with unusual windows.  [AMR, splice]"""
    totals = Counter()
    for seed in range(100):
        data = odd_world(seed)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        batch = splice(order, data, DRAW, placement=placement)
        assert set(batch.counts) == set(COUNTS)
        assert torch.equal(batch.lengths, data.target.lengths[data.video[order]])
        assert not batch.target[~batch.target_mask].any()
        assert torch.equal(batch.video, data.video[order])
        for row, i in enumerate(order.tolist()):
            counts = Counter({name: int(x[row]) for name, x in batch.counts.items()})
            if "kept" in batch.samples[row].extra:
                check_kept(data, batch, i, row)
                assert counts["pasted"] == counts["pasted_mined"] == 0
                assert counts["kept_no_donor"] + counts["kept_no_window"] == 1
            else:
                assert counts == check_spliced(data, batch, i, row, placement)
            totals += counts + Counter(samples=1)
        check_negatives(data, batch)
    assert totals["samples"] > 1500
    assert all(totals[name] > 0 for name in COUNTS if (placement, name) != ("uniform", "kept_no_window")), totals
    assert placement == "official" or not totals["kept_no_window"]


def check_negatives(data: MomentDataset, batch) -> None:
    """The negative is the next row, or -1 if its query concerns a video that is shown."""
    assert torch.equal(negative_rows(batch), batch.labels.negative)
    shown = [{s.vid, s.extra.get("donor", s.vid)} for s in batch.samples]
    for row, negative in enumerate(batch.labels.negative.tolist()):
        next_row = (row + 1) % len(batch)
        next_video = data.samples[batch.samples[next_row].qid].vid
        assert negative == (-1 if next_video in shown[row] else next_row)


def test_the_samples_of_a_batch_agree_with_its_labels():
    """A dataset of the spliced videos and their samples has the labels of the batch."""
    for seed in range(30):
        data = odd_world(seed)
        data = replace(data, samples=[replace(s, duration=s.duration - 2 * data.clip_s) for s in data.samples])
        batch = splice(torch.arange(len(data)), data, DRAW)
        spliced = [i for i, s in enumerate(batch.samples) if "kept" not in s.extra]
        if not spliced:
            continue
        reopened = replace(
            data,
            samples=[batch.samples[i] for i in spliced],
            target=Bank.from_arrays([batch.target[i, : batch.lengths[i]].numpy() for i in spliced]),
            video=torch.arange(len(spliced)),
            query_item=torch.tensor([batch.samples[i].qid for i in spliced]),
            _annotations=None,
        )
        expected, T = reopened.batch(range(len(spliced))), int(batch.lengths[spliced].max())
        assert torch.equal(expected.target, batch.target[spliced, :T])
        W = expected.labels.spans.shape[1]
        torch.testing.assert_close(expected.labels.spans, batch.labels.spans[spliced, :W])
        assert torch.equal(expected.labels.relevant, batch.labels.relevant[spliced, :T])
        assert torch.equal(expected.labels.saliency, batch.labels.saliency[spliced, :T])
        assert torch.equal(expected.labels.saliency_mask, batch.labels.saliency_mask[spliced])
        if reopened.mined:
            assert torch.equal(expected.labels.wrong, batch.labels.wrong[spliced, :T])


def many_of_one_background(background: int, windows: list[tuple[int, int]]) -> MomentDataset:
    """TIMES samples of one background, and the only possible donor, of 20 clips, with some windows."""
    data = world([background, 20], [(0, [(0, 1)], [], None), (1, windows, [], None)])
    return data.subset([*[0] * TIMES, 1])


def test_all_layouts_are_equally_likely_for_given_lengths():
    """All starts of three pastes with at least a clip between them. Chance exceeds the limits once in a thousand."""
    data = many_of_one_background(8, [(2, 4), (5, 6), (9, 11)])
    layouts = {}
    for sample in splice(torch.arange(TIMES), data, DRAW).samples:
        pastes = sample.extra["pasted"]
        lengths = tuple(len(clips) for _, clips in pastes)
        layouts.setdefault(lengths, Counter())[tuple(a for a, _ in pastes)] += 1
    assert sorted(layouts) == [(1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2)]
    limits = {20: 45.31, 10: 29.59, 4: 16.27}
    for (x, y, z), starts in layouts.items():
        outcomes = [(a, b, c) for a, b, c in combinations(range(8), 3) if b > a + x and c > b + y and c + z <= 8]
        assert chi_square(starts, outcomes) < limits[len(outcomes)], (x, y, z)


def test_lengths_and_clips_of_a_window_are_uniform():
    """A window of six clips in a background of four: 1 to 4 clips, and any 2 of the 6 equally often."""
    samples = splice(torch.arange(TIMES), many_of_one_background(4, [(3, 9)]), DRAW).samples
    clips = [tuple(s.extra["pasted"][0][1]) for s in samples[:TIMES]]
    assert chi_square(Counter(map(len, clips)), [1, 2, 3, 4]) < 16.27
    pairs = Counter(pair for pair in clips if len(pair) == 2)
    assert chi_square(pairs, list(combinations(range(3, 9), 2))) < 36.12


def test_overlapping_windows_choose_their_clips_independently():
    """A window of two clips, annotated twice: the clips of two pastes of one clip are four pairs, equally likely."""
    samples = splice(torch.arange(TIMES), many_of_one_background(9, [(3, 5), (3, 5)]), DRAW).samples[:TIMES]
    pairs = Counter(tuple(c for _, (c, *_) in s.extra["pasted"]) for s in samples if pastes_of_one_clip(s))
    assert chi_square(pairs, [(3, 3), (3, 4), (4, 3), (4, 4)]) < 16.27


def pastes_of_one_clip(sample: Sample) -> bool:
    return all(len(clips) == 1 for _, clips in sample.extra["pasted"])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_allowed_donor_is_equally_likely(placement):
    """Of four samples in turn the first two are of one video. A donor is any sample of another video; in the released
    placement, any other sample."""
    data = world([9, 9, 9], [(max(0, i % 4 - 1), [(0, 1)], [], None) for i in range(8000)])
    donors = [s.qid for s in splice(torch.arange(8000), data, DRAW, placement=placement).samples]
    assert all(donor != i for i, donor in enumerate(donors))
    for turn in range(4):
        allowed = [k for k in range(4) if placement == "official" or max(0, k - 1) != max(0, turn - 1)]
        frequencies = Counter((donor % 4, donor // 2000) for donor in donors[turn::4])
        limit = {8: 24.32, 12: 31.26, 16: 37.70}[4 * len(allowed)]
        assert chi_square(frequencies, [(k, quarter) for k in allowed for quarter in range(4)]) < limit


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_spliced_sample_does_not_depend_on_the_rest_of_its_batch(placement):
    data = odd_world(16)
    assert len(data) > 10 and len(set(data.target.lengths.tolist())) > 2
    whole = splice(torch.arange(len(data)), data, DRAW, placement=placement)
    order = torch.tensor([7, 3, 3, 0, 9])
    mixed = splice(order, data, DRAW, placement=placement)
    for row, i in enumerate(order.tolist()):
        alone = splice(torch.tensor([i]), data, DRAW, placement=placement)
        for batch, position in ((mixed, row), (whole, i)):
            n, W = int(alone.lengths[0]), alone.labels.spans.shape[1]
            assert batch.samples[position] == alone.samples[0]
            assert torch.equal(batch.target[position, :n], alone.target[0])
            assert torch.equal(batch.labels.spans[position, :W], alone.labels.spans[0])
            assert torch.equal(batch.labels.saliency[position, :n], alone.labels.saliency[0])
            assert torch.equal(batch.labels.wrong[position, :n], alone.labels.wrong[0])
            assert all(batch.counts[name][position] == alone.counts[name][0] for name in COUNTS)
    next_epoch = splice(torch.arange(len(data)), data, Draw(5, "coldstart", 3), placement=placement)
    assert next_epoch.samples != whole.samples


def test_splice_official_is_splice_with_the_official_placement():
    data = odd_world(16)
    expected = splice(torch.arange(4), data, DRAW, placement="official")
    assert splice_official(torch.arange(4), data, DRAW).samples == expected.samples


def test_the_official_placement_favours_late_moments_and_the_uniform_one_does_not():
    """Two windows of three clips in forty: the share of centres in the first tenth of the video and in the last."""
    data = world([40, 40], [(i % 2, [(0, 3), (10, 13)], [], None) for i in range(TIMES)])
    early, late = {}, {}
    for placement in PLACEMENTS:
        labels = splice(torch.arange(TIMES), data, DRAW, placement=placement).labels
        centres = (40 * labels.spans[labels.span_mask]).round().mean(-1)
        early[placement], late[placement] = (float(x.float().mean()) for x in (centres < 4, centres > 36))
    assert abs(early["uniform"] - late["uniform"]) < 0.01
    assert late["official"] > 2 * early["official"]


def test_without_a_donor_samples_are_unchanged():
    data = world([6], [(0, [(1, 3)], [(4, 5)], {1: [4, 4, 4]}), (0, [(2, 5)], [], None)])
    batch = splice(torch.arange(2), data, DRAW)
    assert torch.equal(batch.target, identity(torch.arange(2), data, DRAW).target)
    assert batch.counts["kept_no_donor"].tolist() == [1, 1]
    assert [s.extra["kept"] for s in batch.samples] == ["no donor"] * 2
    assert splice_official(torch.arange(2), data, DRAW).counts["kept_no_donor"].tolist() == [0, 0]
    alone = splice_official(torch.arange(1), data.subset([0]), DRAW)
    assert alone.counts["kept_no_donor"].tolist() == [1] and alone.labels.wrong[0].nonzero().tolist() == [[4]]


def test_unknown_placements_and_sets_without_windows_are_refused():
    bare = world([6, 6], [(0, [(1, 3)], [], None), (1, [(1, 3)], [], None)])
    with pytest.raises(ValueError, match="placement must be one of uniform, official, not 'random'"):
        splice(torch.arange(2), bare, DRAW, placement="random")
    bare = replace(bare, samples=[replace(s, relevant_windows=None) for s in bare.samples], _annotations=None)
    with pytest.raises(ValueError, match="worlds train has no annotated windows to splice"):
        splice(torch.arange(2), bare, DRAW)


def test_a_slice_of_a_batch_keeps_its_counts():
    batch = splice(torch.arange(12), odd_world(16), DRAW)
    rows = batch[2::5].to("cpu")
    assert {name: x.tolist() for name, x in rows.counts.items()} == {
        name: x.tolist()[2::5] for name, x in batch.counts.items()
    }


def figures(data: MomentDataset, placement: str) -> dict[str, float]:
    """Percentages, and the mean length in clips."""
    batches = [splice(indices, data, DRAW, placement=placement) for indices in torch.arange(len(data)).split(512)]
    count = {name: sum(int(b.counts[name].sum()) for b in batches) for name in COUNTS}
    n = torch.cat([b.lengths[:, None].expand(b.labels.span_mask.shape)[b.labels.span_mask] for b in batches])
    spans = (torch.cat([b.labels.spans[b.labels.span_mask] for b in batches]) * n[:, None]).round()
    clips, ends = spans.diff(dim=1), 5 * spans.sum(1)  # five times both ends: ten times the centre
    lost = sum(int(((b.counts["dropped"] > 0) & (b.counts["pasted"] > 0)).sum()) for b in batches)
    return {
        "placed": 100 * count["pasted"] / (count["pasted"] + count["dropped"]),
        "lose one": 100 * lost / (len(data) - count["kept_no_window"]),
        "first tenth": 100 * float((ends < n).double().mean()),
        "last tenth": 100 * float((ends >= 9 * n).double().mean()),
        "length": float(clips.mean()),
        "short": 100 * float((clips <= 5).double().mean()),
        "covered": 100
        * sum(int(b.labels.relevant.sum()) for b in batches)
        / sum(int(b.lengths.sum()) for b in batches),
    }


@pytest.mark.skipif("MRLIB_DATA" not in os.environ, reason="real annotations: set MRLIB_DATA")
def test_on_real_annotations_the_official_placement_has_the_figures_of_the_release():
    """The expected figures are from ten passes of the released algorithm, these from one. The uniform placement has no
    bias."""
    data = real_training_set()
    official, uniform = (figures(data, placement) for placement in ("official", "uniform"))
    print(f"\nofficial {official}\nuniform  {uniform}")
    expected = {"placed": 82.7, "lose one": 11.6, "first tenth": 5.1, "last tenth": 12.4}
    expected |= {"length": 7.3, "short": 59.7, "covered": 14.3}
    spread = {"placed": 1.5, "lose one": 1.4, "first tenth": 0.3, "last tenth": 1.0}  # three deviations of a pass
    spread |= {"length": 0.36, "short": 1.5, "covered": 0.7}
    for name, figure in expected.items():
        assert abs(official[name] - figure) < spread[name], name
    assert abs(uniform["first tenth"] - uniform["last tenth"]) < 1.5  # a centre on a border counts upwards
    assert uniform["placed"] > 99
