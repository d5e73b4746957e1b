"""Temporal cycle consistency against its definition, in plain loops."""

import math

import pytest
import torch

import mrlib.ops
from tests.support.alignments import random_costs


def test_tcc_equals_its_definition():
    """[TCC] query -> target -> query, in a loop over query clips."""
    target, query = random_costs(1, 6, 5)[0] - 0.5, random_costs(1, 4, 5, seed=1)[0] - 0.5
    cosine = lambda a, b: float(a @ b / (a.norm() * b.norm()))  # noqa: E731
    N, loss = len(query), 0.0
    for j, q in enumerate(query, 1):
        alpha = torch.tensor([cosine(q, t) / 0.1 for t in target], dtype=torch.float64).softmax(0)
        nearest = (alpha[:, None] * target).sum(0)
        beta = torch.tensor([cosine(nearest, m) / 0.1 for m in query], dtype=torch.float64).softmax(0).tolist()
        mu = sum(b * m / N for m, b in enumerate(beta, 1))
        variance = max(sum(b * (m / N - mu) ** 2 for m, b in enumerate(beta, 1)), 1e-4)
        loss += ((j / N - mu) ** 2 / variance + 0.001 * math.log(math.sqrt(variance))) / N
        assert mrlib.ops.tcc_alignment(target[None], query[None])[0, :, j - 1].nonzero().item() == alpha.argmax()
    assert mrlib.ops.tcc(target[None], query[None]).item() == pytest.approx(loss)


def test_tcc_is_0_for_a_query_of_one_clip_and_small_if_every_clip_returns_to_itself():
    target, query = random_costs(2, 6, 16) - 0.5, random_costs(2, 4, 16, seed=1) - 0.5
    assert mrlib.ops.tcc(target, query, query_lengths=torch.tensor([1, 4]))[0] == 0
    copied = target.clone()
    copied[:, 1:5] = query
    least = torch.full((2,), 0.001 * math.log(math.sqrt(1e-4)), dtype=torch.float64)  # of the smallest variance
    torch.testing.assert_close(mrlib.ops.tcc(copied, query, temperature=0.01), least)
    assert mrlib.ops.tcc_alignment(copied, query)[0].nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]


def test_tcc_of_a_sample_without_clips_is_0_with_gradient_0():
    """An empty target, an empty query, and both."""
    target, query = random_costs(4, 6, 5).requires_grad_(), random_costs(4, 4, 5, seed=1).requires_grad_()
    value = mrlib.ops.tcc(target, query, torch.tensor([0, 6, 0, 6]), torch.tensor([4, 0, 0, 4]))
    assert value[:3].tolist() == [0, 0, 0] and value[3] != 0
    for gradient in torch.autograd.grad(value.sum(), (target, query)):
        assert gradient.isfinite().all() and not gradient[:3].any() and gradient[3].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_features_that_are_no_numbers_are_refused_and_named_except_on_padding(value):
    """3e38 is one, but the norm of the clip is not."""
    features = {"target": random_costs(3, 6, 5).float(), "query": random_costs(3, 4, 5, seed=1).float()}
    lengths = {"target": torch.tensor([6, 4, 5]), "query": torch.tensor([4, 3, 2])}
    for function, side in ((f, s) for f in (mrlib.ops.tcc, mrlib.ops.tcc_alignment) for s in features):
        expected = function(*features.values(), *lengths.values())
        spoilt = {name: x.clone() for name, x in features.items()}
        spoilt[side][1, -1] = value
        assert torch.equal(function(*spoilt.values(), *lengths.values()), expected)
        spoilt[side][1, 2, 3] = value
        with pytest.raises(ValueError, match=f"the norm of the {side} is (nan|inf) at batch element 1, clip 2"):
            function(*spoilt.values(), *lengths.values())


def test_a_temperature_that_divides_a_cosine_beyond_float32_is_refused():
    features = random_costs(2, 6, 5).float(), random_costs(2, 4, 5, seed=1).float()
    assert mrlib.ops.tcc(*features, temperature=1e-30).isfinite().all()
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, at least 1e-30, not 1e-31"):
        mrlib.ops.tcc(*features, temperature=1e-31)
