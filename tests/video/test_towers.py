"""The towers of `Toy`, and its loss."""

import torch

from mrlib.video.towers import FRAMES, JOINT, SIDE, TOKEN, PictureTower, Towers, WordTower, contrast


def test_the_loss_by_hand():
    """Two sentences about the same event, and an idle clip: a match is whatever shows the event."""
    sentences, clips = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scale, alike = torch.tensor(2.0), torch.eye(2, dtype=torch.bool)
    logits = 2 * torch.tensor([[1, 0, 0.5**0.5], [0, 1, 0.5**0.5]]).double().exp().log()
    to_clip = -logits.log_softmax(1)[[0, 1], [0, 1]].mean()
    to_sentence = -logits[:, :2].log_softmax(0)[[0, 1], [0, 1]].mean()
    torch.testing.assert_close(contrast(sentences, clips, alike, scale).double(), (to_clip + to_sentence) / 2)
    both = -logits.softmax(1)[:, :2].sum(1).log().mean() / 2
    torch.testing.assert_close(contrast(sentences, clips, torch.ones_like(alike), scale).double(), both)


def test_padding_changes_no_sentence():
    tower = WordTower(9).eval()
    words, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    tokens, vector = tower(words, mask)
    longer, more = torch.tensor([[1, 2, 3, 5, 6]]), torch.tensor([[True, True, True, False, False]])
    padded_tokens, padded_vector = tower(longer, more)
    torch.testing.assert_close(padded_tokens[:, :3], tokens)
    torch.testing.assert_close(padded_vector, vector)
    assert tokens.shape == (1, 3, TOKEN) and vector.shape == (1, JOINT)


def test_the_order_of_the_pictures_counts():
    """Otherwise packing would look like unpacking."""
    torch.manual_seed(0)
    tower = PictureTower().eval()
    pictures = torch.randint(256, (2, FRAMES, SIDE, SIDE, 3), dtype=torch.uint8)
    vectors = tower(pictures)
    assert vectors.shape == (2, JOINT)
    assert (tower(pictures.flip(1)) - vectors).abs().max() > 0.01


def test_every_parameter_learns():
    torch.manual_seed(0)
    towers = Towers(5)
    pictures = torch.randint(256, (3, FRAMES, SIDE, SIDE, 3))
    words, mask = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.ones(2, 3, dtype=torch.bool)
    same = torch.eye(2, dtype=torch.bool)
    contrast(towers.words(words, mask)[1], towers.pictures(pictures), same, towers.log_scale.exp()).backward()
    still = [n for n, p in towers.named_parameters() if not (p.grad != 0).any()]
    assert still == []
