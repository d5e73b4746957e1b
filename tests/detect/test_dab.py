"""The decoder of spans against its formulas; the whole of it is compared in test_official_detr.py."""

import math

import pytest
import torch
from torch import nn

from mrlib.detect.dab import DabDecoder, DabDetector, span_positions
from mrlib.detect.detr import inverse_sigmoid
from tests.reference.official_detr import span_sines
from tests.support.batches import make_batch
from tests.support.detr import aligned_of, make, run_decoder


def decoder_of(layers=3, **options):
    torch.manual_seed(0)
    sizes = {"moment_queries": 4, "decoder_layers": layers, "heads": 4, "hidden": 24, "dropout": 0.0} | options
    return DabDecoder(16, **sizes).eval()


def test_positions_of_a_span_are_the_sines_of_its_centre_then_of_its_width():
    """[QD-DETR] Channel by channel."""
    spans = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    found = span_positions(spans, 16)
    expected = torch.stack([torch.stack([span_sines(span, 16) for span in row]) for row in spans])
    torch.testing.assert_close(found, expected)


def test_weights_start_as_in_the_paper():
    """[QD-DETR] Xavier-uniform matrices, also the last of the moves; anchors from a normal distribution."""
    decoder = decoder_of()
    assert all(x.abs().sum() == 0 for x in (decoder.move.layers[-1].bias, decoder.layers[0].self_attn.out_proj.bias))
    for linear in (
        decoder.move.layers[-1],
        decoder.layers[1].cross_attn.q_sine,
        decoder.layers[2].feed_forward.linear1,
    ):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.7 * bound < linear.weight.abs().max() <= bound
    anchors = torch.cat([DabDecoder(16, moment_queries=500, decoder_layers=1, heads=4, hidden=4).moment_queries.weight])
    assert anchors.std().item() == pytest.approx(1, abs=0.1)
    slopes = [layer.feed_forward.activation.weight.item() for layer in decoder.layers]
    assert slopes == [0.25] * 3


def test_every_layer_moves_the_spans_and_begins_where_the_one_before_ended():
    """[QD-DETR] A move of zero leaves them; one that is known is added to their logits."""
    decoder, batch = decoder_of(), make_batch([6, 9])
    anchors = decoder.moment_queries.weight.sigmoid().expand(2, -1, -1)
    nn.init.zeros_(decoder.move.layers[-1].weight)
    still = run_decoder(decoder, aligned_of(batch)).references
    torch.testing.assert_close(still, anchors.expand(3, -1, -1, -1), rtol=1e-4, atol=1e-4)
    decoder.move.layers[-1].bias.data = torch.tensor([0.5, -0.25])
    moved = run_decoder(decoder, aligned_of(batch)).references
    torch.testing.assert_close(
        inverse_sigmoid(moved[2]) - inverse_sigmoid(moved[0]), torch.tensor([1.0, -0.5]).expand(2, 4, 2)
    )


def test_the_next_layer_reads_a_span_without_its_gradient_and_the_heads_with_it():
    """[QD-DETR] The move after layer 0 hears from the head of layer 1, through the reference alone."""
    decoder, batch = decoder_of(2), make_batch([6, 9])
    last = decoder.move.layers[-1].bias
    decoded = run_decoder(decoder, aligned_of(batch))
    assert torch.autograd.grad(decoded.states.square().sum(), last, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(decoded.references[1].sum(), last)[0].abs().sum() > 0


def test_content_starts_at_zero_so_that_what_maps_it_first_is_idle():
    """[QD-DETR] As released."""
    decoder, batch = decoder_of(), make_batch([6, 9])
    before = run_decoder(decoder, aligned_of(batch)).states
    for name in ("q_content", "k_content", "value"):
        nn.init.normal_(getattr(decoder.layers[0].self_attn, name).weight)
    torch.testing.assert_close(run_decoder(decoder, aligned_of(batch)).states, before)
    nn.init.normal_(decoder.layers[1].self_attn.value.weight)
    assert not torch.allclose(run_decoder(decoder, aligned_of(batch)).states, before)


def test_a_span_of_no_width_gives_finite_numbers_and_gradients():
    decoder, batch = decoder_of(), make_batch([6, 9])
    decoder.moment_queries.weight.data.fill_(-200.0)
    decoded = run_decoder(decoder, aligned_of(batch))
    (decoded.states.square().sum() + decoded.references.sum()).backward()
    assert decoded.states.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_what_stands_on_padding_and_how_much_there_is_changes_nothing():
    detector = make("dab")
    assert isinstance(detector, DabDetector)
    batch, wide = make_batch([6, 9]), make_batch([6, 9], pad_to=13)
    aligned = aligned_of(batch)
    target = torch.full((2, 13, 16), 7.0)
    target[:, :9] = torch.where(batch.target_mask[..., None], aligned.target, -50.0)
    padded = aligned_of(wide)
    padded.target.copy_(target)
    ours, theirs = detector(aligned, batch), detector(padded, wide)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value)
