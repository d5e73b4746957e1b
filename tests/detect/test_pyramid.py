"""SnAG's pyramid: points, window_of_point, layers, losses and decoding against enumeration and plain loops."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mrlib import papers
from mrlib.align import Aligned
from mrlib.align.words import Words
from mrlib.data import Widths
from mrlib.detect.pyramid import (
    Block,
    Fusion,
    LocalAttention,
    PyramidDetector,
    Trunk,
    focal_loss,
    points,
    window_of_point,
)
from mrlib.train import fit
from tests.support.batches import alone, make_batch
from tests.support.modules import shaken
from tests.support.worlds import world

LENGTHS = [9, 4, 12, 1]
WIDTHS = Widths(24, 12, 16)
QUICK = {"width": 16, "hidden": 16, "heads": 2, "levels": 3}
RANGES = [(0, 8), (4, 16), (8, 32), (16, 64), (32, 128), (64, math.inf)]  # [SnAG] clips


def aligned_of(batch, width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(*batch.target_mask.shape, width, generator=g)
    query = torch.randn(*batch.query_mask.shape, width, generator=g)
    return Aligned(target, batch.target_mask, query, batch.query_mask, query[:, 0])


def detector_of(seed=0, **options):
    """A small detector whose blocks have large scales, and whose bias gives moments a length."""
    torch.manual_seed(seed)
    detector = PyramidDetector(8, **{"levels": 3, "heads": 2, "hidden": 16, "dropout": 0.0} | options)
    for module in detector.modules():
        if isinstance(module, Block):
            nn.init.normal_(module.scale)
    nn.init.constant_(detector.offset.bias, 1.0)
    return detector.eval()


def points_by_hand(T, levels):
    """(level, clip) of every point; None for the padded one behind a level."""
    grid = []
    for level in range(levels):
        grid += [(level, x) for x in range(0, T, 2**level)] + [None]
    return grid


@pytest.mark.parametrize("T", [1, 2, 7, 8, 33])
def test_points_of_a_level_are_one_stride_apart(T):
    """[SnAG] In the middle of every clip, of every second, of every fourth, ...; a padded point ends a level."""
    level, point = points(T, 4)
    expected = points_by_hand(T, 4)
    assert len(level) == len(point) == len(expected)
    for i, place in enumerate(expected):
        assert place is None or (level[i].item(), point[i].item()) == place


def positive_by_hand(x, level, levels, windows):
    """[SnAG] The shortest window for which the point is positive, in clips from the middle of the first, or None."""
    low, high = RANGES[level]
    high = math.inf if level == levels - 1 else high
    fitting = []
    for start, end in windows:
        middle, reach = (start + end) / 2, 1.5 * 2**level
        within = max(start, middle - reach) < x < min(end, middle + reach)
        if within and low <= max(x - start, end - x) < high:
            fitting.append((end - start, start, end))
    return min(fitting)[1:] if fitting else None


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_targets_equal_their_definition(levels):
    """[SnAG] Sixty videos of up to 150 clips with up to 25 overlapping windows, on the grid of clips or off it."""
    g, positives = torch.Generator().manual_seed(0), 0
    for trial in range(60):
        n, W = (int(torch.randint(1, most, (1,), generator=g)) for most in (151, 26 if trial % 3 else 2))
        ends = torch.rand(W, 2, generator=g, dtype=torch.float64).sort(-1).values * n
        if trial % 2:
            first = ends[:, 0].floor()
            ends = torch.stack([first, ends[:, 1].ceil().maximum(first + 1)], -1)
        mask = torch.rand(W, generator=g) < 0.8
        level, point = points(n, levels)
        positive, truth = window_of_point(
            (ends / n).float()[None], mask[None], torch.tensor([float(n)]), level, point, levels
        )
        windows = [(s - 0.5, e - 0.5) for s, e in ends[mask].tolist()]
        for i, place in enumerate(points_by_hand(n, levels)):
            if place is None:
                continue
            expected = positive_by_hand(place[1], place[0], levels, windows)
            positives += expected is not None
            assert positive[0, i] == (expected is not None)
            if expected is not None:  # of equally short windows, any that fits
                start, end = (truth[0, i].double() * n - 0.5).tolist()
                assert end - start == pytest.approx(expected[1] - expected[0], abs=1e-4)
                assert positive_by_hand(place[1], place[0], levels, [(start, end)]) is not None
    assert positives > 100


def test_targets_of_a_short_a_long_and_two_nested_windows():
    """By hand: 32 clips on four levels."""
    level, point = points(32, 4)
    windows = torch.tensor([[[5, 6], [0, 32]], [[8, 16], [8, 24]]]) / 32
    positive, truth = window_of_point(windows, torch.ones(2, 2).bool(), torch.tensor([32.0, 32.0]), level, point, 4)
    rows = [
        [(level[i].item(), point[i].item(), [round(x * 32) for x in truth[b, i].tolist()]) for i in row]
        for b, row in enumerate([positive[b].nonzero()[:, 0].tolist() for b in range(2)])
    ]
    whole, short, long = [0, 32], [8, 16], [8, 24]
    assert rows[0] == [(0, 5, [5, 6])] + [(2, x, whole) for x in (12, 16, 20)] + [
        (3, 8, whole),
        (3, 16, whole),
        (3, 24, whole),
    ]
    assert [row for row in rows[1] if row[0] == 0] == [(0, x, short) for x in (11, 12)]
    assert [row for row in rows[1] if row[0] == 1] == [
        (1, 10, short),
        (1, 12, short),
        (1, 14, short),
        (1, 16, long),
        (1, 18, long),
    ]


def test_borders_of_windows_radius_and_ranges_belong_to_one_side():
    """[SnAG] A point on an end of its window is outside; 4 clips away belong to level 1 too, 8 no longer to level 0."""
    level, point = points(16, 3)
    windows = {(2.5, 4.5): {(0, 3)}, (2.5, 8.5): {(0, 4), (0, 5), (0, 6), (1, 4), (1, 6)}}
    windows |= {(0.5, 14.5): {(0, 7), (1, 6), (1, 8), (2, 4), (2, 8), (2, 12)}}
    for window, expected in windows.items():
        spans, mask = torch.tensor([[window]]) / 16, torch.ones(1, 1, dtype=torch.bool)
        positive, _ = window_of_point(spans, mask, torch.tensor([16.0]), level, point, 3)
        assert {(level[i].item(), int(point[i])) for i in positive[0].nonzero()[:, 0]} == expected


def test_branches_of_a_block_start_small_and_there_are_six_levels():
    """[SnAG] Their scale is 0.0001; strides from 1 to 32."""
    detector = PyramidDetector(8)
    assert [block.stride for block in detector.blocks] == [1, 2, 2, 2, 2, 2] and detector.levels == 6
    for block in (detector.stem_block, *detector.blocks):
        torch.testing.assert_close(block.scale, torch.full((2, 8), 1e-4))


def test_local_attention_is_attention_to_the_two_neighbours_on_either_side():
    """[SnAG] Place by place, against torch's attention."""
    torch.manual_seed(0)
    module, reference = LocalAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    reference.load_state_dict(module.state_dict())
    q, k, v = torch.randn(3, 4, 12, 8)
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    attended = module(q, k, v, mask)
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            near = slice(max(0, t - 2), min(n, t + 3))
            expected, _ = reference(q[b : b + 1, t : t + 1], k[b : b + 1, near], v[b : b + 1, near])
            torch.testing.assert_close(attended[b, t], expected[0, 0])


def neighbours(x, i):
    """The three places around i; zeros before the first and after the last."""
    return [x[j] if 0 <= j < len(x) else torch.zeros_like(x[0]) for j in (i - 1, i, i + 1)]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_its_definition(stride):
    """[SnAG] q, k, v are convolved channel by channel; with a stride the maximum of three; branches are scaled."""
    torch.manual_seed(0)
    block, mask = Block(8, 2, 16, 0.0, stride), torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    nn.init.normal_(block.scale)
    x = torch.randn(4, 12, 8) - 3  # padding would win the maximum if it counted as zero
    y_all, y_mask = block(x, mask)
    kernel = block.conv.weight.reshape(8, 3, 3)  # channel, q k v, place
    for b, n in enumerate(LENGTHS):
        y, places = block.norm1(x[b, :n]), range(0, n, stride)
        assert y_mask[b].tolist() == [i < len(places) for i in range(-(-12 // stride))]
        q, k, v = (
            block.norms[j](
                torch.stack([sum(kernel[:, j, o] * y_o for o, y_o in enumerate(neighbours(y, i))) for i in places])
            )[None]
            for j in range(3)
        )
        residual = torch.stack(
            [x[b, max(0, i - 1) : min(n, i + 2)].amax(0) if stride == 2 else x[b, i] for i in places]
        )
        z = residual + block.scale[0] * block.local_attn(q, k, v, torch.ones(1, len(places)).bool())[0]
        expected = z + block.scale[1] * block.feed_forward(block.norm2(z))
        torch.testing.assert_close(y_all[b, : len(places)], expected, rtol=1e-4, atol=1e-5)


def test_fusion_scales_and_shifts_every_place_by_attention_to_the_words():
    """[SnAG] Place by place."""
    torch.manual_seed(0)
    layer, batch = Fusion(8, 2, 16, 0.0), make_batch(LENGTHS, words=6)
    aligned = aligned_of(batch)
    x, words = aligned.target, Words(aligned.query, aligned.query, batch.query_mask)
    fused = layer(x, batch.target_mask, words)
    attend = layer.cross_attn
    for b, n in enumerate(LENGTHS):
        y, keys = layer.norm1(x[b, :n]), layer.norm_words(aligned.query[b, batch.query_mask[b]])
        for i in range(n):
            q = sum(layer.conv.weight[:, 0, o] * y_o for o, y_o in enumerate(neighbours(y, i)))
            scale, shift = attend(q[None, None], keys[None], keys[None])[0, 0].split(8)
            z = x[b, i] * scale + shift
            torch.testing.assert_close(fused[b, i], z + layer.feed_forward(layer.norm2(z)), rtol=1e-4, atol=1e-5)


def heads_by_hand(detector, levels):
    """Logit, start and end in clips of every point of one sample (P, 3), from each level alone."""
    rows = []
    for level, fused in enumerate(levels):
        all_real = torch.ones(1, fused.shape[1], dtype=torch.bool)
        logit = detector.logit(detector.foreground(fused, all_real).mT)[0, 0]
        offset = (detector.scales[level] * detector.offset(detector.boundary(fused, all_real).mT)[0].T).relu()
        for i in range(fused.shape[1]):
            middle = i * 2**level + 0.5
            ends = (middle - offset[i, 0] * 2**level, middle + offset[i, 1] * 2**level)
            rows.append(torch.stack([logit[i], *ends]))
    return torch.stack(rows)


@pytest.mark.parametrize("beta", [None, 0.6])
@torch.no_grad()
def test_levels_share_weights_but_not_values(beta):
    """[SnAG], [TD-DETR Eq. 6] Against each sample and level alone; a level has its own start and scale."""
    detector, batch = detector_of(beta=beta), make_batch(LENGTHS, words=6, pad_to=13)
    nn.init.uniform_(detector.scales, 0.5, 2.0)
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    for b, n in enumerate(LENGTHS):
        all_real = torch.ones(1, n, dtype=torch.bool)
        query = aligned.query[b : b + 1, batch.query_mask[b]]
        words, fused = Words(query, query, torch.ones(1, query.shape[1], dtype=torch.bool)), []
        for level, (x, mask) in enumerate(detector.pyramid(aligned.target[b : b + 1, :n], all_real)):
            assert mask.all() and x.shape[1] == len(range(0, n, 2**level))
            if beta is not None:
                before = torch.cat([detector.start.weight[level][None, None], x[:, :-1]], 1)
                attended = detector.mix.attend(detector.mix.project(x - before).relu(), query, query)
                x = beta * x + (1 - beta) * attended
            for layer in detector.fusion:
                x = layer(x, mask, words)
            fused.append(detector.norm(x))
        expected = heads_by_hand(detector, fused)
        real = outputs["mask"][b]
        assert real.tolist() == [p is not None and p[1] < n for p in points_by_hand(13, 3)]
        torch.testing.assert_close(outputs["logits"][b, real], expected[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs["spans"][b, real] * n, expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_the_stem_adds_positions_to_the_clips():
    """[SnAG] Two convolutions, then sines and cosines of the clip's index over the root of the width, then a block."""
    detector, batch = detector_of(), make_batch(LENGTHS)
    x, mask = aligned_of(batch).target, batch.target_mask
    positions = torch.zeros(12, 8)
    for i in range(12):
        for m in range(4):
            angle = i / 10000 ** (2 * m / 8)
            positions[i, 2 * m], positions[i, 2 * m + 1] = math.sin(angle) / 8**0.5, math.cos(angle) / 8**0.5
    expected = detector.stem_block(detector.stem(x, mask) + positions, mask)
    for block, (level, level_mask) in zip(detector.blocks, detector.pyramid(x, mask), strict=True):
        expected = block(*expected)
        assert torch.equal(level_mask, expected[1])
        torch.testing.assert_close(level[level_mask], expected[0][level_mask])


def test_the_levels_do_not_depend_on_the_query():
    """[SnAG] Fusion is late, so that the levels of a video can be reused for other queries."""
    detector, batch = detector_of(beta=0.7), make_batch([9, 9])
    aligned = aligned_of(batch)
    last_levels = []
    detector.blocks[-1].register_forward_hook(lambda module, inputs, output: last_levels.append(output[0]))
    logits = detector(aligned, batch)["logits"]
    flipped = detector(replace(aligned, query=aligned.query.flip(0)), batch)["logits"]
    assert torch.equal(*last_levels) and not torch.allclose(logits, flipped)


def test_focal_loss_equals_its_definition():
    """[SnAG] Smoothed labels 0.9 and 0.1, weight one half, the squared error as a factor."""
    logits = torch.tensor([2.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, False, True, False])
    expected = []
    for z, label in zip(logits.tolist(), positive.tolist(), strict=True):
        p, y = 1 / (1 + math.exp(-z)), 0.9 if label else 0.1
        p_y = p * y + (1 - p) * (1 - y)
        expected.append(-0.5 * (1 - p_y) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p)))
    assert focal_loss(logits, positive).tolist() == pytest.approx(expected)


def test_losses_are_the_sums_of_the_definition():
    """[SnAG] Point by point; the distance IoU of spans in clips, since it does not depend on the unit."""
    windows = [[(2, 5), (6, 8)], [(0, 4)], [(0, 12), (3, 4)], [(0, 1)]]
    batch, detector = make_batch(LENGTHS, windows=windows), detector_of()
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    focal = distance = count = 0.0
    for b, n in enumerate(LENGTHS):
        for i, place in enumerate(points_by_hand(12, 3)):
            if place is None or place[1] >= n:
                continue
            truth = positive_by_hand(place[1], place[0], 3, [(s - 0.5, e - 0.5) for s, e in windows[b]])
            focal += focal_loss(outputs["logits"][b, i].double(), torch.tensor(truth is not None)).item()
            if truth is not None:
                (s, e), (c, d) = truth, (outputs["spans"][b, i].double() * n - 0.5).tolist()
                shared, hull = max(0.0, min(e, d) - max(s, c)), max(e, d) - min(s, c)
                union = e - s + d - c - shared
                distance += 1 - shared / union + ((s + e - c - d) / 2 / hull) ** 2
                count += 1
    assert count > 10
    terms = detector.losses(outputs, aligned, batch)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {"focal": focal / count, "diou": distance / count}, rel=1e-4
    )


@torch.no_grad()
def test_moments_are_those_of_a_plain_loop():
    """[SnAG] Short and unlikely moments dropped, soft suppression, voting; the second video ends a second before its
    features do, the first one after them."""
    batch, detector = make_batch(LENGTHS), detector_of()
    batch = replace(batch, duration_s=torch.tensor([19.0, 7.0, 24.0, 2.0]))
    outputs = detector(aligned_of(batch), batch)
    outputs["logits"][0, ::3] = -7.0  # a score below 0.001
    outputs["spans"][2, ::4] = outputs["spans"][2, ::4].mean(-1, keepdim=True)
    outputs["spans"][2, 1::4] = outputs["spans"][2, 1] + 0.001 * torch.rand(outputs["spans"][2, 1::4].shape)
    outputs["spans"][2, 3] = torch.tensor([0.3, 0.3 + 0.09 / 12])  # below a tenth of a clip
    outputs["spans"][2, 7] = torch.tensor([0.6, 0.6 + 0.11 / 12])
    # three nearly equal moments, of which one is too unlikely to vote
    outputs["spans"][3, outputs["mask"][3]] = torch.tensor([[0.0, 0.5], [0.0, 0.51], [0.01, 0.5]])
    outputs["logits"][3, outputs["mask"][3]] = torch.tensor([0.0014, 0.0009, 0.0011]).logit()
    moments = detector.decode(outputs, batch)
    for b, n in enumerate(LENGTHS):
        last, candidates = min(1.0, batch.duration_s[b].item() / (2 * n)), []
        for z, (s, e), real in zip(*(outputs[k][b].tolist() for k in ("logits", "spans", "mask")), strict=True):
            s, e, p = min(max(s, 0.0), last), min(max(e, 0.0), last), 1 / (1 + math.exp(-z))
            if real and p > 0.001 and (e - s) * n > 0.1:
                candidates.append((p, s, e))
        overlap = lambda a, b: max(0.0, min(a[2], b[2]) - max(a[1], b[1])) / (max(a[2], b[2]) - min(a[1], b[1]))  # noqa: E731
        left, expected = sorted(candidates, reverse=True), []
        while left and len(expected) < 10:
            best = max(left)
            left = [
                (p * math.exp(-(overlap(best, (p, s, e)) ** 2) / 0.9), s, e) for p, s, e in left if (p, s, e) != best
            ]
            left = [x for x in left if x[0] > 0.001]
            votes = [x for x in candidates if overlap(best, x) >= 0.95]
            total = sum(p for p, _, _ in votes)
            expected.append([sum(x[0] * x[k] for x in votes) / total for k in (1, 2)] + [best[0]])
        decoded = torch.cat([moments.spans[b], moments.scores[b, :, None]], -1)[moments.mask[b]]
        torch.testing.assert_close(decoded, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert moments.scores[b].tolist() == sorted(moments.scores[b].tolist(), reverse=True)


def test_only_the_two_thousand_most_likely_moments_are_candidates():
    """Equal moments lower one another's scores, so that another candidate would come second."""
    batch, detector = make_batch([12]), detector_of()
    logits, mask = torch.linspace(1, 0.9, 2100)[None], torch.ones(1, 2100, dtype=torch.bool)
    for place, second in ((2000, 0.0), (1999, 0.5)):
        spans = torch.tensor([0.0, 0.25]).repeat(1, 2100, 1)
        spans[0, place] = torch.tensor([0.5, 0.75])
        moments = detector.decode({"logits": logits, "spans": spans, "mask": mask}, batch)
        assert moments.spans[0, 1, 0].item() == pytest.approx(second)


@pytest.mark.parametrize("beta", [None, 0.7])
@torch.no_grad()
def test_predictions_do_not_depend_on_labels_other_samples_or_padding(beta):
    retriever = papers.build(papers.get("snag", "small", **QUICK, beta=beta), WIDTHS, seed=1)
    retriever.detector.offset.bias.fill_(0.5)
    for module in retriever.modules():
        if isinstance(module, Block):
            nn.init.normal_(module.scale)
    batch = make_batch(LENGTHS, motion=8, words=6, pad_to=15)
    together = retriever.predict(batch)
    assert retriever.predict(batch.unlabelled()) == together
    for b in range(len(LENGTHS)):
        (line,) = retriever.predict(alone(batch, b))
        single, batched = (torch.tensor(x["pred_relevant_windows"]) for x in (line, together[b]))
        torch.testing.assert_close(single, batched, rtol=1e-4, atol=2e-3)  # times are rounded to milliseconds


@pytest.mark.parametrize("beta", [None, 0.7])
def test_padding_does_not_change_losses_and_gradients(beta):
    """And gets no gradient."""
    detector, batch = detector_of(beta=beta), make_batch(LENGTHS, pad_to=15)
    aligned = aligned_of(batch)
    padded = torch.where(aligned.mask[..., None], aligned.target, 1e4)
    grads = []
    for clips in (aligned.target, padded):
        target = clips.clone().requires_grad_()
        inputs = replace(aligned, target=target)
        outputs = detector(inputs, batch)
        sum(detector.losses(outputs, inputs, batch).values()).backward()
        grads.append(target.grad)
        assert (target.grad[~batch.target_mask] == 0).all() and (target.grad[batch.target_mask] != 0).any(-1).all()
    assert torch.equal(*grads)


@pytest.mark.parametrize("windows", [[], [(0, 1)], [(0, 40)], [(i, i + 1) for i in range(0, 50, 2)]])
def test_unusual_videos_give_finite_gradients_and_moments(windows):
    """No window, a video of one clip, a window of a whole video, 25 windows; the second sample is all padding."""
    n = max([1, *(end for _, end in windows)])
    batch = make_batch([n, 5], windows=[windows, [(1, 3)]], words=4)
    batch = replace(batch, target_mask=batch.target_mask & torch.tensor([[True], [False]]))
    detector = detector_of(levels=6, beta=0.7).train()
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    terms = detector.losses(outputs, aligned, batch)
    assert terms["diou"] > 0 if windows else terms["diou"] == 0
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    moments = detector.decode(outputs, batch)
    assert moments.mask[0].any() and not moments.mask[1].any()
    assert ((moments.spans[0] >= 0) & (moments.spans[0] <= 1)).all()


@pytest.mark.parametrize(
    ("logit", "distance", "expected"),
    [
        (2.0, 0.0, [[0.0, 2.0], [8.0, 10.0], [4.0, 5.0]]),  # no moment has a length: the clip of the best point
        (-9.0, 0.0, [[0.0, 2.0], [8.0, 10.0], [4.0, 5.0]]),
        (-9.0, 1.0, [[0.0, 2.0], [7.0, 11.0], [3.0, 5.0]]),  # none scores enough: the moment of the best point
    ],
)
def test_where_no_moment_is_left_the_best_point_gives_one(logit, distance, expected):
    """[SnAG] On one clip, on nine, and on three of which the last is half in the video; of an empty video none."""
    batch, detector = make_batch([1, 9, 3, 4]), detector_of(levels=1)
    batch = replace(batch, duration_s=torch.tensor([2.0, 18.0, 5.0, 8.0]))
    batch = replace(batch, target_mask=batch.target_mask & (torch.arange(4) < 3)[:, None])
    level, point = points(9, 1)
    logits = torch.full((4, len(point)), logit)
    best = [0, 4, 2, 0]
    logits[range(4), best] += 0.5
    n = torch.tensor([1.0, 9.0, 3.0, 1.0])[:, None, None]
    ends = point[:, None] + 0.5 + torch.tensor([-distance, distance])
    outputs = {"logits": logits, "spans": ends / n, "mask": F.pad(batch.target_mask, (0, 1))}
    moments = detector.decode(outputs, batch)
    assert moments.mask.sum(1).tolist() == [1, 1, 1, 0]
    seconds = moments.spans[:3, 0] * n[:3, 0] * 2
    torch.testing.assert_close(seconds, torch.tensor(expected))
    torch.testing.assert_close(moments.scores[:3, 0], torch.full((3,), logit + 0.5).sigmoid())


def test_a_model_for_videos_of_one_clip_answers_before_and_after_training():
    """A point there has only its own clip, and before training no distance to an end of a moment."""
    data = world([1] * 8, [(v, [(0, 1)], [], None) for v in range(8)])
    paper = papers.get("snag", "small", epochs=2, batch_size=4)
    retriever = papers.build(paper, data, seed=0)
    for _ in range(2):
        for line in retriever.predict(data.batch(range(8))):
            assert line["pred_relevant_windows"] and all(a < b for a, b, _ in line["pred_relevant_windows"])
        fit(retriever, data, None, paper, device="cpu", progress=False)


def test_batch_mates_and_padding_change_a_prediction_by_rounding_only():
    """In float64, where rounding is 1e-16; in float32, sums of other sizes round differently, as in every model."""
    retriever = shaken(papers.build(papers.get("snag", "small"), WIDTHS, seed=3)).double().eval()
    batch = make_batch([9, 5, 31, 1], motion=8, pad_to=40, dtype=torch.float64)
    with torch.no_grad():
        together = retriever(batch)[1]
        for b in range(len(batch)):
            single = retriever(alone(batch, b))[1]
            assert single["mask"].sum() == together["mask"][b].sum()
            for name in ("logits", "spans"):
                one, many = single[name][single["mask"]], together[name][b][together["mask"][b]]
                torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-12)


def test_labels_with_no_place_for_windows_equal_masked_windows():
    batch, detector = make_batch([5, 7]), detector_of()
    aligned, terms = aligned_of(batch), []
    none = replace(batch.labels, span_mask=torch.zeros_like(batch.labels.span_mask))
    for labels in (none, replace(none, spans=none.spans[:, :0], span_mask=none.span_mask[:, :0])):
        without = replace(batch, labels=labels)
        terms.append({k: v.item() for k, v in detector.losses(detector(aligned, without), aligned, without).items()})
    assert terms[0] == terms[1] and terms[0]["focal"] > 0


def test_a_trunk_sees_two_places_on_either_side():
    """[SnAG] It has two convolutions of 3."""
    torch.manual_seed(0)
    trunk, x = Trunk(8), torch.randn(1, 9, 8)
    mask = torch.ones(1, 9, dtype=torch.bool)
    changed = x.clone()
    changed[0, 4] += 1
    reached = (trunk(x, mask) != trunk(changed, mask)).any(-1)[0]
    assert reached.nonzero()[:, 0].tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("aligner", papers.ALIGNERS)
def test_the_pyramid_trains_behind_every_aligner(aligner):
    """With dynamics in the detector, and in the aligner if it has them."""
    paper = papers.get("snag", "small", aligner=aligner, beta=0.7)
    assert paper.detector.name == "pyramid" and paper.detector.options["beta"] == 0.7
    retriever, batch = papers.build(paper, WIDTHS), make_batch([9, 6, 12], motion=8)
    optimiser = torch.optim.Adam(retriever.parameters(), 1e-2)
    before = [p.detach().clone() for p in retriever.detector.parameters()]
    sum(retriever.losses(*retriever(batch), batch).values()).backward()
    optimiser.step()
    moved = [not torch.equal(p, old) for p, old in zip(retriever.detector.parameters(), before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert all(0 < len(line["pred_relevant_windows"]) <= 10 for line in retriever.predict(batch))
