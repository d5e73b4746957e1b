"""AMR's heads: a focal class, expected overlaps and masks against their definitions, alone and in a detector."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.data import Widths
from mrlib.detect.amr_heads import FocalHead, IouHead, MaskHead
from mrlib.detect.dab import DabDecoder
from mrlib.detect.detr import Decoded, DetrDecoder, DetrDetector, SpanHead, to_ends
from tests.support.batches import make_batch
from tests.support.detr import aligned_of
from tests.support.modules import shaken

K = 5


def make(**options):
    """The detector of AMR, of width 16, of which nothing is as it was initialised."""
    sizes = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "moment_queries": K, "decoder_layers": 3} | options
    return shaken(papers.build(papers.get("amr", **sizes), Widths(24, 12, 16), seed=1).detector)


def truth_of(batch, **options):
    return make(**options).truth(batch)


@pytest.fixture
def batch():
    """Two windows, none, one over everything, three; the last sample is padding."""
    windows = [[(2, 6), (7, 9)], [], [(0, 12)], [(0, 2), (3, 4), (5, 7)], [(0, 1)]]
    batch = make_batch([9, 4, 12, 7, 3], windows=windows)
    mask = batch.target_mask.clone()
    mask[4] = False
    return replace(batch, target_mask=mask)


def matched_of(batch, layers=2):
    """Query 4 - w has window w."""
    truth = truth_of(batch)
    queries = (4 - torch.arange(truth.mask.shape[1])).expand(truth.mask.shape)
    return truth, torch.where(truth.mask, queries, -1).expand(layers, -1, -1)


def test_the_class_is_the_focal_loss_of_both_logits(batch):
    """[Lin et al. 2017], [AMR, losses] With p_t and alpha_t as printed; the mean is over samples with clips."""
    truth, matched = matched_of(batch)
    logits = 3 * torch.randn(2, 5, K, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = FocalHead(16).losses({"logits": logits}, truth, matched)["class"]
    for layer in range(2):
        total = 0.0
        for b in range(4):
            for q in range(K):
                answers = q in matched[layer, b].tolist()
                for z, y in zip(logits[layer, b, q].tolist(), (answers, not answers), strict=True):
                    p = 1 / (1 + math.exp(-z))
                    p_t, alpha_t = (p, 0.25) if y else (1 - p, 0.75)
                    total -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
        assert found[layer].item() == pytest.approx(total / (4 * K * 2), rel=1e-5)


def test_logits_that_are_far_off_give_finite_losses_and_gradients(batch):
    truth, matched = matched_of(batch)
    logits = torch.tensor([-200.0, 200.0, 0.0]).repeat(20)[:50].view(1, 5, K, 2).requires_grad_()
    loss = FocalHead(16).losses({"logits": logits}, truth, matched[:1])["class"].sum()
    loss.backward()
    answers = torch.stack([(torch.arange(K) == matched[0, b, :, None]).any(0) for b in range(4)])
    wanted = torch.stack([answers, ~answers], -1)
    z = torch.where(wanted, logits[0, :4], -logits[0, :4]).detach().double()
    # at -200 the logarithm is -200 and nothing is right, at 200 it is 0, at 0 the chance is one half
    each = torch.where(z < 0, 200.0, torch.where(z > 0, 0.0, 0.25 * math.log(2)))
    expected = (each * torch.where(wanted, 0.25, 0.75)).sum() / (4 * K * 2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and logits.grad.isfinite().all()
    assert not logits.grad[:, 4].any() and logits.grad[:, :4].any()


def test_a_query_expects_the_overlap_with_the_window_that_it_overlaps_most(batch):
    """[AMR, losses] Worked by hand: 1/2, the better of two windows; 0 where it touches none, or where there is none."""
    spans_cw = torch.full((1, 5, K, 2), 0.25)
    ends = torch.tensor([[0.0, 4 / 9], [2 / 9, 6 / 9], [5 / 9, 1.0], [0.0, 2 / 9], [7 / 9, 8 / 9]])
    # of windows (2, 6) and (7, 9) of nine clips: 2 of 6 clips; all; 1 of 7 and 2 of 4; none; 1 of 2
    best = [2 / 6, 1.0, 2 / 4, 0.0, 1 / 2]
    spans_cw[0, 0] = torch.stack([ends.mean(1), ends[:, 1] - ends[:, 0]], 1)
    spans_cw.requires_grad_()
    quality = torch.randn(1, 5, K, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth, matched = matched_of(batch)
    head = IouHead(16)
    loss = head.losses({"quality": quality, "spans_cw": spans_cw}, truth, matched[:1])["quality"]
    expected = sum((p - y) ** 2 for p, y in zip(quality[0, 0].sigmoid().tolist(), best, strict=True))
    expected += quality[0, 1].sigmoid().square().sum().item()  # no window
    # quarters of the video around a quarter of it: of twelve clips all are in the window, (1.5 to 4.5) / 12
    expected += (quality[0, 2].sigmoid() - 0.25).square().sum().item()
    # of seven clips 0.875 to 2.625: of the window (0, 2) 1.125 of 2.625
    expected += (quality[0, 3].sigmoid() - 1.125 / 2.625).square().sum().item()
    assert loss.item() == pytest.approx(expected / (4 * K), rel=1e-4)
    loss.sum().backward()
    assert spans_cw.grad is None and quality.grad[0, :4].all() and not quality.grad[0, 4].any()
    assert head.cost({}, truth) == 0


@torch.no_grad()
def test_a_score_is_the_foreground_probability_times_the_overlap_expected():
    """[AMR, recipe] After the last layer; a mask says nothing to it."""
    batch, detector = make_batch([6, 9]), make()
    outputs = detector(aligned_of(batch), batch)
    moments = detector.decode(outputs, batch)
    score = outputs["logits"][-1].softmax(-1)[..., 0] * outputs["quality"][-1].sigmoid()
    order = score.argsort(1, descending=True)
    torch.testing.assert_close(moments.scores, score.gather(1, order))
    ends = to_ends(outputs["spans_cw"][-1]).clamp(0, 1)
    torch.testing.assert_close(moments.spans, ends.gather(1, order[..., None].expand_as(ends)))


@torch.no_grad()
def test_a_mask_is_the_cosine_of_a_query_and_a_clip_scaled_and_squashed(batch):
    """[AMR, heads] Number by number; padded clips are in no mask, or are as released."""
    aligned = aligned_of(batch)
    states = torch.randn(2, 5, K, 16, generator=torch.Generator().manual_seed(1))
    for padding in ("hidden", "seen"):
        torch.manual_seed(0)
        head = MaskHead(16, padding=padding)
        assert head.scale.item() == pytest.approx(math.log(1 / 0.07))
        head.scale.fill_(0.5)
        masks = head(Decoded(states), aligned)["masks"]
        for b, n in enumerate([9, 4, 12, 7, 0]):
            for q in range(K):
                h = states[1, b, q] + head.mlp(states[1, b, q])
                for t in range(12):
                    cosine = torch.cosine_similarity(h, aligned.target[b, t], dim=0)
                    mu = (math.exp(0.5) * cosine).sigmoid() if t < n or padding == "seen" else torch.tensor(0.0)
                    torch.testing.assert_close(masks[1, b, q, t], mu)


def said(masks, K=2):
    """Masks (T,) of queries as a head says them, (1, 1, K, T)."""
    return {"masks": torch.tensor(masks)[None, None].requires_grad_()}


def test_a_mask_and_a_window_overlap_by_their_common_share_and_cost_what_is_left_of_it():
    """[AMR, losses] Four clips, of which a window has the middle two; a padded one too, where padding is seen."""
    batch = make_batch([4], windows=[[(1, 3), (0, 4)]], pad_to=5)
    truth, head = truth_of(batch), MaskHead(16)
    outputs = said([[0.5, 1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75, 1.0]])
    # 1.5 / (2 + 2 - 1.5), 2 / (2 + 4 - 2); 0.25 / (2 + 2 - 0.25), 1 / (2 + 4 - 1)
    overlap = torch.tensor([[0.6, 0.5], [1 / 15, 0.2]])
    torch.testing.assert_close(head.cost(outputs, truth)[0, 0], 5 * (1 - overlap))
    torch.testing.assert_close(MaskHead(16, cost_mask=2.0).cost(outputs, truth)[0, 0], 2 * (1 - overlap))
    assert not head.cost(outputs, truth).requires_grad
    loss = head.losses(outputs, truth, torch.tensor([[[1, 0]]]))["mask"]
    assert loss.item() == pytest.approx(1 - (1 / 15 + 0.5) / 2)
    loss.sum().backward()
    assert outputs["masks"].grad.any()
    assert head.losses(outputs, truth, torch.tensor([[[-1, 0]]]))["mask"].item() == pytest.approx(0.5)


def test_the_last_mask_can_be_that_of_the_layer_before_and_then_trains_nothing(batch):
    """[AMR, heads], [AMR, losses] As released; all else stays."""
    aligned, detectors = aligned_of(batch), [make(last_mask=last) for last in ("own", "previous")]
    own, previous = (detector(aligned, batch) for detector in detectors)
    assert torch.equal(previous["masks"][-1], own["masks"][1]) and not torch.equal(own["masks"][2], own["masks"][1])
    assert all(torch.equal(own[name], previous[name]) for name in own if name != "masks")
    torch.testing.assert_close(previous["masks"][:2], own["masks"][:2])
    terms = [d.layer_losses(o, batch)["mask"] for d, o in zip(detectors, (own, previous), strict=True)]
    torch.testing.assert_close(terms[0][:2], terms[1][:2])
    assert terms[0][2] > 0 and terms[1][2] == 0
    gradient = torch.autograd.grad(terms[1].sum(), previous["states"], retain_graph=True)[0]
    assert gradient[:2].any() and not gradient[2].any()
    # the matching of the last layer reads the mask of the layer before
    head, truth = detectors[1].heads[2], detectors[1].truth(batch)
    torch.testing.assert_close(head.cost(previous, truth)[2], head.cost(own, truth)[1])


def test_a_mask_of_the_layer_before_needs_a_layer_before():
    with pytest.raises(ValueError, match="decoder_layers must be 2 or more"):
        make(last_mask="previous", decoder_layers=1)
    assert make(decoder_layers=1)(aligned_of(b := make_batch([6, 9])), b)["masks"].shape == (1, 2, K, 9)


def test_padding_enlarges_a_mask_only_where_it_is_seen(batch):
    """[AMR, padding] So that the union with the same window is larger, and the overlap smaller."""
    aligned, detectors = aligned_of(batch), [make(padding=padding) for padding in ("hidden", "seen")]
    hidden, seen = (detector(aligned, batch)["masks"] for detector in detectors)
    real = batch.target_mask[None, :, None].expand_as(hidden)
    assert torch.equal(hidden[real], seen[real]) and not hidden[~real].any() and seen[~real].all()
    truth, matched = matched_of(batch, layers=3)
    losses = [MaskHead(16).losses({"masks": masks}, truth, matched)["mask"] for masks in (hidden, seen)]
    assert (losses[1] > losses[0]).all()


@pytest.mark.parametrize("decoder", [DetrDecoder, DabDecoder])
def test_the_heads_compose_with_either_decoder_and_every_parameter_learns(decoder, batch):
    """[Moment-DETR] has no references, [QD-DETR] has.

    But for what is added to all keys alike, and for how queries that are all the same at first attend to one another.
    """
    torch.manual_seed(0)
    sizes = {"moment_queries": K, "decoder_layers": 2, "heads": 4, "hidden": 24, "dropout": 0.0}
    sizes |= {"content": "query"} if decoder is DabDecoder else {}
    heads = [SpanHead(16), FocalHead(16), MaskHead(16), IouHead(16)]
    detector = shaken(DetrDetector(decoder(16, **sizes), heads, most_windows=10, surplus="first"))
    aligned = aligned_of(batch)
    outputs = detector(aligned, batch)
    shapes = {"spans_cw": (2, 5, K, 2), "logits": (2, 5, K, 2), "masks": (2, 5, K, 12), "quality": (2, 5, K)}
    assert {name: tuple(x.shape) for name, x in outputs.items()} == shapes | {"states": (2, 5, K, 16)}
    terms = detector.losses(outputs, aligned, batch)
    assert set(terms) == {"l1", "giou", "class", "mask", "quality"}
    sum(terms.values()).backward()
    idle = {name for name, p in detector.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7}
    first = "decoder.layers.0.self_attn."
    first = (f"{first}q_", f"{first}k_") if decoder is DabDecoder else f"{first}in_proj_weight"
    idle = {name for name in idle if not name.startswith(first)}
    assert all(name.endswith(("k_content.bias", "k_place.bias")) for name in idle), idle
    moments = detector.decode(outputs, batch)
    assert moments.scores.shape == (5, K) and (moments.scores.diff() <= 0).all()


def test_without_a_window_every_query_is_background_and_expects_nothing():
    """In one sample, in all, and where the labels have no place for any."""
    batch = make_batch([6, 9], windows=[[], []])
    none = replace(batch.labels, spans=batch.labels.spans[:, :0], span_mask=batch.labels.span_mask[:, :0])
    for given in (batch, replace(batch, labels=none)):
        detector, aligned = make(), aligned_of(given)
        outputs = detector(aligned, given)
        terms = detector.losses(outputs, aligned, given)
        assert terms["l1"] == terms["giou"] == terms["mask"] == 0
        torch.testing.assert_close(terms["quality"], outputs["quality"].sigmoid().square().mean((1, 2)).sum())
        yes, no = outputs["logits"].detach().double().unbind(-1)
        focal = -0.75 * yes.sigmoid() ** 2 * (1 - yes.sigmoid()).log()
        focal -= 0.25 * (1 - no.sigmoid()) ** 2 * no.sigmoid().log()
        assert terms["class"].item() == pytest.approx(focal.mean((1, 2)).sum().item() / 2, rel=1e-5)
        sum(terms.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_of_twenty_five_windows_ten_are_matched_the_first_or_some_that_are_drawn():
    """[AMR, features] As released the first; the mask of the rest and their overlaps do not count either."""
    many = [(i, i + 1) for i in range(25)]
    batch = make_batch([30, 40], windows=[many, [(3, 9)]])
    first, drawn = (make(surplus=surplus, moment_queries=12) for surplus in ("first", "drawn"))
    truth = first.truth(batch)
    assert torch.equal(truth.spans[0], batch.labels.spans[0, :10]) and truth.mask.sum(1).tolist() == [10, 1]
    torch.manual_seed(0)
    chosen = [set((drawn.truth(batch).spans[0, :, 0] * 30).round().int().tolist()) for _ in range(20)]
    assert all(len(each) == 10 for each in chosen) and len(set.union(*chosen)) == 25
    aligned = aligned_of(batch)
    outputs = first(aligned, batch)
    few = make_batch([30, 40], windows=[many[:10], [(3, 9)]])
    ours, theirs = (first.losses(outputs, aligned, x) for x in (batch, few))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for detector in (first, drawn, make(moment_queries=3)):
        outputs = detector(aligned, batch)
        loss = sum(detector.losses(outputs, aligned, batch).values())
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@torch.no_grad()
def test_the_matching_adds_up_what_the_heads_say(batch):
    """[AMR, losses] Distance, overlap, the softmax of the class, and the masks."""
    detector = make()
    outputs, truth = detector(aligned_of(batch), batch), detector.truth(batch)
    span, focal, mask, quality = detector.heads
    cost = span.cost(outputs, truth) + focal.cost(outputs, truth) + mask.cost(outputs, truth)
    torch.testing.assert_close(focal.cost(outputs, truth)[..., 0], -4 * outputs["logits"].softmax(-1)[..., 0])
    with_all = sum(head.cost(outputs, truth) for head in (span, focal, mask, quality))
    torch.testing.assert_close(with_all, cost)
    matched = detector.match(outputs, truth)
    for layer in range(3):
        assert matched[layer, 2, 0] == cost[layer, 2, :, 0].argmin()
    for name in ("cost_mask", "cost_class"):
        assert not torch.equal(make(**{name: 1000.0}).match(outputs, truth), matched), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_mask": "none"}, "last must be own or previous"),
        ({"surplus": "all"}, "surplus must be drawn or first"),
        ({"content": "words"}, "content must be zero or query"),
        ({"moment_queries": 0}, "moment_queries must be 1 or more"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_head_that_reads_states_of_one_direction_gives_finite_gradients():
    """A state of zero has no direction."""
    batch, head = make_batch([3]), MaskHead(16)
    nn.init.zeros_(head.mlp.layers[-1].bias)
    states = torch.zeros(1, 1, 2, 16, requires_grad=True)
    aligned = aligned_of(batch)
    aligned.target.zero_()
    head(Decoded(states), aligned)["masks"].sum().backward()
    assert states.grad.isfinite().all()
