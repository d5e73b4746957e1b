"""Moment queries: matching, losses layer by layer, decoding, heads that are put together."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib.detect.detr import ClassHead, Decoded, DetrDecoder, DetrDetector, SpanHead, to_centre, to_ends
from tests.reference.official_detr import matching, overlap
from tests.support.batches import make_batch
from tests.support.detr import MOMENT_QUERIES as K
from tests.support.detr import aligned_of, make, run_decoder

DETECTORS = ("detr", "dab")


@pytest.fixture
def batch():
    """Two windows, none, one over everything, three; the last sample is padding."""
    windows = [[(2, 6), (7, 9)], [], [(0, 12)], [(0, 2), (3, 4), (5, 7)], [(0, 1)]]
    batch = make_batch([9, 4, 12, 7, 3], windows=windows)
    mask = batch.target_mask.clone()
    mask[4] = False
    return replace(batch, target_mask=mask)


def truth_of(batch):
    """Per sample its windows, of padding none."""
    there = batch.labels.span_mask & batch.target_mask.any(1)[:, None]
    return [[tuple(w) for w in s[m].tolist()] for s, m in zip(batch.labels.spans, there, strict=True)]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_layer_is_matched_for_itself_and_its_losses_are_means_over_the_pairs(name, batch):
    """[Moment-DETR], [QD-DETR] Against loops; the class term is a mean over all queries of all samples with clips."""
    detector = make(name, decoder_layers=3)
    outputs = detector(aligned_of(batch), batch)
    terms, windows = detector.layer_losses(outputs, batch), truth_of(batch)
    truth = detector.truth(batch)
    matched = detector.match(outputs, truth)
    for layer in range(3):
        logits, spans = outputs["logits"][layer], outputs["spans_cw"][layer]
        l1 = apart = classes = pairs = 0.0
        for b, own in enumerate(windows):
            found = matching(logits[b], spans[b], own, "qd_detr")
            assert matched[layer, b][truth.mask[b]].tolist() == list(found)
            assert (matched[layer, b][~truth.mask[b]] == -1).all()
            for q, (s, e) in zip(found, own, strict=True):
                c, w = spans[b, q].tolist()
                l1 += (abs(c - (s + e) / 2) + abs(w - (e - s))) / 2
                apart += 1 - overlap([c - w / 2, c + w / 2], [s, e])
                pairs += 1
            for q in range(K):
                if b < 4:
                    likely = logits[b, q].log_softmax(0).tolist()
                    classes -= likely[0] if q in found else 0.1 * likely[1]
        assert terms["l1"][layer].item() == pytest.approx(l1 / pairs, rel=1e-4)
        assert terms["giou"][layer].item() == pytest.approx(apart / pairs, rel=1e-4)
        assert terms["class"][layer].item() == pytest.approx(classes / 4 / K, rel=1e-4)
    sums = detector.losses(outputs, aligned_of(batch), batch)
    assert {n: x.item() for n, x in sums.items()} == pytest.approx({n: x.sum().item() for n, x in terms.items()})


@pytest.mark.parametrize("name", DETECTORS)
def test_more_windows_than_queries_no_windows_and_padding_give_finite_losses_and_gradients(name, batch):
    bare = replace(batch.labels, span_mask=torch.zeros_like(batch.labels.span_mask))
    none = replace(bare, spans=batch.labels.spans[:, :0], span_mask=batch.labels.span_mask[:, :0])
    for given, queries in (
        (batch, 2),
        (batch, 1),
        (replace(batch, labels=bare), K),
        (replace(batch, labels=none), K),
    ):
        detector = make(name, moment_queries=queries)
        outputs = detector(aligned_of(given), given)
        truth = detector.truth(given)
        matched = detector.match(outputs, truth)
        expected = truth.mask.sum(1).clamp(max=queries)
        assert torch.equal((matched >= 0).sum(2), expected.expand(2, -1))
        loss = sum(detector.losses(outputs, aligned_of(given), given).values())
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_of_many_windows_some_are_drawn_anew_by_the_seed():
    """[Moment-DETR] Five of seven; of samples with fewer, all."""
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
    torch.manual_seed(3)
    first = detector.truth(batch).spans
    torch.manual_seed(3)
    assert torch.equal(detector.truth(batch).spans, first)
    assert torch.equal(make(most_windows=7).truth(batch).spans, batch.labels.spans)


@pytest.mark.parametrize("name", DETECTORS)
def test_moments_are_the_last_layers_spans_by_foreground_probability(name, batch):
    """[Moment-DETR] Cut to the video, whose last clip may be longer than what is left of it."""
    detector = make(name)
    batch = replace(batch, duration_s=batch.duration_s - 0.5)
    outputs = detector(aligned_of(batch), batch)
    moments = detector.decode(outputs, batch)
    probability = outputs["logits"][-1].softmax(-1)[..., 0]
    assert moments.mask.tolist() == [[True] * K] * 4 + [[False] * K]
    for b, n in enumerate([9, 4, 12, 7]):
        order = sorted(range(K), key=lambda q, b=b: -probability[b, q].item())
        end = (2 * n - 0.5) / (2 * n)
        for k, q in enumerate(order):
            c, w = outputs["spans_cw"][-1, b, q].tolist()
            expected = [min(max(c - w / 2, 0), end), min(max(c + w / 2, 0), end)]
            assert moments.spans[b, k].tolist() == pytest.approx(expected, abs=1e-6)
            assert moments.scores[b, k].item() == pytest.approx(probability[b, q].item())


def test_released_inference_stretches_spans_to_the_annotated_duration():
    """[Moment-DETR] Three quarters of a video whose features end early is three quarters of the whole of it."""
    batch = make_batch([8])
    outputs = {"spans_cw": torch.tensor([[[[0.375, 0.75]]]]), "logits": torch.zeros(1, 1, 1, 2)}
    batch = replace(batch, duration_s=torch.tensor([12.0]))  # of 8 clips, 16 s: cut to 12
    ours, theirs = (make(length=length).decode(outputs, batch).spans[0, 0] for length in ("clips", "duration"))
    torch.testing.assert_close(ours * 16, torch.tensor([0.0, 12.0]))
    torch.testing.assert_close(theirs * 16, torch.tensor([0.0, 9.0]))


def test_moment_queries_read_clips_and_tokens_and_none_of_the_padding():
    """[Moment-DETR] Tokens without a mask are all there; their positions go to the keys."""
    batch, decoder = make_batch([6, 9]), make().decoder
    aligned = aligned_of(batch, tokens=4)
    before = run_decoder(decoder, aligned).states
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    masked = replace(aligned, context_mask=mask)
    junk = torch.where(mask[..., None], aligned.context, 99.0)
    padded = torch.where(batch.target_mask[..., None], aligned.target, -99.0)
    after = run_decoder(decoder, replace(masked, context=junk, target=padded)).states
    torch.testing.assert_close(after, run_decoder(decoder, masked).states)
    assert not torch.allclose(before, after)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(run_decoder(decoder, replace(aligned, context_mask=everything)).states, before)
    moved = run_decoder(decoder, replace(aligned, context_positions=torch.randn(2, 4, 16))).states
    still = run_decoder(decoder, replace(aligned, context_positions=torch.zeros(2, 4, 16))).states
    torch.testing.assert_close(still, before)
    assert not torch.allclose(moved, before)


class Prior(nn.Module):
    """A head that likes some queries, in the matching, in the loss and in the score."""

    def __init__(self, liked):
        super().__init__()
        self.liked = nn.Parameter(torch.tensor(liked))

    def forward(self, decoded, aligned):
        L, B, _, _ = decoded.states.shape
        return {"liked": self.liked.expand(L, B, -1), "reads": aligned.target.mean(1)}

    def cost(self, outputs, truth):
        return -1e3 * outputs["liked"][..., None].expand(-1, -1, -1, truth.mask.shape[1])

    def losses(self, outputs, truth, matched):
        return {"liking": outputs["liked"].sum((1, 2)) * 0 + (matched >= 0).sum((1, 2))}

    def score(self, outputs):
        return outputs["liked"][-1]


def test_a_head_adds_its_outputs_cost_loss_and_factor_of_the_score(batch):
    """What AMR's masks and overlap scores will be."""
    torch.manual_seed(0)
    decoder = DetrDecoder(16, moment_queries=3, decoder_layers=2, heads=4, hidden=24, dropout=0.0)
    plain = DetrDetector(decoder, [SpanHead(16), ClassHead(16)])
    detector = DetrDetector(decoder, [*plain.heads, Prior([0.1, 0.7, 0.4])])
    outputs = detector(aligned_of(batch), batch)
    assert set(outputs) == {"spans_cw", "logits", "liked", "reads", "states"}
    matched = detector.match(outputs, detector.truth(batch))
    assert (matched[:, 2, 0] == 1).all() and set(matched[0, 0, :2].tolist()) == {1, 2}
    assert detector.losses(outputs, aligned_of(batch), batch)["liking"].item() == 2 * 6
    once, twice = (d.decode(outputs, batch).scores for d in (plain, detector))
    foreground = outputs["logits"][-1].softmax(-1)[..., 0]
    torch.testing.assert_close(twice, (foreground * torch.tensor([0.1, 0.7, 0.4])).sort(-1, True).values)
    torch.testing.assert_close(once, foreground.sort(-1, True).values)


def test_spans_head_adds_the_logit_of_the_reference_kept_from_the_ends():
    """[QD-DETR] A head that says nothing leaves the reference; [Moment-DETR] without one it says a half."""
    head = SpanHead(16)
    for p in head.mlp.layers[-1].parameters():
        nn.init.zeros_(p)
    references = torch.tensor([[[[0.3, 0.9], [1e-6, 1.0]]]])
    found = head(Decoded(torch.randn(1, 1, 2, 16), references), None)["spans_cw"]
    ends = [[0.3, 0.9], [1e-3 / (1 + 1e-3 - 1e-6), 1 / (1 + 1e-3)]]
    torch.testing.assert_close(found[0, 0], torch.tensor(ends), rtol=1e-4, atol=1e-6)
    assert (head(Decoded(torch.randn(1, 1, 2, 16)), None)["spans_cw"] == 0.5).all()


def test_centre_and_width_are_start_and_end_told_otherwise():
    ends = torch.tensor([[0.2, 0.6], [0.0, 1.0]])
    torch.testing.assert_close(to_centre(ends), torch.tensor([[0.4, 0.4], [0.5, 1.0]]))
    torch.testing.assert_close(to_ends(to_centre(ends)), ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": "seconds"}, "length must be clips or duration"),
        ({"most_windows": 0}, "most_windows must be 1 or more"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    for name in DETECTORS:
        with pytest.raises(ValueError, match=message):
            make(name, **options)
