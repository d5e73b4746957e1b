"""2D-TAN's detector against its equations, written out cell by cell; padding, labels, dtypes and options."""

from dataclasses import replace

import pytest
import torch

from mrlib import papers
from mrlib.align import Aligned
from mrlib.data import Widths
from mrlib.detect.tan import TanDetector, inverse_counts, moment_map, scaled_iou
from mrlib.ops import conv
from mrlib.train import fit
from tests.support.batches import make_batch

LENGTHS = [6, 1, 9]


def detector_of(**options):
    """A small detector in float64, with biases that are not zero."""
    torch.manual_seed(0)
    detector = TanDetector(16, **{"channels": 3, "convolutions": 3, "kernel": 3} | options).double()
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return detector


def aligned_of(batch):
    """The joint clips of the batch, and random vectors of the whole queries."""
    g = torch.Generator().manual_seed(1)
    whole = torch.randn(len(batch), 16, generator=g, dtype=batch.target.dtype)
    return Aligned(batch.target_joint, batch.target_mask, whole[:, None], batch.target_mask[:, :1], whole)


def moments_of(n):
    """The cells (i, j) of n clips that are moments."""
    return [(i, j) for i in range(n) for j in range(i, n)]


def test_the_features_of_a_moment_are_the_maximum_over_its_clips():
    """[2D-TAN] Cells with j < i are 0."""
    x = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = moment_map(x)
    for i in range(7):
        for j in range(7):
            expected = x[..., i : j + 1].amax(-1) if i <= j else torch.zeros(2, 3, dtype=x.dtype)
            assert torch.equal(features[..., i, j], expected)


def fused_by_hand(detector, clips, whole):
    """[2D-TAN] {(i, j): (H,)} of one video without padding: normalised products of the query and the pooled clips."""
    x = [(detector.clips.weight @ v + detector.clips.bias).clamp(min=0) for v in clips]
    query = detector.query.weight @ whole + detector.query.bias
    fused = {}
    for i, j in moments_of(len(clips)):
        pooled = torch.stack(x[i : j + 1]).amax(0)
        product = query * (detector.moments.weight[:, :, 0, 0] @ pooled + detector.moments.bias)
        fused[i, j] = product / product.norm()
    return fused


def logits_by_hand(detector, fused):
    """[2D-TAN] On an unbounded plane: a convolution has an output wherever a valid cell is under its kernel."""
    half = detector.kernel // 2
    near = [(a, b) for a in range(-half, half + 1) for b in range(-half, half + 1)]
    for layer in detector.convolve:
        after = {}
        for i, j in {(i + a, j + b) for i, j in fused for a, b in near}:
            under = [(a, b) for a, b in near if (i + a, j + b) in fused]
            y = sum(layer.weight[:, :, half + a, half + b] @ fused[i + a, j + b] for a, b in under) + layer.bias
            after[i, j] = y.clamp(min=0) / len(under)
        fused = after
    return {cell: detector.score.weight[0, :, 0, 0] @ x + detector.score.bias[0] for cell, x in fused.items()}


@pytest.mark.parametrize(("convolutions", "kernel"), [(1, 3), (2, 3), (3, 3), (4, 3), (2, 5), (1, 1)])
@torch.no_grad()
def test_every_logit_equals_its_definition(convolutions, kernel):
    """[2D-TAN] Three videos in one padded batch."""
    detector, batch = detector_of(convolutions=convolutions, kernel=kernel), make_batch([5, 1, 4], dtype=torch.float64)
    aligned = aligned_of(batch)
    fused, logits = detector.fuse(aligned), detector(aligned, batch)["logits"]
    for b, n in enumerate([5, 1, 4]):
        by_hand = fused_by_hand(detector, aligned.target[b, :n], aligned.query_global[b])
        expected = logits_by_hand(detector, by_hand)
        for i, j in moments_of(n):
            torch.testing.assert_close(fused[b, :, i, j], by_hand[i, j])
            torch.testing.assert_close(logits[b, i, j], expected[i, j])
        valid = torch.zeros(5, 5, dtype=torch.bool)
        valid[tuple(zip(*moments_of(n), strict=True))] = True
        assert (fused[b, :, ~valid] == 0).all()


@pytest.mark.parametrize("fourier", [False, True])
def test_a_convolution_is_divided_by_the_number_of_valid_cells_under_its_kernel(fourier, monkeypatch):
    """[2D-TAN] By hand: the triangle of a video of three clips, and one place around it; also with rounding errors."""
    monkeypatch.setattr(conv, "fourier_is_faster", lambda *sizes: fourier)
    triangle = torch.ones(3, 3, dtype=torch.bool).triu()
    weight = inverse_counts(torch.nn.functional.pad(triangle, [2] * 4)[None, None], 3)[0, 0]
    expected = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 1, 2, 3, 2, 1, 0],
            [0, 1, 3, 5, 4, 2, 0],
            [0, 1, 3, 6, 5, 3, 0],
            [0, 0, 1, 3, 3, 2, 0],
            [0, 0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    assert torch.equal(weight, torch.where(expected > 0, 1 / expected, 0.0))


@pytest.mark.parametrize("kernel", [3, 21])
def test_cells_are_counted_exactly_with_large_kernels_and_in_half_precision(kernel):
    """bfloat16 cannot represent 441."""
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert 1 / inverse_counts(mask, kernel)[0, 0, 20, 20].item() == pytest.approx(kernel**2, rel=1e-6)


def iou_by_hand(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def test_the_scaled_iou_equals_its_definition():
    """[2D-TAN] Two windows, no window, a window off the grid; an IoU of up to one half gives 0."""
    batch = make_batch([6, 4, 5], windows=[[(0, 2), (2, 6)], [], [(1, 4)]], dtype=torch.float64)
    spans = batch.labels.spans.clone()
    spans[2, 0] = torch.tensor([1.3 / 5, 3.9 / 5])
    spans[1] = torch.tensor([0.25, 0.75])  # padding of the windows
    batch = replace(batch, labels=replace(batch.labels, spans=spans))
    y = scaled_iou(batch)
    windows = [[(0, 2), (2, 6)], [], [(1.3, 3.9)]]
    for b, n in enumerate([6, 4, 5]):
        for i, j in moments_of(n):
            iou = max((iou_by_hand((i, j + 1), window) for window in windows[b]), default=0)
            assert y[b, i, j].item() == pytest.approx(min(max((iou - 0.5) / 0.5, 0), 1), abs=1e-6)
    assert y[0, 0, 1] == y[0, 2, 5] == 1 and y[0, 2, 3] == 0 and y[0, 2, 4].item() == pytest.approx(0.5)


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_over_all_moments_of_the_batch():
    """[2D-TAN] Cell by cell; logits of cells that are no moment are not read."""
    detector, batch = detector_of(), make_batch(LENGTHS, dtype=torch.float64)
    aligned = aligned_of(batch)
    outputs, y = detector(aligned, batch), scaled_iou(batch)
    total, count = 0.0, 0
    for b, n in enumerate(LENGTHS):
        for i, j in moments_of(n):
            p = outputs["logits"][b, i, j].sigmoid()
            total -= y[b, i, j] * p.log() + (1 - y[b, i, j]) * (1 - p).log()
            count += 1
    loss = detector.losses(outputs, aligned, batch)
    assert loss.keys() == {"overlap"}
    torch.testing.assert_close(loss["overlap"].double(), total / count, rtol=1e-5, atol=1e-6)
    outputs["logits"][~(y.new_ones(y.shape).triu().bool() & batch.target_mask[:, None])] = torch.nan
    assert torch.equal(detector.losses(outputs, aligned, batch)["overlap"], loss["overlap"])


def test_features_are_normalised_also_if_they_are_small():
    """[2D-TAN] The norm is 1 for products of size 1e-4; products of zero stay zero with bounded gradients."""
    detector, batch = detector_of(), make_batch(LENGTHS, dtype=torch.float64)
    aligned = aligned_of(batch)
    with torch.no_grad():
        detector.query.bias.zero_()
    moments = batch.target_mask[:, :, None] & batch.target_mask[:, None] & torch.ones(9, 9).triu().bool()
    norms = detector.fuse(replace(aligned, query_global=1e-4 * aligned.query_global)).norm(dim=1)[moments]
    torch.testing.assert_close(norms, torch.ones_like(norms))
    zero = torch.zeros_like(aligned.query_global).requires_grad_()
    fused = detector.fuse(replace(aligned, query_global=zero))
    fused.sum().backward()
    assert not fused.any() and zero.grad.abs().max() < 1e9


def test_a_sample_without_clips_gives_no_moment():
    batch = make_batch([4, 3])
    batch = replace(batch, target_mask=batch.target_mask & torch.tensor([[True], [False]]))
    moments = detector_of().decode({"logits": torch.zeros(2, 4, 4)}, batch)
    assert moments.mask[0].any() and not moments.mask[1].any() and moments.spans.isfinite().all()


@pytest.mark.parametrize("nms", [0.5, 0.8, 0.0])
def test_moments_are_those_of_a_plain_loop(nms):
    """[2D-TAN] Best first; none has an IoU above the threshold with a better one; ten at most; with ties."""
    detector, batch = detector_of(nms=nms), make_batch([9, 1, 12], dtype=torch.float64)
    logits = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    moments = detector.decode({"logits": logits}, batch)
    for b, n in enumerate([9, 1, 12]):
        kept = []
        for i, j in sorted(moments_of(n), key=lambda c: (-logits[b, c[0], c[1]].item(), c)):
            if len(kept) < 10 and all(iou_by_hand((i, j + 1), (c, d + 1)) <= nms for c, d in kept):
                kept.append((i, j))
        assert moments.mask[b].tolist() == [k < len(kept) for k in range(moments.mask.shape[1])]
        spans = moments.spans[b][moments.mask[b]] * n
        assert spans.round().int().tolist() == [[i, j + 1] for i, j in kept]
        scores = torch.stack([logits[b, i, j].sigmoid() for i, j in kept])
        torch.testing.assert_close(moments.scores[b][moments.mask[b]], scores)


@torch.no_grad()
def test_padding_and_other_samples_do_not_change_the_outputs():
    detector = detector_of().float()
    together, decoded = [], []
    for batch in (make_batch([7]), make_batch([7, 12, 1]), make_batch([7], pad_to=20)):
        aligned = aligned_of(batch)
        aligned = replace(aligned, target=aligned.target.masked_fill(~batch.target_mask[..., None], 9.0))
        together.append(detector(aligned, batch))
        decoded.append(detector.decode(together[-1], batch))
    moments = torch.ones(7, 7).triu().bool()
    for outputs, predicted in zip(together[1:], decoded[1:], strict=True):
        first = together[0]["logits"][0][moments]
        torch.testing.assert_close(outputs["logits"][0, :7, :7][moments], first, rtol=1e-4, atol=1e-6)
        assert torch.equal(predicted.spans[0], decoded[0].spans[0])
        assert torch.equal(predicted.mask[0], decoded[0].mask[0])


@torch.no_grad()
def test_logits_depend_on_the_query_and_not_on_labels():
    detector, batch = detector_of(), make_batch(LENGTHS, dtype=torch.float64)
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    assert torch.equal(outputs["logits"], detector(aligned, batch.unlabelled())["logits"])
    rolled = detector(replace(aligned, query_global=aligned.query_global.roll(1, 0)), batch)
    assert not torch.allclose(outputs["logits"], rolled["logits"])


def test_initial_logits_of_a_map_differ_by_more_than_rounding():
    """With the default number and size of the convolutions."""
    torch.manual_seed(0)
    batch = make_batch([12])
    logits = TanDetector(16, channels=32)(aligned_of(batch), batch)["logits"][0]
    assert logits[torch.ones(12, 12).triu().bool()].std() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unusual_videos_give_finite_losses_and_gradients_under_autocast(dtype):
    """A video of zeros, one clip, equal clips, no window; padding that float16 cannot hold after a layer."""
    batch = make_batch([6, 1, 8], windows=[[(1, 3)], [(0, 1)], []])
    target = batch.target_joint.clone()
    target[0] = 0
    target[2, :8] = target[2, 0]
    target[~batch.target_mask] = 6e4
    detector = TanDetector(16, channels=4, convolutions=2, kernel=3)
    detector.clips.weight.data.abs_()
    aligned = replace(aligned_of(batch), target=target.requires_grad_())
    with torch.autocast("cpu", dtype):
        assert detector.fuse(aligned).dtype == torch.float32
        loss = detector.losses(detector(aligned, batch), aligned, batch)["overlap"]
    loss.backward()
    assert loss.isfinite() and target.grad.isfinite().all()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in detector.parameters())


@pytest.mark.parametrize("aligner", papers.ALIGNERS)
def test_it_trains_behind_every_aligner(aligner):
    """At the small size; every parameter has a gradient, and every sample gets moments."""
    paper = papers.get("f2sgd", "small", aligner=aligner, detector="tan")
    retriever, batch = papers.build(paper, Widths(24, 12, 16)), make_batch([9, 6, 12], motion=8)
    retriever.losses(*retriever(batch), batch)["overlap"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in retriever.detector.parameters())
    assert all(0 < len(line["pred_relevant_windows"]) <= 10 for line in retriever.predict(batch))


def test_a_paper_with_this_detector_has_the_defaults_of_this_detector():
    """No setting is needed; each can be set by name, and options of the replaced detector are gone."""
    paper = papers.get("f2sgd", detector="tan")
    assert paper.detector == papers.Choice("tan")
    detector = papers.build(paper, Widths(24, 12, 16)).detector
    assert [tuple(layer.weight.shape) for layer in detector.convolve] == [(256, 256, 9, 9)] * 4
    assert detector.nms == 0.5
    options = papers.get("qd_detr", detector="tan", convolutions=8, kernel=5).detector.options
    assert options == {"convolutions": 8, "kernel": 5}
    small = papers.get("f2sgd", "small", detector="tan").detector.options
    assert small == papers.SMALL["tan"] and small["channels"] < 256


def test_a_short_training_run_lowers_the_loss_on_the_simulator():
    paper = papers.get("f2sgd", "small", detector="tan", epochs=4, batch_size=8, lr=1e-2, channels=8)
    data = papers.open_split(paper, "sim", split="train", n=64)
    history = fit(papers.build(paper, data), data, None, paper, device="cpu", progress=False)
    assert history.rows[-1]["loss"] < 0.8 * history.rows[0]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "no centre"),
        ({"channels": 0}, "channels must be 1 or more"),
        ({"convolutions": 0}, "convolutions must be 1 or more"),
        ({"nms": 1.5}, "nms must be from 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TanDetector(16, **options)
