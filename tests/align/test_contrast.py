"""The contrast of a batch against both directions written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from mrlib.align.contrast import batch_contrast
from tests.support.batches import drawn


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("rows", [[True] * 4, [True, False, True, True], [False, False, True, False]])
def test_each_query_is_set_against_the_videos_and_each_video_against_the_queries(rows, temperature):
    """[AMR, losses], [UVCOM] Over the samples that take part, however long the vectors are."""
    query, video = 3 * drawn(4, 5), 0.1 * drawn(4, 5, seed=1)
    part = [b for b in range(4) if rows[b]]
    near = {
        (i, j): math.exp(float(F.cosine_similarity(query[i], video[j], dim=0)) / temperature)
        for i in part
        for j in part
    }
    expected = 0.0
    for b in part:
        expected -= math.log(near[b, b] / sum(near[b, j] for j in part)) / 2
        expected -= math.log(near[b, b] / sum(near[i, b] for i in part)) / 2
    loss = batch_contrast(query, video, torch.tensor(rows), temperature)
    assert loss.item() == pytest.approx(expected / len(part), rel=1e-6, abs=1e-9)


def test_without_a_sample_that_takes_part_there_is_no_loss_and_no_gradient():
    query, video = drawn(3, 5).requires_grad_(), drawn(3, 5, seed=1).requires_grad_()
    loss = batch_contrast(query, video, torch.zeros(3, dtype=torch.bool), 0.07)
    loss.backward()
    assert loss == 0 and not query.grad.any() and not video.grad.any()


def test_its_gradient_is_that_of_finite_differences():
    query, video = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    rows = torch.tensor([True, True, False])
    torch.autograd.gradcheck(lambda q, v: batch_contrast(q, v, rows, 0.5), (query, video), atol=1e-4, eps=1e-4)
