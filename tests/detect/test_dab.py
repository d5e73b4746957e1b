"""The DAB decoder against its formulas. Whole networks are compared with the released ones in tests/papers."""

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
    """A decoder of width 16 with four moment queries."""
    torch.manual_seed(0)
    sizes = {"moment_queries": 4, "decoder_layers": layers, "heads": 4, "hidden": 24, "dropout": 0.0} | options
    return DabDecoder(16, **sizes).eval()


def test_span_positions_are_waves_of_the_centre_and_then_of_the_width():
    """[QD-DETR] Channel by channel."""
    spans = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.stack([span_sines(span, 16) for span in row]) for row in spans])
    torch.testing.assert_close(span_positions(spans, 16), expected)


def test_weights_start_as_in_the_paper():
    """[QD-DETR] Xavier-uniform matrices, also the last one of `move`; moment queries from a normal distribution."""
    decoder = decoder_of()
    assert all(x.abs().sum() == 0 for x in (decoder.move.layers[-1].bias, decoder.layers[0].self_attn.out_proj.bias))
    for linear in (
        decoder.move.layers[-1],
        decoder.layers[1].cross_attn.q_sine,
        decoder.layers[2].feed_forward.linear1,
    ):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.7 * bound < linear.weight.abs().max() <= bound
    logits = DabDecoder(16, moment_queries=500, decoder_layers=1, heads=4, hidden=4).moment_queries.weight
    assert logits.std().item() == pytest.approx(1, abs=0.1)
    slopes = [layer.feed_forward.activation.weight.item() for layer in decoder.layers]
    assert slopes == [0.25] * 3


def test_every_layer_adds_its_move_to_the_logits_of_the_spans():
    """[QD-DETR] A move of zero leaves the spans as they are; every layer starts from the spans of the one before."""
    decoder, batch = decoder_of(), make_batch([6, 9])
    initial = decoder.moment_queries.weight.sigmoid().expand(2, -1, -1)
    nn.init.zeros_(decoder.move.layers[-1].weight)
    still = run_decoder(decoder, aligned_of(batch)).references
    torch.testing.assert_close(still, initial.expand(3, -1, -1, -1), rtol=1e-4, atol=1e-4)
    decoder.move.layers[-1].bias.data = torch.tensor([0.5, -0.25])
    moved = run_decoder(decoder, aligned_of(batch)).references
    torch.testing.assert_close(
        inverse_sigmoid(moved[2]) - inverse_sigmoid(moved[0]), torch.tensor([1.0, -0.5]).expand(2, 4, 2)
    )


def test_gradients_reach_a_move_through_the_references_and_not_through_the_next_layer():
    """[QD-DETR] The move after layer 0 gets a gradient from the heads of layer 1, which read the reference."""
    decoder, batch = decoder_of(2), make_batch([6, 9])
    last = decoder.move.layers[-1].bias
    decoded = run_decoder(decoder, aligned_of(batch))
    assert torch.autograd.grad(decoded.states.square().sum(), last, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(decoded.references[1].sum(), last)[0].abs().sum() > 0


def test_content_starts_at_zero_so_the_first_content_matrices_have_no_effect():
    """[QD-DETR] As released."""
    decoder, batch = decoder_of(), make_batch([6, 9])
    before = run_decoder(decoder, aligned_of(batch)).states
    for name in ("q_content", "k_content", "value"):
        nn.init.normal_(getattr(decoder.layers[0].self_attn, name).weight)
    torch.testing.assert_close(run_decoder(decoder, aligned_of(batch)).states, before)
    nn.init.normal_(decoder.layers[1].self_attn.value.weight)
    assert not torch.allclose(run_decoder(decoder, aligned_of(batch)).states, before)


def test_spans_of_width_zero_give_finite_outputs_and_gradients():
    decoder, batch = decoder_of(), make_batch([6, 9])
    decoder.moment_queries.weight.data.fill_(-200.0)
    decoded = run_decoder(decoder, aligned_of(batch))
    (decoded.states.square().sum() + decoded.references.sum()).backward()
    assert decoded.states.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_padding_does_not_change_the_outputs():
    detector = make("dab")
    assert isinstance(detector, DabDetector)
    batch, longer = make_batch([6, 9]), make_batch([6, 9], pad_to=13)
    aligned, padded = aligned_of(batch), aligned_of(longer)
    target = torch.full((2, 13, 16), 7.0)
    target[:, :9] = torch.where(batch.target_mask[..., None], aligned.target, -50.0)
    padded.target.copy_(target)
    outputs, padded_outputs = detector(aligned, batch), detector(padded, longer)
    for name, value in outputs.items():
        torch.testing.assert_close(padded_outputs[name], value)
