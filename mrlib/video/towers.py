"""The two towers of `mrlib.video.toy`: the pictures of a clip, and the words of a sentence, to vectors of one space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES = 4  # pictures of a clip
SIDE = 64  # of a picture, pixels
JOINT = 128  # J
TOKEN = 64  # D', width of a word


class PictureTower(nn.Module):
    """Convolutions over every picture of a clip, then over all of them together, so that motion is seen."""

    def __init__(self):
        super().__init__()
        self.single = nn.Sequential(*_block(3, 32, 6, 4, 1), *_block(32, 64))  # SIDE 64 -> 16 -> 8
        self.together = nn.Sequential(*_block(FRAMES * 64, 160))  # 8 -> 4
        self.joint = nn.Linear(160 * 4 * 4, JOINT)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, FRAMES, SIDE, SIDE, 3), 0 to 255 -> (B, J)."""
        x = pictures.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B * FRAMES, 3, SIDE, SIDE)
        x = self.single(x).unflatten(0, (-1, FRAMES)).flatten(1, 2)  # (B, FRAMES * 64, 8, 8)
        return self.joint(self.together(x).flatten(1))


class WordTower(nn.Module):
    """Word embeddings, mixed with their neighbours into tokens, whose weighted mean is the sentence."""

    def __init__(self, words: int):
        super().__init__()
        self.embedding = nn.Embedding(words, TOKEN)
        self.mixer = nn.Conv1d(TOKEN, TOKEN, 3, padding=1)
        self.norm = nn.LayerNorm(TOKEN)
        self.weight, self.joint = nn.Linear(TOKEN, 1, bias=False), nn.Linear(TOKEN, JOINT)

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of words (B, N), bool (B, N) -> tokens (B, N, D'), sentences (B, J)."""
        x = self.embedding(words) * mask[..., None]
        tokens = self.norm(x + self.mixer(x.mT).mT.relu())
        weights = self.weight(tokens)[..., 0].masked_fill(~mask, -torch.inf).softmax(1)  # (B, N)
        return tokens, self.joint((weights[..., None] * tokens).sum(1))


class Towers(nn.Module):
    """Both towers, and the scale of the cosines between them."""

    def __init__(self, words: int):
        """words  in the vocabulary"""
        super().__init__()
        self.pictures, self.words = PictureTower(), WordTower(words)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 2, padding: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def contrast(sentences: Tensor, clips: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE, where several clips may show what a sentence says, and some clips show nothing.

    The loss of a row is -log of the probability that all its matches have together; `mrlib.align.contrast` has one
    match per row.

    sentences  (B, J)
    clips      (B + I, J)  sentence b is about clip b; the I others are alternatives for the sentences only
    same       bool (B, B)  a sentence says what a clip shows, the diagonal included
    scale      of the cosines, scalar
    returns    scalar
    """
    logits = scale * F.normalize(sentences, dim=-1) @ F.normalize(clips, dim=-1).mT  # (B, B + I)
    matched, captioned = logits[:, : len(same)].masked_fill(~same, -torch.inf), logits[:, : len(same)]  # (B, B)
    losses = [every.logsumexp(axis) - matched.logsumexp(axis) for every, axis in ((logits, 1), (captioned, 0))]
    return torch.cat(losses).mean()
