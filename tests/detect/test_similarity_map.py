"""`mrlib.detect.similarity_map` against the equations, written out cell by cell, and on the real annotations."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch

from mrlib.align import Aligned
from mrlib.align.anchor import AnchorAligner, RawAligner
from mrlib.detect.similarity_map import (
    build_similarity_map,
    cells,
    linear,
    similarity,
    standardised,
    summed,
    target_map,
    window_cells,
)
from mrlib.ops import conv
from tests.support.batches import make_batch

real = pytest.mark.skipif("MRLIB_DATA" not in os.environ, reason="MRLIB_DATA does not name the folder of real data")


def detector_of(**options):
    """A small detector with random parameters; the initial ones give a map of zeros for any input."""
    torch.manual_seed(0)
    detector = build_similarity_map(16, **{"kernel": 5, "channels": 3} | options)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return detector


def aligned_of(target, mask) -> Aligned:
    """The clips, with the first one in place of the query."""
    query = target[:, :1]
    return Aligned(target, mask, query, mask[:, :1], query[:, 0])


def similarity_by_hand(v):
    """Cosines (n, n) of clips v (n, d)."""
    n = len(v)
    return torch.stack([torch.stack([v[i] @ v[j] / (v[i].norm() * v[j].norm()) for j in range(n)]) for i in range(n)])


def network_by_hand(detector, s):
    """[F2SGD Eq. 13] for one map s (n, n) without padding around it: two convolutions, a pointwise MLP."""
    n, x = len(s), s[None]
    for layer in detector.convolve:
        weight, bias = layer.weight.detach(), layer.bias.detach()
        half = weight.shape[-1] // 2
        y = bias[:, None, None].expand(-1, n, n).clone()
        for i in range(n):
            for j in range(n):
                for k in range(weight.shape[-2]):
                    for m in range(weight.shape[-1]):
                        r, c = i + k - half, j + m - half
                        if 0 <= r < n and 0 <= c < n:
                            y[:, i, j] += weight[:, :, k, m] @ x[:, r, c]
        x = y.clamp(min=0)
    y = torch.zeros(n, n, dtype=s.dtype)
    for i in range(n):
        for j in range(n):
            hidden = (detector.mix.weight.detach() @ x[:, i, j] + detector.mix.bias.detach()).clamp(min=0)
            y[i, j] = detector.last.weight.detach()[0] @ hidden + detector.last.bias.detach()[0]
    return y


@pytest.mark.parametrize("head", ["linear", "sigmoid"])
@pytest.mark.parametrize("standardise", [False, True])
def test_the_map_equals_the_equation(head, standardise):
    """[F2SGD Eq. 13] For a padded batch in float64."""
    detector = detector_of(head=head, standardise=standardise).double()
    batch = make_batch([6, 1, 9], dtype=torch.float64)
    outputs = detector(aligned_of(batch.target_joint, batch.target_mask), batch)
    for b, n in enumerate([6, 1, 9]):
        s = similarity_by_hand(batch.target_joint[b, :n])
        torch.testing.assert_close(outputs["similarity"][b, :n, :n], s)
        if standardise:
            s = (s - s.mean()) / (s.var(correction=0) + 1e-6).sqrt()
        p = network_by_hand(detector, s)
        if head == "sigmoid":
            p = 1 / (1 + (-p).exp())
        torch.testing.assert_close(outputs["map"][b, :n, :n], p)


def test_similarity_and_its_gradient_are_zero_on_padding():
    batch = make_batch([3, 5])
    target = batch.target_joint.clone().requires_grad_()
    s = similarity(target, batch.target_mask)
    assert (s[0, 3:] == 0).all() and (s[0, :, 3:] == 0).all()
    (s * 1e4).sum().backward()
    assert (target.grad[0, 3:] == 0).all()


def test_similarity_does_not_depend_on_the_size_of_the_vectors():
    batch = make_batch([3, 5])
    s = similarity(batch.target_joint, batch.target_mask)
    torch.testing.assert_close(similarity(batch.target_joint / 1000, batch.target_mask), s)


def test_a_sample_without_clips_is_standardised_to_zeros():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    target = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps = standardised(similarity(target, mask), mask)
    assert maps.isfinite().all() and not maps[1].any() and not maps[0, 2].any() and not maps[0, :, 2].any()
    assert maps[0, :2, :2].mean().item() == pytest.approx(0, abs=1e-6)


def test_the_target_is_one_at_every_window():
    """[F2SGD Eq. 14] Three windows of a video of 6 clips; the first and the last clip are both included."""
    batch = make_batch([6, 4], windows=[[(0, 1), (2, 6), (2, 4)], [(0, 4)]])
    g = target_map(batch)
    assert g.nonzero().tolist() == [[0, 0, 0], [0, 2, 3], [0, 2, 5], [1, 0, 3]]
    assert set(g.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("span_clips", "cell"),
    [
        ((2, 5), (2, 4)),  # on the grid
        ((2.4, 5.4), (2, 4)),
        ((2.5, 5.5), (3, 5)),  # halves are rounded up
        ((3.1, 3.2), (2, 2)),  # shorter than a clip
        ((0.2, 0.3), (0, 0)),
        ((9.7, 10), (9, 9)),
        ((0, 10), (0, 9)),
        ((8, 13), (8, 9)),  # past the end
        ((11, 13), (9, 9)),  # all after the end
        ((-3, -1), (0, 0)),  # all before the start
    ],
)
def test_times_off_the_grid_are_rounded_and_clamped(span_clips, cell):
    spans = torch.tensor([[span_clips]]) / 10
    assert window_cells(spans, torch.tensor([10])).tolist() == [[list(cell)]]


def test_halves_of_a_clip_are_rounded_up_in_float32_too():
    for n in (*range(1, 200), 1499, 1500):
        halves = torch.arange(n, dtype=torch.float64) + 0.5
        spans = torch.stack([halves / n, torch.ones(n, dtype=torch.float64)], -1).float()
        first = window_cells(spans[None], torch.tensor([n]))[0, :, 0]
        assert first.tolist() == [min(k + 1, n - 1) for k in range(n)]


def loss_by_hand(p, batch, loss_cells, reduction):
    """[F2SGD Eq. 14], cell by cell."""
    total = 0.0
    for b, n in enumerate(batch.lengths.tolist()):
        truth = {
            (round(float(s) * n), round(float(e) * n) - 1) for s, e in batch.labels.spans[b][batch.labels.span_mask[b]]
        }
        counted = [(i, j) for i in range(n) for j in range(n) if i <= j or loss_cells == "full"]
        terms = [(float(p[b, i, j]) - ((i, j) in truth)) ** 2 for i, j in counted]
        total += sum(terms) / (len(terms) if reduction == "mean" else 1)
    return total / len(batch)


@pytest.mark.parametrize("loss_cells", ["triangle", "full"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_the_squared_distance_to_the_target(loss_cells, reduction):
    batch = make_batch([6, 4, 1], windows=[[(0, 1), (2, 6)], [(0, 4)], [(0, 1)]], dtype=torch.float64)
    p = torch.randn(3, 6, 6, dtype=torch.float64)
    detector = build_similarity_map(16, kernel=5, channels=2, loss_cells=loss_cells, reduction=reduction)
    loss = detector.losses({"map": p}, None, batch)
    assert list(loss) == ["map"] and loss["map"].shape == ()
    assert float(loss["map"]) == pytest.approx(loss_by_hand(p, batch, loss_cells, reduction), rel=1e-6)


def test_moments_are_the_highest_cells_in_order():
    """[F2SGD Eq. 15] Against a sort of all cells by (-P, start, end); many ties."""
    batch = make_batch([7, 2, 9])
    p = torch.randint(0, 4, (3, 9, 9)).float()
    moments = build_similarity_map(16, kernel=5, channels=2, candidates=10).decode({"map": p}, batch)
    assert moments.spans.shape == (3, 10, 2) and moments.scores.shape == moments.mask.shape == (3, 10)
    for b, n in enumerate([7, 2, 9]):
        order = sorted((-float(p[b, i, j]), i, j) for i in range(n) for j in range(i, n))[:10]
        assert moments.mask[b].tolist() == [k < len(order) for k in range(10)]
        kept = moments.mask[b]
        assert moments.scores[b, kept].tolist() == [-x for x, _, _ in order]
        assert not moments.spans[b, ~kept].any()
        torch.testing.assert_close(moments.spans[b, kept], torch.tensor([[i / n, (j + 1) / n] for _, i, j in order]))


def test_a_target_of_one_clip_has_one_moment():
    moments = build_similarity_map(16, kernel=5, channels=2).decode({"map": torch.zeros(1, 1, 1)}, make_batch([1]))
    assert moments.spans.tolist() == [[[0.0, 1.0]]] and moments.mask.tolist() == [[True]]


@pytest.mark.parametrize("standardise", [False, True])
def test_gradients_equal_finite_differences(standardise):
    """Through [F2SGD Eq. 13] and [F2SGD Eq. 14] to the clips and to every parameter."""
    batch = make_batch([4, 2], joint=3, dtype=torch.float64)
    detector = detector_of(kernel=3, channels=2, standardise=standardise).double()
    names = [name for name, _ in detector.named_parameters()]

    def loss(target, *values):
        parameters = dict(zip(names, values, strict=True))
        aligned = aligned_of(target, batch.target_mask)
        outputs = torch.func.functional_call(detector, parameters, (aligned, batch))
        return detector.losses(outputs, aligned, batch)["map"]

    inputs = [batch.target_joint.clone(), *detector.parameters()]
    torch.autograd.gradcheck(loss, tuple(x.detach().requires_grad_() for x in inputs))


def test_every_parameter_of_aligner_and_detector_gets_a_gradient():
    batch = make_batch([9, 12, 5])
    aligner, detector = AnchorAligner(16), detector_of()
    aligned = aligner(batch)
    detector.losses(detector(aligned, batch), aligned, batch)["map"].backward()
    assert all(p.grad.abs().max() > 0 for p in [*aligner.parameters(), *detector.parameters()])


@pytest.mark.parametrize("fourier", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_padding_and_other_samples_do_not_change_the_outputs(fourier, standardise, monkeypatch):
    monkeypatch.setattr(conv, "fourier_is_faster", lambda *sizes: fourier)
    aligner, detector = AnchorAligner(16), detector_of(standardise=standardise)
    outputs, decoded = [], []
    for batch in (make_batch([7]), make_batch([7, 12, 1]), make_batch([7], pad_to=30)):
        outputs.append(detector(aligner(batch), batch))
        decoded.append(detector.decode(outputs[-1], batch))
    for other, moments in zip(outputs[1:], decoded[1:], strict=True):
        torch.testing.assert_close(other["map"][0, :7, :7], outputs[0]["map"][0], rtol=1e-4, atol=1e-5)
        assert torch.equal(moments.spans[0], decoded[0].spans[0]) and torch.equal(moments.mask[0], decoded[0].mask[0])


def test_outputs_do_not_depend_on_labels():
    aligner, detector, batch = AnchorAligner(16), detector_of(), make_batch([7, 12])
    unlabelled = batch.unlabelled()
    with_labels, without = detector(aligner(batch), batch), detector(aligner(unlabelled), unlabelled)
    assert all(torch.equal(with_labels[name], without[name]) for name in with_labels)
    assert torch.equal(detector.decode(with_labels, batch).spans, detector.decode(without, unlabelled).spans)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["linear", "sigmoid"])
def test_unusual_videos_give_finite_outputs_and_gradients_under_autocast(dtype, head):
    """A video of zeros, one clip, equal clips."""
    batch = make_batch([6, 1, 8])
    target = batch.target_joint.clone()
    target[0] = 0
    target[2, :8] = target[2, 0]
    batch = dataclasses.replace(batch, target_joint=target)
    aligner, detector = AnchorAligner(16), detector_of(head=head, standardise=True)
    with torch.autocast("cpu", dtype):
        aligned = aligner(batch)
        outputs = detector(aligned, batch)
        loss = detector.losses(outputs, aligned, batch)["map"]
    assert outputs["similarity"].dtype == outputs["map"].dtype == torch.float32
    loss.backward()
    assert loss.isfinite() and all(x.isfinite().all() for x in outputs.values())
    assert all(p.grad.isfinite().all() for p in [*aligner.parameters(), *detector.parameters()])


def test_the_defaults_are_those_of_the_paper():
    """[F2SGD Eq. 13] to [F2SGD Eq. 15] Kernels of 21, ten moments; where the paper is silent, as the module says."""
    detector = build_similarity_map(16)
    assert [tuple(x.weight.shape) for x in detector.convolve] == [(32, 1, 21, 21), (32, 32, 21, 21)]
    assert (detector.candidates, detector.head, detector.standardise) == (10, linear, False)
    assert (detector.loss_cells, detector.reduction) == (cells, summed)


def test_the_initial_map_is_constant():
    """0 with the linear head, 0.01 with the sigmoid."""
    batch = make_batch([7])
    for head, value in (("linear", 0.0), ("sigmoid", 0.01)):
        detector = build_similarity_map(16, kernel=5, channels=2, head=head)
        p = detector(RawAligner(16)(batch), batch)["map"]
        torch.testing.assert_close(p, torch.full_like(p, value))
    xavier = build_similarity_map(16, kernel=5, channels=64, zero_init=False)
    for layer in (xavier.mix, xavier.last):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()


def test_the_detector_can_overfit_eight_samples():
    torch.manual_seed(0)
    batch = make_batch([12, 9, 12, 7, 12, 10, 11, 12], joint=32, seed=3)
    aligner, detector = AnchorAligner(32), build_similarity_map(16, kernel=9, channels=8)
    optimiser = torch.optim.Adam([*aligner.parameters(), *detector.parameters()], 2e-3)
    for _ in range(100):
        aligned = aligner(batch)
        outputs = detector(aligned, batch)
        loss = detector.losses(outputs, aligned, batch)["map"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05  # a map of zeros has 1, since each sample has one window
    torch.testing.assert_close(detector.decode(outputs, batch).spans[:, 0], batch.labels.spans[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel": 4}, "no centre"), ({"head": "softmax"}, "head"), ({"loss_cells": "upper"}, "loss_cells")]
    + [({"reduction": "none"}, "reduction"), ({"channels": 0}, "at least 1"), ({"candidates": 0}, "at least 1")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_similarity_map(16, **options)


def lines(*parts):
    """The lines of a file of annotations."""
    path = Path(os.environ["MRLIB_DATA"], *parts)
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels_only(samples, n):
    """A batch of which only lengths and windows are read.

    samples  the windows of each, as fractions of its clips
    n        clips of each
    """
    batch = make_batch([1] * len(samples), joint=1, pad_to=max(n))
    T, W = max(n), max(len(s) for s in samples)
    spans, span_mask = torch.zeros(len(samples), W, 2), torch.zeros(len(samples), W, dtype=torch.bool)
    for b, windows in enumerate(samples):
        spans[b, : len(windows)] = torch.tensor(windows, dtype=torch.float64)
        span_mask[b, : len(windows)] = True
    labels = dataclasses.replace(batch.labels, spans=spans, span_mask=span_mask)
    return dataclasses.replace(batch, target_mask=torch.arange(T) < torch.tensor(n)[:, None], labels=labels)


@real
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_window_of_qvhighlights_survives_encoding_and_decoding(split):
    """All windows lie on the grid of 2 s, and a map that equals its target is decoded to all of them."""
    samples = lines("qvhighlights", f"highlight_{split}_release.jsonl")
    detector, count = build_similarity_map(16, kernel=5, channels=2, candidates=30), 0
    for start in range(0, len(samples), 512):
        part = samples[start : start + 512]
        n = [math.ceil(s["duration"] / 2) for s in part]
        windows = [
            [[s / (2 * n_b), e / (2 * n_b)] for s, e in x["relevant_windows"]] for x, n_b in zip(part, n, strict=True)
        ]
        batch = labels_only(windows, n)
        g = target_map(batch)
        assert g.sum((1, 2)).tolist() == [len(w) for w in windows]
        moments = detector.decode({"map": g}, batch)
        for sample, n_b, spans, scores in zip(part, n, moments.spans, moments.scores, strict=True):
            seconds = (spans[scores == 1].double() * n_b * 2).round(decimals=3).tolist()
            assert seconds == sorted([float(s), float(e)] for s, e in sample["relevant_windows"])
            count += len(seconds)
    assert count == {"train": 12_803, "val": 2_803}[split]


@real
def test_rounding_to_whole_seconds_costs_little_on_charades():
    """Scores of a perfect detector on the test split: R1@0.5 99.95, R1@0.7 99.44, mean IoU 0.932."""
    samples = lines("charades_sta", "charades_test_release.jsonl")
    n = [max(1, int(s["duration"])) for s in samples]
    spans = torch.tensor([[s["relevant_windows"][0]] for s in samples], dtype=torch.float64)
    clips = window_cells((spans / torch.tensor(n)[:, None, None]).float(), torch.tensor(n))[:, 0]
    start, end = clips[:, 0].double(), clips[:, 1].double() + 1
    overlap = (torch.minimum(end, spans[:, 0, 1]) - torch.maximum(start, spans[:, 0, 0])).clamp(min=0)
    iou = overlap / (torch.maximum(end, spans[:, 0, 1]) - torch.minimum(start, spans[:, 0, 0]))
    assert len(iou) == 3720
    assert round(100 * float((iou >= 0.5).double().mean()), 2) == 99.95
    assert round(100 * float((iou >= 0.7).double().mean()), 2) == 99.44
    assert round(float(iou.mean()), 3) == 0.932
