"""Models of every paper in float64: they train and decode, and agree with float32 up to rounding."""

import copy

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from tests.support.batches import in_float64, make_batch
from tests.support.modules import shaken

WIDTHS = Widths(24, 12, 16)
LENGTHS = [9, 5, 12, 7]


def losses(retriever, batch):
    """The aligned clips, the outputs, and every loss term, with the same random draws at each call."""
    torch.manual_seed(0)
    aligned, outputs = retriever(batch)
    return aligned, outputs, retriever.losses(aligned, outputs, batch)


def moments(retriever, batch):
    """Rows of start, end and score of every sample."""
    with torch.no_grad():
        decoded = retriever.detector.decode(retriever(batch)[1], batch)
    rows = torch.cat([decoded.spans, decoded.scores[..., None]], -1)
    return [x[mask] for x, mask in zip(rows, decoded.mask, strict=True)]


def test_a_float64_batch_has_no_float32_tensor():
    batch = in_float64(make_batch(LENGTHS, motion=8))
    tensors = [v for x in (batch, batch.labels) for v in vars(x).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) > 10 and not any(x.dtype == torch.float32 for x in tensors)


@pytest.mark.parametrize("name", papers.PAPERS)
def test_every_paper_trains_and_predicts_in_float64(name):
    """Outputs and moments are float64; losses and gradients are finite, and those of float32 up to rounding."""
    retriever = shaken(papers.build(papers.get(name, "small"), WIDTHS, seed=1))
    batch = make_batch(LENGTHS, motion=8)
    double, double_batch = copy.deepcopy(retriever).double(), in_float64(batch)

    aligned, outputs, terms = losses(double, double_batch)
    tensors = [x for x in (aligned.target, aligned.query, aligned.saliency, *outputs.values()) if x is not None]
    assert all(x.dtype == torch.float64 for x in tensors if x.is_floating_point())
    sum(terms.values()).backward()
    gradients = {n: p.grad for n, p in double.named_parameters() if p.grad is not None}
    assert gradients and all(x.dtype == torch.float64 and x.isfinite().all() for x in gradients.values())

    single_terms = losses(retriever, batch)[2]
    assert {n: x.item() for n, x in terms.items()} == pytest.approx(
        {n: x.item() for n, x in single_terms.items()}, rel=1e-4, abs=1e-5
    )
    sum(single_terms.values()).backward()
    largest = max(x.abs().max() for x in gradients.values())
    for n, p in retriever.named_parameters():
        assert (p.grad is not None) == (n in gradients)
        if p.grad is not None:
            torch.testing.assert_close(p.grad.double(), gradients[n], rtol=1e-3, atol=1e-4 * largest.item(), msg=n)

    for rows, single in zip(moments(double, double_batch), moments(retriever, batch), strict=True):
        assert rows.dtype == torch.float64
        torch.testing.assert_close(rows, single.double(), rtol=1e-4, atol=1e-4)
    assert double.predict(double_batch)[0]["pred_relevant_windows"]
