"""AMR's heads: focal class loss, expected overlaps and masks against their definitions, alone and in a detector."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mrlib import papers
from mrlib.data import Widths
from mrlib.detect.amr_heads import FocalLoss, IouHead, MaskHead, OwnMasks, with_padding, without_padding
from mrlib.detect.dab import DabDecoder, sentence_content, zero_content
from mrlib.detect.detr import ClassHead, Decoded, DetrDecoder, DetrDetector, SpanHead, first_windows, to_ends
from mrlib.detect.span_length import duration_in_clips, of_clips
from tests.support.batches import make_batch
from tests.support.detr import aligned_of
from tests.support.modules import shaken

K = 5


def make(**options):
    """AMR's detector of width 16, with no parameter at its initial value."""
    sizes = {"width": 16, "hidden": 24, "heads": 4, "dropout": 0.0, "moment_queries": K, "decoder_layers": 3} | options
    return shaken(papers.build(papers.get("amr", **sizes), Widths(24, 12, 16), seed=1).detector)


def mask_head(cost_mask=5.0, padding=without_padding, layers=None):
    """A mask head of width 16."""
    return MaskHead(16, cost_mask=cost_mask, padding=padding, layers=layers or OwnMasks())


def class_losses(outputs, truth, matched):
    """The term of a class head with a focal loss, (L,)."""
    return ClassHead(16, cost_class=4.0, loss=FocalLoss()).losses(outputs, truth, matched)["class"]


@pytest.fixture
def batch():
    """Two windows, none, one over the whole video, three; the last sample is all padding."""
    windows = [[(2, 6), (7, 9)], [], [(0, 12)], [(0, 2), (3, 4), (5, 7)], [(0, 1)]]
    batch = make_batch([9, 4, 12, 7, 3], windows=windows)
    mask = batch.target_mask.clone()
    mask[4] = False
    return replace(batch, target_mask=mask)


def matched_of(batch, layers=2):
    """The truth, and a matching in which moment query 4 - w has window w."""
    truth = make().truth(batch)
    moment_queries = (4 - torch.arange(truth.mask.shape[1])).expand(truth.mask.shape)
    return truth, torch.where(truth.mask, moment_queries, -1).expand(layers, -1, -1)


def test_the_class_loss_is_the_focal_loss_of_both_logits(batch):
    """[Lin et al. 2017], [AMR, losses] With p_t and alpha_t as printed; the mean is over samples with clips."""
    truth, matched = matched_of(batch)
    logits = 3 * torch.randn(2, 5, K, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = class_losses({"logits": logits}, truth, matched)
    for layer in range(2):
        total = 0.0
        for b in range(4):
            for q in range(K):
                positive = q in matched[layer, b].tolist()
                for z, y in zip(logits[layer, b, q].tolist(), (positive, not positive), strict=True):
                    p = 1 / (1 + math.exp(-z))
                    p_t, alpha_t = (p, 0.25) if y else (1 - p, 0.75)
                    total -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
        assert losses[layer].item() == pytest.approx(total / (4 * K * 2), rel=1e-5)


def test_extreme_logits_give_finite_losses_and_gradients(batch):
    truth, matched = matched_of(batch)
    logits = torch.tensor([-200.0, 200.0, 0.0]).repeat(20)[:50].view(1, 5, K, 2).requires_grad_()
    loss = class_losses({"logits": logits}, truth, matched[:1]).sum()
    loss.backward()
    positive = torch.stack([(torch.arange(K) == matched[0, b, :, None]).any(0) for b in range(4)])
    targets = torch.stack([positive, ~positive], -1)
    z = torch.where(targets, logits[0, :4], -logits[0, :4]).detach().double()
    # log p is -200 at -200 (with p = 0), 0 at 200, and log 1/2 at 0
    each = torch.where(z < 0, 200.0, torch.where(z > 0, 0.0, 0.25 * math.log(2)))
    expected = (each * torch.where(targets, 0.25, 0.75)).sum() / (4 * K * 2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and logits.grad.isfinite().all()
    assert not logits.grad[:, 4].any() and logits.grad[:, :4].any()


def test_quality_is_trained_to_be_the_largest_iou_of_the_span(batch):
    """[AMR, losses] By hand: 1/2 for the better of two windows; 0 where the span touches none or there is none."""
    spans_cw = torch.full((1, 5, K, 2), 0.25)
    ends = torch.tensor([[0.0, 4 / 9], [2 / 9, 6 / 9], [5 / 9, 1.0], [0.0, 2 / 9], [7 / 9, 8 / 9]])
    # IoU with windows (2, 6) and (7, 9) of nine clips: 2 of 6 clips; all; 1 of 7 and 2 of 4; none; 1 of 2
    largest = [2 / 6, 1.0, 2 / 4, 0.0, 1 / 2]
    spans_cw[0, 0] = torch.stack([ends.mean(1), ends[:, 1] - ends[:, 0]], 1)
    spans_cw.requires_grad_()
    quality = torch.randn(1, 5, K, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth, matched = matched_of(batch)
    head = IouHead(16)
    loss = head.losses({"quality": quality, "spans_cw": spans_cw}, truth, matched[:1])["quality"]
    expected = sum((p - y) ** 2 for p, y in zip(quality[0, 0].sigmoid().tolist(), largest, strict=True))
    expected += quality[0, 1].sigmoid().square().sum().item()  # no window
    # a quarter of the video around its first quarter, clips 1.5 to 4.5 of twelve; the window is the whole video
    expected += (quality[0, 2].sigmoid() - 0.25).square().sum().item()
    # clips 0.875 to 2.625 of seven share 1.125 with the window (0, 2); the union is 2.625
    expected += (quality[0, 3].sigmoid() - 1.125 / 2.625).square().sum().item()
    assert loss.item() == pytest.approx(expected / (4 * K), rel=1e-4)
    loss.sum().backward()
    assert spans_cw.grad is None and quality.grad[0, :4].all() and not quality.grad[0, 4].any()
    assert head.cost({}, truth) == 0


@torch.no_grad()
def test_a_score_is_the_foreground_probability_times_the_expected_overlap():
    """[AMR, recipe] After the last layer; masks have no part in it."""
    batch, detector = make_batch([6, 9]), make()
    outputs = detector(aligned_of(batch), batch)
    moments = detector.decode(outputs, batch)
    score = outputs["logits"][-1].softmax(-1)[..., 0] * outputs["quality"][-1].sigmoid()
    order = score.argsort(1, descending=True)
    torch.testing.assert_close(moments.scores, score.gather(1, order))
    ends = to_ends(outputs["spans_cw"][-1]).clamp(0, 1)
    torch.testing.assert_close(moments.spans, ends.gather(1, order[..., None].expand_as(ends)))


@torch.no_grad()
def test_a_mask_is_the_sigmoid_of_the_scaled_cosine_of_a_moment_query_and_a_clip(batch):
    """[AMR, heads] Entry by entry; padding is in no mask, or in every mask as released."""
    aligned = aligned_of(batch)
    states = torch.randn(2, 5, K, 16, generator=torch.Generator().manual_seed(1))
    for padding in (without_padding, with_padding):
        torch.manual_seed(0)
        head = mask_head(padding=padding)
        assert head.scale.item() == pytest.approx(math.log(1 / 0.07))
        head.scale.fill_(0.5)
        masks = head(Decoded(states), aligned.target, aligned.mask)["masks"]
        for b, n in enumerate([9, 4, 12, 7, 0]):
            for q in range(K):
                h = states[1, b, q] + head.mlp(states[1, b, q])
                for t in range(12):
                    cosine = torch.cosine_similarity(h, aligned.target[b, t], dim=0)
                    mu = (math.exp(0.5) * cosine).sigmoid() if t < n or padding is with_padding else torch.tensor(0.0)
                    torch.testing.assert_close(masks[1, b, q, t], mu)


def mask_outputs(masks):
    """Masks (K, T) as outputs of a head, (1, 1, K, T)."""
    return {"masks": torch.tensor(masks)[None, None].requires_grad_()}


def test_cost_and_loss_of_a_mask_are_one_minus_its_iou_with_a_window():
    """[AMR, losses] Four clips, of which one window has the middle two; the padded clip counts as if it were seen."""
    batch = make_batch([4], windows=[[(1, 3), (0, 4)]], pad_to=5)
    truth, head = make().truth(batch), mask_head()
    outputs = mask_outputs([[0.5, 1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75, 1.0]])
    # 1.5 / (2 + 2 - 1.5), 2 / (2 + 4 - 2); 0.25 / (2 + 2 - 0.25), 1 / (2 + 4 - 1)
    overlap = torch.tensor([[0.6, 0.5], [1 / 15, 0.2]])
    torch.testing.assert_close(head.cost(outputs, truth)[0, 0], 5 * (1 - overlap))
    torch.testing.assert_close(mask_head(cost_mask=2.0).cost(outputs, truth)[0, 0], 2 * (1 - overlap))
    assert not head.cost(outputs, truth).requires_grad
    loss = head.losses(outputs, truth, torch.tensor([[[1, 0]]]))["mask"]
    assert loss.item() == pytest.approx(1 - (1 / 15 + 0.5) / 2)
    loss.sum().backward()
    assert outputs["masks"].grad.any()
    assert head.losses(outputs, truth, torch.tensor([[[-1, 0]]]))["mask"].item() == pytest.approx(0.5)
    layers = {"masks": outputs["masks"].expand(2, -1, -1, -1)}
    loss = head.losses(layers, truth, torch.tensor([[[1, 0]], [[0, 1]]]))["mask"]
    torch.testing.assert_close(loss, torch.tensor([1 - (1 / 15 + 0.5) / 2, 1 - (0.6 + 0.2) / 2]))


def test_the_last_mask_can_be_that_of_the_layer_before_without_a_loss(batch):
    """[AMR, heads], [AMR, losses] As released; everything else stays the same."""
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
    # the matching of the last layer uses the mask of the layer before
    head, truth = detectors[1].heads[2], detectors[1].truth(batch)
    torch.testing.assert_close(head.cost(previous, truth)[2], head.cost(own, truth)[1])


def test_the_mask_of_the_layer_before_needs_two_layers():
    with pytest.raises(ValueError, match="decoder_layers must be 2 or more"):
        make(last_mask="previous", decoder_layers=1)
    assert make(decoder_layers=1)(aligned_of(b := make_batch([6, 9])), b)["masks"].shape == (1, 2, K, 9)


def test_only_seen_padding_enlarges_a_mask(batch):
    """[AMR, padding] The union with the same window is then larger, and the IoU smaller."""
    aligned, detectors = aligned_of(batch), [make(padding=padding) for padding in ("hidden", "seen")]
    without, with_padding = (detector(aligned, batch)["masks"] for detector in detectors)
    real = batch.target_mask[None, :, None].expand_as(without)
    assert torch.equal(without[real], with_padding[real]) and not without[~real].any() and with_padding[~real].all()
    truth, matched = matched_of(batch, layers=3)
    losses = [mask_head().losses({"masks": masks}, truth, matched)["mask"] for masks in (without, with_padding)]
    assert (losses[1] > losses[0]).all()


@pytest.mark.parametrize("decoder", [DetrDecoder, DabDecoder])
def test_the_heads_work_with_either_decoder_and_every_parameter_gets_a_gradient(decoder, batch):
    """[Moment-DETR] has no references, [QD-DETR] has.

    Exceptions are biases added to all keys alike, and the first self-attention's weights for q and k: all moment
    queries have the same content there.
    """
    torch.manual_seed(0)
    sizes = {"moment_queries": K, "decoder_layers": 2, "heads": 4, "hidden": 24, "dropout": 0.0}
    sizes |= {"content": sentence_content} if decoder is DabDecoder else {}
    heads = [SpanHead(16, cost_l1=10.0, cost_giou=1.0), ClassHead(16, cost_class=4.0, loss=FocalLoss())]
    heads += [mask_head(), IouHead(16)]
    detector = shaken(DetrDetector(decoder(16, **sizes), heads, most_windows=10, surplus=first_windows))
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


def test_without_windows_every_moment_query_is_background_with_quality_0():
    """Where all windows are masked, also with numbers in their places, and where the labels have no place for any."""
    batch = make_batch([6, 9], windows=[[], []])
    filled = replace(batch.labels, spans=torch.tensor([[[0.2, 0.8]], [[0.0, 1.0]]]))
    none = replace(batch.labels, spans=batch.labels.spans[:, :0], span_mask=batch.labels.span_mask[:, :0])
    for unlabelled in (batch, replace(batch, labels=filled), replace(batch, labels=none)):
        detector, aligned = make(), aligned_of(unlabelled)
        outputs = detector(aligned, unlabelled)
        terms = detector.losses(outputs, aligned, unlabelled)
        assert terms["l1"] == terms["giou"] == terms["mask"] == 0
        torch.testing.assert_close(terms["quality"], outputs["quality"].sigmoid().square().mean((1, 2)).sum())
        foreground, background = outputs["logits"].detach().double().sigmoid().unbind(-1)
        focal = -0.75 * foreground**2 * (1 - foreground).log()
        focal -= 0.25 * (1 - background) ** 2 * background.log()
        assert terms["class"].item() == pytest.approx(focal.mean((1, 2)).sum().item() / 2, rel=1e-5)
        sum(terms.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_ten_of_many_windows_are_matched_the_first_or_random_ones():
    """[AMR, features] As released the first ten; the other windows have no part in any term."""
    many = [(i, i + 1) for i in range(25)]
    batch = make_batch([30, 40], windows=[many, [(3, 9)]])
    first, drawn = (make(surplus=surplus, moment_queries=12) for surplus in ("first", "drawn"))
    truth = first.truth(batch)
    assert torch.equal(truth.spans[0], batch.labels.spans[0, :10]) and truth.mask.sum(1).tolist() == [10, 1]
    torch.manual_seed(0)
    samples = [set((drawn.truth(batch).spans[0, :, 0] * 30).round().int().tolist()) for _ in range(20)]
    assert all(len(starts) == 10 for starts in samples) and len(set.union(*samples)) == 25
    aligned = aligned_of(batch)
    outputs = first(aligned, batch)
    few = make_batch([30, 40], windows=[many[:10], [(3, 9)]])
    terms, few_terms = (first.losses(outputs, aligned, x) for x in (batch, few))
    assert all(torch.equal(terms[name], few_terms[name]) for name in terms)
    for detector in (first, drawn, make(moment_queries=3)):
        outputs = detector(aligned, batch)
        loss = sum(detector.losses(outputs, aligned, batch).values())
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@torch.no_grad()
def test_the_matching_cost_is_the_sum_of_the_heads_costs(batch):
    """[AMR, losses] Distance, overlap, the softmax of the class, and the masks; the quality costs nothing."""
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


def test_the_builder_passes_its_options_on():
    """Contents, the length of spans, and the decoder's own options."""
    assert make(content="zero").decoder.content is zero_content
    assert make(content="query").decoder.content is sentence_content
    assert make(length="duration").length is duration_in_clips and make(length="clips").length is of_clips
    assert not make(joint_self_attention=False).decoder.layers[0].self_attn.across_sets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_mask": "none"}, "last_mask must be own or previous"),
        ({"padding": "none"}, "padding must be hidden or seen"),
        ({"surplus": "all"}, "surplus must be drawn or first"),
        ({"content": "words"}, "content must be zero or query"),
        ({"moment_queries": 0}, "moment_queries must be 1 or more"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_states_and_clips_of_zero_give_finite_gradients():
    """A zero vector has no direction."""
    batch, head = make_batch([3]), mask_head()
    nn.init.zeros_(head.mlp.layers[-1].bias)
    states = torch.zeros(1, 1, 2, 16, requires_grad=True)
    aligned = aligned_of(batch)
    aligned.target.zero_()
    head(Decoded(states), aligned.target, aligned.mask)["masks"].sum().backward()
    assert states.grad.isfinite().all()
