"""The layer that lets clips take up words, against its equation, and the attention masks of the released code."""

import pytest
import torch
from torch import nn

from mrlib.align.words import T2VLayer, Words, every_word, released_masks
from tests.support.batches import batch_of, drawn
from tests.support.modules import shaken

# two samples: two clips of which the first is real; one word and two words
TARGET_MASK = torch.tensor([[True, False], [True, False]])
QUERY_MASK = torch.tensor([[True, False], [True, True]])


def random_words(batch, width=16):
    text = torch.randn(*batch.query.shape[:2], width, generator=torch.Generator().manual_seed(0))
    return Words(text, text, batch.query_mask)


def layer_by_hand(layer, x, positions, words, residual):
    """The equation of `T2VLayer` with torch's attention, for one sample without padding."""
    attention = nn.MultiheadAttention(x.shape[1], layer.cross_attn.heads, batch_first=True).to(x.dtype)
    attention.load_state_dict(layer.cross_attn.state_dict())
    gathered = attention((x + positions)[None], words.keys, words.values)[0][0]  # A (n, d)
    z = residual + gathered
    hidden = layer.feed_forward.linear1(layer.norm1(z))
    slope = layer.feed_forward.activation.weight
    hidden = torch.where(hidden > 0, hidden, slope * hidden)
    return layer.norm2(z + layer.feed_forward.linear2(hidden))


@torch.no_grad()
def test_layer_equals_its_equation():
    """[QD-DETR] In float64, sample by sample; keys and values differ; padded words are not attended to."""
    batch, layer = batch_of(), shaken(T2VLayer(16, 4, 24, 0.0, "prelu").double())
    x, positions = drawn(4, 12, 16), drawn(4, 12, 16, seed=1)
    words = Words(drawn(4, 6, 16, seed=2), drawn(4, 6, 16, seed=3), batch.query_mask)
    output = layer(x, positions, words)
    for b, mask in enumerate(batch.query_mask):
        real = Words(words.keys[b : b + 1, mask], words.values[b : b + 1, mask], mask[mask][None])
        torch.testing.assert_close(output[b], layer_by_hand(layer, x[b], positions[b], real, x[b]))


def test_untrained_layer_has_a_slope_of_a_quarter_below_zero():
    """[QD-DETR] Written out with torch's attention in float32, with the initial weights."""
    torch.manual_seed(0)
    layer, batch = T2VLayer(16, 4, 24, 0.0, "prelu").eval(), batch_of()
    words, x, p = random_words(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    attention.load_state_dict(layer.cross_attn.state_dict())
    a, _ = attention(x + p, words.keys, words.values, key_padding_mask=~words.mask)
    z = x + a
    f = layer.feed_forward
    h = f.linear1(layer.norm1(z))
    h = torch.where(h > 0, h, 0.25 * h)
    torch.testing.assert_close(layer(x, p, words), layer.norm2(z + f.linear2(h)), rtol=1e-5, atol=1e-5)


def test_layer_has_the_gradients_of_its_equation():
    torch.manual_seed(0)
    layer, mask = T2VLayer(4, 2, 6, 0.0, "gelu").double(), torch.tensor([[True, True, True], [True, True, False]])
    inputs = [drawn(2, n, 4, seed=seed).requires_grad_() for seed, n in enumerate((2, 2, 3, 3))]
    assert torch.autograd.gradcheck(lambda x, p, keys, values: layer(x, p, Words(keys, values, mask)), inputs)


def test_dropout_acts_on_the_attention_and_on_the_feed_forward():
    """With everything dropped, what is left is the clips between two norms."""
    layer, batch = T2VLayer(16, 4, 24, 1.0).train(), batch_of()
    words, x, p = random_words(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    torch.testing.assert_close(layer(x, p, words), layer.norm2(x))
    assert not torch.allclose(layer.eval()(x, p, words), layer.norm2(x))


class Fade(nn.Module):
    """A share of the clips, and of their positions and the first word."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, positions, words):
        return self.share * x + (1 - self.share) * (positions + words.values[:, :1])


def test_output_of_mix_replaces_the_clips_in_the_sum():
    """[QD-DETR] With a share of 1 the layer equals the layer without `mix`."""
    torch.manual_seed(0)
    batch, fade = batch_of(), Fade()
    words, x, p = random_words(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    mixed, plain = T2VLayer(16, 4, 24, 0.0, mix=fade), T2VLayer(16, 4, 24, 0.0)
    plain.load_state_dict({k: v for k, v in mixed.state_dict().items() if not k.startswith("mix")})
    z = fade(x, p, words) + mixed.cross_attn(x + p, words.keys, words.values, words.mask)
    torch.testing.assert_close(mixed(x, p, words), mixed.norm2(z + mixed.feed_forward(mixed.norm1(z))))
    assert not torch.allclose(mixed(x, p, words), plain(x, p, words))
    fade.share.data.fill_(1.0)
    torch.testing.assert_close(mixed(x, p, words), plain(x, p, words))


@torch.no_grad()
def test_clip_attends_only_to_the_words_that_it_may_see():
    """If `visible` leaves one word to every head of a clip, the clip takes up the value of that word."""
    layer = shaken(T2VLayer(16, 4, 24, 0.0).double())
    x, positions, values = drawn(1, 3, 16), drawn(1, 3, 16, seed=1), drawn(1, 3, 16, seed=2)
    visible = torch.eye(3, dtype=torch.bool)[None, None].expand(1, 4, 3, 3)  # clip t sees word t
    output = layer(x, positions, Words(values, values, torch.ones(1, 3, dtype=torch.bool), visible))
    for t in range(3):
        word = Words(*[values[:, t : t + 1]] * 2, torch.ones(1, 1, dtype=torch.bool))
        torch.testing.assert_close(
            output[0, t : t + 1], layer_by_hand(layer, x[0, t : t + 1], positions[0, t : t + 1], word, x[0, t : t + 1])
        )


@torch.no_grad()
def test_every_word_is_the_same_as_a_mask_of_all_words():
    layer, batch = T2VLayer(16, 4, 24, 0.0).eval(), batch_of()
    words, x, p = random_words(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    visible = every_word(batch.target_mask, batch.query_mask)
    assert visible is None
    all_visible = words._replace(visible=torch.ones(4, 4, 12, 6, dtype=torch.bool))
    torch.testing.assert_close(layer(x, p, words._replace(visible=visible)), layer(x, p, all_visible))


def test_released_masks_of_two_samples_and_two_heads():
    """[QD-DETR] By hand: heads 0 and 1 of each sample read the masks of samples 0 and 1."""
    first = [[True, True], [True, False]]  # of sample 0: its padded clip does not see its padded word
    second = [[True, True], [True, True]]  # of sample 1, which has no padded word
    masks = released_masks(TARGET_MASK, QUERY_MASK, heads=2)
    assert masks.tolist() == [[first, second], [first, second]]


def test_released_masks_with_as_many_heads_as_two_samples_need():
    """[QD-DETR] Entry b x heads + head of the attention is that of sample (b x heads + head) mod B."""
    first, second = [[True, True], [True, False]], [[True, True], [True, True]]
    masks = released_masks(TARGET_MASK, QUERY_MASK, heads=3)
    assert masks.tolist() == [[first, second, first], [second, first, second]]


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_released_masks_are_tiled_by_head_and_read_by_sample(heads):
    """[QD-DETR] The official code's order of heads, with torch's own."""
    batch = batch_of()
    padded = ~batch.target_mask[:, :, None] & ~batch.query_mask[:, None]
    tiled = padded.repeat(heads, 1, 1)  # as the released code tiles
    read = tiled.reshape(len(batch), heads, *padded.shape[1:])  # as attention reads
    assert torch.equal(released_masks(batch.target_mask, batch.query_mask, heads), ~read)
