"""Moment queries: matching, losses of every layer, decoding, and composition of heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib.detect.detr import (
    ClassHead,
    CrossEntropy,
    Decoded,
    DetrDecoder,
    DetrDetector,
    SpanHead,
    drawn_windows,
    first_windows,
    to_centre,
    to_ends,
    windows_order,
)
from mrlib.detect.span_length import duration_in_clips
from mrlib.layers import sine_positions
from tests.reference.official_detr import matching, overlap
from tests.support.batches import make_batch
from tests.support.detr import MOMENT_QUERIES as K
from tests.support.detr import aligned_of, make, run_decoder

DETECTORS = ("detr", "dab")
COSTS = {"cost_l1": 10.0, "cost_giou": 1.0}


@pytest.fixture
def batch():
    """Two windows, none, one over the whole video, three; the last sample is all padding."""
    windows = [[(2, 6), (7, 9)], [], [(0, 12)], [(0, 2), (3, 4), (5, 7)], [(0, 1)]]
    batch = make_batch([9, 4, 12, 7, 3], windows=windows)
    mask = batch.target_mask.clone()
    mask[4] = False
    return replace(batch, target_mask=mask)


def windows_of(batch):
    """The windows of every sample; none of a sample that is all padding."""
    mask = batch.labels.span_mask & batch.target_mask.any(1)[:, None]
    return [[tuple(w) for w in s[m].tolist()] for s, m in zip(batch.labels.spans, mask, strict=True)]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_layer_has_its_own_matching_and_losses(name, batch):
    """[Moment-DETR], [QD-DETR] Against loops: l1 and giou are means over the matched pairs, the class term over all
    moment queries of the samples with clips."""
    detector = make(name, decoder_layers=3)
    outputs = detector(aligned_of(batch), batch)
    terms, windows = detector.layer_losses(outputs, batch), windows_of(batch)
    truth = detector.truth(batch)
    matched = detector.match(outputs, truth)
    for layer in range(3):
        logits, spans = outputs["logits"][layer], outputs["spans_cw"][layer]
        l1 = giou = classes = pairs = 0.0
        for b, sample_windows in enumerate(windows):
            expected = matching(logits[b], spans[b], sample_windows, "qd_detr")
            assert matched[layer, b][truth.mask[b]].tolist() == list(expected)
            assert (matched[layer, b][~truth.mask[b]] == -1).all()
            for q, (s, e) in zip(expected, sample_windows, strict=True):
                c, w = spans[b, q].tolist()
                l1 += (abs(c - (s + e) / 2) + abs(w - (e - s))) / 2
                giou += 1 - overlap([c - w / 2, c + w / 2], [s, e])
                pairs += 1
            for q in range(K):
                if b < 4:
                    log_p = logits[b, q].log_softmax(0).tolist()
                    classes -= log_p[0] if q in expected else 0.1 * log_p[1]
        assert terms["l1"][layer].item() == pytest.approx(l1 / pairs, rel=1e-4)
        assert terms["giou"][layer].item() == pytest.approx(giou / pairs, rel=1e-4)
        assert terms["class"][layer].item() == pytest.approx(classes / 4 / K, rel=1e-4)
    sums = detector.losses(outputs, aligned_of(batch), batch)
    assert {n: x.item() for n, x in sums.items()} == pytest.approx({n: x.sum().item() for n, x in terms.items()})


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_gradients_are_finite_for_any_number_of_windows(name, batch):
    """More windows than moment queries, only masked windows, no place for windows; one sample is all padding."""
    masked = replace(batch.labels, span_mask=torch.zeros_like(batch.labels.span_mask))
    none = replace(masked, spans=batch.labels.spans[:, :0], span_mask=batch.labels.span_mask[:, :0])
    for labels, count in ((batch.labels, 2), (batch.labels, 1), (masked, K), (none, K)):
        labelled = replace(batch, labels=labels)
        detector = make(name, moment_queries=count)
        outputs = detector(aligned_of(labelled), labelled)
        truth = detector.truth(labelled)
        matched = detector.match(outputs, truth)
        expected = truth.mask.sum(1).clamp(max=count)
        assert torch.equal((matched >= 0).sum(2), expected.expand(2, -1))
        loss = sum(detector.losses(outputs, aligned_of(labelled), labelled).values())
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_surplus_windows_are_drawn_at_random_by_the_seed():
    """[Moment-DETR] Five of seven; all of a sample with fewer."""
    seven = [(i, i + 1) for i in range(7)]
    batch = make_batch([9, 9], windows=[seven, [(0, 2), (4, 6)]])
    detector, drawn = make(), set()
    for seed in range(200):
        torch.manual_seed(seed)
        truth = detector.truth(batch)
        assert truth.mask.sum(1).tolist() == [5, 2]
        assert truth.spans[1][truth.mask[1]].sort(0).values.tolist() == batch.labels.spans[1, :2].tolist()
        starts = (truth.spans[0][truth.mask[0]][:, 0] * 9).round().int().tolist()
        assert len(set(starts)) == 5 and set(starts) <= set(range(7))
        drawn.add(tuple(sorted(starts)))
    assert len(drawn) == 21
    pair = make_batch([9, 9], windows=[seven, seven])
    different = 0
    for seed in range(20):
        torch.manual_seed(seed)
        starts = [set(spans[:, 0].tolist()) for spans in detector.truth(pair).spans]
        different += starts[0] != starts[1]
    assert different > 10
    torch.manual_seed(3)
    first = detector.truth(batch).spans
    torch.manual_seed(3)
    assert torch.equal(detector.truth(batch).spans, first)
    assert torch.equal(make(most_windows=7).truth(batch).spans, batch.labels.spans)


def test_defaults_are_five_drawn_windows_and_first_windows_can_be_kept():
    """[Moment-DETR] First ones in annotated order."""
    batch = make_batch([9], windows=[[(i, i + 1) for i in range(7, -1, -1)]])
    decoder = make().decoder
    torch.manual_seed(0)
    drawn = {tuple(DetrDetector(decoder, []).truth(batch).spans[0, :, 0].tolist()) for _ in range(20)}
    assert {len(starts) for starts in drawn} == {5} and len(drawn) > 10
    for count in (3, 7):
        detector = DetrDetector(decoder, [], surplus=first_windows, most_windows=count)
        assert torch.equal(detector.truth(batch).spans, batch.labels.spans[:, :count])


def test_orders_of_windows_are_chosen_by_name():
    assert windows_order("first") is first_windows and windows_order("drawn") is drawn_windows
    with pytest.raises(ValueError, match="surplus must be drawn or first, not 'last'"):
        windows_order("last")


@pytest.mark.parametrize("name", DETECTORS)
def test_the_builder_passes_its_options_on(name):
    detector = make(name, cost_l1=1.0, cost_giou=2.0, cost_class=3.0, background=0.4, most_windows=6, length="duration")
    span, classes = detector.heads
    assert (span.cost_l1, span.cost_giou, classes.cost_class, classes.loss.background) == (1.0, 2.0, 3.0, 0.4)
    assert detector.most_windows == 6 and detector.length is duration_in_clips


def test_distillation_is_one_minus_the_mean_cosine_of_the_states(batch):
    """[AMR stage 2] Over layers and the teacher's moment queries; a sample without clips does not count."""
    detector, aligned = make(), aligned_of(batch)
    outputs = detector(aligned, batch)
    teacher = {"states": torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(0))}
    distances = [
        1 - torch.cosine_similarity(outputs["states"][layer, b, q], teacher["states"][layer, b, q], dim=0).item()
        for layer in range(2)
        for b in range(4)
        for q in range(3)
    ]
    terms = detector.losses(outputs, aligned, batch, teacher)
    assert terms["distill"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    without = detector.losses(outputs, aligned, batch)
    assert terms.keys() == without.keys() | {"distill"} and all(torch.equal(terms[n], x) for n, x in without.items())


def test_the_class_loss_equals_its_definition():
    """[Moment-DETR] Background has a weight of 0.1 by default; the second of two samples does not count."""
    logits = torch.randn(3, 2, K, 2, generator=torch.Generator().manual_seed(0))
    positive = torch.rand(3, 2, K, generator=torch.Generator().manual_seed(1)) < 0.4
    for loss, weight in ((CrossEntropy(0.1), 0.1), (CrossEntropy(0.3), 0.3)):
        log_p = logits[:, 0].log_softmax(-1)
        expected = -torch.where(positive[:, 0], log_p[..., 0], weight * log_p[..., 1]).sum(1) / K
        torch.testing.assert_close(loss(logits, positive, torch.tensor([True, False])), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_moments_are_the_spans_of_the_last_layer_sorted_by_foreground_probability(name, batch):
    """[Moment-DETR] Clamped to the video, which ends within its last clip or after it."""
    detector = make(name)
    batch = replace(batch, duration_s=batch.duration_s + torch.tensor([-0.5, -0.5, 3.0, -0.5, -0.5]))
    outputs = detector(aligned_of(batch), batch)
    moments = detector.decode(outputs, batch)
    probability = outputs["logits"][-1].softmax(-1)[..., 0]
    assert moments.mask.tolist() == [[True] * K] * 4 + [[False] * K]
    for b, n in enumerate([9, 4, 12, 7]):
        order = sorted(range(K), key=lambda q, b=b: -probability[b, q].item())
        end = 1.0 if b == 2 else (2 * n - 0.5) / (2 * n)
        for k, q in enumerate(order):
            c, w = outputs["spans_cw"][-1, b, q].tolist()
            expected = [min(max(c - w / 2, 0), end), min(max(c + w / 2, 0), end)]
            assert moments.spans[b, k].tolist() == pytest.approx(expected, abs=1e-6)
            assert moments.scores[b, k].item() == pytest.approx(probability[b, q].item())


def test_spans_can_be_fractions_of_the_duration_as_in_the_released_inference():
    """[Moment-DETR] The first three quarters of 16 s of clips, or of the 12 s that the video lasts."""
    batch = make_batch([8])
    outputs = {"spans_cw": torch.tensor([[[[0.375, 0.75]]]]), "logits": torch.zeros(1, 1, 1, 2)}
    batch = replace(batch, duration_s=torch.tensor([12.0]))
    clips, duration = (make(length=length).decode(outputs, batch).spans[0, 0] for length in ("clips", "duration"))
    torch.testing.assert_close(clips * 16, torch.tensor([0.0, 12.0]))
    torch.testing.assert_close(duration * 16, torch.tensor([0.0, 9.0]))


def test_moment_queries_read_clips_and_tokens_but_no_padding():
    """[Moment-DETR] Tokens without a mask are all real; without positions these are zero."""
    batch, decoder = make_batch([6, 9]), make().decoder
    aligned = aligned_of(batch, tokens=4)
    before = run_decoder(decoder, aligned).states
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    masked = replace(aligned, context_mask=mask)
    context = torch.where(mask[..., None], aligned.context, 99.0)
    target = torch.where(batch.target_mask[..., None], aligned.target, -99.0)
    after = run_decoder(decoder, replace(masked, context=context, target=target)).states
    torch.testing.assert_close(after, run_decoder(decoder, masked).states)
    assert not torch.allclose(before, after)
    all_real = torch.ones_like(mask)
    torch.testing.assert_close(run_decoder(decoder, replace(aligned, context_mask=all_real)).states, before)
    random = run_decoder(decoder, replace(aligned, context_positions=torch.randn(2, 4, 16))).states
    zeros = run_decoder(decoder, replace(aligned, context_positions=torch.zeros(2, 4, 16))).states
    torch.testing.assert_close(zeros, before)
    assert not torch.allclose(random, before)


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_the_decoder_is_a_stack_of_decoder_layers(pre_norm):
    """[Moment-DETR] The content starts at zero; the memory is the real clips and then the real tokens."""
    decoder, batch = make(pre_norm=pre_norm).decoder, make_batch([6, 9])
    aligned = aligned_of(batch, tokens=4)
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    places = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(3))
    states = run_decoder(decoder, replace(aligned, context_mask=mask, context_positions=places)).states
    assert all(layer.pre_norm is pre_norm for layer in decoder.layers)
    for b, n in enumerate([6, 9]):
        memory = torch.cat([aligned.target[b, :n], aligned.context[b, mask[b]]])[None]
        positions = torch.cat([sine_positions(torch.ones(1, n, dtype=torch.bool), 16)[0], places[b, mask[b]]])[None]
        x, learned = torch.zeros(1, K, 16), decoder.moment_queries.weight[None]
        for i, layer in enumerate(decoder.layers):
            x = layer(x, learned, memory, positions, torch.ones(1, memory.shape[1], dtype=torch.bool))
            torch.testing.assert_close(states[i, b], decoder.norm(x)[0], rtol=1e-4, atol=1e-5)


class Prior(nn.Module):
    """A head with a learned weight for every moment query, used in the matching, in the loss and in the score."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, decoded, target, mask):
        L, B, _, _ = decoded.states.shape
        return {"prior": self.weights.expand(L, B, -1), "mean_clip": target.mean(1), "has_clips": mask.any(1)}

    def cost(self, outputs, truth):
        return -1e3 * outputs["prior"][..., None].expand(-1, -1, -1, truth.mask.shape[1])

    def losses(self, outputs, truth, matched):
        return {"pairs": outputs["prior"].sum((1, 2)) * 0 + (matched >= 0).sum((1, 2))}

    def score(self, outputs):
        return outputs["prior"][-1]


def test_a_head_adds_its_outputs_cost_loss_and_score(batch):
    """As AMR's heads for masks and overlaps do."""
    torch.manual_seed(0)
    decoder = DetrDecoder(16, moment_queries=3, decoder_layers=2, heads=4, hidden=24, dropout=0.0)
    plain = DetrDetector(decoder, [SpanHead(16, **COSTS), ClassHead(16, cost_class=4.0, loss=CrossEntropy(0.1))])
    detector = DetrDetector(decoder, [*plain.heads, Prior([0.1, 0.7, 0.4])])
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    assert set(outputs) == {"spans_cw", "logits", "prior", "mean_clip", "has_clips", "states"}
    assert torch.equal(outputs["mean_clip"], aligned.target.mean(1))
    assert outputs["has_clips"].tolist() == [True, True, True, True, False]
    matched = detector.match(outputs, detector.truth(batch))
    assert (matched[:, 2, 0] == 1).all() and set(matched[0, 0, :2].tolist()) == {1, 2}
    assert detector.losses(outputs, aligned, batch)["pairs"].item() == 2 * 6
    plain_scores, scores = (d.decode(outputs, batch).scores for d in (plain, detector))
    foreground = outputs["logits"][-1].softmax(-1)[..., 0]
    torch.testing.assert_close(scores, (foreground * torch.tensor([0.1, 0.7, 0.4])).sort(-1, True).values)
    torch.testing.assert_close(plain_scores, foreground.sort(-1, True).values)


def test_the_span_head_adds_the_clamped_logit_of_the_reference():
    """[QD-DETR] If its MLP gives 0, the span is the reference; [Moment-DETR] without a reference it is one half."""
    head = SpanHead(16, **COSTS)
    for p in head.mlp.layers[-1].parameters():
        nn.init.zeros_(p)
    references = torch.tensor([[[[0.3, 0.9], [1e-6, 1.0]]]])
    spans_cw = head(Decoded(torch.randn(1, 1, 2, 16), references), None, None)["spans_cw"]
    ends = [[0.3, 0.9], [1e-3 / (1 + 1e-3 - 1e-6), 1 / (1 + 1e-3)]]
    torch.testing.assert_close(spans_cw[0, 0], torch.tensor(ends), rtol=1e-4, atol=1e-6)
    assert (head(Decoded(torch.randn(1, 1, 2, 16)), None, None)["spans_cw"] == 0.5).all()


def test_centre_and_width_convert_to_start_and_end_and_back():
    ends = torch.tensor([[0.2, 0.6], [0.0, 1.0]])
    torch.testing.assert_close(to_centre(ends), torch.tensor([[0.4, 0.4], [0.5, 1.0]]))
    torch.testing.assert_close(to_ends(to_centre(ends)), ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": "seconds"}, "length must be clips or duration"),
        ({"most_windows": 0}, "most_windows must be 1 or more"),
        ({"moment_queries": 0}, "moment_queries must be 1 or more"),
        ({"decoder_layers": 0}, "decoder_layers must be 1 or more"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
    ],
)
def test_unknown_options_are_refused(options, message):
    for name in DETECTORS:
        with pytest.raises(ValueError, match=message):
            make(name, **options)
