"""Every paper with videos of one clip and of more clips than it was made for."""

import pytest
import torch

from mrlib import papers
from mrlib.data import Widths
from mrlib.ops import recompute
from tests.support.batches import make_batch

WIDTHS = Widths(24, 12, 16)
MAPS = {"f2sgd"}  # a map of all pairs of clips, whose size is limited


def model_of(name):
    return papers.build(papers.get(name, "small"), WIDTHS, seed=1)


@pytest.mark.parametrize("name", papers.PAPERS)
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [1, 7]])
def test_every_paper_trains_on_videos_of_one_clip(name, lengths):
    """Also beside a longer one; all moments are inside the video."""
    torch.manual_seed(0)
    batch, model = make_batch(lengths, motion=8), model_of(name).train()
    aligned, outputs = model(batch)
    terms = model.losses(aligned, outputs, batch)
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for line, seconds in zip(model.eval().predict(batch), batch.duration_s, strict=True):
        assert all(0 <= start <= end <= seconds for start, end, _ in line["pred_relevant_windows"])


@pytest.mark.parametrize("name", sorted(papers.PAPERS.keys() - MAPS))
def test_every_paper_without_a_map_predicts_on_5000_clips(name):
    """10,000 seconds, the lengths ragged."""
    batch, model = make_batch([5000, 3], motion=8), model_of(name).eval()
    lines = model.predict(batch)
    assert all(line["pred_relevant_windows"] for line in lines)
    ends = [end for _, end, _ in lines[0]["pred_relevant_windows"]]
    assert max(ends) <= 10_000 and max(end for _, end, _ in lines[1]["pred_relevant_windows"]) <= 6


@pytest.mark.parametrize("name", sorted(papers.PAPERS.keys() - MAPS))
def test_the_gradients_of_long_videos_do_not_depend_on_what_is_kept(name, monkeypatch):
    """With dropout: layers that run again in the backward pass give the same bytes."""
    model = papers.build(papers.get(name, "small", dropout=0.2), WIDTHS, seed=1).train()
    batch, gradients = make_batch([550, 30], motion=8), []
    for long in (512, 10_000):
        monkeypatch.setattr(recompute, "_LONG", long)
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        aligned, outputs = model(batch)
        sum(model.losses(aligned, outputs, batch).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients)) and len(gradients[0]) > 10
