"""The DAB decoder against its formulas. Whole networks are compared with the released ones in tests/papers."""

import math

import pytest
import torch
from torch import nn

from mrlib.detect.dab import DabDecoder, DabDetector, Positions, refine, sentence_content, span_positions, zero_content
from mrlib.detect.detr import inverse_sigmoid
from mrlib.layers import sine_positions
from tests.reference.official_detr import span_sines
from tests.support.batches import make_batch
from tests.support.detr import aligned_of, make, run_decoder
from tests.support.modules import shaken


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
    biases = [decoder.move.layers[-1].bias]
    biases += [attn.out_proj.bias for layer in decoder.layers for attn in (layer.self_attn, layer.cross_attn)]
    assert all(x.abs().sum() == 0 for x in biases)
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


def attention_by_hand(q, k, v, heads):
    """Attention, vector by vector and head by head: q (K, e), k (S, e), v (S, f) -> (K, f)."""
    rows = []
    for query in q.split(1):
        parts = []
        for q_head, k_head, v_head in zip(query.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            weights = (k_head @ q_head[0] / math.sqrt(q_head.shape[1])).softmax(0)  # (S,)
            parts.append(weights @ v_head)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def side_by_side(a, b, heads):
    """Head by head, the channels of a and then those of b."""
    return torch.cat([x for pair in zip(a.chunk(heads, 1), b.chunk(heads, 1), strict=True) for x in pair], 1)


def decoder_by_hand(decoder, clips, content, heads):
    """[QD-DETR] States and references (L, K, d), (L, K, 2) of one video without padding."""
    positions = sine_positions(torch.ones(1, len(clips), dtype=torch.bool), 16)[0]
    reference = decoder.moment_queries.weight.sigmoid()
    x, states, references = content.expand(len(reference), -1), [], []
    for i, layer in enumerate(decoder.layers):
        references.append(reference)
        sines = torch.stack([span_sines(span, 16) for span in reference])
        p = decoder.place(sines)
        u = sines * decoder.anchor(x).sigmoid() / reference[:, 1:]
        if i > 0:
            u = u * decoder.scale(x)
        attn = layer.self_attn
        q, k = attn.q_content(x) + attn.q_place(p), attn.k_content(x) + attn.k_place(p)
        x = layer.norm1(x + attn.out_proj(attention_by_hand(q, k, attn.value(x), heads)))
        attn = layer.cross_attn
        q, k = attn.q_content(x), attn.k_content(clips)
        if i == 0:
            q, k = q + attn.q_place(p), k + attn.k_place(positions)
        q, k = side_by_side(q, attn.q_sine(u), heads), side_by_side(k, attn.k_place(positions), heads)
        x = layer.norm2(x + attn.out_proj(attention_by_hand(q, k, attn.value(clips), heads)))
        x = layer.norm3(x + layer.feed_forward(x))
        states.append(decoder.norm(x))
        reference = (decoder.move(x) + inverse_sigmoid(reference)).sigmoid()
    return torch.stack(states), torch.stack(references)


@pytest.mark.parametrize("content", [zero_content, sentence_content])
@torch.no_grad()
def test_the_decoder_equals_its_definition(content):
    """[QD-DETR], [AMR, decoder] Two videos in one padded batch."""
    decoder, batch = shaken(decoder_of(content=content)), make_batch([6, 9])
    decoder.moment_queries.weight[0, 1] = -7.0  # a width of 0.001
    aligned = aligned_of(batch)
    decoded = run_decoder(decoder, aligned)
    for b, n in enumerate([6, 9]):
        start = torch.zeros(16) if content is zero_content else aligned.query_global[b]
        states, references = decoder_by_hand(decoder, aligned.target[b, :n], start, heads=4)
        torch.testing.assert_close(decoded.states[:, b], states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoded.references[:, b], references, rtol=1e-4, atol=1e-5)


def test_videos_of_one_length_share_their_positions():
    """Mapped once for every length; values and gradients equal those of every video with its own."""
    mask = torch.arange(9) < torch.tensor([9, 6, 9, 4, 6])[:, None]
    for rows in (mask, mask[::2][:1].expand(3, -1)):
        linear, like = nn.Linear(16, 8).double(), torch.empty(1, 16, dtype=torch.float64)
        positions = Positions.of(rows, like)
        ours, expected = positions.mapped(linear), linear(sine_positions(rows, 16).double())
        assert len(positions.distinct) == len({tuple(row) for row in rows.tolist()})
        torch.testing.assert_close(ours, expected)
        dy = torch.randn_like(ours)
        for a, b in zip(*(torch.autograd.grad(y, [*linear.parameters()], dy) for y in (ours, expected)), strict=True):
            torch.testing.assert_close(a, b)
    as_on_a_gpu = Positions(sine_positions(mask, 16).double(), None)
    torch.testing.assert_close(as_on_a_gpu.mapped(linear), Positions.of(mask, like).mapped(linear))


@torch.no_grad()
def test_sets_read_one_another_only_with_joint_self_attention():
    """[AMR stage 2] Without it, decoding two sets equals decoding each alone."""
    aligned = aligned_of(make_batch([6, 9]))
    for joint in (False, True):
        decoder = shaken(decoder_of(joint_self_attention=joint))
        sets = list(torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0)))
        inputs = aligned.target, aligned.mask, aligned.query_global
        together = refine(decoder, sets, *inputs).states
        alone = torch.cat([refine(decoder, [x], *inputs).states for x in sets], 2)
        assert torch.allclose(together, alone, atol=1e-5) is not joint


def test_dropout_acts_only_in_training():
    """In the attention and on every branch."""
    aligned = aligned_of(make_batch([6, 9]))
    decoder = decoder_of(dropout=0.5)
    assert torch.equal(run_decoder(decoder, aligned).states, run_decoder(decoder, aligned).states)
    for layer in decoder.layers:  # only the attention itself drops
        layer.dropout.p = layer.feed_forward.dropout.p = 0.0
    decoder.train()
    for kind in ("self_attn", "cross_attn"):
        for layer in decoder.layers:
            layer.self_attn.dropout = layer.cross_attn.dropout = 0.0
            getattr(layer, kind).dropout = 0.5
        torch.manual_seed(0)
        assert not torch.equal(run_decoder(decoder, aligned).states, run_decoder(decoder, aligned).states), kind


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moment_queries": 0}, "moment_queries must be 1 or more"),
        ({"layers": 0}, "decoder_layers must be 1 or more"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decoder_of(**options)


@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip_dtype", [torch.float32, torch.bfloat16])
def test_content_of_moment_queries_starts_in_the_precision_of_the_clips(clip_dtype, query_dtype):
    """Under autocast clips and query may differ: zeros follow the clips, the sentence is never rounded."""
    query_global = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).to(query_dtype)
    zeros, sentence = zero_content(query_global, clip_dtype), sentence_content(query_global, clip_dtype)
    assert zeros.dtype == clip_dtype and not zeros.any()
    assert sentence.dtype == (torch.zeros(1, dtype=clip_dtype) + query_global[0]).dtype
    assert torch.equal(sentence, query_global.to(sentence.dtype))
