"""Clips that attend to words: a layer against its formula, and the masks of the release."""

import torch
from torch import nn

from mrlib.align.text_to_video import T2VLayer, Words, released_masks
from tests.support.batches import batch_of


def words_of(batch, width=16):
    text = torch.randn(*batch.query.shape[:2], width, generator=torch.Generator().manual_seed(0))
    return Words(text, text, batch.query_mask)


def test_a_layer_is_attention_to_the_words_and_a_feed_forward_around_the_unnormed_sum():
    """[QD-DETR] Written out with torch's attention."""
    torch.manual_seed(0)
    layer, batch = T2VLayer(16, 4, 24, 0.0, "prelu").eval(), batch_of()
    words, x, p = words_of(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(layer.cross_attn.state_dict())
    a, _ = theirs(x + p, words.keys, words.values, key_padding_mask=~words.mask)
    z = x + a
    f = layer.feed_forward
    h = f.linear1(layer.norm1(z))
    h = torch.where(h > 0, h, 0.25 * h)
    torch.testing.assert_close(layer(x, p, words), layer.norm2(z + f.linear2(h)), rtol=1e-5, atol=1e-5)


class Fade(nn.Module):
    """A share of the clips, and of their positions and the first word."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, positions, words):
        return self.share * x + (1 - self.share) * (positions + words.values[:, :1])


def test_a_module_can_be_mixed_in_where_the_clips_are_carried_on():
    """[QD-DETR] With a share of 1 it is the layer without."""
    torch.manual_seed(0)
    batch, fade = batch_of(), Fade()
    words, x, p = words_of(batch), torch.randn(4, 12, 16), torch.randn(4, 12, 16)
    mixed, plain = T2VLayer(16, 4, 24, 0.0, mix=fade), T2VLayer(16, 4, 24, 0.0)
    plain.load_state_dict({k: v for k, v in mixed.state_dict().items() if not k.startswith("mix")})
    z = fade(x, p, words) + mixed.cross_attn(x + p, words.keys, words.values, words.mask)
    torch.testing.assert_close(mixed(x, p, words), mixed.norm2(z + mixed.feed_forward(mixed.norm1(z))))
    assert not torch.allclose(mixed(x, p, words), plain(x, p, words))
    fade.share.data.fill_(1.0)
    torch.testing.assert_close(mixed(x, p, words), plain(x, p, words))


def test_released_masks_are_tiled_head_by_head_and_read_sample_by_sample():
    """[QD-DETR] The official gotcha, with torch's own order of heads."""
    batch, heads = batch_of(), 3
    padded = ~batch.target_mask[:, :, None] & ~batch.query_mask[:, None]
    tiled = padded.repeat(heads, 1, 1)  # as the released code tiles
    read = tiled.reshape(len(batch), heads, *padded.shape[1:])  # as attention reads
    assert torch.equal(released_masks(batch.target_mask, batch.query_mask, heads), ~read)
