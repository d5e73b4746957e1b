"""Transformer layers against those of torch and against their definitions."""

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
    Projected,
    Projection,
    Sizes,
    endpoints,
    masked_mean,
    sine_positions,
)

ROWS = dict(
    x=torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0)),
    mask=torch.arange(7) < torch.tensor([[7], [4], [1]]),
)


def random(module: nn.Module) -> nn.Module:
    """Draw all parameters at random, including biases and norms, which start at 0 and 1."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return module.eval()


def test_sine_positions_equal_their_formula():
    """Clip by clip, for videos of 7, 4 and 1 real clips."""
    positions = sine_positions(ROWS["mask"], 6)
    for b, n in enumerate([7, 4, 1]):
        for t in range(n):
            p = 2 * math.pi * (t + 1) / (n + 1e-6)
            for m in range(3):
                angle = p / 10000 ** (2 * m / 6)
                assert positions[b, t, 2 * m].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert positions[b, t, 2 * m + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_masked_mean_is_the_mean_of_the_real_vectors():
    mean = masked_mean(ROWS["x"], ROWS["mask"])
    for b, n in enumerate([7, 4, 1]):
        torch.testing.assert_close(mean[b], ROWS["x"][b, :n].mean(0))
    assert not masked_mean(ROWS["x"], torch.zeros_like(ROWS["mask"])).any()


def test_endpoints_are_start_and_end_of_a_clip_and_0_on_padding():
    ends = endpoints(ROWS["mask"])
    torch.testing.assert_close(ends[1, 1], torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(ends[2, 0], torch.tensor([0.0, 1.0]))
    assert ends[~ROWS["mask"]].abs().sum() == 0


def test_attention_equals_torchs_multi_head_attention():
    ours = random(Attention(16, 4))
    torchs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    torchs.load_state_dict(ours.state_dict())
    x, mask = ROWS["x"], ROWS["mask"]
    expected, _ = torchs(x, x + 1, x - 1, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, x + 1, x - 1, mask), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_padding_gives_finite_values_and_gradients():
    layer = random(Attention(16, 4))
    x = ROWS["x"].clone().requires_grad_()
    mask = ROWS["mask"] & torch.tensor([[True], [False], [True]])
    y = layer(x, x, x, mask)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_layer_without_positions_equals_torchs(activation, pre_norm):
    ours = random(EncoderLayer(16, 4, 24, 0.0, activation, pre_norm))
    torchs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, batch_first=True, norm_first=pre_norm).eval()
    torchs.load_state_dict({k.replace("feed_forward.", ""): v for k, v in ours.state_dict().items()})
    x, mask = ROWS["x"], ROWS["mask"]
    expected = torchs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, torch.zeros_like(x), mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_a_decoder_layer_without_positions_equals_torchs():
    ours = random(DecoderLayer(16, 4, 24, 0.0))
    torchs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True).eval()
    names = {"feed_forward.": "", "cross_attn": "multihead_attn"}
    state = ours.state_dict()
    for a, b in names.items():
        state = {k.replace(a, b): v for k, v in state.items()}
    torchs.load_state_dict(state)
    x, memory, mask = torch.randn(3, 5, 16), ROWS["x"], ROWS["mask"]
    expected = torchs(x, memory, memory_key_padding_mask=~mask)
    output = ours(x, torch.zeros_like(x), memory, torch.zeros_like(memory), mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_positions_are_added_to_queries_and_keys_but_not_to_values():
    """With a single key, all attention is on it, so positions have no effect."""
    layer = random(EncoderLayer(16, 4, 24, 0.0))
    x, mask = ROWS["x"], torch.arange(7)[None] < torch.tensor([[1], [1], [1]])
    torch.testing.assert_close(layer(x, torch.randn_like(x), mask), layer(x, torch.zeros_like(x), mask))
    all_real = torch.ones_like(mask)
    assert not torch.allclose(layer(x, torch.randn_like(x), all_real), layer(x, torch.zeros_like(x), all_real))


def test_a_projection_is_norm_dropout_and_linear_with_relu_between():
    layers = random(Projection(5, 8, 2, 0.5))
    norm1, _, linear1, _, norm2, _, linear2 = layers
    x = torch.randn(4, 5)
    torch.testing.assert_close(layers(x), linear2(norm2(linear1(norm1(x)).relu())))


def test_the_default_sizes_are_those_of_qd_detr():
    """[QD-DETR] Two layers of width 256 with 8 heads and 1024 hidden units; dropout 0.1, and 0.5 on the input."""
    sizes = Sizes()
    assert (sizes.layers, sizes.projections, sizes.input_dropout, sizes.tef) == (2, 2, 0.5, True)
    assert sizes.layer == (256, 8, 1024, 0.1, "prelu")


@pytest.mark.parametrize("tef", [True, False])
def test_clips_are_projected_with_their_endpoints_and_queries_without(tef):
    layers = random(Projected(16, 9, Sizes(width=8, tef=tef)))
    x, mask, query = ROWS["x"], ROWS["mask"], torch.randn(3, 4, 9)
    features = torch.cat([x, endpoints(mask)], 2) if tef else x
    target, projected_query = layers.project(x, mask, query)
    torch.testing.assert_close(target, layers.project_target(features))
    torch.testing.assert_close(projected_query, layers.project_query(query))
    assert layers.project_target[0].normalized_shape == (18 if tef else 16,)
    assert (target.shape, projected_query.shape) == ((3, 7, 8), (3, 4, 8))


def test_learned_positions_depend_on_the_features_and_are_limited_in_number():
    positions = random(LearnedPositions(4, 16, 0.0))
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(positions(x), positions.norm(x + positions.position_embeddings.weight[:3]))
    with pytest.raises(ValueError, match="5 vectors is longer than the 4 learned positions"):
        positions(torch.randn(2, 5, 16))


def test_heads_that_cannot_share_the_width_and_unknown_activations_raise_errors():
    with pytest.raises(ValueError, match="3 heads cannot share a width of 16"):
        Attention(16, 3)
    with pytest.raises(ValueError, match="unknown activation 'swish'; known: relu, gelu"):
        EncoderLayer(16, 4, 24, 0.0, "swish")


def test_a_vector_attends_only_to_visible_real_keys():
    """Each head has its own mask; against torch's attention with a mask per head."""
    ours, g = random(Attention(16, 4)), torch.Generator().manual_seed(2)
    torchs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    torchs.load_state_dict(ours.state_dict())
    x, mask = ROWS["x"], ROWS["mask"]
    visible = torch.rand(3, 4, 7, 7, generator=g) < 0.6
    visible[..., 0] = True
    expected, _ = torchs(x, x, x, key_padding_mask=~mask, attn_mask=~visible.flatten(0, 1))
    torch.testing.assert_close(ours(x, x, x, mask, visible), expected, rtol=1e-5, atol=1e-6)


def test_a_decoder_layer_with_pre_norm_equals_torchs():
    ours = random(DecoderLayer(16, 4, 24, 0.0, pre_norm=True))
    torchs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=True).eval()
    state = {k.replace("feed_forward.", ""): v for k, v in ours.state_dict().items()}
    torchs.load_state_dict({k.replace("cross_attn", "multihead_attn"): v for k, v in state.items()})
    x, memory, mask = torch.randn(3, 5, 16), ROWS["x"], ROWS["mask"]
    expected = torchs(x, memory, memory_key_padding_mask=~mask)
    output = ours(x, torch.zeros_like(x), memory, torch.zeros_like(memory), mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_the_feed_forward_layer_uses_prelu_with_a_learned_slope():
    """[QD-DETR] One slope per layer, initially 0.25."""
    layer = FeedForward(4, 6, 0.0, "prelu")
    assert layer.activation.weight.tolist() == [0.25]
    x = torch.randn(3, 4)
    hidden = layer.linear1(x)
    torch.testing.assert_close(layer(x), layer.linear2(torch.where(hidden > 0, hidden, 0.25 * hidden)))


def test_an_mlp_is_a_chain_of_linear_layers_with_relu_between():
    mlp = random(MLP(4, 2, 3))
    x = torch.randn(5, 4)
    a, b, c = mlp.layers
    torch.testing.assert_close(mlp(x), c(b(a(x).relu()).relu()))
    assert c.out_features == 2
