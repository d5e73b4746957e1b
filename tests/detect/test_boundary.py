"""Boundary regression at every clip: targets, heads, losses and decoding against worked cases and plain loops."""

import math
from dataclasses import replace

import pytest
import torch

from mrlib.align import Aligned
from mrlib.detect.boundary import BoundedOffsets, ConvHead, RawOffsets, build_boundary, window_of_clip
from tests.support.batches import make_batch

LENGTHS = [9, 6, 1, 12]


def aligned_of(batch, width=8, tokens=3, seed=0):
    """Random clips and so many random context tokens."""
    g = torch.Generator().manual_seed(seed)
    B, T = batch.target_mask.shape
    target = torch.randn(B, T, width, generator=g)
    context = torch.randn(B, tokens, width, generator=g) if tokens else None
    query = torch.randn(B, batch.query.shape[1], width, generator=g)
    return Aligned(target, batch.target_mask, query, batch.query_mask, query[:, 0], context=context)


@pytest.fixture
def batch():
    return make_batch(LENGTHS)


def clip_times(n, edge=False):
    """The time of every clip, its centre or its right edge."""
    return [(i + (1.0 if edge else 0.5)) / n for i in range(n)]


def target_by_hand(window_s, n, clip_s, t):
    """[MATR, targets] The foreground clips of one window in seconds, and the window as fractions."""
    start, end = window_s
    if end - start < clip_s:
        centre = (start + end) / 2
        start, end = max(0.0, centre - clip_s / 2), min(n * clip_s, centre + clip_s / 2)
        end = max(clip_s, end)
    s, e = start / (n * clip_s), end / (n * clip_s)
    inside = [s <= x <= e for x in t]
    if not any(inside):
        inside[min(max(int(window_s[0] // clip_s), 0), n - 1)] = True
    return inside, (s, e)


@pytest.mark.parametrize("edge", [False, True])
def test_a_clip_is_inside_if_its_time_is_and_every_window_has_a_clip(edge):
    """Two hundred windows in videos of 1 to 20 clips of 2 s, some shorter than a clip, some at the ends."""
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        n = int(torch.randint(1, 21, (1,), generator=g))
        start, end = (torch.rand(2, generator=g, dtype=torch.float64).sort().values * 2 * n).tolist()
        if torch.rand(1, generator=g) < 0.3:
            end = min(2.0 * n, start + 0.3)
        if torch.rand(1, generator=g) < 0.3:
            start, end = 2.0 * int(start // 2), 2.0 * max(int(start // 2) + 1, int(end // 2))
        t = clip_times(n, edge)
        expected, (s, e) = target_by_hand((start, end), n, 2.0, t)
        mask = torch.arange(20) < n
        padded = torch.tensor([t + [2.0] * (20 - n)], dtype=torch.float64)
        spans = torch.tensor([[[start, end]]], dtype=torch.float64) / (2 * n)
        inside, truth = window_of_clip(spans, torch.ones(1, 1, dtype=torch.bool), mask[None], padded)
        assert inside[0, :n].tolist() == expected and not inside[0, n:].any() and inside.any()
        torch.testing.assert_close(truth[inside], torch.tensor([[s, e]] * sum(expected), dtype=torch.float64))


def test_a_window_behind_the_time_of_the_last_clip_has_that_clip():
    """Annotated windows may start after the features end."""
    mask = torch.arange(6) < 4
    t = torch.tensor([clip_times(4) + [1.1, 1.4]])
    for start, end in ((0.9, 1.2), (1.1, 1.3)):
        inside, truth = window_of_clip(torch.tensor([[[start, end]]]), torch.ones(1, 1).bool(), mask[None], t)
        assert inside[0].tolist() == [False, False, False, True, False, False]
        torch.testing.assert_close(truth[0, 3], torch.tensor([min(start, 1.0), 1.0]))


def test_of_overlapping_windows_the_one_with_the_nearest_centre_counts():
    """By hand: 10 clips, windows with centres 0.4 and 0.65; clips outside both have no window."""
    batch = make_batch([10, 12], windows=[[(0, 8), (3, 9)], [(0, 1)]])
    t = build_boundary(8)._times(batch.target_mask)
    inside, truth = window_of_clip(batch.labels.spans, batch.labels.span_mask, batch.target_mask, t)
    assert inside[0].tolist() == [True] * 9 + [False] * 3
    windows = [(0.0, 0.8)] * 5 + [(0.3, 0.9)] * 4 + [(0.0, 0.0)] * 3
    torch.testing.assert_close(truth[0], torch.tensor(windows))


def test_offsets_and_spans_equal_their_definitions():
    """[MATR §3.2] Bounded ones are distances and as targets never negative; raw ones are signed, as released."""
    t, outputs = torch.tensor([[0.25, 0.75]]), torch.tensor([[[0.0, 2.0], [-1.0, 0.5]]])
    windows = torch.tensor([[[0.3, 0.9], [0.2, 1.0]]])
    offset, spans = BoundedOffsets().spans(t, outputs)
    p = [[1 / (1 + math.exp(-x)) for x in row] for row in outputs[0].tolist()]
    torch.testing.assert_close(offset[0], torch.tensor(p))
    torch.testing.assert_close(
        spans[0], torch.tensor([[0.25 - p[0][0], 0.25 + p[0][1]], [0.75 - p[1][0], 0.75 + p[1][1]]])
    )
    torch.testing.assert_close(BoundedOffsets().offsets_to(t, windows), torch.tensor([[[0.0, 0.65], [0.55, 0.25]]]))
    offset, spans = RawOffsets().spans(t, outputs)
    assert torch.equal(offset, outputs)
    torch.testing.assert_close(spans, torch.tensor([[[0.25, 2.25], [-0.25, 1.25]]]))
    torch.testing.assert_close(RawOffsets().offsets_to(t, windows), torch.tensor([[[0.05, 0.65], [-0.55, 0.25]]]))


@pytest.mark.parametrize("hidden", [True, False])
@torch.no_grad()
def test_a_convolutional_head_equals_its_definition(hidden):
    """[MATR §3.2] Three convolutions of 3 with ReLU between, place by place; padding is 0 before each or stays."""
    torch.manual_seed(0)
    head, x, mask = ConvHead(4, 6, 2), torch.randn(1, 7, 4), torch.arange(7) < 5
    outputs = head(x, mask[None] if hidden else None)[0]
    rows = list(x[0])
    for i, layer in enumerate(head.layers):
        rows = [row.clamp(min=0) if i else row for row in rows]
        rows = [row * real if hidden else row for row, real in zip(rows, mask.tolist(), strict=True)]
        zero = torch.zeros_like(rows[0])
        around = [zero, *rows, zero]
        rows = [sum(layer.weight[:, :, k] @ around[t + k] for k in range(3)) + layer.bias for t in range(7)]
    torch.testing.assert_close(outputs, torch.stack(rows))


@torch.no_grad()
def test_fusions_equal_their_definitions(batch):
    """[MATR §3.2] What the convolutional heads read from each sample; the second token of every sample is padding."""
    mask = torch.tensor([True, False, True]).expand(4, -1)
    aligned = replace(aligned_of(batch), context_mask=mask)
    for fusion in ("sequence", "channel", "attend", "none"):
        detector = build_boundary(8, fusion=fusion, heads=2)
        x, x_mask = detector._fuse(aligned)
        for b, n in enumerate(LENGTHS):
            clips, tokens = aligned.target[b, :n], aligned.context[b]
            if fusion == "sequence":
                expected = torch.cat([clips, tokens * mask[b, :, None]])
                assert x_mask[b].tolist() == [True] * n + mask[b].tolist() + [False] * (12 - n)
                assert not x[b, n + 3 :].any()
            else:
                assert torch.equal(x_mask, aligned.mask)
            if fusion == "channel":
                expected = torch.cat([clips, tokens[mask[b]].mean(0).expand(n, -1)], 1)
            if fusion == "attend":
                keys = tokens[None, mask[b]]
                expected = clips + detector.attend(clips[None], keys, keys)[0]
            if fusion == "none":
                expected = clips
            torch.testing.assert_close(x[b, : len(expected)], expected)


def test_every_foreground_clip_has_the_exact_window():
    batch = make_batch([10, 7], windows=[[(2, 6)], [(0, 7)]])
    detector = build_boundary(8)
    t = detector._times(batch.target_mask)
    inside, truth = window_of_clip(batch.labels.spans, batch.labels.span_mask, batch.target_mask, t)
    assert inside[0].nonzero()[:, 0].tolist() == [2, 3, 4, 5] and inside[1, :7].all()
    left, right = t - truth[..., 0], truth[..., 1] - t
    assert (left[inside] >= 0).all() and (right[inside] >= 0).all()
    torch.testing.assert_close((t - left)[0, 2:6], torch.full((4,), 0.2))
    torch.testing.assert_close((t + right)[0, 2:6], torch.full((4,), 0.6))


def test_a_clip_between_two_windows_has_the_one_that_it_is_in():
    batch = make_batch([10], windows=[[(1, 3), (6, 9)]])
    t = build_boundary(8)._times(batch.target_mask)
    inside, truth = window_of_clip(batch.labels.spans, batch.labels.span_mask, batch.target_mask, t)
    assert inside[0].nonzero()[:, 0].tolist() == [1, 2, 6, 7, 8]
    torch.testing.assert_close(truth[0, [1, 2, 6, 7, 8]], torch.tensor([[0.1, 0.3]] * 2 + [[0.6, 0.9]] * 3))


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def giou_by_hand(a, b):
    """Generalised IoU of two spans (start, end)."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union, hull = a[1] - a[0] + b[1] - b[0] - shared, max(a[1], b[1]) - min(a[0], b[0])
    return shared / union - (hull - union) / hull


@pytest.mark.parametrize("options", [{}, {"offsets": "raw", "timestamps": "edge", "background": 0.1}])
def test_losses_are_the_sums_of_the_definition(batch, options):
    """[MATR, losses], clip by clip."""
    detector = build_boundary(8, **options).double()
    aligned = aligned_of(batch)
    aligned = replace(aligned, target=aligned.target.double(), context=aligned.context.double())
    outputs = detector(aligned, batch)
    terms = detector.losses({k: v.clone() for k, v in outputs.items()}, aligned, batch)
    fg = l1 = overlap = 0.0
    foreground = 0
    for b, n in enumerate(LENGTHS):
        t = clip_times(n, "timestamps" in options)
        inside, (s, e) = target_by_hand(batch.samples[b].relevant_windows[0], n, 2.0, t)
        for i in range(n):
            p = outputs["logits"][b, i].sigmoid().item()
            weight = 1.0 if inside[i] else options.get("background", 1.0)
            fg -= weight * torch.tensor(p if inside[i] else 1 - p).log().item()
            if inside[i]:
                foreground += 1
                left, right = outputs["offset"][b, i].tolist()
                if "offsets" in options:
                    l1 += smooth_l1(left - (s - t[i])) + smooth_l1(right - (e - t[i]))
                    span = sorted((t[i] + left, t[i] + right))
                else:
                    l1 += smooth_l1(left - max(0, t[i] - s)) + smooth_l1(right - max(0, e - t[i]))
                    span = (t[i] - left, t[i] + right)
                overlap += 1 - giou_by_hand(span, (s, e))
    expected = {"fg": fg / sum(LENGTHS), "l1": l1 / foreground, "iou": overlap / foreground}
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fusion", ["sequence", "channel", "attend", "none"])
def test_padding_and_other_samples_do_not_change_the_outputs(batch, fusion):
    detector = build_boundary(8, fusion=fusion, heads=2).eval()
    aligned = aligned_of(batch)
    together = detector(aligned, batch)
    for b, n in enumerate(LENGTHS):
        single = replace(
            aligned,
            target=aligned.target[b : b + 1, :n],
            mask=aligned.mask[b : b + 1, :n],
            context=aligned.context[b : b + 1],
        )
        alone = detector(single, batch)
        for name in ("logits", "offset", "spans"):
            torch.testing.assert_close(together[name][b : b + 1, :n], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["sequence", "channel", "attend", "none"])
@pytest.mark.parametrize("count", [1, 3])
def test_padded_tokens_do_not_change_the_outputs(batch, fusion, count):
    """Real tokens, and the same with two padded ones behind them."""
    torch.manual_seed(0)
    detector, aligned = build_boundary(8, fusion=fusion, heads=2).eval(), aligned_of(batch, tokens=count)
    tokens = torch.cat([aligned.context, torch.full((4, 2, 8), 9.0)], 1)
    mask = (torch.arange(count + 2) < count).expand(4, -1)
    padded, plain = detector(replace(aligned, context=tokens, context_mask=mask), batch), detector(aligned, batch)
    for name, value in plain.items():
        real = batch.target_mask
        torch.testing.assert_close(padded[name][real], value[real], rtol=1e-5, atol=1e-6)


def clips_that_read_tokens(fusion, batch):
    """The clips of the last sample that change when all tokens do."""
    detector = build_boundary(8, fusion=fusion, heads=2).eval()
    aligned = aligned_of(batch)
    changed = replace(aligned, context=aligned.context + 1)
    difference = (detector(aligned, batch)["logits"] - detector(changed, batch)["logits"])[-1].abs()
    return (difference > 1e-7).nonzero()[:, 0].tolist()


def test_tokens_behind_the_clips_reach_only_the_last_three(batch):
    """[MATR §3.2] Three convolutions of 3 see three places away, so the printed fusion almost ignores the decoder."""
    assert clips_that_read_tokens("sequence", batch) == [9, 10, 11]
    assert clips_that_read_tokens("channel", batch) == clips_that_read_tokens("attend", batch) == list(range(12))
    assert clips_that_read_tokens("none", batch) == []


def test_every_fusion_works_with_padded_tokens_only(batch):
    aligned = replace(aligned_of(batch), context_mask=torch.zeros(4, 3, dtype=torch.bool))
    for fusion in ("sequence", "channel", "attend", "none"):
        assert build_boundary(8, fusion=fusion, heads=2)(aligned, batch)["logits"].isfinite().all()


def test_every_fusion_works_without_tokens(batch):
    for fusion in ("sequence", "channel", "attend", "none"):
        outputs = build_boundary(8, fusion=fusion, heads=2)(aligned_of(batch, tokens=0), batch)
        assert outputs["logits"].shape == (4, 12)


def test_moments_are_the_clips_spans_clamped_to_the_video_and_suppressed(batch):
    """Against a plain loop; the second video ends a second before its features do, the last one after them."""
    batch = replace(batch, duration_s=torch.tensor([18.0, 11.0, 2.0, 25.0]))
    detector = build_boundary(8, fusion="none").eval()
    outputs = detector(aligned_of(batch), batch)
    moments = detector.decode(outputs, batch)
    for b, n in enumerate(LENGTHS):
        last = min(1.0, batch.duration_s[b].item() / (2 * n))
        order = outputs["logits"][b, :n].argsort(descending=True, stable=True).tolist()
        kept = []
        for i in order:
            s, e = (min(max(x, 0.0), last) for x in outputs["spans"][b, i].tolist())
            overlaps = [max(0.0, min(e, d) - max(s, c)) / (max(e, d) - min(s, c)) for c, d, _ in kept]
            if all(o <= 0.7 for o in overlaps) and len(kept) < 10:
                kept.append((s, e, outputs["logits"][b, i].sigmoid().item()))
        mask = moments.mask[b]
        decoded = torch.cat([moments.spans[b][mask], moments.scores[b][mask, None]], -1)
        torch.testing.assert_close(decoded, torch.tensor(kept), rtol=1e-5, atol=1e-6)


def test_ten_of_the_thousand_most_likely_moments_remain():
    """Twelve disjoint spans give ten moments; a span behind a thousand equal ones is no candidate."""
    batch = make_batch([12, 1100], joint=1)
    spans = torch.zeros(2, 1100, 2)
    spans[0, :12] = torch.stack([torch.arange(12), torch.arange(1, 13)], 1) / 12
    spans[1, :1000], spans[1, 1000:] = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.9])
    logits = torch.arange(0, -1100, -1).expand(2, -1) / 1000
    moments = build_boundary(8).decode({"logits": logits, "spans": spans}, batch)
    assert moments.spans.shape == (2, 10, 2) and moments.mask.sum(1).tolist() == [10, 1]
    torch.testing.assert_close(moments.spans[0], spans[0, :10])
    torch.testing.assert_close(moments.spans[1, 0], torch.tensor([0.1, 0.2]))
    spans[1, 999] = torch.tensor([0.5, 0.9])
    assert build_boundary(8).decode({"logits": logits, "spans": spans}, batch).mask[1].sum() == 2


def test_crossed_ends_of_raw_spans_are_sorted(batch):
    """Before decoding and in the loss."""
    detector, aligned = build_boundary(8, fusion="none", offsets="raw").eval(), aligned_of(batch)
    outputs = detector(aligned, batch)
    outputs["spans"] = torch.rand(4, 12, 2, generator=torch.Generator().manual_seed(0)).sort(-1).values
    crossed = outputs | {"spans": outputs["spans"].flip(-1)}
    moments, crossed_moments = detector.decode(outputs, batch), detector.decode(crossed, batch)
    assert torch.equal(crossed_moments.spans, moments.spans) and torch.equal(crossed_moments.mask, moments.mask)
    terms = [detector.losses(x, aligned, batch)["iou"].item() for x in (outputs, crossed)]
    assert terms[0] == terms[1]


def test_spans_can_be_fractions_of_the_duration_as_in_the_official_inference(batch):
    batch = replace(batch, duration_s=torch.tensor([17.0, 12.0, 2.0, 24.0]))
    outputs = {"logits": torch.zeros(4, 12), "spans": torch.tensor([0.5, 0.6]).expand(4, 12, 2)}
    clips, duration = (build_boundary(8, length=length).decode(outputs, batch) for length in ("clips", "duration"))
    torch.testing.assert_close(clips.spans[0, 0], torch.tensor([0.5, 0.6]))
    torch.testing.assert_close(duration.spans[0, 0], torch.tensor([0.5, 0.6]) * 17 / 18)


def test_the_answer_can_be_the_span_of_the_aligners_path(batch):
    path = torch.zeros(4, 12, 5, dtype=torch.bool)
    path[0, 3:5, 0] = path[3, 11, 1] = True
    aligned = replace(aligned_of(batch), paths={"post": path})
    detector = build_boundary(8, answer="post")
    moments = detector.decode(detector(aligned, batch), batch)
    torch.testing.assert_close(moments.spans[0, 0], torch.tensor([3 / 9, 5 / 9]))
    torch.testing.assert_close(moments.spans[3, 0], torch.tensor([11 / 12, 1.0]))
    assert moments.mask.all()
    none = replace(batch, target_mask=batch.target_mask & torch.tensor([[True], [True], [True], [False]]))
    moments = detector.decode(detector(replace(aligned, mask=none.target_mask), none), none)
    assert moments.mask[:, 0].tolist() == [True, True, True, False] and moments.spans.isfinite().all()
    with pytest.raises(ValueError, match="answer='pre': the aligner has no such path"):
        build_boundary(8, answer="pre")(aligned, batch)


def test_convolutions_see_padding_only_with_the_option_seen(batch):
    for padding, seen in (("hidden", False), ("seen", True)):
        detector = build_boundary(8, fusion="none", padding=padding).eval()
        aligned = aligned_of(batch)
        changed = replace(aligned, target=torch.where(aligned.mask[..., None], aligned.target, 5.0))
        same = torch.equal(detector(aligned, batch)["logits"][1, :6], detector(changed, batch)["logits"][1, :6])
        assert same is not seen
    # clips that are padding are set to 0 before tokens are put behind the real ones
    detector = build_boundary(8, fusion="sequence", padding="seen")
    assert torch.equal(detector(aligned, batch)["logits"][1, :6], detector(changed, batch)["logits"][1, :6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "token"}, "fusion must be one of sequence, channel, attend, none"),
        ({"offsets": "signed"}, "offsets must be bounded or raw"),
        ({"timestamps": "left"}, "timestamps must be centre or edge"),
        ({"length": "seconds"}, "length must be clips or duration"),
        ({"padding": "none"}, "padding must be hidden or seen"),
        ({"answer": "all"}, "answer must be heads, pre or post"),
        ({"nms": 7.0}, "nms must be from 0 to 1"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_boundary(8, **options)


def test_without_windows_every_clip_is_background_and_the_span_terms_are_zero(batch):
    """Where all windows are masked, and where the labels have no place for any, as with highlight labels only."""
    masked = replace(batch.labels, span_mask=torch.zeros_like(batch.labels.span_mask))
    none = replace(masked, spans=batch.labels.spans[:, :0], span_mask=batch.labels.span_mask[:, :0])
    torch.manual_seed(0)
    detector, aligned = build_boundary(8, fusion="none"), aligned_of(batch)
    losses = []
    for labels in (masked, none):
        without = replace(batch, labels=labels)
        terms = detector.losses(detector(aligned, without), aligned, without)
        assert (terms["l1"], terms["iou"]) == (0, 0)
        sum(terms.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
        losses.append(terms["fg"].item())
    background = torch.nn.functional.softplus(detector(aligned, batch)["logits"])[batch.target_mask].mean()
    assert losses == pytest.approx([background.item()] * 2)


def test_a_sample_without_clips_gives_no_moment_and_no_loss(batch):
    batch = replace(batch, target_mask=batch.target_mask & torch.tensor([[True], [False], [True], [True]]))
    detector = build_boundary(8)
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    assert all(x.isfinite().all() for x in outputs.values())
    assert not detector.decode(outputs, batch).mask[1].any()
    terms = detector.losses(outputs, aligned, batch)
    without = replace(batch.labels, span_mask=batch.labels.span_mask & torch.tensor([[True], [False], [True], [True]]))
    assert detector.losses(outputs, aligned, replace(batch, labels=without)) == terms
    sum(terms.values()).backward()
    assert all(t.isfinite() for t in terms.values())
    assert all(p.grad.isfinite().all() for p in detector.parameters())


@torch.no_grad()
def test_without_tokens_attention_adds_nothing_to_the_clips(batch):
    """An aligner without context, and an attention whose bias alone would move every clip."""
    torch.manual_seed(0)
    detector, aligned = build_boundary(8, fusion="attend").eval(), aligned_of(batch, tokens=0)
    detector.attend.out_proj.bias.fill_(3.0)
    alone = build_boundary(8, fusion="none").eval()
    alone.load_state_dict({k: v for k, v in detector.state_dict().items() if not k.startswith("attend")})
    outputs, expected = detector(aligned, batch), alone(aligned, batch)
    for name in ("logits", "spans"):
        assert torch.equal(outputs[name], expected[name])
