"""The contrast between the queries and the videos of a batch, against both directions written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from mrlib.align.contrast import batch_contrast
from tests.support.batches import drawn


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("rows", [[True] * 4, [True, False, True, True], [False, False, True, False]])
def test_contrast_equals_its_definition_in_both_directions(rows, temperature):
    """[AMR, losses], [UVCOM] Over the samples that take part, whatever the norms of the vectors."""
    query, video = 3 * drawn(4, 5), 0.1 * drawn(4, 5, seed=1)
    part = [b for b in range(4) if rows[b]]
    likelihood = {
        (i, j): math.exp(float(F.cosine_similarity(query[i], video[j], dim=0)) / temperature)
        for i in part
        for j in part
    }
    expected = 0.0
    for b in part:
        expected -= math.log(likelihood[b, b] / sum(likelihood[b, j] for j in part)) / 2
        expected -= math.log(likelihood[b, b] / sum(likelihood[i, b] for i in part)) / 2
    loss = batch_contrast(query, video, torch.tensor(rows), temperature)
    assert loss.item() == pytest.approx(expected / len(part), rel=1e-6, abs=1e-9)


def test_contrast_of_two_orthogonal_pairs():
    """By hand: each query matches its video and is orthogonal to the other, so both directions are log(1 + 1/e)."""
    query, video = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    loss = batch_contrast(query, video, torch.tensor([True, True]), 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_contrast_of_a_batch_is_a_loop_over_the_samples_that_take_part():
    """[AMR, losses] Both directions; a sample that takes no part is no alternative either."""
    g = torch.Generator().manual_seed(0)
    query, video = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    rows, total = torch.tensor([True, False, True, True, False]), 0.0
    part = [0, 2, 3]
    for b in part:
        for anchor, others in ((query[b], video), (video[b], query)):
            logits = [torch.cosine_similarity(anchor, others[o], dim=0).item() / 0.07 for o in part]
            total += math.log(sum(map(math.exp, logits))) - logits[part.index(b)]
    assert batch_contrast(query, video, rows, 0.07).item() == pytest.approx(total / 6, rel=1e-9)
    assert batch_contrast(query, video, torch.zeros(5, dtype=torch.bool), 0.07).item() == 0
    assert batch_contrast(query[:1], video[:1], rows[:1], 0.07).item() == pytest.approx(0)


def test_without_a_sample_that_takes_part_loss_and_gradient_are_zero():
    query, video = drawn(3, 5).requires_grad_(), drawn(3, 5, seed=1).requires_grad_()
    loss = batch_contrast(query, video, torch.zeros(3, dtype=torch.bool), 0.07)
    loss.backward()
    assert loss == 0 and not query.grad.any() and not video.grad.any()


def test_no_gradient_flows_into_samples_that_take_no_part():
    query, video = drawn(3, 5).requires_grad_(), drawn(3, 5, seed=1).requires_grad_()
    batch_contrast(query, video, torch.tensor([True, False, True]), 0.07).backward()
    for gradient in (query.grad, video.grad):
        assert gradient[[0, 2]].any(1).all() and not gradient[1].any()


def test_gradient_equals_finite_differences():
    query, video = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    rows = torch.tensor([True, True, False])
    torch.autograd.gradcheck(lambda q, v: batch_contrast(q, v, rows, 0.5), (query, video), atol=1e-4, eps=1e-4)
