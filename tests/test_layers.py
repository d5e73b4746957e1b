"""Transformer layers against torch's own and against what they say."""

import math

import pytest
import torch
from torch import nn

from mrlib.layers import (
    MLP,
    Attention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    LearnedPositions,
    Projection,
    endpoints,
    masked_mean,
    sine_positions,
)

ROWS = dict(
    x=torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0)),
    mask=torch.arange(7) < torch.tensor([[7], [4], [1]]),
)


def random(module: nn.Module) -> nn.Module:
    """Every parameter drawn anew, biases and norms too, which start at 0 and 1."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return module.eval()


def test_positions_are_the_sines_and_cosines_of_the_place_among_the_real_clips():
    """Computed clip by clip from the formula."""
    positions = sine_positions(ROWS["mask"], 6)
    for b, n in enumerate([7, 4, 1]):
        for t in range(n):
            p = 2 * math.pi * (t + 1) / (n + 1e-6)
            for m in range(3):
                angle = p / 10000 ** (2 * m / 6)
                assert positions[b, t, 2 * m].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert positions[b, t, 2 * m + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_a_masked_mean_is_of_the_real_vectors():
    mean = masked_mean(ROWS["x"], ROWS["mask"])
    for b, n in enumerate([7, 4, 1]):
        torch.testing.assert_close(mean[b], ROWS["x"][b, :n].mean(0))
    assert not masked_mean(ROWS["x"], torch.zeros_like(ROWS["mask"])).any()


def test_endpoints_are_where_a_clip_starts_and_ends_and_nothing_on_padding():
    ends = endpoints(ROWS["mask"])
    torch.testing.assert_close(ends[1, 1], torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(ends[2, 0], torch.tensor([0.0, 1.0]))
    assert ends[~ROWS["mask"]].abs().sum() == 0


def test_attention_is_torchs_multi_head_attention():
    ours = random(Attention(16, 4))
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x, mask = ROWS["x"], ROWS["mask"]
    expected, _ = theirs(x, x + 1, x - 1, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, x + 1, x - 1, mask), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_padding_gives_numbers_and_finite_gradients():
    layer = random(Attention(16, 4))
    x = ROWS["x"].clone().requires_grad_()
    mask = ROWS["mask"] & torch.tensor([[True], [False], [True]])
    y = layer(x, x, x, mask)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_layer_without_positions_is_torchs(activation, pre_norm):
    ours = random(EncoderLayer(16, 4, 24, 0.0, activation, pre_norm))
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, batch_first=True, norm_first=pre_norm).eval()
    theirs.load_state_dict({k.replace("feed_forward.", ""): v for k, v in ours.state_dict().items()})
    x, mask = ROWS["x"], ROWS["mask"]
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, torch.zeros_like(x), mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_a_decoder_layer_without_positions_is_torchs():
    ours = random(DecoderLayer(16, 4, 24, 0.0))
    theirs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True).eval()
    names = {"feed_forward.": "", "cross_attn": "multihead_attn"}
    state = ours.state_dict()
    for a, b in names.items():
        state = {k.replace(a, b): v for k, v in state.items()}
    theirs.load_state_dict(state)
    x, memory, mask = torch.randn(3, 5, 16), ROWS["x"], ROWS["mask"]
    expected = theirs(x, memory, memory_key_padding_mask=~mask)
    got = ours(x, torch.zeros_like(x), memory, torch.zeros_like(memory), mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_positions_reach_queries_and_keys_and_no_values():
    """With one key all attention is on it, so its position cannot show."""
    layer = random(EncoderLayer(16, 4, 24, 0.0))
    x, mask = ROWS["x"], torch.arange(7)[None] < torch.tensor([[1], [1], [1]])
    torch.testing.assert_close(layer(x, torch.randn_like(x), mask), layer(x, torch.zeros_like(x), mask))
    everything = torch.ones_like(mask)
    assert not torch.allclose(layer(x, torch.randn_like(x), everything), layer(x, torch.zeros_like(x), everything))


def test_a_projection_norms_drops_and_maps_with_relu_between():
    layers = random(Projection(5, 8, 2, 0.5))
    norm1, _, linear1, _, norm2, _, linear2 = layers
    x = torch.randn(4, 5)
    torch.testing.assert_close(layers(x), linear2(norm2(linear1(norm1(x)).relu())))


def test_learned_positions_depend_on_what_stands_there_and_are_only_so_many():
    places = random(LearnedPositions(4, 16, 0.0))
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(places(x), places.norm(x + places.position_embeddings.weight[:3]))
    with pytest.raises(ValueError, match="5 vectors is longer than the 4 learned positions"):
        places(torch.randn(2, 5, 16))


def test_heads_that_cannot_share_the_width_and_unknown_activations_are_refused():
    with pytest.raises(ValueError, match="3 heads cannot share a width of 16"):
        Attention(16, 3)
    with pytest.raises(ValueError, match="unknown activation 'swish'; known: relu, gelu"):
        EncoderLayer(16, 4, 24, 0.0, "swish")


def test_a_vector_sees_what_it_may_see_and_no_padding():
    """Head by head, against torch's attention with its own mask of heads."""
    ours, g = random(Attention(16, 4)), torch.Generator().manual_seed(2)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x, mask = ROWS["x"], ROWS["mask"]
    seen = torch.rand(3, 4, 7, 7, generator=g) < 0.6
    seen[..., 0] = True
    expected, _ = theirs(x, x, x, key_padding_mask=~mask, attn_mask=~seen.flatten(0, 1))
    torch.testing.assert_close(ours(x, x, x, mask, seen), expected, rtol=1e-5, atol=1e-6)


def test_a_decoder_layer_that_norms_first_is_torchs():
    ours = random(DecoderLayer(16, 4, 24, 0.0, pre_norm=True))
    theirs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=True).eval()
    state = {k.replace("feed_forward.", ""): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict({k.replace("cross_attn", "multihead_attn"): v for k, v in state.items()})
    x, memory, mask = torch.randn(3, 5, 16), ROWS["x"], ROWS["mask"]
    expected = theirs(x, memory, memory_key_padding_mask=~mask)
    got = ours(x, torch.zeros_like(x), memory, torch.zeros_like(memory), mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_prelu_has_a_slope_that_learns():
    """[QD-DETR] One number a layer, 0.25 at first."""
    layer = FeedForward(4, 6, 0.0, "prelu")
    assert layer.activation.weight.tolist() == [0.25]
    x = torch.randn(3, 4)
    inside = layer.linear1(x)
    torch.testing.assert_close(layer(x), layer.linear2(torch.where(inside > 0, inside, 0.25 * inside)))


def test_an_mlp_is_linear_layers_with_relu_between():
    mlp = random(MLP(4, 2, 3))
    x = torch.randn(5, 4)
    a, b, c = mlp.layers
    torch.testing.assert_close(mlp(x), c(b(a(x).relu()).relu()))
    assert c.out_features == 2
