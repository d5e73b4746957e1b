"""The fine step of a search in a corpus."""

import pytest
import torch
import torch.nn.functional as F

from mrlib.video.fine import Asked, moments


def test_runs_of_similar_clips_are_found_in_a_window():
    vector = F.normalize(torch.ones(8), dim=0)
    window = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    window[10:15] = vector
    ((first, *_),) = moments(Asked("a sentence", vector[None], vector, by_clip=False), [window], 2.0)
    assert first[:2] == (22, 30) and first[2] == pytest.approx(1, abs=0.3)
